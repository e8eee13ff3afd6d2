//! The outbox and the batch mark of `host/net`, compiled from the same files with loom's types in place of
//! those of `sync`. `tests/` has the models.

#![allow(dead_code, missing_docs, reason = "the models use a part of the files")]

#[path = "../../src/account.rs"]
pub mod account;
#[path = "../../src/batch_mark.rs"]
pub mod batch_mark;
#[path = "../../src/chunks.rs"]
pub mod chunks;
#[path = "../../src/outbox.rs"]
pub mod outbox;

/// A socket, of which the outbox only knows whether there is one.
pub mod socket {
    #[derive(Debug)]
    pub struct Socket;
}

/// As `host/net/src/sync.rs`.
pub mod sync {
    use loom::sync::MutexGuard;
    pub use loom::sync::atomic::AtomicBool;

    /// The interface of parking_lot's mutex.
    #[derive(Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a model that panics ends")
        }
    }
}
