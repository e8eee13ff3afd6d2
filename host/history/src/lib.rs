//! What channels with history retain, and the keys of publications.
//!
//! `Streams` has a stream for each channel with history: its last publications, each with a
//! position. `Keys` has the answers to publications with a key. Both are plain data: the caller
//! holds a lock around each of them, passes the time, and sends what is returned. They know no
//! connection, no protocol, no plugin, no config file, no task and no clock, and they log nothing.
//!
//! Read `rule` first, then `entry`, `stream` and `streams`. `reading` answers RESUME and HISTORY,
//! `redis` the stream commands of Redis, `stored` what is written to disk, `expiry` removes what is over in bounded steps,
//! `streams::bounds` what is too much, and `listing` is for operators. `slots`, `names`, `stream::list` and `stream::wheel` are the
//! data structures below; each takes constant time and never moves many items at once.

mod entry;
mod expiry;
mod journal;
mod keys;
mod listing;
mod names;
mod reading;
mod redis;
mod rule;
mod size;
mod slots;
mod stored;
mod stream;
mod streams;
#[cfg(test)]
mod tests;

pub use entry::Entry;
pub use expiry::{Expired, RulesApplied};
pub use keys::{Claim, Claims, KeyLimits, Keys, KeysExpired, StoredKey};
pub use listing::{Listed, Page as ListedPage, Totals};
pub use reading::{Look, Message, Page, Reason, Resume, Resumed};
pub use redis::Info;
pub use rule::{Limits, Resolver};
pub use stored::{Changes, Restored, StoredStream, StreamChange};
pub use stream::epochs::Epoch;
pub use streams::bounds::Evictions;
pub use streams::{Published, STREAM_BYTES, Streams, message_bytes, stream_bytes};
pub use switchyard_types::history::HistoryRule;
pub use switchyard_types::position::Position;
