//! What `Streams` must do, in the simplest way: everything is looked at each time.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::{
    Entry, HistoryRule, Limits, Look, Message, Page, Position, Published, Reason, Resolver, Resume,
    Resumed, message_bytes, stream_bytes,
};

#[derive(Clone)]
pub struct Model {
    pub streams: BTreeMap<Vec<u8>, MStream>,
    pub limits: Limits,
    resolver: Resolver,
    pub now_us: u64,
    last_epoch: u64,
    publications: u64,
}

#[derive(Clone)]
pub struct MStream {
    pub epoch: u64,
    /// The offset of the last publication.
    pub last: u64,
    pub messages: Vec<Message>,
    pub listeners: u32,
    pub rule: HistoryRule,
    /// When it was published to or began, as a number that rises.
    pub published: u64,
    active_ms: u64,
}

impl Model {
    pub fn new(limits: Limits, resolver: Resolver) -> Model {
        Model {
            streams: BTreeMap::new(),
            limits,
            resolver,
            now_us: 0,
            last_epoch: 0,
            publications: 0,
        }
    }

    pub fn advance(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let now_ms = self.now_us / 1_000;
        for stream in self.streams.values_mut() {
            stream.trim(now_ms);
        }
        self.streams.retain(|_, stream| {
            !stream.is_idle() || now_ms < stream.active_ms + stream.rule.idle_ms
        });
    }

    pub fn set_rules(&mut self, resolver: Resolver, now_us: u64) {
        self.advance(now_us);
        self.resolver = resolver.clone();
        self.streams.retain(|name, stream| match resolver(name) {
            Some(rule) => {
                stream.rule = rule;
                true
            }
            None => false,
        });
        for stream in self.streams.values_mut() {
            stream.trim(self.now_us / 1_000);
        }
    }

    fn begin(&mut self, channel: &[u8], listeners: u32) -> Option<&mut MStream> {
        let now_us = self.now_us;
        if !self.streams.contains_key(channel) {
            let rule = (self.resolver)(channel)?;
            self.last_epoch = now_us.max(self.last_epoch + 1);
            self.publications += 1;
            let stream = MStream {
                epoch: self.last_epoch,
                last: 0,
                messages: Vec::new(),
                listeners,
                rule,
                published: self.publications,
                active_ms: now_us / 1_000,
            };
            self.streams.insert(channel.to_vec(), stream);
        }
        self.streams.get_mut(channel)
    }

    pub fn publish(
        &mut self,
        channel: &[u8],
        mut entry: Entry,
        listeners: u32,
        now_us: u64,
    ) -> Published {
        self.advance(now_us);
        let now_ms = self.now_us / 1_000;
        self.publications += 1;
        let publications = self.publications;
        let Some(stream) = self.begin(channel, listeners) else { return Published::NoHistory };
        let is_as_high = |held: &Message| held.entry.version() >= entry.version();
        if entry.version().is_some() && stream.messages.iter().any(is_as_high) {
            return Published::Stale;
        }
        entry.set_time(now_ms);
        stream.published = publications;
        stream.active_ms = now_ms;
        stream.last += 1;
        let position = stream.at(stream.last);
        stream.messages.push(Message { position, entry });
        stream.trim(now_ms);
        Published::Kept(position)
    }

    pub fn listening(&mut self, channel: &[u8], change: i32, now_us: u64) {
        self.advance(now_us);
        let now_ms = self.now_us / 1_000;
        if let Some(stream) = self.streams.get_mut(channel) {
            stream.listeners = stream.listeners.checked_add_signed(change).unwrap();
            if change < 0 && stream.listeners == 0 {
                stream.active_ms = now_ms;
            }
        }
    }

    pub fn purge(&mut self, channel: &[u8], now_us: u64) -> Option<usize> {
        self.advance(now_us);
        self.streams.remove(channel).map(|stream| stream.messages.len())
    }

    pub fn resume(
        &mut self,
        channel: &[u8],
        resume: &Resume,
        listeners: u32,
        now_us: u64,
    ) -> Option<Resumed> {
        self.advance(now_us);
        let limits = self.limits;
        let stream = self.begin(channel, listeners)?;
        let position = stream.at(stream.last);
        let answer =
            |reason, messages| Some(Resumed { position, recovered: false, reason, messages });
        if resume.is_listening {
            return answer(Some(Reason::Listening), Vec::new());
        }
        let bytes = |messages: &[Message]| messages.iter().map(payload_bytes).sum::<usize>();
        let mut reason = None;
        if let Some(from) = resume.position {
            let after: Vec<Message> =
                stream.messages.iter().filter(|one| one.position > from).cloned().collect();
            if from.epoch != stream.epoch || from.offset > stream.last {
                reason = Some(Reason::Epoch);
            } else if after.len() as u64 != stream.last - from.offset {
                reason = Some(Reason::Trimmed);
            } else if after.len() > limits.resume_messages_max
                || bytes(&after) > limits.resume_bytes_max
            {
                reason = Some(Reason::Many);
            } else {
                return Some(Resumed { position, recovered: true, reason, messages: after });
            }
        }
        if resume.last.is_none() && resume.since_ms.is_none() {
            return answer(reason, Vec::new());
        }
        let mut messages = stream.messages.clone();
        messages.retain(|one| one.entry.unix_ms() >= resume.since_ms.unwrap_or(0));
        let max = resume.last.unwrap_or(usize::MAX).min(limits.resume_messages_max);
        while messages.len() > max || bytes(&messages) > limits.resume_bytes_max {
            messages.remove(0);
        }
        answer(reason, messages)
    }

    pub fn history(
        &mut self,
        channel: &[u8],
        look: &Look,
        listeners: u32,
        now_us: u64,
    ) -> Option<Page> {
        self.advance(now_us);
        let limits = self.limits;
        let stream = self.begin(channel, listeners)?;
        let mut all = stream.messages.clone();
        all.retain(|one| look.after.is_none_or(|after| one.position > after));
        all.retain(|one| look.before.is_none_or(|before| one.position < before));
        all.retain(|one| look.until.is_none_or(|until| one.position <= until));
        if look.reverse {
            all.reverse();
        }
        let mut messages = Vec::new();
        let mut bytes = 0;
        for one in &all {
            bytes += payload_bytes(one);
            if messages.len() == look.limit.min(limits.resume_messages_max)
                || !messages.is_empty() && bytes > limits.resume_bytes_max
            {
                break;
            }
            messages.push(one.clone());
        }
        let next = (messages.len() < all.len()).then(|| messages.last().unwrap().position);
        let gap = look.after.is_some_and(|after| {
            let there = stream.messages.iter().filter(|one| one.position > after).count() as u64;
            after.epoch != stream.epoch
                || after.offset > stream.last
                || there != stream.last - after.offset
        });
        Some(Page { position: stream.at(stream.last), messages, next, gap })
    }

    pub fn range(
        &mut self,
        channel: &[u8],
        bounds: (Bound<Position>, Bound<Position>),
        count: Option<usize>,
        reverse: bool,
        now_us: u64,
    ) -> Option<Vec<Message>> {
        use std::ops::RangeBounds;
        self.advance(now_us);
        let mut messages = self.streams.get(channel)?.messages.clone();
        messages.retain(|one| bounds.contains(&one.position));
        if reverse {
            messages.reverse();
        }
        messages.truncate(count.unwrap_or(usize::MAX));
        Some(messages)
    }

    /// The process ends and starts again with these rules. After an unclean stop this is the state
    /// that was written last, and all epochs begin above `floor`.
    pub fn restart(&mut self, resolver: Resolver, is_clean: bool, floor: u64, now_us: u64) {
        self.now_us = now_us;
        self.last_epoch = self.last_epoch.max(floor);
        let now_ms = now_us / 1_000;
        let mut streams: Vec<(Vec<u8>, MStream)> =
            std::mem::take(&mut self.streams).into_iter().collect();
        streams.sort_by_key(|(_, stream)| stream.active_ms);
        for (name, mut stream) in streams {
            let Some(rule) = resolver(&name) else { continue };
            for Message { entry, .. } in &mut stream.messages {
                let time = entry.unix_ms().min(now_ms);
                *entry = Entry::restored(entry.payload(), entry.version(), entry.tags(), time);
            }
            if stream.listeners > 0 {
                stream.active_ms = now_ms;
            }
            stream.active_ms = stream.active_ms.min(now_ms);
            stream.listeners = 0;
            stream.rule = rule;
            stream.trim(now_ms);
            if stream.is_idle() && now_ms >= stream.active_ms + rule.idle_ms {
                continue;
            }
            if !is_clean {
                self.last_epoch = now_us.max(self.last_epoch + 1);
                stream.epoch = self.last_epoch;
                stream.last = 0;
            }
            self.publications += 1;
            stream.published = self.publications;
            self.streams.insert(name, stream);
        }
        self.resolver = resolver;
    }

    /// What counts in `Limits::bytes_max`.
    pub fn counted_bytes(&self) -> usize {
        let of = |(name, stream): (&Vec<u8>, &MStream)| {
            let messages = stream.messages.iter().map(|one| message_bytes(&one.entry));
            stream_bytes(name) + messages.sum::<usize>()
        };
        self.streams.iter().map(of).sum()
    }

    pub fn is_over_bounds(&self) -> bool {
        self.counted_bytes() > self.limits.bytes_max
            || self.streams.len() > self.limits.channels_max
    }
}

impl MStream {
    pub fn at(&self, offset: u64) -> Position {
        Position { epoch: self.epoch, offset }
    }

    pub fn is_idle(&self) -> bool {
        self.messages.is_empty() && self.listeners == 0
    }

    fn trim(&mut self, now_ms: u64) {
        let rule = self.rule;
        self.messages.retain(|one| now_ms - one.entry.unix_ms() <= rule.age_ms);
        let more = self.messages.len().saturating_sub(rule.messages);
        self.messages.drain(..more);
    }
}

fn payload_bytes(message: &Message) -> usize {
    message.entry.payload().len() + message.entry.tags().map_or(0, <[u8]>::len)
}
