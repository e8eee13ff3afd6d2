//! Measures what streams cost: time for each publication, memory, the longest calls.
//!
//! `cargo run --release -p switchyard-history --example history_costs`
//!
//! Times are processor time. The resident memory is that of the process, with mimalloc. Each part
//! runs in a process of its own, so that memory freed by one is not used by the next.
//!
//! mimalloc is set to use no huge pages: with them the resident memory grows by 2 MiB at once, and a
//! call that touches the first byte of one waits for the kernel to clear it, for milliseconds. It is
//! set to keep what is freed, too: once a second it returns that to the kernel, and the call in which
//! it does that for hundreds of MiB takes tens of milliseconds, whatever the call itself does.
//!
//! One thread runs: what a lock costs, and memory shared by processors, is not measured.

use std::sync::Arc;
use std::time::Duration;

use mimalloc::MiMalloc;
use rustix::time::{ClockId, clock_gettime};
use switchyard_history::{Entry, HistoryRule, Limits, Look, Resolver, Resume, Streams};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const PARTS: [&str; 8] =
    ["append", "small", "large", "empty", "message", "expiry", "rules", "resume"];
const SECOND_US: u64 = 1_000_000;
const NOW_US: u64 = 1_764_340_000 * SECOND_US;
const WORK_MAX: usize = 4_096;

fn main() {
    let Some(part) = std::env::args().nth(1) else {
        let program = std::env::current_exe().expect("the path of this program");
        for part in PARTS {
            let mut command = std::process::Command::new(&program);
            command.arg(part).env("MIMALLOC_ALLOW_THP", "0").env("MIMALLOC_PURGE_DELAY", "-1");
            let status = command.status();
            assert!(status.is_ok_and(|status| status.success()), "{part} failed");
        }
        return;
    };
    match &*part {
        "append" => append(),
        "small" => memory("100,000 streams of 10 messages of 10 to 200 bytes", 100_000, 10, small),
        "large" => memory("1,000 streams of 10 messages of 10 to 70 KB", 1_000, 10, large),
        "empty" => memory("100,000 streams without messages", 100_000, 0, small),
        "message" => memory("1,000 streams of 1,000 messages of 96 bytes", 1_000, 1_000, |_| 96),
        "expiry" => expiry(),
        "rules" => rules(),
        "resume" => resume(),
        other => println!("no part {other}"),
    }
}

/// Calls that were measured one by one.
#[derive(Default)]
struct Calls {
    times: Vec<Duration>,
}

impl Calls {
    fn measure<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let begun = Spent::now();
        let result = call();
        self.times.push(begun.elapsed());
        result
    }

    fn print(&mut self, what: &str) {
        self.times.sort_unstable();
        let count = self.times.len();
        let sum: Duration = self.times.iter().sum();
        let longest: Vec<&Duration> = self.times.iter().rev().take(4).collect();
        println!("{what}: {count} calls, together {sum:?}, the longest {longest:?}");
    }
}

fn append() {
    let begun = Spent::now();
    for _ in 0..4_000_000 {
        std::hint::black_box(Entry::new(std::hint::black_box(&[b'x'; 100]), 7, None, None));
    }
    println!("an entry of 100 bytes is made and freed: {:?}", begun.elapsed() / 4_000_000);
    for (channels, messages) in [(1, 100), (1_000, 100), (10_000, 100), (100_000, 10)] {
        let mut streams = streams(messages, 300_000);
        let names: Vec<String> = (0..channels).map(name).collect();
        let payload = [b'x'; 100];
        let count = 4_000_000.max(2 * channels * messages);
        let mut measured = Duration::ZERO;
        let mut begun = Spent::now();
        for (number, name) in names.iter().cycle().take(count).enumerate() {
            if number == count / 2 {
                begun = Spent::now();
            }
            let channel = name.as_bytes();
            let entry = Entry::new(&payload, 7, None, None);
            streams.publish(channel, entry, || 0, NOW_US + number as u64);
            if number + 1 == count {
                measured = begun.elapsed();
            }
        }
        let each = measured.as_nanos() as f64 / (count - count / 2) as f64;
        println!("append, 100 bytes, {channels} channels of {messages}, in turn: {each:.0} ns");
    }
}

fn memory(what: &str, channels: usize, messages: usize, size: impl Fn(usize) -> usize) {
    let mut streams = streams(1_000, 300_000);
    let largest = vec![b'x'; 100_000];
    let before = resident();
    let mut payloads = 0;
    for channel in 0..channels {
        let name = name(channel);
        if messages == 0 {
            streams.resume(name.as_bytes(), &Resume::default(), || 0, NOW_US);
        }
        for number in 0..messages {
            let size = size(channel * 31 + number * 7);
            payloads += size;
            let payload = largest.get(..size).expect("no payload is larger");
            let entry = Entry::new(payload, 7, None, None);
            streams.publish(name.as_bytes(), entry, || 0, NOW_US);
        }
    }
    let grown = resident() - before;
    let counted = streams.bytes();
    let bound = streams.totals().counted_bytes;
    let percent = 100.0 * counted as f64 / grown as f64;
    println!("{what}: resident {grown}, counted {counted} ({percent:.0} %), in the bound {bound}");
    assert_eq!(streams.totals().streams, channels);
    match messages {
        0 => println!(
            "  for each stream: resident {}, counted {}",
            grown / channels,
            counted / channels
        ),
        _ => {
            let over = |bytes: usize| (bytes - payloads) / (channels * messages);
            println!(
                "  over the payloads, each: resident {}, counted {}",
                over(grown),
                over(counted)
            );
        }
    }
}

fn expiry() {
    const STREAMS: usize = 1_000_000;
    let mut streams = streams(10, 10_000);
    let mut calls = Calls { times: Vec::with_capacity(STREAMS) };
    for number in 0..STREAMS {
        let entry = Entry::new(b"payload", 7, None, None);
        let name = name(number);
        let now_us = NOW_US + number as u64;
        calls.measure(|| streams.publish(name.as_bytes(), entry, || 0, now_us));
    }
    calls.print("a million streams begin");
    let mut now_us = NOW_US + SECOND_US;
    let full = streams.bytes();
    let mut calls = Calls::default();
    let mut next_us = Some(now_us);
    while let Some(at) = next_us {
        now_us = now_us.max(at);
        next_us = calls.measure(|| streams.expire(now_us, WORK_MAX)).next_us;
    }
    assert_eq!(streams.totals().streams, 0);
    calls.print(&format!("a million streams expire, {WORK_MAX} units for each call"));
    println!("  bytes counted: {full}, then {}", streams.bytes());
}

fn rules() {
    const STREAMS: usize = 1_000_000;
    let mut streams = streams(10, 10_000);
    for number in 0..STREAMS {
        for _ in 0..2 {
            let entry = Entry::new(b"payload", 7, None, None);
            streams.publish(name(number).as_bytes(), entry, || 0, NOW_US);
        }
    }
    let resolver: Resolver = Arc::new(|channel| {
        let rule = HistoryRule { messages: 1, age_ms: 10_000, idle_ms: 10_000 };
        (!channel.ends_with(b"7")).then_some(rule)
    });
    let mut calls = Calls::default();
    calls.measure(|| streams.set_rules(resolver, NOW_US));
    let mut is_done = false;
    while !is_done {
        is_done = calls.measure(|| streams.apply_rules(NOW_US, WORK_MAX)).is_done;
    }
    calls.print(&format!("rules for a million streams, {WORK_MAX} units for each call"));
    // One large stream ends because of a bound.
    let many = HistoryRule { messages: 100_000, age_ms: 10_000, idle_ms: 10_000 };
    let mut streams = Streams::new(limits(), Arc::new(move |_| Some(many)));
    for number in 0..100_001 {
        let entry = Entry::new(b"payload", 7, None, None);
        let channel: &[u8] = if number < 100_000 { b"large" } else { b"other" };
        streams.publish(channel, entry, || 0, NOW_US);
    }
    let mut calls = Calls::default();
    calls.measure(|| streams.purge(b"large", NOW_US));
    calls.print("a stream of 100,000 messages is purged");
}

fn resume() {
    let mut streams = streams(1_000, 300_000);
    for _ in 0..1_000 {
        let entry = Entry::new(&[b'x'; 100], 7, None, None);
        streams.publish(b"chat", entry, || 0, NOW_US);
    }
    let mut position = streams.last_position(b"chat", NOW_US);
    for missed in [0, 10, 1_000] {
        if let Some(position) = &mut position {
            position.offset = 1_000 - missed;
        }
        let resume = Resume { position, ..Resume::default() };
        let begun = Spent::now();
        for _ in 0..1_000 {
            let resumed = streams.resume(b"chat", &resume, || 0, NOW_US);
            assert!(resumed.is_some_and(|resumed| resumed.messages.len() as u64 == missed));
        }
        println!("a RESUME that missed {missed}: {:?}", begun.elapsed() / 1_000);
    }
    let look = Look { limit: 100, ..Look::default() };
    let begun = Spent::now();
    for _ in 0..1_000 {
        streams.history(b"chat", &look, || 0, NOW_US);
    }
    println!("a page of HISTORY of 100: {:?}", begun.elapsed() / 1_000);
}

fn streams(messages: usize, age_ms: u64) -> Streams {
    let rule = HistoryRule { messages, age_ms, idle_ms: 2 * age_ms };
    Streams::new(limits(), Arc::new(move |_| Some(rule)))
}

fn limits() -> Limits {
    Limits { bytes_max: usize::MAX / 2, channels_max: usize::MAX, ..Limits::DEFAULT }
}

fn name(number: usize) -> String {
    format!("chat.{number:07}")
}

fn small(number: usize) -> usize {
    10 + number * 37 % 191
}

fn large(number: usize) -> usize {
    10_000 + number * 7_919 % 60_000
}

/// A processor time of this thread. Other processes do not add to it.
struct Spent(Duration);

impl Spent {
    fn now() -> Spent {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Spent(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
    }

    fn elapsed(&self) -> Duration {
        Spent::now().0 - self.0
    }
}

/// The resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse::<usize>().ok()).expect("VmRSS is there") * 1_024
}
