//! When each stream is next due, in buckets of milliseconds, of 64 milliseconds, and so on.
//!
//! A stream is in the bucket of its time as seen from `elapsed`: the level is that of the highest
//! digit, in base 64, in which the two differ. So setting and cancelling take constant time, and a
//! stream moves to a lower level at most once for each level. The buckets are lists through the
//! slots. Each step handles one stream, so that the caller can stop after any of them.

use crate::slots::Slots;
use crate::stream::Stream;
use crate::stream::list::{Link, NONE};

const BITS: u32 = 6;
const BUCKETS: u32 = 1 << BITS;
const LEVELS: u32 = u64::BITS.div_ceil(BITS);

/// A stream that is in no bucket.
pub(crate) const NO_BUCKET: u16 = u16::MAX;
/// The time of a stream that is not due.
pub(crate) const NEVER: u64 = u64::MAX;

pub(crate) struct Wheel {
    heads: Vec<u32>,
    /// For each level, a bit for each bucket that has streams.
    occupied: [u64; LEVELS as usize],
    elapsed: u64,
}

impl Wheel {
    pub fn new() -> Wheel {
        Wheel {
            heads: vec![NONE; (LEVELS * BUCKETS) as usize],
            occupied: [0; LEVELS as usize],
            elapsed: 0,
        }
    }

    pub fn bytes(&self) -> usize {
        self.heads.capacity() * size_of::<u32>()
    }

    /// Makes a stream due at a time, instead of any other.
    pub fn set(&mut self, slots: &mut Slots<Stream>, slot: u32, due_ms: u64) {
        self.cancel(slots, slot);
        if due_ms == NEVER {
            return;
        }
        let seen = due_ms.max(self.elapsed);
        let level = (63 - (seen ^ self.elapsed | 1).leading_zeros()) / BITS;
        let bucket = level * BUCKETS + ((seen >> (level * BITS)) as u32 % BUCKETS);
        let head = self.heads.get_mut(bucket as usize).expect("a head for each bucket");
        let next = std::mem::replace(head, slot);
        if next != NONE {
            slots.at_mut(next).timer.link.previous = slot;
        }
        let stream = slots.at_mut(slot);
        stream.timer = Timer { due_ms, link: Link { previous: NONE, next } };
        stream.bucket = bucket as u16;
        self.mark(bucket, true);
    }

    /// Makes a stream not due.
    pub fn cancel(&mut self, slots: &mut Slots<Stream>, slot: u32) {
        let stream = slots.at_mut(slot);
        let bucket = std::mem::replace(&mut stream.bucket, NO_BUCKET);
        if bucket == NO_BUCKET {
            return;
        }
        let Link { previous, next } = stream.timer.link;
        stream.timer = Timer::UNSET;
        if next != NONE {
            slots.at_mut(next).timer.link.previous = previous;
        }
        if previous != NONE {
            slots.at_mut(previous).timer.link.next = next;
            return;
        }
        *self.heads.get_mut(usize::from(bucket)).expect("a head for each bucket") = next;
        if next == NONE {
            self.mark(u32::from(bucket), false);
        }
    }

    /// A stream that is due, or whose bucket begins, at `now_ms` at the latest; it stays in the
    /// wheel. None: no stream is due.
    pub fn next(&mut self, now_ms: u64) -> Option<u32> {
        match self.first_bucket() {
            Some((bucket, start_ms)) if start_ms <= now_ms => {
                self.elapsed = self.elapsed.max(start_ms);
                self.heads.get(bucket as usize).copied()
            }
            _ => {
                self.elapsed = self.elapsed.max(now_ms);
                None
            }
        }
    }

    /// No stream is due before this time.
    pub fn next_ms(&self) -> Option<u64> {
        self.first_bucket().map(|(_bucket, start_ms)| start_ms)
    }

    fn first_bucket(&self) -> Option<(u32, u64)> {
        // The bucket in which `elapsed` lies on a level above the lowest has the rest of a bucket
        // that is being distributed; it can contain any time from `elapsed` on.
        let digit = |level: u32| (self.elapsed >> (level * BITS)) as u32 % BUCKETS;
        let rest = (1..LEVELS).zip(self.occupied.iter().skip(1));
        let rest = rest.into_iter().find(|&(level, bits)| bits >> digit(level) & 1 != 0);
        if let Some((level, _bits)) = rest {
            return Some((level * BUCKETS + digit(level), self.elapsed));
        }
        let (level, bits) = (0..LEVELS).zip(self.occupied).find(|&(_level, bits)| bits != 0)?;
        let index = bits.trailing_zeros();
        let above = self.elapsed.checked_shr((level + 1) * BITS).unwrap_or(0);
        let above = above.checked_shl((level + 1) * BITS).unwrap_or(0);
        Some((level * BUCKETS + index, above | u64::from(index) << (level * BITS)))
    }

    fn mark(&mut self, bucket: u32, is_occupied: bool) {
        let level = (bucket / BUCKETS) as usize;
        let bits = self.occupied.get_mut(level).expect("a bitmap for each level");
        let bit = 1 << (bucket % BUCKETS);
        match is_occupied {
            true => *bits |= bit,
            false => *bits &= !bit,
        }
    }
}

/// The time of a stream in the wheel, and its neighbours in the bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timer {
    /// At most the time at which something is to be done for the stream.
    pub due_ms: u64,
    link: Link,
}

impl Timer {
    pub const UNSET: Timer = Timer { due_ms: NEVER, link: Link::UNLINKED };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HistoryRule;

    #[test]
    fn nothing_is_late_and_little_is_early() {
        let rule = HistoryRule { messages: 1, age_ms: 1, idle_ms: 1 };
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut slots = Slots::new();
            let mut wheel = Wheel::new();
            let mut now_ms = 1_764_340_000_000;
            let streams: Vec<u32> =
                (0..30).map(|_| slots.insert(Stream::new(b"chat", 0, rule, 0))).collect();
            for _ in 0..300 {
                let slot = streams[rng.usize(..streams.len())];
                match rng.u8(..10) {
                    0..4 => {
                        let more_ms = 1 << rng.u32(..24);
                        let due_ms = match rng.u8(..5) {
                            0 => rng.u64(..now_ms),
                            _ => now_ms + rng.u64(..more_ms),
                        };
                        wheel.set(&mut slots, slot, due_ms);
                    }
                    4 => wheel.cancel(&mut slots, slot),
                    5 => {
                        let more_ms = 1 << rng.u32(..22);
                        now_ms += rng.u64(..more_ms);
                    }
                    // Not always until nothing is due: the caller stops when it has done enough.
                    _ => {
                        for _ in 0..rng.usize(..20) {
                            let Some(slot) = wheel.next(now_ms) else { break };
                            match slots.at(slot).timer.due_ms {
                                due_ms if due_ms <= now_ms => wheel.cancel(&mut slots, slot),
                                due_ms => wheel.set(&mut slots, slot, due_ms),
                            }
                        }
                    }
                }
                let due = streams.iter().map(|&slot| slots.at(slot).timer.due_ms);
                let first_ms = due.min().filter(|&due_ms| due_ms != NEVER);
                let next_ms = wheel.next_ms();
                assert_eq!(next_ms.is_some(), first_ms.is_some(), "seed {seed}");
                if let Some((next_ms, first_ms)) = next_ms.zip(first_ms) {
                    assert!(next_ms <= first_ms.max(now_ms), "seed {seed}");
                }
            }
        }
    }
}
