//! Numbers that a seed decides (SplitMix64), for tests that can be repeated.

/// A sequence of numbers.
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The sequence of `SWITCHYARD_SEED`, or else of one that is always the same:
    /// random requests now and then hit what only Redis has (`SET`, settings of its
    /// own), which a fresh seed would report as a difference every few runs.
    pub fn repeated() -> Random {
        match std::env::var("SWITCHYARD_SEED") {
            Ok(_) => Random::seeded(),
            Err(_) => Random::new(1),
        }
    }

    /// The sequence of `SWITCHYARD_SEED`, or of the clock. What seeds it is
    /// printed.
    pub fn seeded() -> Random {
        let seed = match std::env::var("SWITCHYARD_SEED") {
            Ok(seed) => seed.parse().expect("SWITCHYARD_SEED is a number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |elapsed| elapsed.as_nanos() as u64),
        };
        println!("to repeat this: SWITCHYARD_SEED={seed}");
        Random::new(seed)
    }

    /// A number below `bound`, or 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed % bound.max(1) as u64) as usize
    }

    /// One of them.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        all.get(self.below(all.len())).expect("there is one")
    }
}
