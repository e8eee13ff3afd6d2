//! Checks what the clients of a simulation saw against what the server promises.
//!
//! Each command has one reply, in order. A message reaches a subscription only while the name is
//! subscribed, at most once, and in an order on which all subscribers of a channel agree; what one
//! connection publishes on a channel arrives in its order. A subscription misses nothing that was
//! published while it was acknowledged. What was refused reaches no client. On a channel with
//! history, a position always has the same message, and what a subscription receives has positions
//! without a gap; after a RESUME that is recovered they begin after that of the client.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

use crate::record::{Command, Connection, End, Event, Name, Reply, Step};
use switchyard_types::position::Position;

/// A publication, and when it was sent and answered, as indices of steps.
struct Publication<'a> {
    publisher: Connection,
    channel: &'a str,
    sent: usize,
    answered: Option<(usize, &'a Reply)>,
    receptions: u64,
}

/// A name that a connection was subscribed to for some time, as indices of steps.
struct Subscription<'a> {
    name: &'a Name,
    sent: usize,
    acknowledged: usize,
    /// When it was ended, and when that was acknowledged.
    end_sent: usize,
    end_acknowledged: Option<usize>,
    received: Vec<&'a str>,
    /// How many further messages are from the history.
    missed: u64,
    /// The position before the next message; none: it is not known.
    before: Option<Position>,
}

/// What one connection did and saw.
#[derive(Default)]
struct Seen<'a> {
    /// Commands without a reply, with the time they were sent.
    pending: Vec<(u64, usize, &'a Command)>,
    subscriptions: Vec<Subscription<'a>>,
    ended: Option<(usize, &'a End)>,
}

/// Checks the steps of a simulation.
///
/// # Errors
///
/// A promise was broken; the error says which, and by which steps.
pub fn check(events: &[Event]) -> Result<()> {
    let mut checked = Checked::default();
    for (index, event) in events.iter().enumerate() {
        if let Err(problem) = checked.take(index, event) {
            bail!("{problem:#}, at step {index}: {event}");
        }
    }
    checked.check_replies()?;
    checked.check_completeness()?;
    checked.check_counts()?;
    checked.check_order()
}

#[derive(Default)]
struct Checked<'a> {
    publications: BTreeMap<&'a str, Publication<'a>>,
    connections: BTreeMap<Connection, Seen<'a>>,
    /// The message at each position of a channel.
    retained: BTreeMap<(&'a str, Position), &'a str>,
}

impl<'a> Checked<'a> {
    fn take(&mut self, index: usize, event: &'a Event) -> Result<()> {
        let connection = event.connection;
        let seen = self.connections.entry(connection).or_default();
        ensure!(seen.ended.is_none(), "something after the end");
        match &event.step {
            Step::Sent(id, command) => {
                seen.pending.push((*id, index, command));
                match command {
                    Command::Publish { channel, payload } => {
                        let publication = Publication {
                            publisher: connection,
                            channel,
                            sent: index,
                            answered: None,
                            receptions: 0,
                        };
                        let before = self.publications.insert(payload, publication);
                        ensure!(before.is_none(), "the simulation published a payload twice");
                    }
                    Command::Unsubscribe(names) => {
                        for subscription in &mut seen.subscriptions {
                            if names.contains(subscription.name) {
                                subscription.end_sent = subscription.end_sent.min(index);
                            }
                        }
                    }
                    Command::Subscribe(_) | Command::Resume { .. } => {}
                }
            }
            Step::Reply(id, reply) => {
                ensure!(!seen.pending.is_empty(), "a reply to no command");
                let (expected, sent, command) = seen.pending.remove(0);
                ensure!(*id == expected, "a reply before that to command {expected}");
                self.replied(index, connection, sent, command, reply)?;
            }
            Step::Message { pattern, channel, payload, position } => {
                let Some(publication) = self.publications.get_mut(payload.as_str()) else {
                    bail!("a message that was not published");
                };
                ensure!(publication.channel == channel, "published on {}", publication.channel);
                if let Some(position) = position {
                    let at = self.retained.entry((channel, *position)).or_insert(payload);
                    ensure!(*at == payload, "the message at this position was {at:?}");
                }
                let is_it = |subscription: &&mut Subscription<'_>| {
                    let is_open = subscription.end_acknowledged.is_none();
                    is_open && subscription.is_by(pattern.as_deref(), channel)
                };
                let Some(subscription) = seen.subscriptions.iter_mut().find(is_it) else {
                    bail!("a message without a subscription");
                };
                ensure!(!subscription.received.contains(&payload.as_str()), "a second time");
                subscription.received.push(payload);
                if pattern.is_none()
                    && let Some(position) = position
                {
                    subscription.follow(*position)?;
                }
                match subscription.missed.checked_sub(1) {
                    Some(missed) => subscription.missed = missed,
                    None => publication.receptions += 1,
                }
            }
            Step::Ended(end) => seen.ended = Some((index, end)),
        }
        Ok(())
    }

    fn replied(
        &mut self,
        index: usize,
        connection: Connection,
        sent: usize,
        command: &'a Command,
        reply: &'a Reply,
    ) -> Result<()> {
        let seen = self.connections.entry(connection).or_default();
        match (command, reply) {
            (Command::Publish { payload, .. }, reply) => {
                if let Some(publication) = self.publications.get_mut(payload.as_str()) {
                    publication.answered = Some((index, reply));
                }
            }
            (Command::Subscribe(names), Reply::Ok(listening)) => {
                for name in names {
                    seen.subscribed(index, sent, name);
                }
                seen.check_count(*listening)?;
            }
            (Command::Resume { name, from }, Reply::Resumed { .. }) => {
                seen.resumed(index, sent, name, *from, reply)?;
            }
            (Command::Resume { .. }, Reply::Err(code)) => {
                ensure!(
                    code == "UNAVAILABLE" || code == "NOHISTORY",
                    "a RESUME was refused with {code}"
                );
            }
            (Command::Resume { .. }, Reply::Ok(_)) | (_, Reply::Resumed { .. }) => {
                bail!("the reply to another command");
            }
            (Command::Unsubscribe(names), Reply::Ok(listening)) => {
                for subscription in &mut seen.subscriptions {
                    if names.iter().any(|name| subscription.is_of(name)) {
                        subscription.end_acknowledged = Some(index);
                    }
                }
                seen.check_count(*listening)?;
            }
            (Command::Subscribe(_), Reply::Err(code)) => {
                ensure!(code == "UNAVAILABLE", "a SUBSCRIBE was refused with {code}");
            }
            (Command::Unsubscribe(_), Reply::Err(code)) => bail!("refused with {code}"),
        }
        Ok(())
    }

    /// Only a connection that was lost may miss replies.
    fn check_replies(&self) -> Result<()> {
        for (connection, seen) in &self.connections {
            if let Some((_, End::Quit)) = seen.ended {
                ensure!(seen.pending.is_empty(), "connection {connection} misses a reply");
            }
        }
        Ok(())
    }

    /// What was published while a subscription was acknowledged has reached it.
    fn check_completeness(&self) -> Result<()> {
        for (payload, publication) in &self.publications {
            let Some((answered, Reply::Ok(_))) = publication.answered else { continue };
            for (connection, seen) in &self.connections {
                for subscription in &seen.subscriptions {
                    let is_due = subscription.name.matches(publication.channel)
                        && subscription.acknowledged < publication.sent
                        && answered < subscription.end_sent
                        && (subscription.end_acknowledged.is_some() || seen.has_read_all());
                    ensure!(
                        !is_due || subscription.received.contains(payload),
                        "connection {connection} misses {payload:?}, which {:?} of step {} should \
                         have received",
                        subscription.name,
                        subscription.sent
                    );
                }
            }
        }
        Ok(())
    }

    /// A publication reached as many subscriptions as its reply says, unless some were lost.
    fn check_counts(&self) -> Result<()> {
        let is_any_lost = self.connections.values().any(|seen| !seen.has_read_all());
        for (payload, publication) in &self.publications {
            let received = publication.receptions;
            match publication.answered {
                Some((_, Reply::Ok(deliveries))) => ensure!(
                    received == *deliveries || received < *deliveries && is_any_lost,
                    "{payload:?} has {deliveries} deliveries and was received {received} times"
                ),
                Some((_, Reply::Err(code))) => ensure!(
                    received == 0,
                    "{payload:?} was refused with {code} and received {received} times"
                ),
                Some((_, Reply::Resumed { .. })) | None => {}
            }
        }
        Ok(())
    }

    /// All subscribers of a channel agree on one order, in which no subscriber misses a message
    /// between two that it received, and in which each publisher's messages have its order.
    fn check_order(&self) -> Result<()> {
        let channels: BTreeSet<&str> =
            self.publications.values().map(|publication| publication.channel).collect();
        for channel in channels {
            let is_of_channel = |payload: &&&str| {
                self.publications.get(**payload).is_some_and(|of| of.channel == channel)
            };
            let mut sequences: Vec<Vec<&str>> = Vec::new();
            for seen in self.connections.values() {
                for subscription in &seen.subscriptions {
                    let received = subscription.received.iter().filter(is_of_channel).copied();
                    sequences.push(received.collect());
                }
            }
            check_gaps(&sequences)?;
            sequences.extend(self.by_publisher(channel));
            check_agreement(&sequences)?;
        }
        Ok(())
    }

    /// What each connection published on a channel and some subscriber received, in its order.
    fn by_publisher(&self, channel: &str) -> Vec<Vec<&'a str>> {
        let mut of: BTreeMap<Connection, Vec<(usize, &'a str)>> = BTreeMap::new();
        for (payload, publication) in &self.publications {
            if publication.channel == channel && publication.receptions > 0 {
                of.entry(publication.publisher).or_default().push((publication.sent, payload));
            }
        }
        of.into_values()
            .map(|mut sent| {
                sent.sort_unstable();
                sent.into_iter().map(|(_, payload)| payload).collect()
            })
            .collect()
    }
}

impl<'a> Seen<'a> {
    /// A subscription was acknowledged. Returns it if it is new.
    fn subscribed(
        &mut self,
        acknowledged: usize,
        sent: usize,
        name: &'a Name,
    ) -> Option<&mut Subscription<'a>> {
        if self.subscriptions.iter().any(|of| of.is_of(name)) {
            return None;
        }
        // An UNSUBSCRIBE may have been sent already.
        let end_sent = self.pending.iter().find_map(|(_, sent, command)| {
            matches!(command, Command::Unsubscribe(names) if names.contains(name)).then_some(*sent)
        });
        self.subscriptions.push(Subscription {
            name,
            sent,
            acknowledged,
            end_sent: end_sent.unwrap_or(usize::MAX),
            end_acknowledged: None,
            received: Vec::new(),
            missed: 0,
            before: None,
        });
        self.subscriptions.last_mut()
    }

    fn resumed(
        &mut self,
        index: usize,
        sent: usize,
        name: &'a Name,
        from: Option<Position>,
        reply: &Reply,
    ) -> Result<()> {
        let Reply::Resumed { listening, position, is_recovered, missed, reason } = reply else {
            bail!("no reply to RESUME");
        };
        let is_new = match self.subscribed(index, sent, name) {
            Some(subscription) => {
                subscription.missed = *missed;
                let offset = position.offset.checked_sub(*missed);
                let offset = offset.context("more is missed than there was")?;
                subscription.before = Some(Position { offset, ..*position });
                true
            }
            None => false,
        };
        match reason.as_deref() {
            Some("listening") => ensure!(!is_new && *missed == 0, "it was not subscribed"),
            Some(reason) => ensure!(
                is_new && from.is_some() && !is_recovered && *missed == 0,
                "not recovered: {reason}"
            ),
            None => ensure!(is_new && *is_recovered == from.is_some(), "no reason"),
        }
        if *is_recovered && let Some(from) = from {
            let before = Position { offset: position.offset - missed, ..*position };
            ensure!(before == from, "what follows is after {before}, not after {from}");
        }
        self.check_count(*listening)
    }

    /// Whether the client read everything that the server sent.
    fn has_read_all(&self) -> bool {
        matches!(self.ended, Some((_, End::Quit)))
    }

    /// The count in a reply is that of the acknowledged subscriptions.
    fn check_count(&self, listening: u64) -> Result<()> {
        let open = self.subscriptions.iter().filter(|of| of.end_acknowledged.is_none()).count();
        ensure!(open as u64 == listening, "the connection has {open} subscriptions");
        Ok(())
    }
}

impl Subscription<'_> {
    /// Checks the position of the next message.
    fn follow(&mut self, position: Position) -> Result<()> {
        if let Some(before) = self.before {
            let is_next = position == Position { offset: before.offset + 1, ..before };
            ensure!(is_next || position.epoch > before.epoch, "{position} after {before}");
        }
        self.before = Some(position);
        Ok(())
    }

    /// Whether it is open and of this name.
    fn is_of(&self, name: &Name) -> bool {
        self.end_acknowledged.is_none() && self.name == name
    }

    /// Whether a message that came by this pattern, or none, on this channel came by it.
    fn is_by(&self, pattern: Option<&str>, channel: &str) -> bool {
        match (self.name, pattern) {
            (Name::Channel(name), None) => name == channel,
            (Name::Beginning(_), Some(pattern)) => self.name.text() == pattern,
            _ => false,
        }
    }
}

/// Between two messages that a subscriber received in a row, no other subscriber that received both
/// received a third one.
fn check_gaps(sequences: &[Vec<&str>]) -> Result<()> {
    let places: Vec<BTreeMap<&str, usize>> = sequences
        .iter()
        .map(|sequence| sequence.iter().enumerate().map(|(at, payload)| (*payload, at)).collect())
        .collect();
    for sequence in sequences {
        for pair in sequence.windows(2) {
            let [first, second] = pair else { continue };
            for (other, places) in sequences.iter().zip(&places) {
                let (Some(from), Some(to)) = (places.get(first), places.get(second)) else {
                    continue;
                };
                let between = other.get(from + 1..*to).unwrap_or_default();
                ensure!(
                    between.is_empty(),
                    "a subscriber received {first:?} and {second:?}, and missed {between:?}"
                );
            }
        }
    }
    Ok(())
}

/// There is one order that agrees with all of these.
fn check_agreement(sequences: &[Vec<&str>]) -> Result<()> {
    let mut after: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut before: BTreeMap<&str, usize> = BTreeMap::new();
    for sequence in sequences {
        for payload in sequence {
            before.entry(payload).or_default();
        }
        for pair in sequence.windows(2) {
            let [first, second] = pair else { continue };
            if after.entry(first).or_default().insert(second) {
                *before.entry(second).or_default() += 1;
            }
        }
    }
    let mut ready: Vec<&str> =
        before.iter().filter(|(_, count)| **count == 0).map(|(payload, _)| *payload).collect();
    let mut ordered = 0;
    while let Some(payload) = ready.pop() {
        ordered += 1;
        for next in after.get(payload).into_iter().flatten() {
            if let Some(count) = before.get_mut(next) {
                *count -= 1;
                if *count == 0 {
                    ready.push(next);
                }
            }
        }
    }
    let circle: Vec<&str> =
        before.iter().filter(|(_, count)| **count > 0).map(|(payload, _)| *payload).collect();
    ensure!(ordered == before.len(), "subscribers do not agree on the order of {circle:?}");
    Ok(())
}
