//! The order of changes of a slot.
//!
//! A change compiles its component before it takes the lock of changes, so a later change of the
//! same slot can be in force by then. The later one wins: the earlier one is dropped.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// The changes that began and did not end.
#[derive(Default)]
pub struct Order(Mutex<Numbers>);

#[derive(Default)]
struct Numbers {
    last: u64,
    /// The slot of each change that did not end.
    pending: BTreeMap<u64, String>,
    /// The change of each slot that took effect last, while changes are pending.
    in_force: BTreeMap<String, u64>,
}

/// A change that began. It ends when this is dropped.
pub struct Begun<'a> {
    order: &'a Order,
    slot: String,
    number: u64,
}

impl Order {
    /// Begins a change of this slot.
    pub fn begin(&self, slot: &str) -> Begun<'_> {
        let mut numbers = self.0.lock();
        numbers.last += 1;
        let number = numbers.last;
        numbers.pending.insert(number, slot.to_owned());
        Begun { order: self, slot: slot.to_owned(), number }
    }

    /// Drops the pending changes of this slot. Returns whether there are any.
    pub fn cancel(&self, slot: &str) -> bool {
        let mut numbers = self.0.lock();
        let is_any = numbers.pending.values().any(|pending| pending == slot);
        if is_any {
            numbers.last += 1;
            let number = numbers.last;
            numbers.in_force.insert(slot.to_owned(), number);
        }
        is_any
    }
}

impl Begun<'_> {
    /// Whether a later change of this slot is in force.
    pub fn is_superseded(&self) -> bool {
        let numbers = self.order.0.lock();
        numbers.in_force.get(&self.slot).is_some_and(|last| *last > self.number)
    }

    /// This change takes effect.
    pub fn takes_effect(&self) {
        self.order.0.lock().in_force.insert(self.slot.clone(), self.number);
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut numbers = self.order.0.lock();
        numbers.pending.remove(&self.number);
        if numbers.pending.is_empty() {
            numbers.in_force.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_change_that_took_effect_supersedes_an_earlier_one_of_its_slot() {
        let order = Order::default();
        let slow = order.begin("10-a");
        let other = order.begin("20-b");
        let refused = order.begin("10-a");
        drop(refused);
        assert!(!slow.is_superseded(), "a refused change supersedes nothing");
        let quick = order.begin("10-a");
        quick.takes_effect();
        assert!(slow.is_superseded() && !quick.is_superseded() && !other.is_superseded());
        drop((quick, slow));
        assert!(!order.begin("10-a").is_superseded());
    }

    #[test]
    fn a_pending_change_can_be_cancelled() {
        let order = Order::default();
        assert!(!order.cancel("10-a"));
        let slow = order.begin("10-a");
        assert!(order.cancel("10-a") && slow.is_superseded());
        assert!(!order.begin("10-a").is_superseded());
    }
}
