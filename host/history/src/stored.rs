//! Streams on disk: what is to be written, and streams that come back from there.
//!
//! The caller owns the files. It reads `changes` until nothing is pending, and writes them; each of
//! them leaves a stream on disk as it was at some time. After it could not write, it lets all streams
//! be recorded again.

use std::collections::VecDeque;

use crate::entry::Entry;
use crate::journal::Journal;
use crate::stream::Stream;
use crate::stream::epochs::Epoch;
use crate::streams::{Streams, stream_bytes};

/// Looking at a stream, in units of work: an entry is one.
const WORK_OF_STREAM: usize = 4;

/// A stream without its messages, as it is written to disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredStream {
    /// What identifies it. It is the first epoch that it had.
    pub id: u64,
    /// The name of the channel.
    pub name: Box<[u8]>,
    /// Its epochs, the oldest first, at least one; the last one is the present one.
    pub epochs: Vec<Epoch>,
    /// The number of the oldest message that it holds; `last + 1` if it holds none.
    pub first: u64,
    /// The number of the last publication.
    pub last: u64,
    /// When it began, was last published to, or its last listener left, whichever is last.
    pub active_ms: u64,
    /// Whether a connection is subscribed to it by name.
    pub has_listeners: bool,
}

/// What is to be written of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamChange {
    /// The stream as it is to be on disk with these entries.
    pub stream: StoredStream,
    /// Its last messages, those that are not written yet.
    pub entries: Vec<Entry>,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Streams that began or changed.
    pub changed: Vec<StreamChange>,
    /// Written streams that ended, by id.
    pub ended: Vec<u64>,
    /// Whether nothing else has changed.
    pub is_done: bool,
}

/// What became of streams that came back from disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// It goes on, in the same epoch.
    Continued,
    /// It goes on in a new epoch.
    Renewed,
    /// Its channel has no history any more, or it was idle for too long.
    Dropped,
}

impl Streams {
    /// From now on, changes are recorded for `changes`.
    pub fn record_changes(&mut self) {
        self.journal.get_or_insert_default();
    }

    /// How many streams changed or ended since they were read by `changes`.
    pub fn pending_changes(&self) -> usize {
        self.journal.as_ref().map_or(0, |journal| journal.changed.len() + journal.ended.len())
    }

    /// The next changes, until about `work_max` is done or the entries have `bytes_max` bytes. A
    /// stream with more entries follows again. `written` says up to which number the messages of a
    /// stream are written, by its id.
    pub fn changes(
        &mut self,
        written: impl Fn(u64) -> u64,
        work_max: usize,
        bytes_max: usize,
    ) -> Changes {
        let Some(journal) = &mut self.journal else {
            return Changes { is_done: true, ..Changes::default() };
        };
        let mut changes =
            Changes { ended: std::mem::take(&mut journal.ended), ..Changes::default() };
        let (mut work, mut bytes) = (changes.ended.len(), 0);
        while work < work_max && bytes < bytes_max {
            let Some(slot) = journal.changed.take_next() else {
                changes.is_done = true;
                break;
            };
            let Some(stream) = self.slots.get(slot) else { continue };
            journal.stored.set(slot);
            let mut change = StreamChange { stream: stream.stored(), entries: Vec::new() };
            let from = written(change.stream.id).saturating_add(1).max(stream.first());
            for number in from..stream.last() + 1 {
                let Some(entry) = stream.entry(number) else { break };
                if work >= work_max || bytes >= bytes_max {
                    // The rest follows; the disk has what a stream without it would be.
                    journal.changed.set(slot);
                    change.stream.last = number - 1;
                    break;
                }
                bytes += entry.bytes();
                work += 1;
                change.entries.push(entry.clone());
            }
            work += WORK_OF_STREAM;
            changes.changed.push(change);
        }
        changes
    }

    /// All streams are to be written again, because it is not known what is on disk.
    pub fn record_all(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        **journal = Journal { is_sealed: journal.is_sealed, ..Journal::default() };
        for slot in 0..self.slots.end() {
            if self.slots.get(slot).is_some() {
                journal.changed.set(slot);
            }
        }
    }

    /// From now on no publication is retained and no stream begins, if nothing is pending. Returns
    /// whether that is so.
    pub fn seal(&mut self) -> bool {
        let is_written = self.pending_changes() == 0;
        if let Some(journal) = &mut self.journal {
            journal.is_sealed = is_written;
        }
        is_written
    }

    #[inline]
    pub(crate) fn is_sealed(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.is_sealed)
    }

    /// All epochs that begin from now on are above this one.
    pub fn set_epoch_floor(&mut self, epoch: u64) {
        self.last_epoch = self.last_epoch.max(epoch);
    }

    /// The highest epoch so far.
    pub fn last_epoch(&self) -> u64 {
        self.last_epoch
    }

    /// Takes back a stream with its messages, which are those from `first` to `last`. Without
    /// `is_complete`, publications after them may be lost: then it has a new epoch. The rules and the
    /// time that hold now apply to it; streams that are taken back are in the order of `active_ms`.
    pub fn restore(
        &mut self,
        stored: StoredStream,
        entries: Vec<Entry>,
        is_complete: bool,
        now_us: u64,
    ) -> Restored {
        self.advance(now_us);
        let now_ms = self.now_ms();
        let hash = self.hash_of(&stored.name);
        let is_known = self.find_hashed(&stored.name, hash).is_some();
        let Some(rule) = self.rule(&stored.name).filter(|_| !is_known) else {
            return Restored::Dropped;
        };
        let mut stream = Stream::new(&stored.name, stored.id, rule, self.rules.current());
        // It is not known when the listeners of a process that was killed left.
        let active_ms = match stored.has_listeners {
            true => now_ms,
            false => stored.active_ms.min(now_ms),
        };
        stream.active_ms = active_ms;
        stream.fill(stored.first, entries, now_ms);
        stream.forget(now_ms);
        stream.free_gone(usize::MAX);
        stream.shrink();
        if stream.end_ms().is_some_and(|end_ms| end_ms <= now_ms) {
            return Restored::Dropped;
        }
        let is_changed =
            stored.has_listeners || active_ms != stored.active_ms || stream.first() != stored.first;
        let mut epochs = stored.epochs;
        epochs.retain(|epoch| epoch.base <= stored.last);
        for Epoch { epoch, .. } in &epochs {
            self.last_epoch = self.last_epoch.max(*epoch);
        }
        if !is_complete {
            self.last_epoch = self.now_us.max(self.last_epoch + 1);
            epochs.push(Epoch { epoch: self.last_epoch, base: stored.last });
        }
        // An epoch ends where the next one begins. Those of which nothing is left go, but the last.
        let mut ends: VecDeque<u64> = epochs.iter().skip(1).map(|next| next.base).collect();
        epochs.retain(|epoch| {
            ends.pop_front().is_none_or(|end| end >= stored.first && end > epoch.base)
        });
        stream.set_epochs(stored.id, epochs);
        self.counted_bytes += stream_bytes(&stream.name);
        self.counted_bytes += stream.entry_bytes() + stream.allocated_len() * size_of::<Entry>();
        self.queue_bytes += stream.queue_bytes();
        self.messages += stream.allocated_len();
        let slot = self.slots.insert(stream);
        self.names.insert(hash, slot);
        self.by_publication.push_back(&mut self.slots, slot);
        self.settle(slot);
        if let Some(journal) = &mut self.journal {
            journal.stored.set(slot);
            if !is_complete || is_changed {
                journal.changed.set(slot);
            }
        }
        self.enforce(slot);
        match is_complete {
            true => Restored::Continued,
            false => Restored::Renewed,
        }
    }
}

impl Stream {
    fn stored(&self) -> StoredStream {
        StoredStream {
            id: self.id(),
            name: self.name.clone(),
            epochs: self.epochs(),
            first: self.first(),
            last: self.last(),
            active_ms: self.active_ms,
            has_listeners: self.listeners > 0,
        }
    }
}
