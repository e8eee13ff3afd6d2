//! The commands of a Redis stream that read, where the backplane keeps the histories. The channels
//! that XREAD waits for are subscribed to there until it replies.

use std::future::poll_fn;
use std::ops::Bound;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::Services;
use switchyard_backplane::Backplane;
use switchyard_history::{Info, Look, Message, Page};
use switchyard_hub::connections::Connection;
use switchyard_hub::stream_readers::Woken;
use switchyard_hub::stream_reading::StreamEntries;
use switchyard_types::command::{Bytestring, Kind, Refusal};
use switchyard_types::position::Position;
use switchyard_types::stream::{InfoDetail, RangeOptions, ReadFrom, ReadStreams, StreamCommand};

/// What a command found.
pub(super) enum StreamFound {
    Length(u64),
    Entries(StreamEntries),
    /// What XINFO STREAM says, and the entries that it shows; none: there is no stream.
    Info(Option<(Info, StreamEntries)>),
    /// The places of the channels that have entries, with them.
    Read(Vec<(usize, StreamEntries)>),
    /// Another client ended the wait with an error.
    Unblocked,
}

/// A connection that reads.
pub(super) struct StreamReader {
    pub services: Services,
    pub backplane: Arc<Backplane>,
    pub connection: Arc<Connection>,
}

impl StreamReader {
    /// Executes a command that is permitted.
    pub async fn run(self, command: StreamCommand<'static>) -> Result<StreamFound, Refusal> {
        match command {
            StreamCommand::Length(channel) => {
                let mut length = 0;
                let everything = everything();
                self.each_page(&channel, everything, |page| {
                    length += page.messages.len() as u64;
                    true
                })
                .await?;
                Ok(StreamFound::Length(length))
            }
            StreamCommand::Range(channel, options) => {
                Ok(StreamFound::Entries(self.range(&channel, options).await?.0))
            }
            StreamCommand::Info(channel, detail) => {
                let detail = detail.map_err(|message| Refusal::new("ERR", message));
                self.info(&channel, detail).await
            }
            StreamCommand::Read(read) => self.read(read).await,
        }
    }

    /// Calls `each` for page after page of a range, until it returns false. Returns the position of
    /// the last publication.
    async fn each_page(
        &self,
        channel: &[u8],
        options: RangeOptions,
        mut each: impl FnMut(Page) -> bool,
    ) -> Result<Option<Position>, Refusal> {
        let history = self.services.hub.history();
        let Some(rule) = history.shared_rule(channel) else { return Ok(None) };
        let RangeOptions { start, end, count, is_reverse } = options;
        let mut look =
            Look { limit: count.unwrap_or(usize::MAX), reverse: is_reverse, ..Look::default() };
        look.after = match start {
            Bound::Unbounded => None,
            Bound::Excluded(position) => Some(position),
            Bound::Included(position) => before(position),
        };
        match end {
            Bound::Unbounded => {}
            Bound::Excluded(position) => look.before = Some(position),
            Bound::Included(position) => look.until = Some(position),
        }
        loop {
            let page = self.backplane.look((channel, rule), &look, history.limits()).await?;
            let (position, next) = (page.position, page.next);
            if !each(page) {
                return Ok(Some(position));
            }
            match (next, is_reverse) {
                (None, _) => return Ok(Some(position)),
                (Some(next), false) => look.after = Some(next),
                (Some(next), true) => (look.before, look.until) = (Some(next), None),
            }
        }
    }

    /// The entries of a range, and the position of the last publication.
    async fn range(
        &self,
        channel: &[u8],
        options: RangeOptions,
    ) -> Result<(StreamEntries, Option<Position>), Refusal> {
        let hub = &self.services.hub;
        let mut found = StreamEntries::up_to(options.count.unwrap_or(usize::MAX));
        let position = self
            .each_page(channel, options, |page| {
                let chain = self.services.middleware.chain();
                let entries = hub.stream_entries(&*chain, &self.connection, channel, page.messages);
                found.add(entries);
                !found.is_full()
            })
            .await?;
        Ok((found, position))
    }

    async fn info(
        &self,
        channel: &[u8],
        detail: Result<InfoDetail, Refusal>,
    ) -> Result<StreamFound, Refusal> {
        let mut all: Vec<Message> = Vec::new();
        let position = self
            .each_page(channel, everything(), |page| {
                all.extend(page.messages);
                true
            })
            .await?;
        let Some(position) = position.filter(|at| at.offset > 0 || !all.is_empty()) else {
            return Ok(StreamFound::Info(None));
        };
        let detail = detail?;
        let (first, last) = (all.first().cloned(), all.last().cloned());
        let gone = first.as_ref().map_or(position.offset, |first| first.position.offset - 1);
        let info = Info {
            length: all.len(),
            position,
            deleted: Position { offset: gone, ..position },
            first: first.clone(),
            last: last.clone(),
        };
        let shown = match detail {
            InfoDetail::Ends => first.into_iter().chain(last).collect(),
            InfoDetail::Full(count) => {
                all.truncate(count.unwrap_or(usize::MAX));
                all
            }
        };
        let chain = self.services.middleware.chain();
        let hub = &self.services.hub;
        let shown = hub.stream_entries(&*chain, &self.connection, channel, shown);
        Ok(StreamFound::Info(Some((info, shown))))
    }

    async fn read(self, read: ReadStreams<'static>) -> Result<StreamFound, Refusal> {
        let ReadStreams { channels, from, count, block_ms } = read;
        let hub = self.services.hub.clone();
        let history = hub.history();
        // Only what has a history can have entries; the rules may change meanwhile.
        let hold = block_ms.map(|_| {
            let names = channels.iter().map(|name| &**name);
            Arc::new(self.backplane.interest().hold(Kind::Channel, names))
        });
        if let Some(hold) = hold.as_ref().filter(|hold| !hold.is_settled()) {
            self.backplane.clone().joined(hold.clone()).await;
        }
        let mut after = Vec::with_capacity(channels.len());
        let mut found = Vec::new();
        for (place, (channel, from)) in channels.iter().zip(from).enumerate() {
            let options = match from {
                ReadFrom::After(position) => {
                    RangeOptions { start: Bound::Excluded(position), count, ..everything() }
                }
                ReadFrom::End | ReadFrom::Last => {
                    RangeOptions { count: Some(1), is_reverse: true, ..everything() }
                }
            };
            let (entries, position) = match history.rule(channel) {
                Some(_) => self.range(channel, options).await?,
                None => (StreamEntries::default(), None),
            };
            let position = match from {
                ReadFrom::After(position) => entries.looked_until.unwrap_or(position),
                ReadFrom::End | ReadFrom::Last => position.unwrap_or_default(),
            };
            after.push(position);
            if !matches!(from, ReadFrom::End) && !entries.is_empty() {
                found.push((place, entries));
            }
        }
        let Some(block_ms) = block_ms.filter(|_| found.is_empty()) else {
            return Ok(StreamFound::Read(found));
        };
        let _counted = hub.count_awaited(&self.connection, &channels)?;
        let names = channels.iter().map(|channel| &**channel);
        let wait = hub.stream_readers().wait(&self.connection, names);
        let time = match block_ms {
            0 => None,
            block_ms => Some(Duration::from_millis(block_ms)),
        };
        let mut timeout = std::pin::pin!(async move {
            match time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        });
        let mut places = None;
        loop {
            let found = self.look_again(&channels, &mut after, count, places.take()).await?;
            if !found.is_empty() {
                return Ok(StreamFound::Read(found));
            }
            let woken = tokio::select! {
                woken = poll_fn(|_| wait.woken().map_or(Poll::Pending, Poll::Ready)) => woken,
                () = &mut timeout => Woken::TimedOut,
            };
            match woken {
                // Before the look, so that what is published after it wakes again.
                Woken::Published => places = wait.sleep(),
                Woken::TimedOut => return Ok(StreamFound::Read(Vec::new())),
                Woken::Failed => return Ok(StreamFound::Unblocked),
            }
        }
    }

    async fn look_again(
        &self,
        channels: &[Bytestring<'static>],
        after: &mut [Position],
        count: Option<usize>,
        places: Option<Vec<usize>>,
    ) -> Result<Vec<(usize, StreamEntries)>, Refusal> {
        let mut found = Vec::new();
        for place in places.unwrap_or_else(|| (0..channels.len()).collect()) {
            let (Some(channel), Some(after)) = (channels.get(place), after.get_mut(place)) else {
                continue;
            };
            let options = RangeOptions { start: Bound::Excluded(*after), count, ..everything() };
            let (entries, _) = self.range(channel, options).await?;
            match entries.is_empty() {
                true => *after = entries.looked_until.unwrap_or(*after),
                false => found.push((place, entries)),
            }
        }
        Ok(found)
    }
}

fn everything() -> RangeOptions {
    RangeOptions { start: Bound::Unbounded, end: Bound::Unbounded, count: None, is_reverse: false }
}

/// The position before this one; none: there is none.
fn before(position: Position) -> Option<Position> {
    let Position { epoch, offset } = position;
    match offset.checked_sub(1) {
        Some(offset) => Some(Position { epoch, offset }),
        None => Some(Position { epoch: epoch.checked_sub(1)?, offset: u64::MAX }),
    }
}
