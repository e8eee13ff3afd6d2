//! The output of a component, as lines in the server's log.
//!
//! Lines come through the `log` interface, or from its standard output and standard error. There is
//! a limit on lines per second; lines above it are dropped and counted, so that a component cannot
//! fill a disk.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tracing::{Level, debug, error, info, trace, warn};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::last_words::{LastWords, Output};

/// The longest line; the rest is cut off.
const LINE_BYTES_MAX: usize = 4 << 10;

/// The target of one component's lines.
pub struct ComponentLog {
    name: String,
    lines_per_second_max: u32,
    started: Instant,
    /// The current second, and the lines in it.
    window: Mutex<(u64, u32)>,
    dropped: AtomicU64,
}

impl ComponentLog {
    /// A log with this name.
    pub fn new(name: &str, lines_per_second_max: u32) -> Arc<ComponentLog> {
        Arc::new(ComponentLog {
            name: name.to_owned(),
            lines_per_second_max,
            started: Instant::now(),
            window: Mutex::new((0, 0)),
            dropped: AtomicU64::new(0),
        })
    }

    /// Writes a line, or drops and counts it.
    pub fn line(&self, level: Level, text: &str) {
        if !self.admit() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            warn!(target: "plugin", plugin = %self.name, dropped, "too many log lines were dropped");
        }
        let plugin = &self.name;
        // A plugin's text may contain client data, so it must not contain line breaks.
        let text = &text.replace(['\r', '\n'], " ");
        let text = text.get(..text.floor_char_boundary(LINE_BYTES_MAX)).unwrap_or(text);
        match level {
            Level::ERROR => error!(target: "plugin", %plugin, "{text}"),
            Level::WARN => warn!(target: "plugin", %plugin, "{text}"),
            Level::INFO => info!(target: "plugin", %plugin, "{text}"),
            Level::DEBUG => debug!(target: "plugin", %plugin, "{text}"),
            Level::TRACE => trace!(target: "plugin", %plugin, "{text}"),
        }
    }

    fn admit(&self) -> bool {
        let second = self.started.elapsed().as_secs();
        let mut window = self.window.lock();
        if window.0 != second {
            *window = (second, 0);
        }
        window.1 = window.1.saturating_add(1);
        window.1 <= self.lines_per_second_max
    }
}

/// The standard output or standard error of an instance.
#[derive(Clone)]
pub struct OutputToLog {
    log: Arc<ComponentLog>,
    /// The part of a line that has not ended yet.
    line: Arc<Mutex<Vec<u8>>>,
    /// Where the end is kept, if it is standard error.
    last_words: Option<Arc<LastWords>>,
}

impl OutputToLog {
    /// Standard output that goes to this log, line by line.
    pub fn stdout(log: Arc<ComponentLog>) -> OutputToLog {
        OutputToLog { log, line: Arc::default(), last_words: None }
    }

    /// The same for standard error. What may be a panic is logged when the call ends.
    pub fn stderr(log: Arc<ComponentLog>, last_words: Arc<LastWords>) -> OutputToLog {
        OutputToLog { log, line: Arc::default(), last_words: Some(last_words) }
    }

    fn write_line(&self, line: &str) {
        match self.last_words.as_ref().map(|words| words.line(line)) {
            None => self.log.line(Level::INFO, line),
            Some(Output::Line(text)) => self.log.line(Level::INFO, &text),
            Some(Output::Later) => {}
        }
    }
}

impl IsTerminal for OutputToLog {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for OutputToLog {
    /// Not used by the synchronous WASI that components are given.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for OutputToLog {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let mut line = self.line.lock();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            // One byte more than is logged, so that a cut is detected.
            let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
            line.extend(piece.iter().take(room).filter(|byte| **byte != b'\n'));
            if piece.ends_with(b"\n") {
                self.write_line(&String::from_utf8_lossy(&line));
                line.clear();
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

impl Pollable for OutputToLog {
    // The shape that `async_trait` gives `async fn ready(&mut self)`.
    fn ready<'life, 'future>(&'life mut self) -> Pin<Box<dyn Future<Output = ()> + Send + 'future>>
    where
        'life: 'future,
        Self: 'future,
    {
        Box::pin(std::future::ready(()))
    }
}
