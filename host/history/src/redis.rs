//! What the stream commands of Redis are answered: XRANGE, XREVRANGE, XLEN, XREAD, XINFO STREAM.
//!
//! They begin no stream, and only COUNT bounds them. The caller reads IDs that are incomplete.

use std::ops::Bound;

use crate::reading::Message;
use crate::stream::Stream;
use crate::streams::Streams;
use switchyard_types::position::Position;

/// What XINFO STREAM says of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// How many messages it holds.
    pub length: usize,
    /// The oldest message.
    pub first: Option<Message>,
    /// The newest message.
    pub last: Option<Message>,
    /// The position of the last publication.
    pub position: Position,
    /// The position of the newest publication that is gone; `EPOCH-0` if none is.
    pub deleted: Position,
}

impl Streams {
    /// The messages between two positions, up to `count` of them, from the oldest or, reversed, from
    /// the newest. `start` is the lower one in both cases. None: there is no stream.
    pub fn range(
        &mut self,
        channel: &[u8],
        start: Bound<Position>,
        end: Bound<Position>,
        count: Option<usize>,
        reverse: bool,
        now_us: u64,
    ) -> Option<Vec<Message>> {
        let stream = self.existing(channel, now_us)?;
        let first = match start {
            Bound::Unbounded => 0,
            Bound::Included(start) => stream.first_from(start, 0),
            Bound::Excluded(start) => stream.first_from(start, 1),
        };
        let end = match end {
            Bound::Unbounded => u64::MAX,
            Bound::Included(end) => stream.first_from(end, 1),
            Bound::Excluded(end) => stream.first_from(end, 0),
        };
        let (first, end) = stream.clamp(first, end);
        let count = count.unwrap_or(usize::MAX);
        Some(match reverse {
            true => stream.messages((first..end).rev()).take(count).collect(),
            false => stream.messages(first..end).take(count).collect(),
        })
    }

    /// How many messages a channel's stream holds. None: there is no stream.
    pub fn length(&mut self, channel: &[u8], now_us: u64) -> Option<usize> {
        self.existing(channel, now_us).map(Stream::len)
    }

    /// The position of the last publication on a channel. None: there is no stream.
    pub fn last_position(&mut self, channel: &[u8], now_us: u64) -> Option<Position> {
        self.existing(channel, now_us).map(Stream::position)
    }

    /// What XINFO STREAM says. None: there is no stream.
    pub fn info(&mut self, channel: &[u8], now_us: u64) -> Option<Info> {
        let stream = self.existing(channel, now_us)?;
        let message = |number| stream.messages(std::iter::once(number)).next();
        Some(Info {
            length: stream.len(),
            first: message(stream.first()),
            last: message(stream.last()),
            position: stream.position(),
            deleted: stream.at(stream.first() - 1),
        })
    }

    fn existing(&mut self, channel: &[u8], now_us: u64) -> Option<&Stream> {
        self.advance(now_us);
        let slot = self.find(channel)?;
        Some(self.slots.at(slot))
    }
}
