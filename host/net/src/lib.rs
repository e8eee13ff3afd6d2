//! Sockets, and what waits to be written to them.
//!
//! Bytes are queued in an `outbox`, which accounts for them in an `account`, and are written by the
//! connection's own task or by a `flush` task. `scheduling` holds everything that relies on how
//! tokio orders tasks. `listening`, `tls`, `proxy_protocol`, `descriptors`, `slots` and `address_buckets` decide
//! what is accepted.
//! Nothing here knows a protocol, a command or a subscription. Read `outbox` first.

pub mod account;
pub mod address_buckets;
pub mod batch_mark;
pub mod chunks;
pub mod descriptors;
pub mod flush;
pub mod listening;
pub mod outbox;
pub mod proxy_protocol;
pub mod scheduling;
pub mod slots;
pub mod socket;
mod sync;
pub mod tls;
