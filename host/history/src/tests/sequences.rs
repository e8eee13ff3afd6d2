//! Random sequences of calls: `Streams` answers as the model does.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use fastrand::Rng;

use super::model::Model;
use super::{BEGIN_US, for_seeds};
use crate::{Entry, HistoryRule, Limits, Look, Position, Published, Resolver, Resume, Streams};

pub const CHANNELS: usize = 8;
const CALLS: usize = 150;

/// `Streams` and the model, which get the same calls.
pub struct Both {
    pub streams: Streams,
    pub model: Model,
    pub rng: Rng,
    pub now_us: u64,
    /// How many connections are subscribed to each channel.
    pub listeners: [u32; CHANNELS],
    /// Positions that were returned.
    positions: Vec<Position>,
    is_bounded: bool,
}

#[test]
fn random_sequences_give_what_the_model_gives() {
    for_seeds(|_, rng| {
        let mut both = Both::new(rng.fork(), false);
        for _ in 0..CALLS {
            both.call();
        }
        both.compare_all();
        both.end_all();
    });
}

impl Both {
    pub fn new(mut rng: Rng, is_bounded: bool) -> Both {
        let resolver = resolver(&mut rng, is_bounded);
        let limits = limits(&mut rng, is_bounded);
        let mut both = Both {
            streams: Streams::new(limits, resolver.clone()),
            model: Model::new(limits, resolver),
            rng,
            now_us: BEGIN_US,
            listeners: [0; CHANNELS],
            positions: Vec::new(),
            is_bounded,
        };
        both.see_time();
        both
    }

    /// One random call. Returns the channel that it is for, if it can begin a stream.
    pub fn call(&mut self) -> Option<Vec<u8>> {
        let number = self.rng.usize(..CHANNELS);
        let channel = name(number);
        let listeners = self.listeners[number];
        match self.rng.u8(..100) {
            0..35 => self.publish(&channel, listeners),
            35..47 => {
                let resume = self.resume();
                let got = self.streams.resume(&channel, &resume, || listeners, self.now_us);
                let expected = self.model.resume(&channel, &resume, listeners, self.now_us);
                assert_eq!(got, expected, "{resume:?}");
                self.positions.extend(got.map(|resumed| resumed.position));
            }
            47..57 => {
                let look = self.look();
                let got = self.streams.history(&channel, &look, || listeners, self.now_us);
                let expected = self.model.history(&channel, &look, listeners, self.now_us);
                assert_eq!(got, expected, "{look:?}");
            }
            57..64 => {
                self.range(&channel);
                return None;
            }
            64..74 => {
                let is_leave = listeners > 0 && self.rng.bool();
                let change = if is_leave { -1 } else { 1 };
                self.listeners[number] = listeners.checked_add_signed(change).unwrap();
                self.streams.listening(&channel, change, self.now_us);
                self.model.listening(&channel, change, self.now_us);
                return None;
            }
            74..86 => {
                self.step();
                return None;
            }
            86..90 => {
                self.streams.expire(self.now_us, self.rng.usize(..12));
                return None;
            }
            90..91 => {
                self.expire_all();
                return None;
            }
            91..94 => {
                self.set_rules();
                return None;
            }
            94..97 => {
                self.streams.apply_rules(self.now_us, self.rng.usize(1..80));
                return None;
            }
            97..98 => {
                let got = self.streams.purge(&channel, self.now_us);
                assert_eq!(got, self.model.purge(&channel, self.now_us));
                return None;
            }
            _ => {
                self.compare_all();
                return None;
            }
        }
        Some(channel)
    }

    fn publish(&mut self, channel: &[u8], listeners: u32) {
        let size = if self.rng.u8(..20) == 0 { 500 } else { self.rng.usize(..60) };
        let payload: Vec<u8> = (0..size).map(|_| self.rng.u8(..)).collect();
        let version = (self.rng.u8(..4) == 0).then(|| self.rng.u64(1..8));
        let tags = (self.rng.u8(..6) == 0).then_some(br#"{"a":"b"}"#.as_slice());
        let entry = Entry::new(&payload, self.rng.u64(..), version, tags);
        let copy = entry.clone();
        let got = self.streams.publish(channel, entry, || listeners, self.now_us);
        assert_eq!(got, self.model.publish(channel, copy, listeners, self.now_us));
        if let Published::Kept(position) = got {
            self.positions.push(position);
        }
    }

    fn range(&mut self, channel: &[u8]) {
        let bounds = (self.bound(), self.bound());
        let count = self.rng.bool().then(|| self.rng.usize(1..5));
        let reverse = self.rng.bool();
        let (start, end) = bounds;
        let got = self.streams.range(channel, start, end, count, reverse, self.now_us);
        let expected = self.model.range(channel, bounds, count, reverse, self.now_us);
        assert_eq!(got, expected, "{bounds:?}");
        let stream = self.model.streams.get(channel);
        let length = self.streams.length(channel, self.now_us);
        assert_eq!(length, stream.map(|stream| stream.messages.len()));
        let position = self.streams.last_position(channel, self.now_us);
        assert_eq!(position, stream.map(|stream| stream.at(stream.last)));
        let info = self.streams.info(channel, self.now_us);
        assert_eq!(info.is_some(), stream.is_some());
        if let Some((info, stream)) = info.zip(stream) {
            assert_eq!(info.length, stream.messages.len());
            assert_eq!(info.first.as_ref(), stream.messages.first());
            assert_eq!(info.last.as_ref(), stream.messages.last());
            assert_eq!(info.position, stream.at(stream.last));
            match stream.messages.first().map(|first| first.position) {
                // Before the first of an epoch is the last of an earlier one.
                Some(first) if first.offset == 1 => assert!(info.deleted < first),
                Some(Position { epoch, offset }) => {
                    assert_eq!(info.deleted, Position { epoch, offset: offset - 1 });
                }
                None => assert!(info.deleted <= info.position),
            }
        }
    }

    fn step(&mut self) {
        let step_us = match self.rng.u8(..10) {
            0 => 0,
            1 => self.rng.u64(..1_000),
            2 => 1_000_000,
            _ => self.rng.u64(..60_000),
        };
        match self.rng.u8(..20) {
            // The clock was set back: time stands still until it is where it was.
            0 => self.now_us -= step_us.min(50_000),
            _ => self.now_us += step_us,
        }
        self.see_time();
    }

    /// Both have seen the time, whatever call comes next.
    pub fn see_time(&mut self) {
        self.streams.listening(b"none", 0, self.now_us);
        self.model.advance(self.now_us);
    }

    fn set_rules(&mut self) {
        let resolver = resolver(&mut self.rng, self.is_bounded);
        self.streams.set_rules(resolver.clone(), self.now_us);
        self.model.set_rules(resolver, self.now_us);
        while self.is_bounded && !self.streams.apply_rules(self.now_us, 100).is_done {}
    }

    pub fn set_limits(&mut self) {
        let limits = limits(&mut self.rng, true);
        self.streams.set_limits(limits);
        self.model.limits = limits;
        self.model.advance(self.now_us);
        self.streams.expire(self.now_us, 100_000);
    }

    fn position(&mut self) -> Option<Position> {
        match self.rng.u8(..10) {
            0 => None,
            1 => Some(Position { epoch: self.rng.u64(..), offset: self.rng.u64(..10) }),
            2 => Some(Position { epoch: u64::MAX, offset: u64::MAX }),
            _ => {
                let mut position = *self.rng.choice(&self.positions)?;
                match self.rng.u8(..4) {
                    0 => position.offset += self.rng.u64(..6),
                    1 => position.offset = position.offset.saturating_sub(self.rng.u64(..6)),
                    2 if self.rng.u8(..10) == 0 => position.offset = u64::MAX,
                    _ => {}
                }
                Some(position)
            }
        }
    }

    fn bound(&mut self) -> Bound<Position> {
        match (self.position(), self.rng.bool()) {
            (None, _) => Bound::Unbounded,
            (Some(position), true) => Bound::Included(position),
            (Some(position), false) => Bound::Excluded(position),
        }
    }

    fn resume(&mut self) -> Resume {
        let now_ms = self.now_us / 1_000;
        Resume {
            position: self.position(),
            last: (self.rng.u8(..3) == 0).then(|| self.rng.usize(1..6)),
            since_ms: (self.rng.u8(..4) == 0).then(|| now_ms - self.rng.u64(..200)),
            is_listening: self.rng.u8(..10) == 0,
        }
    }

    fn look(&mut self) -> Look {
        let mut maybe = |of: u8| match self.rng.u8(..of) {
            0 => self.position(),
            _ => None,
        };
        let (after, before, until) = (maybe(2), maybe(4), maybe(4));
        let (limit, reverse) = (self.rng.usize(1..8), self.rng.bool());
        Look { after, before, until, limit, reverse }
    }

    /// All streams are as in the model.
    pub fn compare_all(&mut self) {
        self.model.advance(self.now_us);
        let mut got = BTreeMap::new();
        let limit = self.rng.usize(1..5);
        let mut after: Option<Box<[u8]>> = None;
        loop {
            let page = self.streams.list(after.as_deref(), limit, self.now_us);
            for one in page.streams {
                let stream = (one.messages, one.listeners, one.position);
                assert!(got.insert(one.channel.to_vec(), stream).is_none(), "listed twice");
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let expected = self.model.streams.iter().map(|(name, stream)| {
            let position = stream.at(stream.last);
            (name.clone(), (stream.messages.len(), stream.listeners, position))
        });
        assert_eq!(got, expected.collect());
        // Each was brought up to date, so that what is counted is what there is.
        let totals = self.streams.totals();
        assert_eq!(totals.streams, self.model.streams.len());
        assert_eq!(totals.counted_bytes, self.model.counted_bytes());
        let messages = self.model.streams.values().map(|stream| stream.messages.len());
        assert_eq!(totals.messages, messages.sum::<usize>());
        assert!(totals.bytes >= totals.counted_bytes / 2);
    }

    /// Nothing that is over has memory once `expire` says that there is no more to do.
    pub fn expire_all(&mut self) {
        while !self.streams.apply_rules(self.now_us, 100).is_done {}
        let work_max = self.rng.usize(1..100);
        while let Some(next_us) = self.streams.expire(self.now_us, work_max).next_us {
            if next_us > self.now_us {
                break;
            }
        }
        self.model.advance(self.now_us);
        let totals = self.streams.totals();
        assert_eq!(totals.streams, self.model.streams.len());
        assert_eq!(totals.counted_bytes, self.model.counted_bytes());
    }

    /// All connections leave, and time passes: what is due is done at the times announced.
    pub fn end_all(&mut self) {
        for number in 0..CHANNELS {
            for _ in 0..self.listeners[number] {
                self.streams.listening(&name(number), -1, self.now_us);
            }
        }
        while !self.streams.apply_rules(self.now_us, 100).is_done {}
        let mut calls = 0;
        while let Some(next_us) = self.streams.expire(self.now_us, 50).next_us {
            self.now_us = self.now_us.max(next_us);
            calls += 1;
            assert!(calls < 2_000, "calls that do nothing");
        }
        assert_eq!(self.streams.totals().streams, 0);
        assert_eq!(self.streams.totals().messages, 0);
        assert_eq!(self.streams.totals().counted_bytes, 0);
    }
}

/// Names of one size class.
pub fn name(number: usize) -> Vec<u8> {
    format!("channel.{number}").into_bytes()
}

fn limits(rng: &mut Rng, is_bounded: bool) -> Limits {
    let (bytes_max, channels_max) = match is_bounded {
        true => (rng.usize(200..4_000), rng.usize(1..CHANNELS + 2)),
        false => (1 << 30, 1_000),
    };
    let (resume_messages_max, resume_bytes_max) = (rng.usize(1..12), rng.usize(20..1_000));
    Limits { bytes_max, channels_max, resume_messages_max, resume_bytes_max }
}

pub fn resolver(rng: &mut Rng, is_bounded: bool) -> Resolver {
    let rules: Vec<Option<HistoryRule>> = (0..CHANNELS)
        .map(|_| {
            let age_ms = [1, 20, 100, 1_000][rng.usize(..4)];
            let idle_ms = age_ms * rng.u64(1..10);
            let messages = if is_bounded { rng.usize(1..40) } else { rng.usize(1..10) };
            (rng.u8(..8) != 0).then_some(HistoryRule { messages, age_ms, idle_ms })
        })
        .collect();
    Arc::new(move |channel| {
        let number = (0..CHANNELS).find(|&number| name(number) == channel)?;
        rules[number]
    })
}
