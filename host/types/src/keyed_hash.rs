//! The hash for keys that clients choose: names, addresses.
//!
//! Its key is random for each process, so that a client cannot compute names that collide, in a map
//! or in one shard. Keys that the server chooses, such as connection ids, do not need it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{LazyLock, OnceLock};

use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;

/// A map with keys that clients choose.
pub type KeyedMap<K, V> = HashMap<K, V, KeyedHash>;

/// Makes hashers that all have the key of this process.
#[derive(Debug, Clone, Copy)]
pub struct KeyedHash {
    seed: u64,
    shared_seed: &'static SharedSeed,
}

struct Key {
    seed: u64,
    shared_seed: SharedSeed,
}

/// Random, from the same source of the operating system that the standard library uses.
static KEY: LazyLock<Key> = LazyLock::new(|| {
    let number = || FIXED.get().copied().unwrap_or_else(|| RandomState::new().hash_one(0_u8));
    Key { seed: number(), shared_seed: SharedSeed::from_u64(number()) }
});

static FIXED: OnceLock<u64> = OnceLock::new();

/// Makes the key of this process known, so that a simulation depends on its seed alone. Without
/// effect after the first use of the key, or a second time.
pub fn fix_key(seed: u64) {
    let _was_fixed = FIXED.set(seed);
}

impl Default for KeyedHash {
    fn default() -> KeyedHash {
        let Key { seed, shared_seed } = &*KEY;
        KeyedHash { seed: *seed, shared_seed }
    }
}

impl BuildHasher for KeyedHash {
    type Hasher = FoldHasher<'static>;

    #[inline]
    fn build_hasher(&self) -> FoldHasher<'static> {
        FoldHasher::with_seed(self.seed, self.shared_seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hashers_of_a_process_agree_and_names_spread() {
        let [one, other] = [KeyedHash::default(), KeyedHash::default()];
        assert_eq!(one.hash_one("news"), other.hash_one("news"));
        // They all collide under rustc-hash: they begin with its seed.
        let name = |number: u64| {
            [&0xd308_a385_886a_3f24_u64.to_le_bytes()[..], &number.to_le_bytes()].concat()
        };
        let mut hashes: Vec<u64> = (0..10_000).map(|number| one.hash_one(name(number))).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 10_000);
    }
}
