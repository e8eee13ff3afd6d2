//! What an instance wrote to standard error before it failed, as one line.
//!
//! A component reports a panic or an exception there, and then traps. The trap itself says nothing,
//! so the end of standard error is kept, and read when a call has failed. The formats are those of
//! Rust's panics, and of the interpreters of componentize-qjs and componentize-py, which panic too.
//! What has none of these formats is returned as it is.
//!
//! Lines that may be the report of a failure are held until the call ends: they are part of its
//! problem if it fails, and logged like others if it does not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How much of the end is kept.
const TAIL_BYTES_MAX: usize = 8 << 10;
/// The longest text that is returned, before control characters are escaped.
const TEXT_BYTES_MAX: usize = 768;
/// The innermost frames of a traceback that are named.
const FRAMES_MAX: usize = 3;
/// A panic message has fewer lines; more are output of something else.
const PANIC_LINES_MAX: usize = 16;
/// What was written longer ago belongs to an earlier call.
const RECENT: Duration = Duration::from_secs(10);

/// The end of what an instance wrote to standard error.
#[derive(Default)]
pub struct LastWords {
    tail: Mutex<Tail>,
    /// Whether lines may be held: most calls write nothing, and take no lock.
    is_holding: AtomicBool,
}

#[derive(Default)]
struct Tail {
    text: String,
    written: Option<Instant>,
    block: Block,
    /// Lines that look like a panic.
    held: Vec<String>,
}

/// The lines that belong together, and where they stand.
#[derive(Default)]
enum Block {
    #[default]
    None,
    /// A traceback, so far in one line.
    Traceback(String),
    /// A panic message; how many more lines may belong to it.
    Panic(usize),
}

/// What a line of standard error means for the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// It is logged.
    Line(String),
    /// Nothing is logged yet: it is held until the call ends, or logged with the lines that follow.
    Later,
}

impl LastWords {
    /// Keeps a line, and returns how to log it.
    pub fn line(&self, line: &str) -> Output {
        let mut tail = self.tail.lock();
        let tail = &mut *tail;
        if line.trim().is_empty() {
            return Output::Later;
        }
        tail.written = Some(Instant::now());
        tail.text.push_str(line);
        tail.text.push('\n');
        let surplus = tail.text.len().saturating_sub(TAIL_BYTES_MAX);
        let surplus = tail.text.ceil_char_boundary(surplus);
        tail.text.drain(..surplus);
        match std::mem::take(&mut tail.block) {
            _ if panic_location(line).is_some() => {
                tail.block = Block::Panic(PANIC_LINES_MAX);
                // One that is followed by another did not end the call.
                let before = std::mem::replace(&mut tail.held, vec![line.to_owned()]);
                self.is_holding.store(true, Ordering::Relaxed);
                match before.is_empty() {
                    true => Output::Later,
                    false => Output::Line(before.join(" ")),
                }
            }
            Block::Panic(lines @ 1..) => {
                tail.block = Block::Panic(lines - 1);
                tail.held.push(line.to_owned());
                Output::Later
            }
            // The exception, which is not indented, ends it.
            Block::Traceback(text) if !line.starts_with(' ') => {
                Output::Line(format!("{text} {line}"))
            }
            Block::Traceback(mut text) => {
                if text.len() < TAIL_BYTES_MAX {
                    text.push(' ');
                    text.push_str(line.trim());
                }
                tail.block = Block::Traceback(text);
                Output::Later
            }
            _ if is_traceback(line) => {
                self.is_holding.store(true, Ordering::Relaxed);
                tail.block = Block::Traceback(line.to_owned());
                Output::Later
            }
            _ => Output::Line(line.to_owned()),
        }
    }

    /// A call ended. Returns the lines that were held: they are not logged yet.
    pub fn take_held(&self) -> Vec<String> {
        if !self.is_holding.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let mut tail = self.tail.lock();
        let mut held = std::mem::take(&mut tail.held);
        if let Block::Traceback(text) = std::mem::take(&mut tail.block) {
            held.push(text);
        }
        held
    }

    /// The problem of a failed call, with what was written during it. `is_panic`: the call ended as
    /// a panic does, and `problem` says no more than that.
    pub fn explain(&self, problem: &str, is_panic: bool) -> String {
        let tail = self.tail.lock();
        let is_recent = tail.written.is_some_and(|written| written.elapsed() < RECENT);
        let text = if is_recent { tail.text.as_str() } else { "" };
        match (read(text), is_panic) {
            (None, false) => problem.to_owned(),
            (None, true) => format!(
                "{problem}, and wrote nothing to standard error (a component that was built with \
                 --stub-wasi cannot)"
            ),
            (Some(Words { text, is_failure: true }), true) => escaped(&text),
            (Some(Words { text, .. }), _) => {
                format!("{problem}; it last wrote: {}", escaped(&text))
            }
        }
    }
}

/// What was read from the end of standard error.
struct Words {
    text: String,
    /// Whether it is a panic or an exception, and not just what was written last.
    is_failure: bool,
}

fn read(tail: &str) -> Option<Words> {
    let lines: Vec<&str> = tail.lines().collect();
    let panic = lines
        .iter()
        .enumerate()
        .rev()
        .find_map(|(place, line)| Some((place, panic_location(line)?)));
    let Some((place, location)) = panic else {
        let text = (*lines.last()?).to_owned();
        return Some(Words { text, is_failure: false });
    };
    let (before, after) = lines.split_at(place);
    let message: Vec<&str> =
        after.iter().skip(1).take_while(|line| !is_note(line)).map(|line| line.trim()).collect();
    let message = message.join(" ");
    let text = python_exception(&message, before)
        .or_else(|| javascript_exception(&message))
        .unwrap_or_else(|| format!("it panicked: {message} ({location})"));
    Some(Words { text, is_failure: true })
}

/// The location in the first line of a Rust panic, such as `src/lib.rs:12:5`.
fn panic_location(line: &str) -> Option<&str> {
    let (_, location) = line.strip_prefix("thread '")?.split_once(" panicked at ")?;
    Some(location.trim_end_matches(':'))
}

fn is_note(line: &str) -> bool {
    line.starts_with("note: run with `RUST_BACKTRACE")
}

fn is_traceback(line: &str) -> bool {
    line.starts_with("Traceback (most recent call last)")
}

/// The exception of the last traceback, if componentize-py panicked because of one.
fn python_exception(message: &str, before: &[&str]) -> Option<String> {
    if !message.contains("unexpected exception") {
        return None;
    }
    let start = before.iter().rposition(|line| is_traceback(line))?;
    let lines = before.get(start + 1..)?;
    let exception: Vec<&str> =
        lines.iter().skip_while(|line| line.starts_with(' ')).map(|line| line.trim()).collect();
    let frames = lines.iter().filter_map(|line| {
        let (file, rest) = line.trim().strip_prefix("File \"")?.split_once("\", line ")?;
        let (number, function) = rest.split_once(", in ")?;
        Some(format!("{function} ({file}:{number})"))
    });
    let frames: Vec<String> = frames.collect();
    let innermost: Vec<String> = frames.into_iter().rev().take(FRAMES_MAX).collect();
    Some(format!("it raised {}{}", exception.join(" "), at(&innermost)))
}

/// The exception in a panic message of componentize-qjs, which prints it as Rust's `Debug` does.
fn javascript_exception(message: &str) -> Option<String> {
    if let Some((_, thrown)) = message.split_once(": Value(String(Ok(") {
        let (thrown, _) = debug_string(thrown)?;
        return Some(format!("it threw \"{thrown}\""));
    }
    let (prefix, exception) = message.split_once("Exception(Exception { message: Some(")?;
    let (text, rest) = debug_string(exception)?;
    let stack = rest.split_once("stack: Some(").and_then(|(_, stack)| debug_string(stack));
    let stack = stack.map(|(stack, _)| stack).unwrap_or_default();
    let frames = stack.lines().filter_map(|line| line.trim().strip_prefix("at "));
    let innermost: Vec<String> = frames.take(FRAMES_MAX).map(str::to_owned).collect();
    let thrown = match prefix.starts_with("Failed to call") {
        true => format!("it threw {text}"),
        false => format!("it panicked: {prefix}{text}"),
    };
    Some(thrown + &at(&innermost))
}

fn at(frames: &[String]) -> String {
    match frames {
        [] => String::new(),
        frames => format!(" at {}", frames.join(", ")),
    }
}

/// The string literal at the beginning of a text that Rust's `Debug` wrote, and what follows it. A
/// long line is cut: then the literal ends where the text does.
fn debug_string(text: &str) -> Option<(String, &str)> {
    let mut characters = text.strip_prefix('"')?.chars();
    let mut value = String::new();
    loop {
        let Some(next) = characters.next() else { return Some((value, "")) };
        match next {
            '"' => return Some((value, characters.as_str())),
            '\\' => match characters.next().unwrap_or(' ') {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                '0' => value.push('\0'),
                'u' => {
                    let (digits, rest) = characters.as_str().strip_prefix('{')?.split_once('}')?;
                    value.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                    characters = rest.chars();
                }
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
}

/// The text in one line of bounded length, without control characters.
fn escaped(text: &str) -> String {
    let cut = text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or(text);
    let mut line = String::with_capacity(cut.len());
    for character in cut.chars() {
        match character {
            '\n' => line.push(' '),
            control if control.is_control() => line.extend(control.escape_default()),
            other => line.push(other),
        }
    }
    if cut.len() < text.len() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANICKED: &str = "it panicked or ran out of memory";

    fn explain(written: &str) -> String {
        let words = LastWords::default();
        written.lines().for_each(|line| {
            words.line(line);
        });
        words.explain(PANICKED, true)
    }

    #[test]
    fn a_panic_is_its_message_and_place() {
        let written = "\nthread '<unnamed>' (1) panicked at src/lib.rs:12:5:\nassertion failed\n  \
                       left: 1\nnote: run with `RUST_BACKTRACE=1` environment variable\n";
        assert_eq!(explain(written), "it panicked: assertion failed left: 1 (src/lib.rs:12:5)");
    }

    #[test]
    fn an_exception_in_javascript_is_its_message_and_stack() {
        let panic = "thread '<unnamed>' (1) panicked at crates/runtime/src/interpreter.rs:51:31:\n";
        let written = format!(
            "{panic}Failed to call 'onPublish': Exception(Exception {{ message: Some(\"no \
             \\\"x\\\" \\u{{1b}}\"), stack: Some(\"    at deep (/js/a.js:1:28)\\n    at onPublish \
             (/js/a.js:5:22)\\n\") }})\n"
        );
        let said = "it threw no \"x\" \\u{1b} at deep (/js/a.js:1:28), onPublish (/js/a.js:5:22)";
        assert_eq!(explain(&written), said);
        let thrown =
            format!("{panic}Failed to call 'onPublish': Value(String(Ok(\"a string\")))\n");
        assert_eq!(explain(&thrown), "it threw \"a string\"");
        let other = format!("{panic}expected array\n");
        let said = "it panicked: expected array (crates/runtime/src/interpreter.rs:51:31)";
        assert_eq!(explain(&other), said);
        let cut = format!("{panic}invalid: Exception(Exception {{ message: Some(\"cut");
        assert_eq!(explain(&cut), "it panicked: invalid: cut");
        // Another format is no reason to lose the text.
        let unknown = format!("{panic}Exception(Exception {{ message: Some(cut)");
        assert!(explain(&unknown).contains("message: Some(cut)"), "{}", explain(&unknown));
    }

    #[test]
    fn an_exception_in_python_is_that_of_the_last_traceback() {
        let written = "Traceback (most recent call last):\n  File \"/0/a.py\", line 1, in f\n\
             KeyError: 'a'\n\nDuring handling of the above exception, another exception \
             occurred:\n\nTraceback (most recent call last):\n  File \"/0/a.py\", line 10, in \
             on_publish\n    deep(5)\n  File \"/0/a.py\", line 6, in deep\nAttributeError: no such\n\
             \nthread '<unnamed>' (1) panicked at runtime/src/lib.rs:1280:25:\n\
             Python function threw an unexpected exception\n";
        let said = "it raised AttributeError: no such at deep (/0/a.py:6), on_publish (/0/a.py:10)";
        assert_eq!(explain(written), said);
    }

    #[test]
    fn other_output_is_named_as_what_it_is() {
        let said = explain("memory allocation of 5 bytes failed\n");
        assert_eq!(said, format!("{PANICKED}; it last wrote: memory allocation of 5 bytes failed"));
        assert!(explain("").ends_with("--stub-wasi cannot)"), "{}", explain(""));
        assert_eq!(LastWords::default().explain("it overran", false), "it overran");
        let long = explain(&"é\u{7}".repeat(TAIL_BYTES_MAX));
        assert!(long.len() < 4 * TEXT_BYTES_MAX && long.ends_with('…'), "{}", long.len());
        assert!(!long.contains('\u{7}'), "{long}");
    }

    #[test]
    fn a_panic_is_not_logged_and_a_traceback_is_one_line() {
        let words = LastWords::default();
        let line = |text: &str| words.line(text);
        assert_eq!(line("hello"), Output::Line("hello".to_owned()));
        assert_eq!(line("Traceback (most recent call last):"), Output::Later);
        assert_eq!(line("  File \"a.py\", line 1, in f"), Output::Later);
        let whole = "Traceback (most recent call last): File \"a.py\", line 1, in f KeyError: 1";
        assert_eq!(line("KeyError: 1"), Output::Line(whole.to_owned()));
        assert_eq!(line("thread '<unnamed>' (1) panicked at a.rs:1:1:"), Output::Later);
        assert_eq!(line("message"), Output::Later);
        assert_eq!(line("note: run with `RUST_BACKTRACE=1`"), Output::Later);
        assert_eq!(line("hello"), Output::Later);
    }

    #[test]
    fn what_is_held_is_returned_when_the_call_ends() {
        let words = LastWords::default();
        assert!(words.take_held().is_empty());
        let panic = |number| format!("thread 'main' (1) panicked at a.rs:{number}:1:");
        assert_eq!(words.line(&panic(1)), Output::Later);
        assert_eq!(words.line("first"), Output::Later);
        let first = format!("{} first", panic(1));
        assert_eq!(words.line(&panic(2)), Output::Line(first));
        assert_eq!(words.line("second"), Output::Later);
        assert_eq!(words.take_held(), [panic(2), "second".to_owned()]);
        assert!(words.take_held().is_empty());
        assert_eq!(words.line("third"), Output::Line("third".to_owned()));
        assert_eq!(words.line("Traceback (most recent call last):"), Output::Later);
        assert_eq!(words.take_held(), ["Traceback (most recent call last):"]);
        // A bounded number of lines is held.
        words.line(&panic(3));
        let count = (0..100).filter(|_| words.line("x") == Output::Later).count();
        assert_eq!((count, words.take_held().len()), (PANIC_LINES_MAX, PANIC_LINES_MAX + 1));
    }
}
