//! Encoded bytes in their order, and how they are written.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::task::{Poll, ready};

use bytes::{Buf, Bytes};

/// How much leaves in one write, where it is not one chunk that is larger.
const WRITE_BYTES_MAX: usize = 64 << 10;

thread_local! {
    static WRITE_BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(WRITE_BYTES_MAX));
}

/// Chunks that are to be written, first in first out.
#[derive(Default)]
pub struct Chunks {
    waiting: VecDeque<Bytes>,
    /// Whether part of the first has been written.
    is_begun: bool,
}

/// What was written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// How many bytes.
    pub bytes: usize,
    /// How many chunks came to their end.
    pub chunks: usize,
}

impl Chunks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.waiting.iter()
    }

    /// Puts one behind all others.
    pub fn push(&mut self, chunk: Bytes) {
        self.waiting.push_back(chunk);
    }

    /// Moves others behind these. Of others behind some none is begun.
    pub fn append(&mut self, others: &mut Chunks) {
        match self.waiting.is_empty() {
            true => std::mem::swap(self, others),
            false => self.waiting.append(&mut others.waiting),
        }
    }

    /// Forgets all but what is begun, which must be ended, or what follows it is not
    /// understood.
    pub fn keep_begun(&mut self) {
        self.waiting.truncate(usize::from(self.is_begun));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.is_begun = false;
    }

    /// Writes what may leave in one write, in one. There is something.
    ///
    /// Small chunks are put together before they are written: to copy them is
    /// cheaper than a vectored write, which for sockets takes the long way through
    /// the file system (8 % of what a delivery cost), and pays for each slice.
    pub fn write(
        &mut self,
        write: impl FnOnce(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<Written>> {
        let Some(first) = self.waiting.front() else {
            return Poll::Ready(Ok(Written::default()));
        };
        let written = if self.waiting.len() == 1 || first.len() >= WRITE_BYTES_MAX {
            ready!(write(first))?
        } else {
            let written = WRITE_BUFFER.with_borrow_mut(|buffer| {
                buffer.clear();
                for chunk in &self.waiting {
                    let room = WRITE_BYTES_MAX - buffer.len();
                    buffer.extend_from_slice(chunk.get(..room).unwrap_or(chunk));
                    if chunk.len() >= room {
                        break;
                    }
                }
                write(buffer)
            });
            ready!(written)?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let mut left = written;
        let waiting = self.waiting.len();
        while let Some(first) = self.waiting.front_mut()
            && left > 0
        {
            let step = left.min(first.len());
            first.advance(step);
            left -= step;
            self.is_begun = !first.is_empty();
            if first.is_empty() {
                self.waiting.pop_front();
            }
        }
        Poll::Ready(Ok(Written { bytes: written, chunks: waiting - self.waiting.len() }))
    }
}
