//! Restarts: what was written comes back, and nothing else, at the positions that it had.

use std::collections::BTreeMap;

use super::model::Model;
use super::sequences::{Both, CHANNELS, resolver};
use super::{BEGIN_US, all, entry, for_seeds, limits, rule};
use crate::{
    Changes, Entry, KeyLimits, Keys, Look, Published, Reason, Restored, Resume, StoredKey,
    StoredStream, Streams,
};

/// What a disk has.
#[derive(Default, Clone)]
struct Disk(BTreeMap<u64, (StoredStream, BTreeMap<u64, Entry>)>);

impl Disk {
    fn write(&mut self, changes: Changes) {
        for id in changes.ended {
            assert!(self.0.remove(&id).is_some(), "it was written");
        }
        for change in changes.changed {
            let StoredStream { id, first, last, .. } = change.stream;
            let (stream, entries) =
                self.0.entry(id).or_insert_with(|| (change.stream.clone(), BTreeMap::new()));
            *stream = change.stream;
            let begin = last + 1 - change.entries.len() as u64;
            entries.extend((begin..).zip(change.entries));
            entries.retain(|number, _| *number >= first);
            assert!(entries.keys().copied().eq(first..last + 1), "a run without gaps");
        }
    }

    /// Writes all changes, in small steps.
    fn flush(&mut self, streams: &mut Streams, work_max: usize) {
        loop {
            let written = |id| self.0.get(&id).map_or(0, |(stream, _)| stream.last);
            let changes = streams.changes(written, work_max, 1 << 20);
            let is_done = changes.is_done;
            self.write(changes);
            if is_done {
                break;
            }
        }
    }

    /// The streams with their messages, in the order in which they are taken back.
    fn read(&self) -> Vec<(StoredStream, Vec<Entry>)> {
        let copy = |entry: &Entry| {
            Entry::restored(entry.payload(), entry.version(), entry.tags(), entry.unix_ms())
        };
        let mut streams: Vec<_> = self.0.values().cloned().collect();
        streams.sort_by_key(|(stream, _)| (stream.active_ms, stream.name.clone()));
        streams
            .into_iter()
            .map(|(stream, entries)| (stream, entries.values().map(copy).collect()))
            .collect()
    }
}

#[test]
fn random_restarts_give_what_the_model_gives() {
    for_seeds(|_, rng| {
        let mut both = Both::new(rng.fork(), false);
        both.streams.record_changes();
        let mut disk = Disk::default();
        let mut written: Model = both.model.clone();
        for _ in 0..200 {
            match both.rng.u8(..20) {
                0 => {
                    let work_max = both.rng.usize(1..30);
                    both.expire_all();
                    disk.flush(&mut both.streams, work_max);
                    assert_eq!(both.streams.pending_changes(), 0);
                    written = both.model.clone();
                }
                1 => restart(&mut both, &mut disk, &mut written),
                2 if both.rng.u8(..4) == 0 => {
                    // What the disk has is not known: all is written, and the rest removed.
                    both.expire_all();
                    both.streams.record_all();
                    let mut seen = Disk::default();
                    seen.flush(&mut both.streams, 100);
                    disk = seen;
                    written = both.model.clone();
                }
                _ => drop(both.call()),
            }
        }
        both.compare_all();
        both.end_all();
    });
}

fn restart(both: &mut Both, disk: &mut Disk, written: &mut Model) {
    let is_clean = both.rng.bool();
    let floor = both.streams.last_epoch();
    // If the clock is set back, the times in memory are not those on disk any more.
    let now_us = both.model.now_us;
    if is_clean {
        both.expire_all();
        disk.flush(&mut both.streams, 100);
        assert!(both.streams.seal());
    } else {
        both.model = written.clone();
    }
    both.listeners = [0; CHANNELS];
    both.now_us = now_us + both.rng.u64(..20_000);
    let resolver = resolver(&mut both.rng, false);
    both.model.restart(resolver.clone(), is_clean, floor, both.now_us);
    let mut streams = Streams::new(both.model.limits, resolver);
    streams.record_changes();
    streams.set_epoch_floor(floor);
    let mut dropped = Vec::new();
    for (stream, entries) in disk.read() {
        let id = stream.id;
        if streams.restore(stream, entries, is_clean, both.now_us) == Restored::Dropped {
            dropped.push(id);
        }
    }
    for id in dropped {
        disk.0.remove(&id);
    }
    both.streams = streams;
    both.see_time();
    // New epochs are written before anything else.
    disk.flush(&mut both.streams, 100);
    *written = both.model.clone();
    both.compare_all();
}

#[test]
fn an_unclean_stop_begins_a_new_epoch_and_keeps_what_was_written() {
    let mut disk = Disk::default();
    let rule = all(rule(100, 60_000, 60_000));
    let mut streams = Streams::new(limits(), rule.clone());
    streams.record_changes();
    for number in 1..=5 {
        streams.publish(b"chat", entry(&number.to_string()), || 0, BEGIN_US);
        if number == 3 {
            disk.flush(&mut streams, 100);
        }
    }
    let old = streams.last_position(b"chat", BEGIN_US).expect("a stream");
    // The clock is set back by a day, and the process is killed twice.
    let now_us = BEGIN_US - 86_400_000_000;
    let mut earlier = old.epoch;
    for _ in 0..2 {
        let mut again = Streams::new(limits(), rule.clone());
        again.record_changes();
        again.set_epoch_floor(earlier);
        for (stream, entries) in disk.read() {
            assert_eq!(again.restore(stream, entries, false, now_us), Restored::Renewed);
        }
        let begin = again.last_position(b"chat", now_us).expect("a stream");
        assert!(begin.epoch > earlier && begin.offset == 0, "{begin:?}");
        earlier = begin.epoch;
        streams = again;
    }
    let resume = Resume { position: Some(old), ..Resume::default() };
    let resumed = streams.resume(b"chat", &resume, || 0, now_us).expect("a history");
    assert_eq!((resumed.recovered, resumed.reason), (false, Some(Reason::Epoch)));
    let Published::Kept(new) = streams.publish(b"chat", entry("6"), || 0, now_us) else {
        panic!("it has a history")
    };
    assert_eq!(new.offset, 1);
    let mut read = Vec::new();
    let mut look = Look { limit: 2, ..Look::default() };
    loop {
        let page = streams.history(b"chat", &look, || 0, now_us).expect("a history");
        read.extend(page.messages.iter().map(|one| (one.position, one.entry.payload().to_vec())));
        look.after = page.next;
        if look.after.is_none() {
            break;
        }
        assert!(page.next < Some(new));
    }
    let kept = [(old.epoch, 1, "1"), (old.epoch, 2, "2"), (old.epoch, 3, "3"), (new.epoch, 1, "6")];
    let read: Vec<(u64, u64, &str)> = read
        .iter()
        .map(|(position, payload)| {
            (position.epoch, position.offset, std::str::from_utf8(payload).expect("text"))
        })
        .collect();
    assert_eq!(read, kept);
    // A position that was lost: what is after it, and that something is missing.
    look = Look { limit: 9, after: Some(old), ..Look::default() };
    let page = streams.history(b"chat", &look, || 0, now_us).expect("a history");
    assert!(page.gap);
    assert_eq!(page.messages.iter().map(|one| one.position).collect::<Vec<_>>(), [new]);
}

#[test]
fn nothing_is_retained_after_the_last_write() {
    let mut streams = Streams::new(limits(), all(rule(9, 60_000, 60_000)));
    streams.record_changes();
    streams.publish(b"chat", entry("1"), || 0, BEGIN_US);
    assert!(!streams.seal(), "something is pending");
    streams.publish(b"chat", entry("2"), || 0, BEGIN_US);
    Disk::default().flush(&mut streams, 100);
    assert!(streams.seal());
    for channel in [b"chat".as_slice(), b"new"] {
        let published = streams.publish(channel, entry("3"), || 0, BEGIN_US);
        assert_eq!(published, Published::NoHistory);
    }
}

#[test]
fn answers_to_keys_come_back_in_their_order_and_for_their_time() {
    let limits = KeyLimits { idempotency_ms: 1_000, keys_max: 3 };
    let mut keys = Keys::new(limits);
    keys.record_answers();
    let mut disk: Vec<StoredKey<u32>> = Vec::new();
    for number in 0..4_u32 {
        let key = number.to_string();
        keys.claim(&[(b"chat", key.as_bytes())], BEGIN_US);
        keys.finish(b"chat", key.as_bytes(), number, BEGIN_US + u64::from(number) * 100_000);
        if number == 1 {
            disk.extend(keys.unwritten(1));
            assert!(keys.has_unwritten());
        }
    }
    disk.extend(keys.unwritten(10));
    assert!(!keys.has_unwritten());
    let found: Vec<u32> = disk.iter().map(|stored| stored.answer).collect();
    assert_eq!(found, [0, 1, 2, 3]);
    keys.record_all();
    assert_eq!(keys.unwritten(10).len(), 3, "the oldest was forgotten");

    let now_us = BEGIN_US + 1_150_000;
    let mut keys = Keys::new(limits);
    for stored in disk {
        keys.restore(stored, now_us);
    }
    assert_eq!(keys.len(), 2, "two are over");
    for (key, is_known) in [("1", false), ("2", true), ("3", true)] {
        let crate::Claims::Claimed(claims) = keys.claim(&[(b"chat", key.as_bytes())], now_us)
        else {
            panic!("nothing is pending")
        };
        assert_eq!(matches!(&claims[..], [crate::Claim::Done(_)]), is_known, "{key}");
    }
}
