//! How much connections hold of messages that were received in part.
//!
//! Each connection publishes its amount in an atomic, so that those that hold the most for the
//! longest can be found. The amounts are exact: these buffers are not shared.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How much one connection holds of messages that were received in part, and of commands that wait
/// for the server. Its own task writes it; a task that closes it subtracts what is accounted for.
#[derive(Debug, Default)]
pub struct InputHeld {
    /// What is accounted for over all connections.
    accounted: AtomicUsize,
    /// Since when it holds that much, in milliseconds of the table of connections; zero: it does
    /// not.
    accounted_since: AtomicU64,
    /// When the current message began; zero: there is none.
    unfinished_since: AtomicU64,
}

impl InputHeld {
    /// How much is accounted for.
    pub fn accounted(&self) -> usize {
        self.accounted.load(Ordering::Relaxed)
    }

    /// Sets how much is accounted for; returns the previous value.
    pub fn account(&self, bytes: usize, now_ms: u64) -> usize {
        let before = self.accounted.swap(bytes, Ordering::Relaxed);
        if before == 0 {
            self.accounted_since.store(now_ms, Ordering::Relaxed);
        }
        before
    }

    /// Records that a message has begun and is incomplete, or another one than before.
    pub fn begin_message(&self, now_ms: u64) {
        self.unfinished_since.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// Records that there is no incomplete message.
    pub fn end_message(&self) {
        self.unfinished_since.store(0, Ordering::Relaxed);
    }

    /// Whether there is an incomplete message.
    pub fn has_begun(&self) -> bool {
        self.unfinished_since.load(Ordering::Relaxed) > 0
    }

    /// For how long a message has been received.
    pub fn unfinished_ms(&self, now_ms: u64) -> u64 {
        match self.unfinished_since.load(Ordering::Relaxed) {
            0 => 0,
            since => now_ms.saturating_sub(since),
        }
    }

    /// How long it has held this: since the message began, or else since it was accounted for.
    fn held_ms(&self, now_ms: u64) -> u64 {
        match self.unfinished_since.load(Ordering::Relaxed) {
            0 => now_ms.saturating_sub(self.accounted_since.load(Ordering::Relaxed)),
            since => now_ms.saturating_sub(since),
        }
    }

    /// The weight for choosing connections to close: the bytes, times how long they have been held.
    pub fn score(&self, now_ms: u64) -> u128 {
        self.accounted() as u128 * u128::from(self.held_ms(now_ms).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_message_that_comes_fast_is_closed_after_a_small_one_that_does_not() {
        let [fast, slow] = [(); 2].map(|()| InputHeld::default());
        slow.begin_message(1);
        assert_eq!(slow.account(100, 1), 0);
        fast.begin_message(9_900);
        assert_eq!(fast.account(1_000, 9_900), 0);
        assert!(slow.score(10_000) > fast.score(10_000));
        assert_eq!(slow.account(0, 10_000), 100);
        assert_eq!(slow.score(10_000), 0);
    }

    #[test]
    fn a_message_lasts_until_it_ends() {
        let held = InputHeld::default();
        assert_eq!((held.has_begun(), held.unfinished_ms(70)), (false, 0));
        held.begin_message(0);
        assert_eq!((held.has_begun(), held.unfinished_ms(70)), (true, 69));
        held.end_message();
        assert_eq!((held.has_begun(), held.unfinished_ms(70)), (false, 0));
    }
}
