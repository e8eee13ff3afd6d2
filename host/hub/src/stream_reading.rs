//! What the stream commands of Redis find in the histories of channels. They begin no stream.
//!
//! A count bounds the entries that the connection may see. Where the filter hides some, further ones
//! are read in their place: a reader that pages takes a short page for the last one.

use std::ops::Bound;
use std::sync::Arc;

use super::Hub;
use super::clock::unix_us;
use super::connections::Connection;
use super::filter::DeliveryFilter;
use super::history::Missed;
use super::stream_readers::StreamReaders;
use switchyard_history::{Info, Message};
use switchyard_types::history::RetainedMessage;
use switchyard_types::position::Position;
use switchyard_types::stream::RangeOptions;

/// What was found.
#[derive(Default)]
pub struct StreamEntries {
    pages: Vec<Missed>,
    count: usize,
    /// The position of the last entry that was looked at; none: there was none.
    pub looked_until: Option<Position>,
}

impl StreamEntries {
    /// No entries yet, and up to so many.
    pub fn up_to(count: usize) -> StreamEntries {
        StreamEntries { pages: Vec::new(), count, looked_until: None }
    }

    /// Adds the entries that come after these.
    pub fn add(&mut self, more: StreamEntries) {
        self.looked_until = more.looked_until.or(self.looked_until);
        self.pages.extend(more.pages);
    }

    /// Whether there are as many as there may be.
    pub fn is_full(&self) -> bool {
        self.messages().count() >= self.count
    }

    /// The entries that the connection may see, in order.
    pub fn messages(&self) -> impl Iterator<Item = RetainedMessage<'_>> {
        self.pages.iter().flat_map(Missed::messages).take(self.count)
    }

    /// Whether there is none that the connection may see.
    pub fn is_empty(&self) -> bool {
        self.messages().next().is_none()
    }
}

impl Hub {
    /// The entries between two positions. None: there is no stream.
    pub fn stream_range(
        &self,
        filter: &dyn DeliveryFilter,
        connection: &Connection,
        channel: &[u8],
        options: RangeOptions,
    ) -> Option<StreamEntries> {
        let RangeOptions { mut start, mut end, count, is_reverse } = options;
        let count = count.unwrap_or(usize::MAX);
        let mut found = StreamEntries { pages: Vec::new(), count, looked_until: None };
        let (mut page_max, mut visible) = (count, 0);
        loop {
            let (limit, now_us) = (Some(page_max), unix_us());
            let mut streams = self.history().streams.lock();
            let page = streams.range(channel, start, end, limit, is_reverse, now_us);
            drop(streams);
            let messages = match page {
                None if found.pages.is_empty() => return None,
                // It has ended since.
                None => return Some(found),
                Some(messages) => messages,
            };
            let is_last = messages.len() < page_max;
            let last = messages.last().map(|message| message.position);
            found.looked_until = last.or(found.looked_until);
            let page = Missed::new(messages, filter, channel, connection);
            visible += page.messages().count();
            found.pages.push(page);
            let Some(last) = last.filter(|_| !is_last && visible < count) else {
                return Some(found);
            };
            match is_reverse {
                true => end = Bound::Excluded(last),
                false => start = Bound::Excluded(last),
            }
            // Longer each time, so that a long run of hidden entries takes few calls of plugins.
            page_max = page_max.saturating_mul(2);
        }
    }

    /// The newest entry, if the connection may see it. None: there is no stream.
    pub fn stream_last(
        &self,
        filter: &dyn DeliveryFilter,
        connection: &Connection,
        channel: &[u8],
    ) -> Option<StreamEntries> {
        let (all, now_us) = (Bound::Unbounded, unix_us());
        let newest = self.history().streams.lock().range(channel, all, all, Some(1), true, now_us);
        Some(self.stream_entries(filter, connection, channel, newest?))
    }

    /// How many entries a stream holds; 0: there is no stream.
    pub fn stream_length(&self, channel: &[u8]) -> usize {
        self.history().streams.lock().length(channel, unix_us()).unwrap_or(0)
    }

    /// The position of the last publication; `0-0`: there is no stream.
    pub fn stream_position(&self, channel: &[u8]) -> Position {
        let position = self.history().streams.lock().last_position(channel, unix_us());
        position.unwrap_or_default()
    }

    /// What XINFO STREAM says. None: there is no stream.
    pub fn stream_info(&self, channel: &[u8]) -> Option<Info> {
        self.history().streams.lock().info(channel, unix_us())
    }

    /// Entries that were found, as the filter lets a connection see them.
    pub fn stream_entries(
        &self,
        filter: &dyn DeliveryFilter,
        connection: &Connection,
        channel: &[u8],
        messages: Vec<Message>,
    ) -> StreamEntries {
        let looked_until = messages.last().map(|message| message.position);
        let pages = vec![Missed::new(messages, filter, channel, connection)];
        StreamEntries { pages, count: usize::MAX, looked_until }
    }

    /// The connections that wait for publications on channels with history.
    pub fn stream_readers(&self) -> &Arc<StreamReaders> {
        &self.stream_readers
    }
}
