//! Measures what the store costs: processor time and bytes written for each publication, the size of
//! the files, and how long they take to read.
//!
//! `cargo run --profile production -p switchyard-history-store --example store_costs`
//!
//! 10,000 channels keep 20 messages each. A million publications go to random channels; each 20,000
//! are written together, as those of a second would be. The processor time is that of all threads
//! less that of the same publications without a store. Each part runs in a process of its own.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::Histories;
use switchyard_history::{Entry, HistoryRule};
use switchyard_history_store::{Memory, Options, Store};

const CHANNELS: usize = 10_000;
const MESSAGES: usize = 20;
const PUBLICATIONS: u64 = 1_000_000;
const AT_ONCE: u64 = 20_000;

fn main() {
    let part = std::env::args().nth(1);
    if let Some(bytes) = part.and_then(|part| part.parse().ok()) {
        return measure(bytes);
    }
    for bytes in ["100", "1000"] {
        let program = std::env::current_exe().expect("the path of this program");
        let status = std::process::Command::new(program).arg(bytes).status();
        assert!(status.is_ok_and(|status| status.success()), "{bytes} failed");
    }
}

fn measure(bytes: usize) {
    let home = tempfile::tempdir().expect("a directory");
    let rule = HistoryRule { messages: MESSAGES, age_ms: 3_600_000, idle_ms: 3_600_000 };
    let alone = Histories::new(rule);
    let before = processor_time();
    for number in 0..PUBLICATIONS / AT_ONCE {
        publish(&alone, number, bytes);
    }
    let without = processor_time() - before;
    drop(alone);

    let histories = Histories::new(rule);
    let store = open(home.path(), &histories);
    let (before, written) = (processor_time(), written());
    let mut times = Vec::new();
    for number in 0..PUBLICATIONS / AT_ONCE {
        publish(&histories, number, bytes);
        let begun = Instant::now();
        store.set_flush_time(Duration::from_millis(1));
        while store.status().messages < (number + 1) * AT_ONCE {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        times.push(begun.elapsed());
        store.set_flush_time(Duration::from_secs(60));
    }
    let with = processor_time() - before;
    times.sort_unstable();
    let payloads = PUBLICATIONS as f64 * bytes as f64;
    let (median, longest) = (times.get(times.len() / 2), times.last());
    println!("{bytes} bytes, {PUBLICATIONS} publications in transactions of {AT_ONCE}");
    let each = (with - without).as_secs_f64() * 1e6 / PUBLICATIONS as f64;
    println!("  processor time for each, besides memory: {each:.2} us");
    println!("  a transaction takes {median:?}, the longest {longest:?}");
    let times_payload = (self::written() - written) as f64 / payloads;
    println!("  bytes written: {times_payload:.1} times the payloads");
    store.close(Duration::from_secs(60)).expect("it closes");
    let kept = (CHANNELS * MESSAGES * bytes) >> 20;
    println!("  files: {} MiB for {kept} MiB of payloads", size(home.path()) >> 20);
    println!("  resident: {} MiB", resident() >> 20);
    drop(histories);

    let again = Histories::new(rule);
    let begun = Instant::now();
    let store = open(home.path(), &again);
    let read = store.status().read;
    println!("  read at the start: {:?}, {} messages", begun.elapsed(), read.messages);
    assert_eq!(read.continued, CHANNELS as u64);
}

fn open(directory: &Path, histories: &Arc<Histories>) -> Store {
    let flush_time = Duration::from_secs(60);
    let options = Options { directory: directory.to_owned(), flush_time, batch_bytes_max: 4 << 20 };
    Store::open(options, histories.clone()).expect("it opens")
}

fn publish(histories: &Histories, seed: u64, bytes: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut payload = vec![b'x'; bytes];
    for _ in 0..AT_ONCE {
        payload.iter_mut().step_by(8).for_each(|byte| *byte = rng.u8(..));
        let channel = format!("chat.{}", rng.usize(..CHANNELS));
        let entry = Entry::new(&payload, 7, None, None);
        let mut streams = histories.streams.lock();
        streams.publish(channel.as_bytes(), entry, || 0, histories.now_us());
    }
}

fn size(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return path.metadata().map_or(0, |metadata| metadata.len());
    };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}

/// The bytes that this process has written to files.
fn written() -> u64 {
    field(&fs::read_to_string("/proc/self/io").expect("/proc is mounted"), "wchar:")
}

/// The resident memory of this process at its highest.
fn resident() -> u64 {
    field(&fs::read_to_string("/proc/self/status").expect("/proc is mounted"), "VmHWM:") * 1_024
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.expect("the field is there")
}

/// The processor time of all threads of this process.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
