//! The items that plugins decide about, and their verdicts.

use switchyard_types::command::Refusal;
use switchyard_types::ids::ConnectionId;

use super::stats::Verdict;

/// An item of a plugin call.
#[derive(Debug, Clone, Copy)]
pub struct Item<T> {
    /// Its index among all items of the chain's call.
    pub(super) place: usize,
    /// The connection that the item belongs to.
    pub connection: ConnectionId,
    /// The item itself.
    pub about: T,
}

/// One command of a connection for one name. The contract documents the actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the contract documents them")]
pub enum Action<'a> {
    Subscribe(&'a str),
    Psubscribe(&'a str),
    Publish { channel: &'a str, payload_bytes: usize },
    Resume(&'a str),
    History(&'a str),
    Presence(&'a str),
    Watch(&'a str),
    Enter { channel: &'a str, data_bytes: usize },
    Call { method: &'a str, argument_bytes: usize },
    Inspect(Inspection<'a>),
}

/// What a client looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the contract documents them")]
pub enum Inspection<'a> {
    Channel(&'a str),
    Patterns,
    Server,
    Clients,
    Configuration,
}

impl<'a> Action<'a> {
    /// The channel, pattern or method; empty if it has none.
    pub(super) fn name(&self) -> &'a str {
        match self {
            Action::Subscribe(name)
            | Action::Psubscribe(name)
            | Action::Publish { channel: name, .. }
            | Action::Resume(name)
            | Action::History(name)
            | Action::Presence(name)
            | Action::Watch(name)
            | Action::Enter { channel: name, .. }
            | Action::Call { method: name, .. }
            | Action::Inspect(Inspection::Channel(name)) => name,
            Action::Inspect(
                Inspection::Patterns
                | Inspection::Server
                | Inspection::Clients
                | Inspection::Configuration,
            ) => "",
        }
    }

    /// Whether a version of the contract that is served cannot express it.
    pub(super) fn may_be_unknown(&self) -> bool {
        match self {
            Action::Call { .. } => true,
            Action::Inspect(subject) => !matches!(subject, Inspection::Channel(_)),
            _ => false,
        }
    }

    pub(super) fn verb(&self) -> &'static str {
        match self {
            Action::Subscribe(_) => "subscribe",
            Action::Psubscribe(_) => "psubscribe",
            Action::Publish { .. } => "publish",
            Action::Resume(_) => "resume",
            Action::History(_) => "history",
            Action::Presence(_) => "presence",
            Action::Watch(_) => "watch",
            Action::Enter { .. } => "enter",
            Action::Call { .. } => "call",
            Action::Inspect(_) => "inspect",
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.name().len()
    }
}

/// A plugin's verdict on a publication on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the contract documents them")]
pub enum PublishVerdict {
    Continue,
    /// What is none stays as it is.
    Replace {
        channel: Option<String>,
        payload: Option<Vec<u8>>,
        /// A JSON object of texts; empty: none.
        tags: Option<Box<[u8]>>,
    },
    Reject(Refusal),
    Absorb(u64),
}

impl PublishVerdict {
    pub(super) fn kind(&self) -> Verdict {
        match self {
            PublishVerdict::Continue => Verdict::Pass,
            PublishVerdict::Replace { .. } => Verdict::Replace,
            PublishVerdict::Reject(_) => Verdict::Reject,
            PublishVerdict::Absorb(_) => Verdict::Absorb,
        }
    }
}

/// A plugin's verdict on a publication on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the contract documents them")]
pub enum DeliverVerdict {
    Continue,
    Replace(Vec<u8>),
    Narrow(Vec<ConnectionId>),
}

impl DeliverVerdict {
    pub(super) fn kind(&self) -> Verdict {
        match self {
            DeliverVerdict::Continue => Verdict::Pass,
            DeliverVerdict::Replace(_) => Verdict::Replace,
            DeliverVerdict::Narrow(_) => Verdict::Narrow,
        }
    }
}
