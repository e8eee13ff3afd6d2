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

/// One command of a connection for one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Subscribe to a channel.
    Subscribe(&'a str),
    /// Subscribe to all channels that match.
    Psubscribe(&'a str),
    /// Publish.
    #[allow(missing_docs, reason = "the contract documents them")]
    Publish { channel: &'a str, payload_bytes: usize },
}

impl Action<'_> {
    pub(super) fn name(&self) -> &str {
        match self {
            Action::Subscribe(name) | Action::Psubscribe(name) => name,
            Action::Publish { channel, .. } => channel,
        }
    }

    pub(super) fn verb(&self) -> &'static str {
        match self {
            Action::Subscribe(_) => "subscribe",
            Action::Psubscribe(_) => "psubscribe",
            Action::Publish { .. } => "publish",
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
    Replace { channel: String, payload: Vec<u8> },
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
