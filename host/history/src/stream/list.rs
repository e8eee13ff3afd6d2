//! Lists through the slots, so that an item is moved or removed in constant time.
//!
//! An item has a link for each list that it can be in. A list has no memory but its two ends.

use crate::slots::Slots;
use crate::stream::Stream;

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// The neighbours of an item in one list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub previous: u32,
    pub next: u32,
}

impl Link {
    pub const UNLINKED: Link = Link { previous: NONE, next: NONE };
}

/// Which of its links an item uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// All streams, the least recently published to first.
    Publication,
    /// The streams that hold nothing and have no listener, the least recently used first.
    Idle,
}

/// A list.
pub(crate) struct List {
    order: Order,
    front: u32,
    back: u32,
}

impl List {
    pub fn new(order: Order) -> List {
        List { order, front: NONE, back: NONE }
    }

    /// The first that is not `but`.
    pub fn first_but(&self, slots: &Slots<Stream>, but: u32) -> Option<u32> {
        let first = match self.front == but && but != NONE {
            true => slots.at(but).link(self.order).next,
            false => self.front,
        };
        (first != NONE).then_some(first)
    }

    pub fn push_back(&mut self, slots: &mut Slots<Stream>, slot: u32) {
        let previous = self.back;
        *slots.at_mut(slot).link_mut(self.order) = Link { previous, next: NONE };
        match previous {
            NONE => self.front = slot,
            _ => slots.at_mut(previous).link_mut(self.order).next = slot,
        }
        self.back = slot;
    }

    /// Removes a slot that is in the list.
    pub fn remove(&mut self, slots: &mut Slots<Stream>, slot: u32) {
        let Link { previous, next } = *slots.at(slot).link(self.order);
        match previous {
            NONE => self.front = next,
            _ => slots.at_mut(previous).link_mut(self.order).next = next,
        }
        match next {
            NONE => self.back = previous,
            _ => slots.at_mut(next).link_mut(self.order).previous = previous,
        }
        *slots.at_mut(slot).link_mut(self.order) = Link::UNLINKED;
    }

    /// Moves a slot that is in the list to its end.
    #[inline]
    pub fn move_back(&mut self, slots: &mut Slots<Stream>, slot: u32) {
        if self.back != slot {
            self.remove(slots, slot);
            self.push_back(slots, slot);
        }
    }
}
