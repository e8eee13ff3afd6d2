//! The codecs, fed with what the tests' conversations say after random changes.
//!
//! A program of its own, so that the heap it holds is what a codec holds. Each
//! target tries so many inputs, or as many as it can for `SWITCHYARD_FUZZ_SECONDS`
//! (`make fuzz`), from the seed that it prints (`SWITCHYARD_SEED` repeats it). An
//! input of a kind that has not been met is kept to start from again. In the end
//! stands what was tried and the most memory that it took.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peak_alloc::PeakAlloc;
use switchyard_protocol::fuzzing::{Random, Target, mutation};
use switchyard_protocol::json::fuzzing::JSON;
use switchyard_protocol::resp::fuzzing::RESP;
use switchyard_test_support::{notation, value};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Held by the test that measures: allocations of one test must not count for another.
static MEASURING: Mutex<()> = Mutex::new(());

/// How many inputs are tried, unless the environment gives a time.
const INPUTS: u64 = 20_000;
/// The length at which an input is cut off.
const INPUT_BYTES_MAX: usize = 4 << 10;
/// How often one is said over and over, to be this long.
const LONG_INPUT_EVERY: u64 = 500;
const LONG_INPUT_BYTES: usize = 256 << 10;
/// How many inputs are kept to start from.
const CORPUS_MAX: usize = 10_000;

/// Until when to go on.
enum Effort {
    Inputs(u64),
    Time(Duration),
}

impl Effort {
    fn from_environment() -> Effort {
        match std::env::var("SWITCHYARD_FUZZ_SECONDS") {
            Ok(seconds) => {
                let seconds = seconds.parse().expect("SWITCHYARD_FUZZ_SECONDS is a number");
                Effort::Time(Duration::from_secs(seconds))
            }
            Err(_) => Effort::Inputs(INPUTS),
        }
    }

    fn is_over(&self, inputs: u64, began: Instant) -> bool {
        match self {
            Effort::Inputs(inputs_max) => inputs >= *inputs_max,
            Effort::Time(time) => began.elapsed() >= *time,
        }
    }
}

/// Shows the input during which a panic happened.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the input was b\"{}\"", self.0.escape_ascii());
        }
    }
}

/// The peak heap usage of `something`, which should be within `expected`. A higher value is
/// measured again: the test harness may have allocated at the same time.
fn heap_of(expected: usize, something: impl Fn()) -> usize {
    let mut heap = 0;
    for _ in 0..5 {
        HEAP.reset_peak_usage();
        let before = HEAP.current_usage();
        something();
        heap = HEAP.peak_usage().saturating_sub(before);
        if heap <= expected {
            break;
        }
    }
    heap
}

/// What was seen so far.
#[derive(Default)]
struct Figures {
    inputs: u64,
    bytes: u64,
    heap_max: usize,
    /// Of inputs that are long enough for it to mean something.
    heap_per_byte_max: usize,
}

impl Figures {
    fn serve(&mut self, target: &Target, input: &[u8]) {
        let _shown = Shown(input);
        let heap_max = target.heap_kept_max + target.heap_per_byte_max * input.len();
        let heap = heap_of(heap_max, || (target.serve)(input));
        assert!(heap <= heap_max, "{heap} bytes of heap for {} bytes", input.len());
        self.heap_max = self.heap_max.max(heap);
        if input.len() >= 1024 {
            self.heap_per_byte_max = self.heap_per_byte_max.max(heap / input.len());
        }
    }

    fn check(&mut self, target: &Target, input: &[u8]) -> u64 {
        self.serve(target, input);
        self.inputs += 1;
        self.bytes += input.len() as u64;
        let _shown = Shown(input);
        (target.check)(input)
    }
}

fn fuzz(target: &Target, conversations: Vec<Vec<u8>>) {
    let _measuring = MEASURING.lock();
    let effort = Effort::from_environment();
    let mut random = Random::from_environment();
    let began = Instant::now();
    let mut corpus = [(target.corpus)(), conversations].concat();
    let starts = corpus.len();
    let mut figures = Figures::default();
    let mut kinds = HashSet::new();
    for start in &corpus {
        for choice in 0..8 {
            kinds.insert(figures.check(target, &[&[choice], start.as_slice()].concat()));
        }
    }
    while !effort.is_over(figures.inputs, began) {
        let mut input = mutation(&mut random, &corpus, &target.syntax);
        input.truncate(INPUT_BYTES_MAX);
        input.insert(0, random.index(256) as u8);
        let is_new = kinds.insert(figures.check(target, &input));
        if is_new && corpus.len() < CORPUS_MAX {
            corpus.push(input.split_off(1));
        } else if figures.inputs.is_multiple_of(LONG_INPUT_EVERY) {
            let times = LONG_INPUT_BYTES / input.len();
            let (choice, again) = input.split_at(1);
            let long = target.syntax.join(&vec![again; times]);
            figures.serve(target, &[choice, &long].concat());
        }
    }
    println!(
        "{}: {} inputs from {starts} starts and {} kept ones, {} MiB, in {:.0} s; no panic, no \
         difference; heap {} KiB at most, {} bytes for a byte of input; process {} KiB at most",
        target.name,
        figures.inputs,
        corpus.len() - starts,
        figures.bytes >> 20,
        began.elapsed().as_secs_f32(),
        figures.heap_max >> 10,
        figures.heap_per_byte_max,
        process_kib_max(),
    );
}

/// The peak memory of the process; zero where the system does not report it.
fn process_kib_max() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}

/// The lines of all files in this folder of the tests.
fn lines(folder: &str) -> Result<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        paths.push(entry?.path());
    }
    // The order of a folder is anything, and a seed must mean the same.
    paths.sort();
    let mut lines = Vec::new();
    for path in paths {
        lines.extend(std::fs::read_to_string(path)?.lines().map(str::to_owned));
    }
    Ok(lines)
}

/// What a client sends in a conversation: behind `alice> `, if the kind is `>`.
fn said<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    let (name, said) = line.split_once(kind)?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
    said.strip_prefix(' ').filter(|_| is_name)
}

#[test]
fn resp() -> Result<()> {
    let mut corpus = Vec::new();
    for line in lines("redis/conversations")? {
        if let Some(words) = said(&line, ">").or_else(|| said(&line, ">&")) {
            corpus.push(value::command(&notation::words(words)?));
        } else if let Some(bytes) = said(&line, ">raw") {
            corpus.push(notation::words(bytes)?.concat());
        }
    }
    assert!(corpus.len() > 500, "only {} commands in the conversations", corpus.len());
    fuzz(&RESP, corpus);
    Ok(())
}

#[test]
fn json() -> Result<()> {
    let lines = lines("transcripts")?;
    let corpus: Vec<_> =
        lines.iter().filter_map(|line| said(line, ">")).map(|text| text.into()).collect();
    assert!(corpus.len() > 300, "only {} frames in the transcripts", corpus.len());
    fuzz(&JSON, corpus);
    Ok(())
}

/// What is only announced is not made room for.
#[test]
fn declared_lengths_allocate_nothing() {
    let _measuring = MEASURING.lock();
    let check = |target: &Target, input: &[u8]| {
        let input = [&[0], input].concat();
        let heap = heap_of(4096, || (target.serve)(&input));
        assert!(heap <= 4096, "{}: {heap} bytes for {}", target.name, input.escape_ascii());
    };
    check(&RESP, b"*2147483647\r\n");
    check(&RESP, b"*2147483647\r\n$536870912\r\nabc");
    check(&RESP, b"*3\r\n$7\r\nPUBLISH\r\n$536870912\r\nabc");
    // Frames of a mebibyte, within the limit and beyond it. The choice 6 says that
    // these are frames.
    for length in [1 << 20, (1 << 20) + 1, u64::MAX >> 1] {
        for first in [0x81, 0x01] {
            let frame = [&[6, first, 0x80 | 127][..], &length.to_be_bytes(), b"maskabc"].concat();
            let heap = heap_of(4096, || (JSON.serve)(&frame));
            assert!(heap <= 4096, "json: {heap} bytes for {}", frame.escape_ascii());
        }
    }
}

/// The inputs that cost most for each of their bytes.
#[test]
fn the_dearest_inputs_stay_within_the_limits() {
    const TIMES: usize = 50_000;
    let _measuring = MEASURING.lock();
    let mut figures = Figures::default();
    let mut check = |target: &Target, input: &[u8]| {
        figures.heap_per_byte_max = 0;
        figures.serve(target, &[&[0], input].concat());
        let start = input.get(..20).unwrap_or_default().escape_ascii();
        println!("{}: {start}…: {} bytes for each", target.name, figures.heap_per_byte_max);
    };
    check(&RESP, &b"x\n".repeat(TIMES));
    check(&RESP, &b"*1\r\n$0\r\n\r\n".repeat(TIMES));
    check(&RESP, &[b"*50000\r\n".to_vec(), b"$0\r\n\r\n".repeat(TIMES)].concat());
    check(&RESP, &[b"ECHO".to_vec(), b" x".repeat(30_000), b"\r\n".to_vec()].concat());
    let array = |item: &str| format!("[{item}{}]", format!(",{item}").repeat(TIMES)).into_bytes();
    check(&JSON, &array("[]"));
    check(&JSON, &array("1"));
    check(&JSON, &array(r#"["PING"]"#));
    check(&JSON, &array(r#"["\ud800"]"#));
    check(&JSON, &array(r#"["SUBSCRIBE","\n"]"#));
    check(&JSON, &[br#"["SUBSCRIBE",""#.as_slice(), &br#"","\n"#.repeat(TIMES), br#""]"#].concat());
}
