//! Whether what is stored outlives the container it is stored in: a folder of an image is writable without a volume, works
//! well, and is gone with the container. What is mounted where is read from the kernel; where that cannot be, nobody is
//! refused.

use std::path::Path;

use super::file_of;
use super::inspect::unusable;
use crate::config::Driver;
use crate::error::Result;

const MOUNTS: &str = "/proc/self/mountinfo";

/// Refuses a database in a folder of the image that is no volume, or one that goes with the container.
pub fn refuse_lost_data(driver: &Driver, volume: &Path) -> Result<()> {
    // the folder that a process of the image starts in is on the volume too
    let file = file_of(driver).and_then(|file| std::path::absolute(file).ok());
    let folder = file.as_deref().and_then(Path::parent).filter(|folder| folder.starts_with(volume));
    let (Some(folder), Ok(mounts)) = (folder, std::fs::read_to_string(MOUNTS)) else { return Ok(()) };
    let Some(why) = why_lost(&mounts, folder, volume) else { return Ok(()) };
    Err(unusable(format!(
        "{} {why}: what is stored there is lost with the container; mount a volume of a name (-v open-spanner:{}), or \
         leave OPEN_SPANNER_DATA_VOLUME away",
        volume.display(),
        volume.display()
    )))
}

/// What is wrong with the place of a folder; nothing when it is on a volume, as far as can be seen.
fn why_lost(mounts: &str, folder: &Path, volume: &Path) -> Option<&'static str> {
    let within = mounts.lines().filter_map(Mount::parse).filter(|mount| {
        let point = Path::new(&mount.point);
        folder.starts_with(point) && point.starts_with(volume)
    });
    // of two at one place the later one covers the earlier
    let Some(mount) = within.max_by_key(|mount| mount.point.len()) else { return Some("is no volume") };
    // a folder of the host in its memory is the host's business
    if mount.root == "/" && ["tmpfs", "ramfs"].contains(&mount.kind.as_str()) {
        return Some("is memory");
    }
    if mount.root.contains("/kubernetes.io~empty-dir/") {
        return Some("is an emptyDir");
    }
    is_anonymous(&mount.root).then_some("is a volume without a name")
}

/// Docker and Podman call a volume that nobody named by 64 digits.
fn is_anonymous(root: &str) -> bool {
    let Some(name) = root.strip_suffix("/_data").and_then(|root| root.rsplit('/').next()) else {
        return false;
    };
    name.len() == 64 && name.chars().all(|c| c.is_ascii_hexdigit())
}

/// A line of the kernel's table of mounts.
struct Mount {
    /// Where in its file system what is mounted begins.
    root: String,
    point: String,
    kind: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (place, device) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        // spaces in names
        let plain = |text: &str| text.replace("\\040", " ");
        let (root, point) = (plain(fields.next()?), plain(fields.next()?));
        Some(Mount { root, point, kind: device.split(' ').next()?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(mounts: &str) -> Option<&'static str> {
        let image = "22 1 0:45 / / rw,relatime - overlay overlay rw,lowerdir=/a\n23 22 0:5 / /proc rw - proc proc rw\n";
        why_lost(&format!("{image}{mounts}"), Path::new("/data"), Path::new("/data"))
    }

    #[test]
    fn volumes_are_told_from_what_goes_with_the_container() {
        let digits = "0123456789abcdef".repeat(4);
        let named = "30 22 8:1 /var/lib/docker/volumes/open-spanner/_data /data rw,relatime master:1 - ext4 /dev/sda1 rw";
        let folder = "30 22 8:1 /srv/open\\040spanner /data rw,relatime - xfs /dev/sda1 rw";
        let pod = "30 22 8:1 /pods/x/volumes/kubernetes.io~empty-dir/data /data rw - ext4 /dev/sda1 rw";
        let of_host = "30 22 0:31 /volumes/x /data rw - tmpfs tmpfs rw";
        let claim = "30 22 8:17 / /data rw - ext4 /dev/sdb1 rw";
        let memory = "30 22 0:50 / /data rw - tmpfs tmpfs rw,size=65536k";
        let unnamed = named.replace("volumes/open-spanner", &format!("volumes/{digits}"));
        for (mounts, wanted) in [
            ("", Some("is no volume")),
            ("30 22 8:1 /srv/exports /data/exports rw - ext4 /dev/sda1 rw", Some("is no volume")),
            ("30 22 8:1 /srv/other /database rw - ext4 /dev/sda1 rw", Some("is no volume")),
            (named, None),
            (folder, None),
            (claim, None),
            (of_host, None),
            (pod, Some("is an emptyDir")),
            (memory, Some("is memory")),
            (unnamed.as_str(), Some("is a volume without a name")),
        ] {
            assert_eq!(why(mounts), wanted, "{mounts}");
        }
    }
}
