//! The commands of a Redis stream that read: permitted by the plugins as HISTORY is, answered by the
//! hub. XREAD may wait for a publication.

use std::borrow::Cow;
use std::ops::Bound;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;

use super::{Session, Waiting, WriteReply};
use switchyard_hub::Hub;
use switchyard_hub::connections::holdings::WaitingNames;
use switchyard_hub::stream_readers::{StreamWait, Woken};
use switchyard_hub::stream_reading::StreamEntries;
use switchyard_middleware::chain::Chain;
use switchyard_middleware::items::Action;
use switchyard_types::command::{Bytestring, LIMIT, Refusal, Reply, Tag, Verb};
use switchyard_types::history::RetainedMessage;
use switchyard_types::position::Position;
use switchyard_types::stream::{
    InfoDetail, InfoEntries, RangeOptions, ReadFrom, ReadStreams, StreamCommand, StreamInfo,
    StreamReply,
};

/// How much an entry of a reply has besides its payload, about: its ID, its field and their lengths.
const ENTRY_BYTES: usize = 100;

/// An XREAD that waits for a publication.
pub(super) struct Reading {
    tag: Tag,
    /// The encoding of replies when the command arrived.
    write: Box<dyn WriteReply + Send>,
    channels: Vec<Bytestring<'static>>,
    /// The position after which each channel is read.
    from: Vec<Position>,
    count: Option<usize>,
    /// The chain that permitted it.
    generation: u64,
    wait: StreamWait,
    /// None: it waits for as long as that takes.
    timeout: Option<Pin<Box<Sleep>>>,
    _counted: WaitingNames,
}

impl Reading {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.wait.woken().is_some() {
            return Poll::Ready(());
        }
        match &mut self.timeout {
            Some(timeout) => {
                ready!(timeout.as_mut().poll(context));
                Poll::Ready(())
            }
            None => Poll::Pending,
        }
    }

    /// How much memory its names hold.
    pub(super) fn heap_bytes(&self) -> usize {
        let names: usize = self.channels.iter().map(|name| name.len()).sum();
        names + self.channels.len() * (size_of::<Bytestring<'_>>() + size_of::<Position>())
    }
}

/// What an XREAD found: the places of the channels that have entries, with them.
pub(super) type Found = Vec<(usize, StreamEntries)>;

impl Session {
    /// Executes a command that reads streams.
    pub(super) fn stream_command(
        &mut self,
        chain: &Chain,
        tag: Tag,
        command: StreamCommand<'_>,
        write: &(impl WriteReply + Copy + Send + 'static),
    ) -> Result<(), Refusal> {
        self.may(chain, command.channels(), Action::History, Chain::access)?;
        let hub = self.services.hub.clone();
        if hub.history().is_shared() {
            return self.streams_at_backplane(chain, tag, command, write);
        }
        match command {
            StreamCommand::Length(channel) => {
                let length = hub.stream_length(&channel) as u64;
                write.write(tag, &Reply::Number(length), &mut self.replies);
                Ok(())
            }
            StreamCommand::Range(channel, options) => {
                let found = hub.stream_range(chain, &self.connection, &channel, options);
                let found = match (found, options.count) {
                    // Redis' reply to `COUNT 0`.
                    (Some(_), Some(0)) => {
                        let nothing = Reply::Stream(StreamReply::Nothing);
                        write.write(tag, &nothing, &mut self.replies);
                        return Ok(());
                    }
                    (found, _) => found.unwrap_or_default(),
                };
                let entries: Vec<_> = found.messages().collect();
                self.check_reply_size(entries.iter())?;
                let reply = Reply::Stream(StreamReply::Entries(&entries));
                write.write(tag, &reply, &mut self.replies);
                Ok(())
            }
            StreamCommand::Info(channel, detail) => {
                self.describe_stream(chain, tag, &channel, detail, write)
            }
            StreamCommand::Read(read) => self.read_streams(chain, tag, read, write),
        }
    }

    fn describe_stream(
        &mut self,
        chain: &Chain,
        tag: Tag,
        channel: &[u8],
        detail: Result<InfoDetail, Cow<'static, str>>,
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        let hub = self.services.hub.clone();
        let info = hub.stream_info(channel).ok_or_else(|| Refusal::new("ERR", "no such key"))?;
        let detail = detail.map_err(|message| Refusal::new("ERR", message))?;
        let first = info.first.as_ref().map_or(Position::default(), |first| first.position);
        let show =
            |messages: Vec<_>| hub.stream_entries(chain, &self.connection, channel, messages);
        let (oldest, newest, full);
        let entries = match detail {
            InfoDetail::Ends => {
                oldest = show(info.first.into_iter().collect());
                newest = show(info.last.into_iter().collect());
                InfoEntries::Ends([&oldest, &newest].map(|found| found.messages().next()))
            }
            InfoDetail::Full(count) => {
                let all = everything(count);
                let found = hub.stream_range(chain, &self.connection, channel, all);
                full = found.unwrap_or_default();
                InfoEntries::Full(full.messages().collect())
            }
        };
        match &entries {
            InfoEntries::Ends(ends) => self.check_reply_size(ends.iter().flatten())?,
            InfoEntries::Full(entries) => self.check_reply_size(entries.iter())?,
        }
        let (length, position, deleted) = (info.length, info.position, info.deleted);
        self.write_info(tag, StreamInfo { length, position, deleted, first, entries }, write);
        Ok(())
    }

    pub(super) fn write_info(
        &mut self,
        tag: Tag,
        mut info: StreamInfo<'_>,
        write: &impl WriteReply,
    ) {
        if info.deleted.offset == 0 {
            info.deleted = Position::default();
        }
        write.write(tag, &Reply::Stream(StreamReply::Info(&info)), &mut self.replies);
    }

    fn read_streams(
        &mut self,
        chain: &Chain,
        tag: Tag,
        read: ReadStreams<'_>,
        write: &(impl WriteReply + Copy + Send + 'static),
    ) -> Result<(), Refusal> {
        let ReadStreams { channels, from, count, block_ms } = read;
        let hub = self.services.hub.clone();
        let mut found = Found::new();
        let mut after = Vec::with_capacity(from.len());
        for (place, (channel, from)) in channels.iter().zip(from).enumerate() {
            let (position, entries) = self.first_look(&hub, chain, channel, from, count);
            after.push(position);
            if !entries.is_empty() {
                found.push((place, entries));
            }
        }
        let Some(block_ms) = block_ms.filter(|_| found.is_empty()) else {
            return self.write_found(tag, &channels, &found, write);
        };
        let counted = hub.count_awaited(&self.connection, &channels)?;
        let names = channels.iter().map(|channel| &**channel);
        let wait = hub.stream_readers().wait(&self.connection, names);
        // What was published before the wait began does not end it.
        let found = self.look(&hub, chain, &channels, &mut after, count, None);
        if !found.is_empty() {
            return self.write_found(tag, &channels, &found, write);
        }
        let timeout =
            (block_ms > 0).then(|| Box::pin(tokio::time::sleep(Duration::from_millis(block_ms))));
        self.waiting = Some(Waiting::Stream(Box::new(Reading {
            tag,
            write: Box::new(*write),
            channels: channels.into_iter().map(|name| name.into_owned().into()).collect(),
            from: after,
            count,
            generation: chain.generation(),
            wait,
            timeout,
            _counted: counted,
        })));
        Ok(())
    }

    /// The position after which a channel is read, and what is there already.
    fn first_look(
        &self,
        hub: &Hub,
        chain: &Chain,
        channel: &[u8],
        from: ReadFrom,
        count: Option<usize>,
    ) -> (Position, StreamEntries) {
        let found = match from {
            ReadFrom::End => None,
            ReadFrom::Last => hub.stream_last(chain, &self.connection, channel),
            ReadFrom::After(position) => {
                hub.stream_range(chain, &self.connection, channel, after(position, count))
            }
        };
        let found = found.unwrap_or_default();
        let position = match (found.looked_until, from) {
            (Some(position), _) | (None, ReadFrom::After(position)) => position,
            (None, _) => hub.stream_position(channel),
        };
        (position, found)
    }

    /// Looks at channels after these positions, which it moves past what is hidden. `places`: only at
    /// the channels at these places.
    fn look(
        &self,
        hub: &Hub,
        chain: &Chain,
        channels: &[Bytestring<'_>],
        from: &mut [Position],
        count: Option<usize>,
        places: Option<Vec<usize>>,
    ) -> Found {
        let mut found = Found::new();
        let places = places.unwrap_or_else(|| (0..channels.len()).collect());
        for place in places {
            let (Some(channel), Some(from)) = (channels.get(place), from.get_mut(place)) else {
                continue;
            };
            let options = after(*from, count);
            let entries = hub.stream_range(chain, &self.connection, channel, options);
            let Some(entries) = entries else { continue };
            match entries.is_empty() {
                true => *from = entries.looked_until.unwrap_or(*from),
                false => found.push((place, entries)),
            }
        }
        found
    }

    pub(super) fn write_found(
        &mut self,
        tag: Tag,
        channels: &[Bytestring<'_>],
        found: &Found,
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        let found: Vec<_> = found
            .iter()
            .filter_map(|(place, entries)| {
                Some((&**channels.get(*place)?, entries.messages().collect::<Vec<_>>()))
            })
            .collect();
        self.check_reply_size(found.iter().flat_map(|(_, entries)| entries))?;
        let reply = match found.is_empty() {
            true => StreamReply::Nothing,
            false => StreamReply::Read(&found),
        };
        write.write(tag, &Reply::Stream(reply), &mut self.replies);
        Ok(())
    }

    /// Goes on with an XREAD that waited, if something was published or its time is over.
    pub(super) fn finish_reading(&mut self) {
        let is_reading = |waiting: &mut Waiting| matches!(waiting, Waiting::Stream(_));
        let Some(Waiting::Stream(mut reading)) = self.waiting.take_if(is_reading) else { return };
        let hub = self.services.hub.clone();
        let woken = reading.wait.woken();
        // Before the look, so that what is published after it wakes again.
        let places = reading.wait.sleep();
        let middleware = self.services.middleware.clone();
        let chain = middleware.chain();
        let is_permitted = match chain.generation() == reading.generation {
            true => Ok(()),
            // Other plugins may decide otherwise.
            false => self.may(&chain, &reading.channels, Action::History, Chain::access_again),
        };
        reading.generation = chain.generation();
        let Reading { tag, channels, from, count, timeout, write, .. } = &mut *reading;
        let done = match (is_permitted, woken) {
            (Err(refusal), _) => Err(refusal),
            (Ok(()), Some(Woken::Failed)) => {
                Err(Refusal::new("UNBLOCKED", "client unblocked via CLIENT UNBLOCK"))
            }
            (Ok(()), Some(Woken::TimedOut)) => {
                self.write_found(*tag, channels, &Found::new(), write)
            }
            (Ok(()), Some(Woken::Published) | None) => {
                let found = self.look(&hub, &chain, channels, from, *count, places);
                let is_over = timeout.as_ref().is_some_and(|timeout| timeout.is_elapsed());
                if found.is_empty() && !is_over {
                    self.waiting = Some(Waiting::Stream(reading));
                    return;
                }
                self.write_found(*tag, channels, &found, write)
            }
        };
        drop(chain);
        // The time in which it may be idle begins now.
        hub.connections().mark_active(&self.connection);
        let Reading { tag, write, .. } = *reading;
        self.is_done(Verb::Xread, tag, done, &write);
    }

    /// Whether a reply with these entries fits into the outbox: otherwise it would end the
    /// connection.
    pub(super) fn check_reply_size<'a>(
        &self,
        entries: impl Iterator<Item = &'a RetainedMessage<'a>>,
    ) -> Result<(), Refusal> {
        let outbox = &self.connection.outbox;
        let bytes: usize = entries.map(|entry| entry.payload.len() + ENTRY_BYTES).sum();
        let room = outbox.bytes_max().saturating_sub(outbox.bytes() + self.replies.len());
        match bytes > room {
            true => {
                let message = format!(
                    "the reply has {bytes} bytes, and there is room for {room} \
                     (outbox.bytes_max): use COUNT"
                );
                Err(Refusal::new(LIMIT, message))
            }
            false => Ok(()),
        }
    }
}

fn after(position: Position, count: Option<usize>) -> RangeOptions {
    RangeOptions { start: Bound::Excluded(position), count, ..everything(None) }
}

fn everything(count: Option<usize>) -> RangeOptions {
    RangeOptions { start: Bound::Unbounded, end: Bound::Unbounded, count, is_reverse: false }
}
