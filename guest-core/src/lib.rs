//! The engine of Switchyard: which connections are subscribed to a channel.
//!
//! A [`Registry`] records which ids subscribe to which names, and computes the receivers of a
//! publication. It knows names (bytes) and ids, and nothing else: no payloads, sockets, time, WIT
//! or logging. Its state is derived from the host's, so it can be dropped and rebuilt.
//!
//! It has no dependencies. `guest-core/component` makes it the component of the world `guest-core`;
//! plugins use its globs, the server's channel rules its globs and pattern index, and the host, its
//! benchmarks and the parity test use it directly.

#![deny(unsafe_code)]
#![warn(missing_docs)]

mod fan_outs;
mod name;
mod names;
mod patterns;
mod registry;
mod snapshot;
mod subscribers;

pub mod glob;
mod pattern_index;
mod trie;

pub mod model;

pub use fan_outs::{FanOuts, Group};
pub use names::{Names, Page};
pub use pattern_index::PatternIndex;
pub use registry::Registry;
pub use snapshot::RestoreError;

/// Names one connection for as long as it is open. Chosen by the host.
pub type ConnectionId = u64;

/// Names a pattern for as long as somebody listens to it. Small: an id that is free again is given
/// to the next new pattern, the one freed last first.
pub type PatternId = u32;
