//! A shell that outlives the tests and cleans up after them. It reads what to end and what to remove from a pipe;
//! when the test process is gone, however it went, the pipe closes and the shell does its work.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};

const SCRIPT: &str = r#"
live=" "
while read -r word rest; do
    case $word in
        run) live="$live$rest " ;;
        ended) live=$(printf '%s' "$live" | sed "s/ $rest / /") ;;
        remove) set -- "$@" "$rest" ;;
    esac
done
# one that was stopped must go on to end
for entry in $live; do kill -s "${entry%:*}" "${entry#*:}"; kill -s CONT "${entry#*:}"; done 2>/dev/null
for entry in $live; do
    tries=0
    # a zombie has no program any more
    while [ $tries -lt 50 ] && [ -e "/proc/${entry#*:}/exe" ]; do sleep 0.1; tries=$((tries + 1)); done
done
for path in "$@"; do umount -l "$path"; rm -rf "$path"; done 2>/dev/null
"#;

#[expect(clippy::zombie_processes, reason = "it outlives us by design")]
fn tell(line: &str) {
    static PIPE: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let pipe = PIPE.get_or_init(|| {
        // a process group of its own: Ctrl-C must not reach it
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = shell.process_group(0).spawn().expect("sh starts");
        Mutex::new(child.stdin.expect("stdin is piped"))
    });
    let mut pipe = pipe.lock().expect("no writer panics");
    pipe.write_all(format!("{line}\n").as_bytes()).expect("the guard reads until the tests end");
}

/// End this process with this signal (`KILL`, `QUIT`) if the tests end before it.
pub fn will_end(pid: u32, signal: &str) {
    tell(&format!("run {signal}:{pid}"));
}

/// The process is gone; its number may be somebody else's soon.
pub fn has_ended(pid: u32, signal: &str) {
    tell(&format!("ended {signal}:{pid}"));
}

/// Unmount (if mounted) and remove this directory when the tests are over.
pub fn will_remove(path: &Path) {
    tell(&format!("remove {}", path.display()));
}

/// Sends a signal by name; true if the process was there.
pub fn signal(name: &str, pid: u32) -> bool {
    let script = format!("kill -s {name} {pid} 2>/dev/null");
    Command::new("sh").args(["-c", &script]).status().is_ok_and(|status| status.success())
}
