//! Panics are counted, logged with a backtrace, and contained.
//!
//! Rust's own hook writes to standard error, which may be stalled; this one uses the log. Tokio
//! ends the task that panics; [`contain`] contains a panic to less than a task.

use std::backtrace::Backtrace;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::error;

/// Panics are logged with this target, whatever the filter says.
pub const TARGET: &str = "switchyard::panic";

/// The maximum length of a panic's text and of its backtrace.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
const BACKTRACE_BYTES_MAX: usize = 16 << 10;

static PANICS: AtomicU64 = AtomicU64::new(0);
/// The second in which the last backtrace was made.
static BACKTRACE_AT: AtomicU64 = AtomicU64::new(0);

/// Installs the hook: from now on, a panic on any thread of this process is counted and logged.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        log(panic);
    }));
}

/// How many panics there were since the hook was installed.
pub fn count() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Calls this. None: it panicked, which the hook has logged and counted. The caller must ensure
/// that the state that it shares is consistent: locks are released, and values with a `Drop` are
/// dropped.
pub fn contain<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).ok()
}

fn log(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("(unnamed)");
    let message = panic.payload_as_str().unwrap_or("(no text)");
    let message = message.get(..message.floor_char_boundary(MESSAGE_BYTES_MAX)).unwrap_or(message);
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = backtrace().unwrap_or_else(|| "see the one before".to_owned());
    // Quoted, so that it is one line in any case.
    let text = message;
    error!(target: TARGET, thread, ?text, location, backtrace, "something in the server panicked");
}

/// A backtrace in one line, the innermost call first. None: one was made within this second. A
/// backtrace takes milliseconds, and a client may be able to cause the same panic repeatedly.
fn backtrace() -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    if BACKTRACE_AT.swap(now, Ordering::Relaxed) == now {
        return None;
    }
    let mut frames = String::new();
    for line in Backtrace::force_capture().to_string().lines().map(str::trim) {
        let separator = match line.strip_prefix("at ") {
            Some(_) => " ",
            None if frames.is_empty() => "",
            None => "; ",
        };
        if frames.len() + line.len() > BACKTRACE_BYTES_MAX {
            break;
        }
        let _never_fails = write!(frames, "{separator}{line}");
    }
    Some(frames)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::subscriber::with_default;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_counted_and_logged_in_one_line_with_a_backtrace() {
        let written = Written::default();
        let sink = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(crate::log::parse("off").expect("it is a filter"))
            .with_ansi(false)
            .with_writer(move || sink.clone())
            .finish();
        let before = std::panic::take_hook();
        install_hook();
        let counted = count();
        let ended = with_default(subscriber, || {
            contain(|| if counted < u64::MAX { panic!("two\nlines") } else { 0 })
        });
        let counted = count() - counted;
        std::panic::set_hook(before);
        assert_eq!(ended, None);
        // Other tests may panic at the same time.
        assert!(counted >= 1);
        assert_eq!(contain(|| 7), Some(7));
        let text = String::from_utf8(written.0.lock().clone()).expect("it is text");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("ERROR") && text.contains(r#"text="two\nlines""#), "{text}");
        assert!(text.contains("panics.rs:") && text.contains("contain"), "{text}");
    }
}
