//! What clients ask of the history of a channel, and what they are answered.

use std::borrow::Cow;

use crate::position::Position;

/// The longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// How many bytes the names and values of tags have together at most.
pub const TAGS_BYTES_MAX: usize = 1024;
/// The highest version of a publication: what JavaScript's numbers hold exactly.
pub const VERSION_MAX: u64 = (1 << 53) - 1;

/// How much of one channel is retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryRule {
    /// How many publications, at least 1.
    pub messages: usize,
    /// Nothing older than this is retained, in milliseconds.
    pub age_ms: u64,
    /// How long a stream that holds nothing and has no listener goes on, in milliseconds; at least
    /// `age_ms`.
    pub idle_ms: u64,
}

/// A rule of which the backplane keeps the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRule {
    /// How much is retained.
    pub rule: HistoryRule,
    /// A stream that began earlier has ended: the channel had no history on this node in the
    /// meantime. In microseconds since 1970; 0: it always had one.
    pub since_us: u64,
}

/// Where the backplane put a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamPlace {
    /// Its position in the stream of its channel.
    pub position: Position,
    /// The offset of the publication before it; 0: it is the first one of the stream.
    pub previous: u64,
    /// When it was published, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Whether it was read from the history, because it had not arrived.
    pub is_read: bool,
}

/// What a publication carries besides its payload. Most carry nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishOptions {
    /// A second publication with the same key on the same channel is not published.
    pub key: Option<Box<str>>,
    /// Whether the reply has the position.
    pub wants_position: bool,
    /// The publication is dropped if the history of the channel has an equal or higher version.
    pub version: Option<u64>,
    /// A JSON object of texts.
    pub tags: Option<Box<[u8]>>,
    /// Where it is retained already, if it comes from the backplane.
    pub place: Option<StreamPlace>,
    /// Whether it is an XADD, which is refused on a channel without history.
    pub is_append: bool,
}

/// The arguments of RESUME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResumeOptions {
    /// The last position that the client has.
    pub position: Option<Position>,
    /// If that is not recovered: up to so many of the newest messages.
    pub last: Option<u64>,
    /// If that is not recovered: messages from this time on, in milliseconds since 1970.
    pub since_ms: Option<u64>,
}

/// The arguments of HISTORY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HistoryOptions {
    /// Only messages after this position.
    pub after: Option<Position>,
    /// Only messages before this position.
    pub before: Option<Position>,
    /// Only messages up to this position.
    pub until: Option<Position>,
    /// How many messages at most.
    pub limit: Option<u64>,
    /// Whether the newest comes first.
    pub is_reverse: bool,
    /// Whether each message has its time.
    pub has_times: bool,
}

/// The reply to RESUME.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    /// How many channels and patterns the connection is subscribed to.
    pub listening: u64,
    /// The position of the last publication.
    pub position: Position,
    /// Whether everything after the given position follows.
    pub is_recovered: bool,
    /// How many messages follow.
    pub missed: usize,
    /// Why it is not recovered; none: it is, or no position was given.
    pub reason: Option<&'static str>,
}

/// The reply to HISTORY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPage<'a> {
    /// The position of the last publication.
    pub position: Position,
    /// The messages, in the order that was requested.
    pub messages: &'a [RetainedMessage<'a>],
    /// Where the next page begins; none: there is no more.
    pub next: Option<Position>,
    /// Whether messages after `after` may be missing.
    pub has_gap: bool,
    /// Whether each message has its time.
    pub has_times: bool,
}

/// A message from the history of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetainedMessage<'a> {
    /// Its position.
    pub position: Position,
    /// When it was published, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The message itself.
    pub payload: Cow<'a, [u8]>,
    /// Its tags: a JSON object of texts.
    pub tags: Option<&'a [u8]>,
}
