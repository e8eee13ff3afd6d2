//! Keeps histories on disk, so that they survive restarts.
//!
//! Memory has everything; the disk is a copy of it, some time behind. A thread reads what changed
//! from the memory (`Memory`), writes it in a transaction, and waits for the next time. Publications
//! never wait for the disk, and a disk that fails or is full costs no more than the copy: the thread
//! tries again, and writes what is missing then.
//!
//! At the start the copy is read back. The server says in `state` whether everything was written
//! when it stopped. If not, or if anything of a stream is missing, publications may be lost, and
//! streams go on in new epochs. The epochs themselves never come back: `state` has a bound above all
//! that were used.
//!
//! Read `store` first, then `writer`. `format` has the bytes, `disk` the database, `load` reads it,
//! `index` knows what is in it.

mod disk;
mod error;
mod format;
mod index;
mod load;
mod memory;
mod state;
mod status;
mod store;
mod writer;

pub use error::{NotClean, OpenError};
pub use memory::Memory;
pub use status::{Status, Summary};
pub use store::{Options, Store};
