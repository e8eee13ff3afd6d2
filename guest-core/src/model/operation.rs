//! Random operations on a registry, and what each answers.
//!
//! Few connections and short names out of few pieces, so that operations meet: names are held by
//! several connections, unsubscribed and subscribed again, and matched by many patterns.

use super::{Model, Random};
use crate::{ConnectionId, FanOuts, Names, PatternId, Registry};

/// One call of the engine; or a handover, which saves the state and goes on with what restoring it
/// gives.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "they are the methods of `Registry`")]
pub enum Operation {
    Subscribe(ConnectionId, Names),
    Unsubscribe(ConnectionId, Names),
    Psubscribe(ConnectionId, Names),
    Punsubscribe(ConnectionId, Names),
    Route(Names),
    Channels(Option<Vec<u8>>),
    SubscriberCounts(Names),
    PatternCount,
    Handover,
}

/// What an operation answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: the answer of operations that change the subscribers of channels.
    Done,
    /// To `Psubscribe`.
    PatternIds(Vec<PatternId>),
    /// To `Route`.
    FanOuts(FanOuts),
    /// To `Channels`.
    Names(Names),
    /// To `SubscriberCounts`.
    Counts(Vec<u64>),
    /// To `PatternCount`.
    Count(u64),
}

/// The next operation of a random sequence. Half of them ask and half of them change something.
pub fn random_operation(random: &mut Random) -> Operation {
    let connection = random.below(5);
    match random.below(16) {
        0..=2 => Operation::Subscribe(connection, names(random, CHANNEL_PIECES)),
        3..=4 => Operation::Unsubscribe(connection, names(random, CHANNEL_PIECES)),
        5..=6 => Operation::Psubscribe(connection, names(random, PATTERN_PIECES)),
        7..=8 => Operation::Punsubscribe(connection, names(random, PATTERN_PIECES)),
        9..=11 => Operation::Route(names(random, CHANNEL_PIECES)),
        12 => Operation::Channels((random.below(4) > 0).then(|| name(random, PATTERN_PIECES))),
        13 => Operation::SubscriberCounts(names(random, CHANNEL_PIECES)),
        14 => Operation::PatternCount,
        _ => Operation::Handover,
    }
}

impl Operation {
    /// Does it to the real registry.
    ///
    /// # Panics
    ///
    /// When the registry cannot read what it wrote.
    pub fn apply(&self, registry: &mut Registry) -> Answer {
        match self {
            Operation::Subscribe(connection, channels) => registry.subscribe(*connection, channels),
            Operation::Unsubscribe(connection, channels) => {
                registry.unsubscribe(*connection, channels)
            }
            Operation::Psubscribe(connection, patterns) => {
                return Answer::PatternIds(registry.psubscribe(*connection, patterns));
            }
            Operation::Punsubscribe(connection, patterns) => {
                registry.punsubscribe(*connection, patterns)
            }
            Operation::Route(channels) => {
                let mut fan_outs = FanOuts::default();
                registry.route(channels, &mut fan_outs);
                return Answer::FanOuts(fan_outs);
            }
            Operation::Channels(matching) => {
                return Answer::Names(registry.channels(matching.as_deref()));
            }
            Operation::SubscriberCounts(channels) => {
                return Answer::Counts(registry.subscriber_counts(channels));
            }
            Operation::PatternCount => return Answer::Count(registry.pattern_count()),
            Operation::Handover => {
                *registry = Registry::restore(&registry.save()).expect("it was just saved")
            }
        }
        Answer::Done
    }
}

impl Model {
    /// Does it to the model.
    pub fn apply(&mut self, operation: &Operation) -> Answer {
        match operation {
            Operation::Subscribe(connection, channels) => self.subscribe(*connection, channels),
            Operation::Unsubscribe(connection, channels) => self.unsubscribe(*connection, channels),
            Operation::Psubscribe(connection, patterns) => {
                return Answer::PatternIds(self.psubscribe(*connection, patterns));
            }
            Operation::Punsubscribe(connection, patterns) => {
                self.punsubscribe(*connection, patterns)
            }
            Operation::Route(channels) => {
                let mut fan_outs = FanOuts::default();
                self.route(channels, &mut fan_outs);
                return Answer::FanOuts(fan_outs);
            }
            Operation::Channels(matching) => {
                return Answer::Names(self.channels(matching.as_deref()));
            }
            Operation::SubscriberCounts(channels) => {
                return Answer::Counts(self.subscriber_counts(channels));
            }
            Operation::PatternCount => return Answer::Count(self.pattern_count()),
            Operation::Handover => {}
        }
        Answer::Done
    }
}

const CHANNEL_PIECES: &[&[u8]] = &[b"a", b"ab", b"ba", b"*", b"\xff"];

const PATTERN_PIECES: &[&[u8]] =
    &[b"a", b"ab", b"ba", b"*", b"*", b"?", b"\\*", b"[a", b"[^b]", b"\\"];

fn names(random: &mut Random, pieces: &[&[u8]]) -> Names {
    (0..random.below(4)).map(|_| name(random, pieces)).collect()
}

fn name(random: &mut Random, pieces: &[&[u8]]) -> Vec<u8> {
    (0..random.below(4)).flat_map(|_| *random.pick(pieces)).copied().collect()
}
