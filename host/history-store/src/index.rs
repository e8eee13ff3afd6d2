//! What is in the database: for each stream up to which number it is written, and its blocks.
//!
//! A block has several messages of a stream. It is removed when all of them are gone, so that nothing
//! is searched for in the database while the server runs.

use std::collections::{HashMap, VecDeque};

use crate::disk::{Batch, Disk, Table};
use crate::format::{block_key, checksum_of, encode_answers, encode_block, encode_stream, key};
use crate::state::Digest;
use switchyard_history::{Entry, StoredKey, StreamChange};
use switchyard_types::command::Published;

/// A block has no more messages once it has so many bytes.
const BLOCK_BYTES: usize = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Index {
    streams: HashMap<u64, Written>,
    /// Blocks of answers to publications: their number, the time of their last one, the checksum.
    answers: VecDeque<(u64, u64, u32)>,
    digest: Digest,
}

/// What is written of a stream.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub last: u64,
    /// The number of the first message in the first block.
    pub start: u64,
    /// How many messages each block has.
    pub counts: VecDeque<u32>,
    /// Of the value without the messages; none: there is no such value yet.
    pub checksum: Option<u32>,
}

impl Index {
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Up to which number the messages of a stream are written.
    pub fn last(&self, stream: u64) -> u64 {
        self.streams.get(&stream).map_or(0, |written| written.last)
    }

    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.streams.keys().copied()
    }

    /// Records a stream that was read.
    pub fn found(&mut self, id: u64, written: Written) {
        written.checksum.into_iter().for_each(|checksum| self.digest.add(checksum));
        self.streams.insert(id, written);
    }

    /// Records a block of answers that was read.
    pub fn found_answers(&mut self, number: u64, until_ms: u64, checksum: u32) {
        self.digest.add(checksum);
        self.answers.push_back((number, until_ms, checksum));
    }

    /// Writes what changed of a stream. Returns how many messages that are.
    pub fn write(&mut self, disk: &Disk, batch: &mut Batch, change: &StreamChange) -> u64 {
        let StreamChange { stream, entries } = change;
        let id = stream.id;
        let written = self.streams.entry(id).or_default();
        while let Some(&count) = written.counts.front()
            && written.start + u64::from(count) <= stream.first
        {
            disk.remove(batch, Table::Blocks, &block_key(id, written.start));
            written.start += u64::from(count);
            written.counts.pop_front();
        }
        let mut first = (stream.last + 1).saturating_sub(entries.len() as u64);
        if written.counts.is_empty() {
            written.start = first;
        }
        let mut rest = entries.as_slice();
        while let Some((block, after)) = block_of(rest) {
            let value = encode_block(id, first, block);
            disk.insert(batch, Table::Blocks, &block_key(id, first), value);
            written.counts.push_back(u32::try_from(block.len()).unwrap_or(u32::MAX));
            first += block.len() as u64;
            rest = after;
        }
        written.last = stream.last;
        let value = encode_stream(stream);
        let checksum = checksum_of(&value);
        let earlier = written.checksum.replace(checksum);
        earlier.into_iter().for_each(|checksum| self.digest.remove(checksum));
        self.digest.add(checksum);
        disk.insert(batch, Table::Streams, &key(id), value);
        entries.len() as u64
    }

    /// Removes a stream.
    pub fn remove(&mut self, disk: &Disk, batch: &mut Batch, id: u64) {
        let Some(written) = self.streams.remove(&id) else { return };
        written.checksum.into_iter().for_each(|checksum| self.digest.remove(checksum));
        disk.remove(batch, Table::Streams, &key(id));
        let mut first = written.start;
        for count in written.counts {
            disk.remove(batch, Table::Blocks, &block_key(id, first));
            first += u64::from(count);
        }
    }

    /// Writes answers, the oldest first.
    pub fn write_answers(
        &mut self,
        disk: &Disk,
        batch: &mut Batch,
        answers: &[StoredKey<Published>],
    ) {
        let Some(last) = answers.last() else { return };
        let number = self.answers.back().map_or(1, |(number, ..)| number.wrapping_add(1));
        let value = encode_answers(number, answers);
        let checksum = checksum_of(&value);
        self.digest.add(checksum);
        self.answers.push_back((number, last.since_ms, checksum));
        disk.insert(batch, Table::Answers, &key(number), value);
    }

    /// Removes blocks of answers that were all given before a time.
    pub fn remove_answers(&mut self, disk: &Disk, batch: &mut Batch, before_ms: u64) {
        while let Some((number, until_ms, checksum)) = self.answers.front().copied()
            && until_ms < before_ms
        {
            disk.remove(batch, Table::Answers, &key(number));
            self.digest.remove(checksum);
            self.answers.pop_front();
        }
    }
}

/// The messages that are the next block, and the others. None: there are none.
fn block_of(entries: &[Entry]) -> Option<(&[Entry], &[Entry])> {
    if entries.is_empty() {
        return None;
    }
    let mut bytes = 0;
    let more = entries.iter().take_while(|entry| {
        let fits = bytes < BLOCK_BYTES;
        bytes += entry.payload().len();
        fits
    });
    entries.split_at_checked(more.count())
}
