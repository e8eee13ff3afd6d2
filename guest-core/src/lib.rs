//! The engine of Switchyard: who listens to what.
//!
//! A [`Registry`] records which ids subscribe to which names, and computes the receivers of a
//! publication. It knows names (bytes) and ids, and nothing else: no payloads, sockets, time, WIT
//! or logging. Its state is derived from the host's, so it can be dropped and rebuilt.
//!
//! With the feature `component`, on a wasm target, the crate is the component of the world
//! `guest-core`; otherwise it is a library without dependencies, for crates that use its globs,
//! for benchmarks and for the parity test.

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

#[cfg(all(target_family = "wasm", feature = "component"))]
mod component;

pub use fan_outs::{FanOuts, Group};
pub use names::{Names, Page};
pub use registry::Registry;
pub use snapshot::RestoreError;

/// Names one connection for as long as it is open. Chosen by the host.
pub type ConnectionId = u64;

/// Names a pattern for as long as somebody listens to it. Small: an id that is free again is given
/// to the next new pattern, the one freed last first.
pub type PatternId = u32;
