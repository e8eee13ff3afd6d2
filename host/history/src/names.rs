//! Finds the slot of a name, in many small hash tables.
//!
//! One table for all would be built anew when it is full, a pause of milliseconds when there are
//! many names; of these each has a small part of them. The names themselves are in the slots, so
//! that each is stored once. A part of the hash is stored, so that building a table anew reads no
//! slot.

use hashbrown::HashTable;

use crate::size::allocated;

/// How many tables there are. The lowest bits of the hash choose one.
pub(crate) const TABLES: usize = 256;

/// A table is built smaller when it uses less than this part of its memory.
const SPARSE: usize = 8;
/// ... unless it has at most so many slots.
const SMALL: usize = 28;

pub(crate) struct Names {
    tables: Vec<HashTable<Named>>,
    /// Of all tables.
    bytes: usize,
}

struct Named {
    /// The upper half of the hash.
    hash: u32,
    slot: u32,
}

impl Names {
    pub fn new() -> Names {
        let tables: Vec<HashTable<Named>> = (0..TABLES).map(|_| HashTable::new()).collect();
        let bytes = allocated(tables.capacity() * size_of::<HashTable<Named>>());
        Names { tables, bytes }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    pub fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let upper = upper_half(hash);
        let table = self.tables.get(table_of(hash)).expect("a table for each number");
        let found = table.find(in_table(upper), |named| named.hash == upper && is_it(named.slot));
        found.map(|named| named.slot)
    }

    /// Adds a slot whose name has no other.
    pub fn insert(&mut self, hash: u64, slot: u32) {
        let hash_of = |named: &Named| in_table(named.hash);
        let upper = upper_half(hash);
        self.change(table_of(hash), |table| {
            table.insert_unique(in_table(upper), Named { hash: upper, slot }, hash_of);
        });
    }

    pub fn remove(&mut self, hash: u64, slot: u32) {
        let hash_of = |named: &Named| in_table(named.hash);
        self.change(table_of(hash), |table| {
            let upper = upper_half(hash);
            let found = table.find_entry(in_table(upper), |named| named.slot == slot);
            if let Ok(entry) = found {
                entry.remove();
            }
            if table.capacity() > SMALL && table.len() < table.capacity() / SPARSE {
                table.shrink_to(2 * table.len(), hash_of);
            }
        });
    }

    /// The slots in the table with this number, in no order.
    pub fn table_at(&self, number: usize) -> impl Iterator<Item = u32> + '_ {
        self.tables.get(number).into_iter().flat_map(|table| table.iter().map(|named| named.slot))
    }

    fn change(&mut self, number: usize, change: impl FnOnce(&mut HashTable<Named>)) {
        let table = self.tables.get_mut(number).expect("a table for each number");
        let before = allocated(table.allocation_size());
        change(table);
        self.bytes = self.bytes + allocated(table.allocation_size()) - before;
    }
}

/// The number of the table for a hash.
#[inline]
pub(crate) fn table_of(hash: u64) -> usize {
    hash as usize % TABLES
}

#[inline]
fn upper_half(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The hash in a table, which uses the lowest and the highest bits of it.
#[inline]
fn in_table(upper_half: u32) -> u64 {
    u64::from(upper_half).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
