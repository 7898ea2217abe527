//! Tells the program which commit it is built from, and packs the OpenAPI document and its viewer. Only release builds look at
//! git: a development build would have to be made anew after every commit.

#![expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]

use std::error::Error;
use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::{CompressionMethod, ZipArchive};

const COMMIT: &str = "OPEN_SPANNER_COMMIT";
const DOCUMENT: &str = "docs/openapi.json";
/// Of Swagger UI what its page loads; its archive has everything in three kinds.
const VIEWER: [&str; 7] = [
    "index.html",
    "index.css",
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "favicon-16x16.png",
    "favicon-32x32.png",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={COMMIT}");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // builds without the repository, like that of an image, are told
    let told = std::env::var(COMMIT).ok().filter(|commit| !commit.is_empty());
    let commit = match told {
        Some(commit) => commit,
        None if is_release => from_git().unwrap_or_else(|| "unknown commit".to_owned()),
        None => "development".to_owned(),
    };
    println!("cargo::rustc-env=BUILD_COMMIT={commit}");
    let folder = std::env::var("OUT_DIR").unwrap_or_default();
    if let Err(error) = pack(Path::new(&folder)) {
        println!("cargo::error=what is sent packed cannot be packed: {error}");
    }
}

/// Written as they are sent: in gzip.
fn pack(folder: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={DOCUMENT}");
    // a build of the dependencies alone has no document, and needs none
    if let Ok(text) = std::fs::read_to_string(DOCUMENT) {
        // without its line breaks, of which JSON texts have none inside
        let compact: String = text.lines().map(str::trim_start).collect();
        std::fs::write(folder.join("openapi.json.gz"), gzip(compact.as_bytes())?)?;
    }
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    for index in 0..archive.len() {
        let mut file = archive.by_index_raw(index)?;
        let whole_name = file.name()?.into_owned();
        // swagger-ui-VERSION/dist/NAME
        let parts: Vec<&str> = whole_name.split('/').collect();
        let name = match parts[..] {
            [_, "dist", name] if VIEWER.contains(&name) => name,
            _ => continue,
        };
        let path = folder.join(format!("{name}.gz"));
        let mut packed = Vec::new();
        file.read_to_end(&mut packed)?;
        let packed = match file.compression() {
            CompressionMethod::STORE => gzip(&packed)?,
            // packed by the same method: what differs is what stands around it
            CompressionMethod::DEFLATE => {
                let size = u32::try_from(file.size())?;
                let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
                [&head[..], &packed, &file.crc32().to_le_bytes(), &size.to_le_bytes()].concat()
            }
            method => return Err(format!("{name} is packed by {method}").into()),
        };
        std::fs::write(path, packed)?;
    }
    Ok(())
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Short hash and day of the commit.
fn from_git() -> Option<String> {
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    git(&["log", "-1", "--format=%h %cs", "--abbrev=12"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
