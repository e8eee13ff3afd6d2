//! Random sequences with tight bounds: what ends is what must end, and no more.

use std::collections::BTreeSet;

use super::sequences::Both;
use super::{BEGIN_US, all, entry, for_seeds, limits, rule};
use crate::{Evictions, Limits, Resume, Streams, message_bytes, stream_bytes};

#[test]
fn random_sequences_end_the_streams_that_the_bounds_say() {
    for_seeds(|_, rng| {
        let mut both = Both::new(rng.fork(), true);
        for _ in 0..80 {
            let current = match both.rng.u8(..40) {
                0 => {
                    both.set_limits();
                    None
                }
                _ => both.call_bounded(),
            };
            both.follow_evictions(current.as_deref());
            both.compare_all();
        }
    });
}

impl Both {
    fn call_bounded(&mut self) -> Option<Vec<u8>> {
        self.model.advance(self.now_us);
        self.call()
    }

    /// Checks the streams that ended because of a bound, and ends them in the model.
    fn follow_evictions(&mut self, current: Option<&[u8]>) {
        self.model.advance(self.now_us);
        let listed = self.streams.list(None, 1_000, self.now_us).streams;
        let left: BTreeSet<Vec<u8>> = listed.iter().map(|one| one.channel.to_vec()).collect();
        let is_ended = |name: &[u8]| !left.contains(name);
        loop {
            let others = || self.model.streams.iter().filter(|(name, _)| Some(&***name) != current);
            let idle: Vec<&Vec<u8>> =
                others().filter(|(_, stream)| stream.is_idle()).map(|(name, _)| name).collect();
            let ended_idle = idle.iter().find(|name| is_ended(name));
            let next = match (idle.is_empty(), ended_idle) {
                (false, ended) => ended.map(|name| name.to_vec()),
                (true, _) => others()
                    .min_by_key(|(_, stream)| stream.published)
                    .map(|(name, _)| name.clone())
                    .filter(|name| is_ended(name)),
            };
            let Some(name) = next else { break };
            assert!(self.model.is_over_bounds(), "{name:?} ended without need");
            self.model.streams.remove(&name);
        }
        let names: BTreeSet<Vec<u8>> = self.model.streams.keys().cloned().collect();
        assert_eq!(names, left, "others ended than those that had to");
        while self.model.is_over_bounds() {
            assert_eq!(self.model.streams.len(), 1, "more streams are left than may be");
            let Some(stream) = self.model.streams.values_mut().next() else { break };
            if stream.messages.is_empty() {
                break;
            }
            stream.messages.remove(0);
        }
    }
}

fn streams(limits: Limits) -> Streams {
    Streams::new(limits, all(rule(100, 1_000, 60_000)))
}

fn names(streams: &mut Streams) -> BTreeSet<String> {
    let listed = streams.list(None, 1_000, BEGIN_US).streams;
    listed.iter().map(|one| String::from_utf8_lossy(&one.channel).into_owned()).collect()
}

#[test]
fn idle_streams_end_first_and_then_those_least_recently_published_to() {
    let mut streams = streams(Limits { channels_max: 5, ..limits() });
    let resume = Resume::default();
    let now_us = BEGIN_US;
    streams.publish(b"old", entry("1"), || 0, now_us);
    streams.resume(b"listened", &resume, || 1, now_us);
    streams.resume(b"idle1", &resume, || 0, now_us);
    streams.resume(b"idle2", &resume, || 0, now_us);
    streams.publish(b"new", entry("1"), || 0, now_us);
    // It is used again.
    streams.resume(b"idle1", &resume, || 0, now_us);
    streams.publish(b"more1", entry("1"), || 0, now_us);
    assert_eq!(
        names(&mut streams),
        ["idle1", "listened", "more1", "new", "old"].map(String::from).into()
    );
    streams.publish(b"more2", entry("1"), || 0, now_us);
    assert_eq!(
        names(&mut streams),
        ["listened", "more1", "more2", "new", "old"].map(String::from).into()
    );
    streams.publish(b"old", entry("2"), || 0, now_us);
    streams.publish(b"more3", entry("1"), || 0, now_us);
    assert_eq!(
        names(&mut streams),
        ["more1", "more2", "more3", "new", "old"].map(String::from).into()
    );
    let expected = Evictions { idle_streams: 2, streams: 1, ..Evictions::default() };
    assert_eq!(streams.evictions(), expected);
}

#[test]
fn a_stream_that_exceeds_the_bound_alone_loses_its_oldest() {
    let one = message_bytes(&entry("12345678"));
    let bytes_max = stream_bytes(b"chat") + 3 * one;
    let mut streams = streams(Limits { bytes_max, ..limits() });
    for _ in 0..10 {
        streams.publish(b"chat", entry("12345678"), || 0, BEGIN_US);
    }
    assert_eq!(streams.length(b"chat", BEGIN_US), Some(3));
    assert_eq!(streams.evictions().oldest_messages, 7);
    assert_eq!(streams.last_position(b"chat", BEGIN_US).map(|position| position.offset), Some(10));
    let large = "x".repeat(bytes_max);
    streams.publish(b"chat", entry(&large), || 0, BEGIN_US);
    assert_eq!(streams.length(b"chat", BEGIN_US), Some(0));
    assert_eq!(streams.last_position(b"chat", BEGIN_US).map(|position| position.offset), Some(11));
    streams.publish(b"chat", entry("12345678"), || 0, BEGIN_US);
    assert_eq!(streams.length(b"chat", BEGIN_US), Some(1));
}

#[test]
fn lower_bounds_are_enforced_in_steps() {
    let mut streams = streams(limits());
    for number in 0..500 {
        for _ in 0..20 {
            let name = format!("chat.{number}");
            streams.publish(name.as_bytes(), entry("payload"), || 0, BEGIN_US);
        }
    }
    streams.set_limits(Limits { channels_max: 10, ..limits() });
    let mut calls = 0;
    loop {
        let expired = streams.expire(BEGIN_US, 50);
        // The last step of a call can exceed it.
        assert!(expired.work < 10_000);
        calls += 1;
        if expired.next_us.is_none_or(|next_us| next_us > BEGIN_US) {
            break;
        }
    }
    assert!(calls > 10);
    assert_eq!(streams.totals().streams, 10);
    assert_eq!(streams.totals().messages, 200);
    assert_eq!(streams.evictions().stream_messages, 490 * 20);
}

#[test]
fn what_is_over_does_not_cause_the_end_of_what_is_not() {
    let one = message_bytes(&entry("payload"));
    let bytes_max = 2 * stream_bytes(b"new") + 12 * one;
    let mut streams = streams(Limits { bytes_max, ..limits() });
    for _ in 0..12 {
        streams.publish(b"old", entry("payload"), || 0, BEGIN_US);
    }
    streams.publish(b"new", entry("payload"), || 0, BEGIN_US + 2_000_000);
    assert_eq!(streams.evictions(), Evictions::default());
    assert_eq!(names(&mut streams), ["new", "old"].map(String::from).into());
    assert_eq!(streams.totals().messages, 1);
}

#[test]
fn a_clock_that_was_set_back_delays_no_work() {
    let mut streams = streams(limits());
    for number in 0..100 {
        streams.publish(format!("chat.{number}").as_bytes(), entry("1"), || 0, BEGIN_US);
    }
    streams.listening(b"chat.0", 0, BEGIN_US + 3_600_000_000);
    let mut calls = 0;
    while streams.expire(BEGIN_US, 10).next_us.is_some_and(|next_us| next_us <= BEGIN_US) {
        calls += 1;
    }
    assert!(calls > 10);
    assert_eq!(streams.totals().streams, 0);
}
