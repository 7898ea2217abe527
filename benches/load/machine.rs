//! What the operating system knows: processor time and memory of processes, and how long the disk takes to make a
//! write durable while a measurement runs.

use std::fs;
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Microseconds per clock tick in `/proc`: USER_HZ is 100 on every Linux that Rust runs on.
const TICK_MICROS: u64 = 10_000;

/// Fields of `/proc/PID/stat` after the name: parent, own ticks, ticks of children that have ended.
fn stat(pid: u32) -> Option<(u32, u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text[text.rfind(')')? + 2..].split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((number(1)? as u32, number(11)? + number(12)?, number(13)? + number(14)?))
}

/// Processor time of one process, in microseconds.
pub fn cpu_of(pid: u32) -> u64 {
    stat(pid).map_or(0, |(_, own, _)| own * TICK_MICROS)
}

/// Processor time of a process and of all its children, ended ones included.
pub fn cpu_of_family(pid: u32) -> u64 {
    let living: u64 = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(stat)
        .filter(|(parent, ..)| *parent == pid)
        .map(|(_, own, _)| own)
        .sum();
    stat(pid).map_or(0, |(_, own, ended)| (own + ended + living) * TICK_MICROS)
}

/// Time all processors of the machine were busy, with whatever.
pub fn cpu_of_machine() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<u64> =
        text.lines().next().unwrap_or_default().split(' ').filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    numbers.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, n)| n).sum::<u64>()
        * TICK_MICROS
}

pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Resident memory now, and the most since the last [`forget_peak`], in bytes.
pub fn memory_of(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    (bytes("VmRSS:").unwrap_or(0), bytes("VmHWM:").unwrap_or(0))
}

pub fn forget_peak(pid: u32) {
    // where the kernel refuses, the peak stays that of the whole run
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// Writes and syncs a small file beside the database again and again, until asked for what it saw.
pub struct SyncProbe {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<u32>>,
}

const PROBE_PAUSE: Duration = Duration::from_millis(100);

impl SyncProbe {
    pub fn start(dir: &Path) -> std::io::Result<SyncProbe> {
        let mut file = fs::File::create(dir.join("sync-probe"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut micros = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let started = Instant::now();
                let written = file.rewind().and_then(|()| file.write_all(&[7; 8192]));
                if written.and_then(|()| file.sync_data()).is_err() {
                    break;
                }
                micros.push(started.elapsed().as_micros() as u32);
                std::thread::sleep(PROBE_PAUSE);
            }
            micros
        });
        Ok(SyncProbe { stop, thread })
    }

    /// Median, in microseconds.
    pub fn finish(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut micros = self.thread.join().unwrap_or_default();
        crate::report::percentile(&mut micros, 50.0)
    }
}
