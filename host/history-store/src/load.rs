//! Reads the database: at the start all of it, and later what is in it.
//!
//! What does not decode is damaged, and so is a stream whose blocks have not all of its messages. Of
//! such a stream the newest run of messages without a gap is used.

use std::collections::VecDeque;

use crate::disk::{Disk, DiskError, Table};
use crate::format::{
    block_of, checksum_of, decode_answers, decode_block, decode_stream, key, number_of,
};
use crate::index::{Index, Written};
use crate::memory::Memory;
use crate::state::Digest;
use crate::status::Summary;
use switchyard_history::{Entry, Restored, StoredStream};

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub index: Index,
    pub summary: Summary,
    /// Streams in the database that are not in memory.
    pub dropped: Vec<u64>,
    /// What could not be read; none: nothing.
    pub problem: Option<String>,
}

/// A block of messages.
struct Block {
    first: u64,
    entries: Vec<Entry>,
}

/// Reads everything into memory. With `clean`, everything was written if the checksums are those.
pub(crate) fn load(disk: &Disk, clean: Option<Digest>, memory: &dyn Memory) -> Loaded {
    let mut loaded = Loaded::default();
    // All epochs are known before a stream gets a new one.
    let mut streams = loaded.streams(disk);
    let epochs = streams.iter().filter_map(|(stream, _)| stream.epochs.last());
    memory.set_epoch_floor(epochs.map(|epoch| epoch.epoch).max().unwrap_or(0));
    let answers = loaded.answers(disk);
    let is_whole =
        |loaded: &Loaded, digest: Digest| loaded.problem.is_none() && clean == Some(digest);
    let mut digest = Digest::default();
    streams.iter().for_each(|(_, checksum)| digest.add(*checksum));
    answers.iter().for_each(|(_, checksum, _)| digest.add(*checksum));
    let is_clean = is_whole(&loaded, digest);
    if clean.is_some() && !is_clean && loaded.problem.is_none() {
        loaded.problem = Some("it has not what was written before the server stopped".to_owned());
    }
    // Those that were active last are ended last if there is not enough room.
    streams.sort_by_key(|(stream, _)| stream.active_ms);
    for (stream, checksum) in streams {
        loaded.stream(disk, stream, checksum, is_clean, memory);
    }
    for (number, checksum, answers) in answers {
        let until_ms = answers.last().map_or(0, |answer| answer.since_ms);
        loaded.index.found_answers(number, until_ms, checksum);
        loaded.summary.keys += answers.len() as u64;
        answers.into_iter().for_each(|answer| memory.restore_key(answer));
    }
    loaded.summary.is_damaged = loaded.problem.is_some();
    loaded
}

/// Reads what is in the database, and no messages.
///
/// # Errors
///
/// A part cannot be read, or is damaged.
pub(crate) fn index(disk: &Disk) -> Result<Index, DiskError> {
    let mut loaded = Loaded::default();
    let streams = loaded.streams(disk);
    let answers = loaded.answers(disk);
    for (stream, checksum) in streams {
        let blocks = loaded.blocks(disk, &stream);
        loaded.index.found(stream.id, written(&stream, checksum, &blocks));
    }
    for (number, checksum, answers) in answers {
        let until_ms = answers.last().map_or(0, |answer| answer.since_ms);
        loaded.index.found_answers(number, until_ms, checksum);
    }
    loaded.problem.map_or(Ok(loaded.index), |problem| Err(DiskError::Damaged(problem)))
}

impl Loaded {
    fn damaged(&mut self, problem: impl FnOnce() -> String) {
        self.problem.get_or_insert_with(problem);
    }

    /// Calls `with` for what a table has. What cannot be read is left out.
    fn each(&mut self, disk: &Disk, table: Table, prefix: &[u8], with: impl FnMut(&[u8], &[u8])) {
        if let Err(problem) = disk.each(table, prefix, with) {
            self.damaged(|| problem.to_string());
        }
    }

    /// The streams, each with its checksum.
    fn streams(&mut self, disk: &Disk) -> Vec<(StoredStream, u32)> {
        let (mut streams, mut bad) = (Vec::new(), 0);
        self.each(disk, Table::Streams, &[], |key, value| {
            match number_of(key).and_then(|id| decode_stream(id, value)) {
                Some(stream) => streams.push((stream, checksum_of(value))),
                None => bad += 1,
            }
        });
        if bad > 0 {
            self.damaged(|| format!("{bad} streams are damaged"));
        }
        streams
    }

    /// The answers to publications, in blocks, with their number and checksum.
    fn answers(
        &mut self,
        disk: &Disk,
    ) -> Vec<(u64, u32, Vec<switchyard_history::StoredKey<switchyard_types::command::Published>>)>
    {
        let (mut answers, mut bad) = (Vec::new(), 0);
        self.each(disk, Table::Answers, &[], |key, value| {
            let block = number_of(key).and_then(|it| Some((it, decode_answers(it, value)?)));
            match block {
                Some((number, block)) => answers.push((number, checksum_of(value), block)),
                None => bad += 1,
            }
        });
        if bad > 0 {
            self.damaged(|| format!("{bad} blocks of answers are damaged"));
        }
        answers
    }

    fn blocks(&mut self, disk: &Disk, stream: &StoredStream) -> Vec<Block> {
        let (mut blocks, mut bad, mut bytes) = (Vec::new(), 0, 0);
        self.each(disk, Table::Blocks, &key(stream.id), |key, value| {
            bytes += value.len() as u64;
            let block = block_of(key).and_then(|(id, first)| {
                let entries = decode_block(id, first, value)?;
                (!entries.is_empty() && first > 0).then_some(Block { first, entries })
            });
            match block {
                Some(block) => blocks.push(block),
                None => bad += 1,
            }
        });
        self.summary.bytes += bytes;
        if bad > 0 {
            self.damaged(|| format!("{bad} blocks of messages are damaged"));
        }
        blocks
    }

    fn stream(
        &mut self,
        disk: &Disk,
        mut stream: StoredStream,
        checksum: u32,
        is_clean: bool,
        memory: &dyn Memory,
    ) {
        let id = stream.id;
        let blocks = self.blocks(disk, &stream);
        let written = written(&stream, checksum, &blocks);
        let (first, entries) = newest_run(&stream, blocks);
        let is_sound = first == stream.first && first + entries.len() as u64 == stream.last + 1;
        if !is_sound {
            let channel = String::from_utf8_lossy(&stream.name).into_owned();
            self.damaged(|| format!("messages of {channel} are missing"));
            stream.first = first;
            stream.last = (first + entries.len() as u64).saturating_sub(1);
        }
        let messages = entries.len() as u64;
        let counted = match memory.restore(stream, entries, is_clean && is_sound) {
            Restored::Continued => &mut self.summary.continued,
            Restored::Renewed => &mut self.summary.renewed,
            Restored::Dropped => {
                self.dropped.push(id);
                &mut self.summary.dropped
            }
        };
        *counted += 1;
        self.summary.messages += messages;
        self.index.found(id, written);
    }
}

fn written(stream: &StoredStream, checksum: u32, blocks: &[Block]) -> Written {
    let counts: VecDeque<u32> =
        blocks.iter().map(|block| u32::try_from(block.entries.len()).unwrap_or(u32::MAX)).collect();
    let start = blocks.first().map_or(stream.last + 1, |block| block.first);
    Written { last: stream.last, start, counts, checksum: Some(checksum) }
}

/// The newest messages of a stream that follow each other, from `first` to `last` at most; with the
/// number of the first of them.
fn newest_run(stream: &StoredStream, blocks: Vec<Block>) -> (u64, Vec<Entry>) {
    let mut run = Vec::new();
    let mut next = stream.first;
    for Block { first, entries } in blocks {
        for (number, entry) in (first..).zip(entries) {
            if !(stream.first..=stream.last).contains(&number) {
                continue;
            }
            if number != next {
                run.clear();
            }
            run.push(entry);
            next = number + 1;
        }
    }
    match run.is_empty() {
        // What it held is lost, or it held nothing.
        true => (stream.last + 1, run),
        false => (next - run.len() as u64, run),
    }
}
