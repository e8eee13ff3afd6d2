//! Numbers that look random and can be had again: splitmix64.

use std::hash::{BuildHasher, RandomState};

/// A sequence of numbers that its seed decides.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The sequence of the seed in `SWITCHYARD_SEED`, or of a fresh one. Prints the seed, which the
    /// test harness shows when the test fails.
    ///
    /// # Panics
    ///
    /// When `SWITCHYARD_SEED` is not a number.
    pub fn from_environment() -> Random {
        let seed = match std::env::var("SWITCHYARD_SEED") {
            Ok(seed) => seed.parse().expect("SWITCHYARD_SEED is a decimal number below 2^64"),
            Err(_) => RandomState::new().hash_one(()),
        };
        println!("SWITCHYARD_SEED={seed} replays this");
        Random::new(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number, brought below this one, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// A place below this one, or 0.
    pub fn index(&mut self, end: usize) -> usize {
        self.below(end.max(1) as u64) as usize
    }

    /// One of these, of which there is at least one.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }
}
