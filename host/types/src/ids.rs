//! Identifiers.

/// The id of a connection; never reused.
pub type ConnectionId = u64;
