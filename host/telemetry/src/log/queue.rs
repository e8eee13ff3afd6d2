//! The queue between the threads that log and standard error.
//!
//! A log line is copied into a bounded queue, and one thread writes it. The reader of standard
//! error may stall, fail or be gone: then the queue fills up, lines are dropped and counted, and no
//! other thread waits. `tracing-appender` is not used for this: it bounds lines and not bytes, and
//! does not report a failed write.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::warn;

use crate::panics;

/// Up to this many bytes, whole lines are written together: a pipe accepts them atomically, so that
/// lines of several processes are not mixed (`PIPE_BUF` of Linux).
const PIECE_BYTES_MAX: usize = 4 << 10;
/// How much capacity an empty batch may keep.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// How long to wait before writing again to a pipe that is full and does not block.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// A write that takes this long is reported.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// How much may be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Lines.
    pub lines_max: usize,
    /// Bytes of those lines.
    pub bytes_max: usize,
}

/// Lines that wait to be written.
pub struct LineQueue {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
    lines_max: AtomicUsize,
    bytes_max: AtomicUsize,
    lost: AtomicU64,
}

#[derive(Default)]
struct State {
    pending: Batch,
    /// How many lines are pending or being written, ...
    lines: usize,
    /// ... and how many bytes they have.
    bytes: usize,
    /// When the current write began.
    writing_since: Option<Instant>,
    /// Why the last write failed; none: it did not.
    failure: Option<String>,
    /// Whether a line was dropped since the queue was empty.
    is_overflowing: bool,
}

/// Consecutive lines.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// The end of each line.
    ends: Vec<usize>,
}

impl Batch {
    fn push(&mut self, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        self.ends.push(self.bytes.len());
    }

    fn clear(&mut self) {
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            *self = Batch::default();
        }
        self.bytes.clear();
        self.ends.clear();
    }

    /// Whole lines that are written together, and how many there are.
    fn pieces(&self) -> impl Iterator<Item = (&[u8], usize)> {
        let (mut next, mut start) = (0, 0);
        std::iter::from_fn(move || {
            let first = next;
            let mut end = *self.ends.get(next)?;
            next += 1;
            while let Some(further) = self.ends.get(next)
                && further - start <= PIECE_BYTES_MAX
            {
                end = *further;
                next += 1;
            }
            let piece = self.bytes.get(start..end)?;
            start = end;
            Some((piece, next - first))
        })
    }
}

impl LineQueue {
    /// An empty queue. `start_writing` starts to write it.
    pub fn new(limits: QueueLimits) -> Arc<LineQueue> {
        Arc::new(LineQueue {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            lines_max: limits.lines_max.into(),
            bytes_max: limits.bytes_max.into(),
            lost: AtomicU64::new(0),
        })
    }

    /// Sets the limits.
    pub fn set_limits(&self, limits: QueueLimits) {
        self.lines_max.store(limits.lines_max, Ordering::Relaxed);
        self.bytes_max.store(limits.bytes_max, Ordering::Relaxed);
    }

    /// Queues a line, which ends with a line break, or drops and counts it. Never waits for
    /// the writer.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        let fits = state.lines < self.lines_max.load(Ordering::Relaxed)
            && state.bytes + line.len() <= self.bytes_max.load(Ordering::Relaxed);
        if !fits {
            state.is_overflowing = true;
            drop(state);
            self.lose(1);
            return;
        }
        let was_empty = state.pending.ends.is_empty();
        state.pending.push(line);
        state.lines += 1;
        state.bytes += line.len();
        drop(state);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// How many lines were dropped, or could not be written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// What is wrong with the log; none: nothing.
    pub fn problem(&self) -> Option<String> {
        let state = self.state.lock();
        if let Some(failure) = &state.failure {
            return Some(format!("the log cannot be written: {failure}"));
        }
        let stalled = state.writing_since.map(|since| since.elapsed());
        match stalled.filter(|time| *time > STALLED_AFTER) {
            Some(time) => Some(format!("the log has not been read for {} seconds", time.as_secs())),
            None if state.is_overflowing => {
                Some("the log is not read as fast as it is written, and lines are lost".to_owned())
            }
            None => None,
        }
    }

    /// Waits until everything that was queued is written, with a timeout. False: it is not.
    pub fn flush(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        while state.lines > 0 {
            if self.emptied.wait_until(&mut state, until).timed_out() {
                return state.lines == 0;
            }
        }
        true
    }

    /// Starts the thread that writes to `sink`, for as long as the process runs.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub fn start_writing(
        self: &Arc<Self>,
        mut sink: impl Write + Send + 'static,
    ) -> io::Result<()> {
        let queue = self.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            let mut written = Batch::default();
            loop {
                // A panic costs the lines that were being written.
                if panics::contain(|| queue.write(&mut sink, &mut written)).is_none() {
                    queue.give_up();
                }
            }
        })?;
        Ok(())
    }

    /// Writes queued lines, forever.
    fn write(&self, sink: &mut impl Write, batch: &mut Batch) {
        let mut is_torn = false;
        let mut reported = self.lost();
        loop {
            batch.clear();
            self.take(batch, &mut reported);
            for (piece, lines) in batch.pieces() {
                let written = write_piece(sink, piece, &mut is_torn);
                let mut state = self.state.lock();
                state.lines = state.lines.saturating_sub(lines);
                state.bytes = state.bytes.saturating_sub(piece.len());
                state.writing_since = Some(Instant::now());
                state.failure = written.as_ref().err().map(io::Error::to_string);
                drop(state);
                if written.is_err() {
                    self.lose(lines);
                }
            }
        }
    }

    /// Takes all that is pending; waits until something is.
    fn take(&self, batch: &mut Batch, reported: &mut u64) {
        let mut state = self.state.lock();
        loop {
            if !state.pending.ends.is_empty() {
                std::mem::swap(&mut state.pending, batch);
                state.writing_since = Some(Instant::now());
                return;
            }
            state.writing_since = None;
            state.is_overflowing = false;
            self.emptied.notify_all();
            let lost = self.lost() - *reported;
            if lost > 0 && state.failure.is_none() {
                *reported += lost;
                drop(state);
                // It comes after all kept lines, and there is room for it.
                warn!(lines = lost, "lines of the log were lost");
                state = self.state.lock();
                continue;
            }
            self.filled.wait(&mut state);
        }
    }

    /// Drops what was being written.
    fn give_up(&self) {
        let mut state = self.state.lock();
        let lost = state.lines.saturating_sub(state.pending.ends.len());
        state.lines = state.pending.ends.len();
        state.bytes = state.pending.bytes.len();
        drop(state);
        self.lose(lost);
    }

    fn lose(&self, lines: usize) {
        self.lost.fetch_add(lines as u64, Ordering::Relaxed);
    }
}

/// Writes a piece, with as many retries as needed. `is_torn`: the last one ended within a line.
fn write_piece(sink: &mut impl Write, piece: &[u8], is_torn: &mut bool) -> io::Result<()> {
    if *is_torn {
        write_all(sink, b"\n")?;
        *is_torn = false;
    }
    let left = write_some(sink, piece);
    *is_torn = left.as_ref().is_err_and(|(_, left)| *left < piece.len());
    left.map_err(|(error, _)| error)
}

fn write_all(sink: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    write_some(sink, bytes).map_err(|(error, _)| error)
}

/// Writes everything; the error has the number of remaining bytes.
fn write_some(sink: &mut impl Write, mut bytes: &[u8]) -> Result<(), (io::Error, usize)> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err((io::ErrorKind::WriteZero.into(), bytes.len())),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that shares standard error has made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(RETRY_PAUSE);
            }
            Err(error) => return Err((error, bytes.len())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    const LIMITS: QueueLimits = QueueLimits { lines_max: 3, bytes_max: 100 };

    /// Sends what is written to the test, and returns one result of the test for each write.
    struct Sink {
        writes: mpsc::Sender<Vec<u8>>,
        answers: mpsc::Receiver<io::Result<usize>>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes.send(bytes.to_vec()).map_err(io::Error::other)?;
            let answer = self.answers.recv().map_err(io::Error::other)?;
            answer.map(|most| most.min(bytes.len()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Bench {
        queue: Arc<LineQueue>,
        writes: mpsc::Receiver<Vec<u8>>,
        answers: mpsc::Sender<io::Result<usize>>,
    }

    fn bench() -> io::Result<Bench> {
        let (writes, written) = mpsc::channel();
        let (answers, answered) = mpsc::channel();
        let queue = LineQueue::new(LIMITS);
        queue.start_writing(Sink { writes, answers: answered })?;
        Ok(Bench { queue, writes: written, answers })
    }

    impl Bench {
        fn next_write(&self) -> String {
            let write = self.writes.recv_timeout(PATIENCE).expect("something is written");
            String::from_utf8(write).expect("it is text")
        }

        fn answer(&self, answer: io::Result<usize>) {
            self.answers.send(answer).expect("the thread waits for it");
        }
    }

    #[test]
    fn a_stalled_sink_costs_lines_beyond_the_limits_and_nothing_else() -> io::Result<()> {
        let bench = bench()?;
        bench.queue.push(b"a\n");
        assert_eq!(bench.next_write(), "a\n");
        for line in [b"b\n", b"c\n", b"d\n", b"e\n"] {
            bench.queue.push(line);
        }
        assert_eq!(bench.queue.lost(), 2, "the one in the sink counts");
        assert!(bench.queue.problem().is_some_and(|why| why.contains("lost")));
        assert!(!bench.queue.flush(Duration::ZERO));
        bench.answer(Ok(9));
        assert_eq!(bench.next_write(), "b\nc\n", "what waited leaves together");
        bench.answer(Ok(9));
        assert!(bench.queue.flush(PATIENCE));
        assert_eq!(bench.queue.problem(), None);
        Ok(())
    }

    #[test]
    fn bytes_have_a_limit_of_their_own() {
        let queue = LineQueue::new(LIMITS);
        queue.push(&[b'x'; 101]);
        assert_eq!(queue.lost(), 1);
        queue.push(&[b'x'; 60]);
        queue.push(&[b'x'; 60]);
        assert_eq!(queue.lost(), 2);
        queue.push(&[b'x'; 40]);
        assert_eq!(queue.lost(), 2);
        queue.set_limits(QueueLimits { bytes_max: 200, ..LIMITS });
        queue.push(&[b'x'; 60]);
        assert_eq!(queue.lost(), 2);
    }

    #[test]
    fn what_fails_is_counted_and_said_until_it_works_again() -> io::Result<()> {
        let bench = bench()?;
        bench.queue.push(b"one\n");
        bench.next_write();
        bench.queue.push(b"two\n");
        bench.answer(Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(bench.next_write(), "two\n");
        assert_eq!(bench.queue.lost(), 1);
        assert_eq!(
            bench.queue.problem().as_deref(),
            Some("the log cannot be written: broken pipe")
        );
        // It ends within the line.
        bench.answer(Ok(1));
        assert_eq!(bench.next_write(), "wo\n");
        bench.queue.push(b"three\n");
        bench.answer(Err(io::ErrorKind::StorageFull.into()));
        assert_eq!(bench.next_write(), "\n");
        assert_eq!(bench.queue.lost(), 2);
        bench.answer(Err(io::ErrorKind::Interrupted.into()));
        assert_eq!(bench.next_write(), "\n");
        bench.answer(Ok(1));
        assert_eq!(bench.next_write(), "three\n");
        bench.answer(Err(io::ErrorKind::WouldBlock.into()));
        assert_eq!(bench.next_write(), "three\n");
        bench.answer(Ok(9));
        assert!(bench.queue.flush(PATIENCE));
        assert_eq!((bench.queue.problem(), bench.queue.lost()), (None, 2));
        Ok(())
    }

    #[test]
    fn lines_are_written_whole() {
        let mut batch = Batch::default();
        for length in [3_000, 1_000, 200, 5_000, 1] {
            batch.push(&vec![b'x'; length]);
        }
        let pieces: Vec<_> = batch.pieces().map(|(piece, lines)| (piece.len(), lines)).collect();
        assert_eq!(pieces, [(4_000, 2), (200, 1), (5_000, 1), (1, 1)]);
    }
}
