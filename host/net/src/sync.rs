//! What tasks share an outbox by. The models in `loom/` replace this module by loom's types, which try
//! all orders of steps.

pub use std::sync::atomic::AtomicBool;

pub use parking_lot::Mutex;
