//! Items by number, in chunks that never move.
//!
//! A vector that doubles would copy all of them at once, a pause of milliseconds when there are
//! many. The memory of a chunk is freed when the last item in it is removed.

use crate::size::allocated;

/// How many items a chunk has: as many as its bitmap has bits.
const CHUNK: u32 = u64::BITS;

/// Items, each with a number that it keeps until it is removed.
pub(crate) struct Slots<T> {
    chunks: Vec<Chunk<T>>,
    /// The chunks that have free slots.
    open: Vec<u32>,
    count: usize,
    /// How many chunks have memory.
    backed: usize,
}

struct Chunk<T> {
    /// Of the size of a chunk, or empty while no slot is used.
    items: Vec<Option<T>>,
    /// A bit for each free slot.
    free: u64,
}

impl<T> Slots<T> {
    pub fn new() -> Slots<T> {
        Slots { chunks: Vec::new(), open: Vec::new(), count: 0, backed: 0 }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// One more than the highest number.
    pub fn end(&self) -> u32 {
        u32::try_from(self.chunks.len()).unwrap_or(u32::MAX).saturating_mul(CHUNK)
    }

    /// The memory of used and free slots, without what the items own.
    pub fn bytes(&self) -> usize {
        self.backed * allocated(CHUNK as usize * size_of::<Option<T>>())
            + allocated(self.chunks.capacity() * size_of::<Chunk<T>>())
            + allocated(self.open.capacity() * size_of::<u32>())
    }

    pub fn insert(&mut self, item: T) -> u32 {
        let at = match self.open.last() {
            Some(&at) => at,
            None => {
                let at = u32::try_from(self.chunks.len()).expect("fewer chunks than 2^32");
                self.chunks.push(Chunk { items: Vec::new(), free: u64::MAX });
                self.open.push(at);
                at
            }
        };
        let chunk = self.chunks.get_mut(at as usize).expect("an open chunk exists");
        if chunk.items.is_empty() {
            chunk.items.reserve_exact(CHUNK as usize);
            chunk.items.resize_with(CHUNK as usize, || None);
            self.backed += 1;
        }
        let bit = chunk.free.trailing_zeros();
        chunk.free &= chunk.free - 1;
        if chunk.free == 0 {
            self.open.pop();
        }
        *chunk.items.get_mut(bit as usize).expect("a chunk has a slot for each bit") = Some(item);
        self.count += 1;
        at * CHUNK + bit
    }

    #[inline]
    pub fn get(&self, slot: u32) -> Option<&T> {
        self.chunks.get((slot / CHUNK) as usize)?.items.get((slot % CHUNK) as usize)?.as_ref()
    }

    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.chunks
            .get_mut((slot / CHUNK) as usize)?
            .items
            .get_mut((slot % CHUNK) as usize)?
            .as_mut()
    }

    /// The item of a slot that is in use: one that a list or an index names.
    #[inline]
    pub fn at(&self, slot: u32) -> &T {
        self.get(slot).expect("lists and indexes name slots in use")
    }

    /// The item of a slot that is in use.
    #[inline]
    pub fn at_mut(&mut self, slot: u32) -> &mut T {
        self.get_mut(slot).expect("lists and indexes name slots in use")
    }

    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let at = slot / CHUNK;
        let chunk = self.chunks.get_mut(at as usize)?;
        let item = chunk.items.get_mut((slot % CHUNK) as usize)?.take()?;
        if chunk.free == 0 {
            self.open.push(at);
        }
        chunk.free |= 1 << (slot % CHUNK);
        if chunk.free == u64::MAX {
            chunk.items = Vec::new();
            self.backed -= 1;
        }
        self.count -= 1;
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_empty_chunks_are_freed() {
        let mut slots = Slots::new();
        let empty = slots.bytes();
        let numbers: Vec<u32> = (0..1_000).map(|item| slots.insert(item)).collect();
        assert_eq!(numbers, (0..1_000).collect::<Vec<u32>>());
        let full = slots.bytes();
        assert_eq!(slots.remove(500), Some(500));
        assert_eq!(slots.remove(500), None);
        assert_eq!(slots.insert(7), 500);
        assert_eq!((slots.get(500), slots.get(1_001), slots.get(9_999)), (Some(&7), None, None));
        for number in numbers {
            slots.remove(number);
        }
        assert_eq!(slots.len(), 0);
        assert!(slots.bytes() < empty + full / 4);
    }
}
