//! What RESUME and HISTORY are answered.
//!
//! Both begin a stream where there is none, so that the position in the answer stays valid. A RESUME
//! returns everything after its position or nothing; only `last` and `since_ms` return a part. What
//! is too old is gone. The entries returned share their memory with the stream.

use crate::entry::Entry;
use crate::stream::Stream;
use crate::streams::Streams;
use switchyard_types::position::Position;

/// A retained publication and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it is.
    pub position: Position,
    /// What was published.
    pub entry: Entry,
}

/// What a RESUME asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resume {
    /// The position from which the client goes on.
    pub position: Option<Position>,
    /// Where that is not recovered: up to so many of the newest messages.
    pub last: Option<usize>,
    /// Where that is not recovered: messages from this time on, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Whether the connection is subscribed to the channel already; then nothing old is returned.
    pub is_listening: bool,
}

/// The answer to a RESUME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// The position of the last publication.
    pub position: Position,
    /// Whether `messages` are all publications after the given position.
    pub recovered: bool,
    /// Why they are not; none if they are, or no position was given.
    pub reason: Option<Reason>,
    /// What to send, the oldest first.
    pub messages: Vec<Message>,
}

/// Why a RESUME is not recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The position is of another stream, or in the future.
    Epoch,
    /// Some of the messages after the position are gone.
    Trimmed,
    /// More messages or bytes are after the position than one answer has.
    Many,
    /// The connection is subscribed to the channel already.
    Listening,
}

impl Reason {
    /// All.
    pub const ALL: [Reason; 4] = [Reason::Epoch, Reason::Trimmed, Reason::Many, Reason::Listening];

    /// The text in the answer.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Epoch => "epoch",
            Reason::Trimmed => "trimmed",
            Reason::Many => "many",
            Reason::Listening => "listening",
        }
    }
}

/// What a HISTORY asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// Only messages after this position.
    pub after: Option<Position>,
    /// Only messages before this position.
    pub before: Option<Position>,
    /// Only messages up to this position.
    pub until: Option<Position>,
    /// How many messages; `Limits::resume_messages_max` at most.
    pub limit: usize,
    /// Whether the newest comes first.
    pub reverse: bool,
}

/// The answer to a HISTORY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The position of the last publication.
    pub position: Position,
    /// The messages, oldest first, or reversed.
    pub messages: Vec<Message>,
    /// What to give as `after` (reversed: as `before`) for the next page; none: this is the last.
    pub next: Option<Position>,
    /// Whether `after` was given and messages after it may be gone.
    pub gap: bool,
}

impl Streams {
    /// Answers a RESUME. None: the channel has no history.
    pub fn resume(
        &mut self,
        channel: &[u8],
        resume: &Resume,
        listeners: impl FnOnce() -> u32,
        now_us: u64,
    ) -> Option<Resumed> {
        let slot = self.begin_reading(channel, listeners, now_us)?;
        let stream = self.slots.at(slot);
        let position = stream.position();
        if resume.is_listening {
            let reason = Some(Reason::Listening);
            return Some(Resumed { position, recovered: false, reason, messages: Vec::new() });
        }
        let reason = match resume.position.map(|from| self.recovered(stream, from)) {
            Some(Ok(messages)) => {
                return Some(Resumed { position, recovered: true, reason: None, messages });
            }
            Some(Err(reason)) => Some(reason),
            None => None,
        };
        let messages = self.rewound(stream, resume);
        Some(Resumed { position, recovered: false, reason, messages })
    }

    /// Answers a HISTORY. None: the channel has no history.
    pub fn history(
        &mut self,
        channel: &[u8],
        look: &Look,
        listeners: impl FnOnce() -> u32,
        now_us: u64,
    ) -> Option<Page> {
        let slot = self.begin_reading(channel, listeners, now_us)?;
        let stream = self.slots.at(slot);
        let first = look.after.map_or(0, |after| stream.first_from(after, 1));
        let before = look.before.map_or(u64::MAX, |before| stream.first_from(before, 0));
        let until = look.until.map_or(u64::MAX, |until| stream.first_from(until, 1));
        let (first, end) = stream.clamp(first, before.min(until));
        let gap = look.after.is_some_and(|after| {
            stream.number(after).is_none_or(|after| after + 1 < stream.first())
        });
        let numbers: &mut dyn Iterator<Item = u64> = match look.reverse {
            true => &mut (first..end).rev(),
            false => &mut (first..end),
        };
        let (messages, is_end) = self.page(stream, numbers, look.limit);
        let next = match is_end {
            true => None,
            false => messages.last().map(|message| message.position),
        };
        Some(Page { position: stream.position(), messages, next, gap })
    }

    fn begin_reading(
        &mut self,
        channel: &[u8],
        listeners: impl FnOnce() -> u32,
        now_us: u64,
    ) -> Option<u32> {
        self.advance(now_us);
        self.expire_if_full(crate::streams::stream_bytes(channel));
        let slot = self.find_or_begin(channel, listeners)?;
        self.used(slot);
        self.enforce(slot);
        Some(slot)
    }

    /// Everything after a position.
    fn recovered(&self, stream: &Stream, from: Position) -> Result<Vec<Message>, Reason> {
        let from = stream.number(from).ok_or(Reason::Epoch)?;
        if from + 1 < stream.first() {
            return Err(Reason::Trimmed);
        }
        let missed = stream.last() - from;
        if missed > self.limits.resume_messages_max as u64 {
            return Err(Reason::Many);
        }
        let numbers = from + 1..stream.last() + 1;
        let mut bytes = 0;
        let mut messages = Vec::with_capacity(missed as usize);
        for message in stream.messages(numbers) {
            bytes += message.entry.answer_bytes();
            if bytes > self.limits.resume_bytes_max {
                return Err(Reason::Many);
            }
            messages.push(message);
        }
        Ok(messages)
    }

    /// The newest messages, as `last` and `since_ms` say.
    fn rewound(&self, stream: &Stream, resume: &Resume) -> Vec<Message> {
        let Resume { last, since_ms, .. } = *resume;
        if last.is_none() && since_ms.is_none() {
            return Vec::new();
        }
        let max = self.limits.resume_messages_max;
        let since_ms = since_ms.unwrap_or(0);
        let mut bytes = 0;
        let newest = (stream.first()..stream.last() + 1).rev();
        let mut messages: Vec<Message> = stream
            .messages(newest)
            .take(last.unwrap_or(max).min(max))
            .take_while(|message| {
                bytes += message.entry.answer_bytes();
                message.entry.unix_ms() >= since_ms && bytes <= self.limits.resume_bytes_max
            })
            .collect();
        messages.reverse();
        messages
    }

    /// Messages until a page is full; whether they are all.
    fn page(
        &self,
        stream: &Stream,
        numbers: &mut dyn Iterator<Item = u64>,
        limit: usize,
    ) -> (Vec<Message>, bool) {
        let limit = limit.min(self.limits.resume_messages_max);
        let mut bytes = 0;
        let mut messages = Vec::new();
        for message in stream.messages(numbers) {
            bytes += message.entry.answer_bytes();
            let is_too_much = !messages.is_empty() && bytes > self.limits.resume_bytes_max;
            if messages.len() >= limit || is_too_much {
                return (messages, false);
            }
            messages.push(message);
        }
        (messages, true)
    }
}

impl Stream {
    /// The part of a range of numbers, the end exclusive, that is not gone.
    pub(crate) fn clamp(&self, first: u64, end: u64) -> (u64, u64) {
        let first = first.max(self.first());
        (first, end.min(self.last() + 1).max(first))
    }

    pub(crate) fn messages(
        &self,
        numbers: impl Iterator<Item = u64>,
    ) -> impl Iterator<Item = Message> {
        numbers.filter_map(|number| {
            let entry = self.entry(number)?.clone();
            Some(Message { position: self.at(number), entry })
        })
    }
}
