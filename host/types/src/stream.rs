//! What Redis clients ask of the history of a channel, by the commands of a Redis stream, and what
//! they are answered.

use std::borrow::Cow;
use std::ops::Bound;

use crate::history::RetainedMessage;
use crate::position::Position;

/// The name of a channel: any bytes.
pub type Name<'a> = Cow<'a, [u8]>;

/// A command that reads streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamCommand<'a> {
    /// XRANGE and XREVRANGE.
    Range(Name<'a>, RangeOptions),
    /// XLEN.
    Length(Name<'a>),
    /// XREAD.
    Read(ReadStreams<'a>),
    /// XINFO STREAM; an error: what is wrong with its options, which is answered if there is a
    /// stream.
    Info(Name<'a>, Result<InfoDetail, Cow<'static, str>>),
}

/// The arguments of XRANGE and XREVRANGE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeOptions {
    /// The lower end.
    pub start: Bound<Position>,
    /// The upper end.
    pub end: Bound<Position>,
    /// How many entries at most; none: all.
    pub count: Option<usize>,
    /// Whether the newest comes first.
    pub is_reverse: bool,
}

/// The arguments of XREAD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadStreams<'a> {
    /// The channels.
    pub channels: Vec<Name<'a>>,
    /// Where each of them is read from.
    pub from: Vec<ReadFrom>,
    /// How many entries of each channel at most; none: all.
    pub count: Option<usize>,
    /// How long to wait if there are none, in milliseconds; 0: for as long as that takes. None: not
    /// at all.
    pub block_ms: Option<u64>,
}

/// Where XREAD begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// After this position.
    After(Position),
    /// After the last publication: `$`.
    End,
    /// With the newest entry: `+`.
    Last,
}

/// What XINFO STREAM shows of the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InfoDetail {
    /// The oldest and the newest.
    Ends,
    /// The oldest, this many at most; none: all.
    Full(Option<usize>),
}

/// The reply to one of the commands, where it is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamReply<'a> {
    /// The entries of a range.
    Entries(&'a [RetainedMessage<'a>]),
    /// The channels that have entries, with them.
    Read(&'a [ReadChannel<'a>]),
    /// There are none.
    Nothing,
    /// The reply to XINFO STREAM.
    Info(&'a StreamInfo<'a>),
}

/// What XREAD found on a channel.
pub type ReadChannel<'a> = (&'a [u8], Vec<RetainedMessage<'a>>);

/// The reply to XINFO STREAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo<'a> {
    /// How many entries it holds.
    pub length: usize,
    /// The position of the last publication; its offset is how many there were.
    pub position: Position,
    /// The position of the newest publication that is gone; `0-0` if none is.
    pub deleted: Position,
    /// The position of the oldest entry; `0-0` if there is none.
    pub first: Position,
    /// The entries that are shown.
    pub entries: InfoEntries<'a>,
}

/// The entries in the reply to XINFO STREAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InfoEntries<'a> {
    /// The oldest and the newest.
    Ends([Option<RetainedMessage<'a>>; 2]),
    /// The oldest ones.
    Full(Vec<RetainedMessage<'a>>),
}

impl StreamCommand<'_> {
    /// The channels that it reads.
    pub fn channels(&self) -> &[Name<'_>] {
        match self {
            StreamCommand::Range(channel, _)
            | StreamCommand::Length(channel)
            | StreamCommand::Info(channel, _) => std::slice::from_ref(channel),
            StreamCommand::Read(read) => &read.channels,
        }
    }

    /// The same, with owned bytes.
    pub fn into_owned(self) -> StreamCommand<'static> {
        match self {
            StreamCommand::Range(channel, options) => StreamCommand::Range(own(channel), options),
            StreamCommand::Length(channel) => StreamCommand::Length(own(channel)),
            StreamCommand::Read(read) => StreamCommand::Read(read.into_owned()),
            StreamCommand::Info(channel, detail) => StreamCommand::Info(own(channel), detail),
        }
    }
}

impl ReadStreams<'_> {
    /// The same, with owned bytes.
    pub fn into_owned(self) -> ReadStreams<'static> {
        let ReadStreams { channels, from, count, block_ms } = self;
        ReadStreams { channels: channels.into_iter().map(own).collect(), from, count, block_ms }
    }
}

fn own(bytes: Name<'_>) -> Name<'static> {
    Cow::Owned(bytes.into_owned())
}
