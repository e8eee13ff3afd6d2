//! Encoded bytes in order, and how they are written.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::task::{Poll, ready};

use bytes::{Buf, Bytes};

/// How much one write has, unless a single chunk is larger.
pub const WRITE_BYTES_MAX: usize = 64 << 10;

/// How much capacity is kept when there is less to write again.
const PLACES_KEPT_MAX: usize = 64;

thread_local! {
    static WRITE_BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(WRITE_BYTES_MAX));
}

/// Chunks to be written, first in first out.
#[derive(Default)]
pub struct Chunks {
    waiting: VecDeque<Bytes>,
    /// How many bytes of the first have been written.
    begun: usize,
    /// How many bytes are left in all of them.
    bytes: usize,
}

/// The buffer that a chunk is the end of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// The address after its last byte. It stays the same while the chunk is written, and all
    /// chunks of one buffer have it in common.
    pub end: usize,
    /// The length of the buffer, including the part that has been written.
    pub bytes: usize,
}

/// The result of a write.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// How many bytes.
    pub bytes: usize,
    /// How many chunks were completed.
    pub chunks: usize,
}

impl Chunks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.waiting.iter()
    }

    /// The buffers that they keep in memory. Two chunks with the same buffer are in memory once: a
    /// message to many connections is encoded once.
    pub fn buffers(&self) -> impl Iterator<Item = Buffer> {
        let begun = std::iter::once(self.begun).chain(std::iter::repeat(0));
        self.waiting.iter().zip(begun).map(|(chunk, begun)| Buffer {
            end: chunk.as_ptr().addr() + chunk.len(),
            bytes: begun + chunk.len(),
        })
    }

    /// How many bytes are left of a partly written chunk; zero if there is none.
    pub fn begun_bytes_left(&self) -> usize {
        match self.begun {
            0 => 0,
            _ => self.waiting.front().map_or(0, Bytes::len),
        }
    }

    /// Appends one chunk.
    pub fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.waiting.push_back(chunk);
    }

    /// Removes the chunk that was pushed last, unless it is partly written.
    pub fn take_last(&mut self) -> Option<Bytes> {
        if self.waiting.len() == 1 && self.begun > 0 {
            return None;
        }
        let last = self.waiting.pop_back()?;
        self.bytes -= last.len();
        Some(last)
    }

    /// Appends other chunks. If there are chunks already, none of the others is partly written.
    pub fn append(&mut self, others: &mut Chunks) {
        if self.waiting.is_empty() {
            return std::mem::swap(self, others);
        }
        self.bytes += std::mem::take(&mut others.bytes);
        self.waiting.append(&mut others.waiting);
    }

    /// Appends as many other chunks as one write accepts. If there are chunks already, none of the
    /// others is partly written.
    #[inline]
    pub fn append_for_write(&mut self, others: &mut Chunks) {
        if others.waiting.is_empty() {
            return;
        }
        if self.bytes + others.bytes <= WRITE_BYTES_MAX {
            return self.append(others);
        }
        if self.waiting.is_empty() {
            self.begun = std::mem::take(&mut others.begun);
        }
        while self.bytes < WRITE_BYTES_MAX
            && let Some(chunk) = others.waiting.pop_front()
        {
            others.bytes -= chunk.len();
            self.push(chunk);
        }
    }

    /// Drops all but a partly written chunk, which must be completed, because otherwise the client
    /// could not parse what follows. Frees the memory of the queue, which can be large.
    pub fn keep_begun(&mut self) {
        self.waiting.truncate(usize::from(self.begun > 0));
        self.waiting.shrink_to_fit();
        self.bytes = self.waiting.front().map_or(0, Bytes::len);
    }

    /// Frees queue capacity that is no longer needed, if it is large.
    pub fn give_back(&mut self) {
        let needed = self.waiting.len().max(PLACES_KEPT_MAX);
        if self.waiting.capacity() > 4 * needed {
            self.waiting.shrink_to(2 * needed);
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.begun = 0;
        self.bytes = 0;
    }

    /// Writes with a single call. There must be something to write.
    ///
    /// Small chunks are copied into one buffer first: this is cheaper than a vectored write, which
    /// for sockets takes a slower path through the file system (8 % of the cost of a delivery) and
    /// has a cost for each slice.
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
            self.begun += step;
            if first.is_empty() {
                self.waiting.pop_front();
                self.begun = 0;
            }
        }
        self.bytes -= written;
        Poll::Ready(Ok(Written { bytes: written, chunks: waiting - self.waiting.len() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(lengths: &[usize]) -> Chunks {
        let mut chunks = Chunks::default();
        lengths.iter().for_each(|length| chunks.push(vec![b'x'; *length].into()));
        chunks
    }

    fn lengths(chunks: &Chunks) -> Vec<usize> {
        assert_eq!(chunks.bytes, chunks.iter().map(Bytes::len).sum::<usize>());
        chunks.iter().map(Bytes::len).collect()
    }

    #[test]
    fn one_write_is_given_what_it_takes_and_no_more() {
        const MAX: usize = WRITE_BYTES_MAX;
        let check = |has: &[usize], others: &[usize], expected: usize| {
            let (mut has, mut others) = (chunks(has), chunks(others));
            has.append_for_write(&mut others);
            assert_eq!((lengths(&has).len(), lengths(&others).len()).0, expected);
        };
        check(&[], &[1, 2, 3], 3);
        check(&[], &[MAX, 1], 1);
        check(&[], &[1, MAX, 1], 2);
        check(&[MAX], &[1], 1);
        check(&[MAX - 1], &[1, 1], 2);
        check(&[], &[], 0);
    }

    #[test]
    fn a_buffer_is_the_same_however_much_of_it_was_written() {
        let buffer = Bytes::from(vec![b'x'; 3 * WRITE_BYTES_MAX]);
        let [mut ahead, mut behind] = [(); 2].map(|()| {
            let mut chunks = Chunks::default();
            chunks.push(buffer.clone());
            chunks.push(vec![b'y'; 5].into());
            chunks
        });
        let _ = ahead.write(|_| Poll::Ready(Ok(WRITE_BYTES_MAX)));
        assert_eq!((ahead.begun_bytes_left(), behind.begun_bytes_left()), (2 * WRITE_BYTES_MAX, 0));
        assert_eq!(ahead.buffers().next(), behind.buffers().next());
        assert!(!ahead.buffers().eq(behind.buffers()), "the second ones are others");
        // A partly written chunk stays so when it is moved.
        let mut moved = Chunks::default();
        moved.append_for_write(&mut ahead);
        assert_eq!(moved.begun_bytes_left(), 2 * WRITE_BYTES_MAX);
        assert_eq!((lengths(&moved).len(), ahead.begun_bytes_left()), (1, 0));
        moved.keep_begun();
        behind.keep_begun();
        assert_eq!((lengths(&moved).len(), lengths(&behind).len()), (1, 0));
    }
}
