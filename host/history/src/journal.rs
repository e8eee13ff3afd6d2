//! Which streams changed since they were written to disk.
//!
//! Nothing is queued: a bit for each stream says that it changed, and the writer reads from the
//! stream what it has not written yet (`stored`). So what is pending takes no memory but these bits,
//! an entry that is gone before it was written is never written, and a writer that fails or is slow
//! misses nothing: it reads more the next time.

#[derive(Default)]
pub(crate) struct Journal {
    /// By slot: the stream changed.
    pub changed: Bits,
    /// By slot: something of the stream is on disk.
    pub stored: Bits,
    /// Streams on disk that ended.
    pub ended: Vec<u64>,
    /// No publication is retained any more.
    pub is_sealed: bool,
}

impl Journal {
    #[inline]
    pub fn changed(&mut self, slot: u32) {
        self.changed.set(slot);
    }

    pub fn ended(&mut self, slot: u32, id: u64) {
        self.changed.clear(slot);
        if self.stored.clear(slot) {
            self.ended.push(id);
        }
    }
}

/// A set of slots.
#[derive(Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
    count: usize,
    /// The slot at which `take_next` goes on.
    next: u32,
}

impl Bits {
    /// How many slots it has.
    pub fn len(&self) -> usize {
        self.count
    }

    #[inline]
    pub fn set(&mut self, slot: u32) {
        let (word, bit) = place(slot);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(bits) = self.words.get_mut(word)
            && *bits & bit == 0
        {
            *bits |= bit;
            self.count += 1;
        }
    }

    /// Returns whether it was set.
    pub fn clear(&mut self, slot: u32) -> bool {
        let (word, bit) = place(slot);
        let Some(bits) = self.words.get_mut(word).filter(|bits| **bits & bit != 0) else {
            return false;
        };
        *bits &= !bit;
        self.count -= 1;
        true
    }

    /// Removes a slot: all have their turn before one that is set again.
    pub fn take_next(&mut self) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        let (first, bit) = place(self.next);
        let words = self.words.len();
        for step in 0..=words {
            let word = (first + step) % words;
            let Some(bits) = self.words.get_mut(word) else { continue };
            // The first word is looked at in two parts: from `next` on, and then the rest of it.
            let seen = if step == 0 { *bits & !(bit - 1) } else { *bits };
            if seen != 0 {
                *bits &= !(seen & seen.wrapping_neg());
                self.count -= 1;
                let slot = u32::try_from(word).ok()? * u64::BITS + seen.trailing_zeros();
                self.next = slot + 1;
                return Some(slot);
            }
        }
        None
    }
}

fn place(slot: u32) -> (usize, u64) {
    ((slot / u64::BITS) as usize, 1 << (slot % u64::BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Bits;

    #[test]
    fn each_slot_has_its_turn_before_one_that_is_set_again() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut bits = Bits::default();
            let mut model = BTreeSet::new();
            for _ in 0..300 {
                let slot = rng.u32(..400);
                match rng.u8(..4) {
                    0 => assert_eq!(bits.clear(slot), model.remove(&slot), "seed {seed}"),
                    1 => {
                        let taken = bits.take_next();
                        assert_eq!(taken.is_some(), !model.is_empty(), "seed {seed}");
                        assert!(taken.is_none_or(|slot| model.remove(&slot)), "seed {seed}");
                    }
                    _ => {
                        bits.set(slot);
                        model.insert(slot);
                    }
                }
                assert_eq!(bits.len(), model.len(), "seed {seed}");
            }
            // One that is set again each time does not keep the others from being taken.
            let all = bits.len();
            for _ in 0..all {
                if let Some(slot) = bits.take_next() {
                    model.remove(&slot);
                    bits.set(slot);
                }
            }
            assert!(model.is_empty(), "seed {seed}: {model:?}");
        }
    }
}
