//! Backplane subscriptions that several names share, because the backplane has fewer wildcards than
//! there are patterns: several patterns may map to one NATS wildcard.
//!
//! A subscription exists as long as it has a name. Its names are a set and not a count, so that
//! leaving without having joined, or joining twice, does not change it for the other names. This
//! module knows neither sockets nor NATS.

use std::collections::{HashMap, HashSet};

use guest_core::ConnectionId;

use super::interest::Name;

/// The subscriptions by subject, each with the link's data for it. Clients choose the names, so the
/// hash has a key of this process.
pub struct SharedSubscriptions<T> {
    by_subject: HashMap<String, Shared<T>>,
    next_id: ConnectionId,
}

struct Shared<T> {
    id: ConnectionId,
    names: HashSet<Name>,
    kept: T,
}

/// The subscription that a name was part of.
#[derive(Debug, PartialEq, Eq)]
pub struct Left<T> {
    /// The id of the subscription.
    pub id: ConnectionId,
    /// The subscription itself, to be ended, if this was its last name.
    pub ended: Option<T>,
}

impl<T> Default for SharedSubscriptions<T> {
    fn default() -> SharedSubscriptions<T> {
        SharedSubscriptions { by_subject: HashMap::new(), next_id: 0 }
    }
}

impl<T> SharedSubscriptions<T> {
    /// Adds a name to the subscription of its subject, and returns the id of that; none: there is
    /// no such subscription yet.
    pub fn join(&mut self, subject: &str, name: &Name) -> Option<ConnectionId> {
        let shared = self.by_subject.get_mut(subject)?;
        shared.names.insert(name.clone());
        Some(shared.id)
    }

    /// An id for a new subscription. Ids rise.
    pub fn new_id(&mut self) -> ConnectionId {
        self.next_id += 1;
        self.next_id
    }

    /// A new subscription with its first name.
    pub fn add(&mut self, subject: String, id: ConnectionId, name: &Name, kept: T) {
        let names = HashSet::from([name.clone()]);
        self.by_subject.insert(subject, Shared { id, names, kept });
    }

    /// Removes a name; none: it did not exist, and nothing changes.
    pub fn leave(&mut self, subject: &str, name: &Name) -> Option<Left<T>> {
        let shared = self.by_subject.get_mut(subject)?;
        if !shared.names.remove(name) {
            return None;
        }
        let id = shared.id;
        let ended = match shared.names.is_empty() {
            true => self.by_subject.remove(subject).map(|shared| shared.kept),
            false => None,
        };
        Some(Left { id, ended })
    }

    /// The data of each subscription.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.by_subject.values().map(|shared| &shared.kept)
    }

    /// The subjects, and the names of each.
    #[cfg(test)]
    pub fn subjects(&self) -> impl Iterator<Item = (&str, &HashSet<Name>)> {
        self.by_subject.iter().map(|(subject, shared)| (subject.as_str(), &shared.names))
    }
}
