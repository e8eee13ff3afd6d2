//! The model of one room: its members, and all changes that it ever had.

use std::collections::BTreeMap;

use switchyard_presence::ChangeKind;

/// User and data.
pub type Shown = (Option<String>, String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub kind: ChangeKind,
    pub connection: u64,
    pub shown: Shown,
    pub was: Option<u64>,
}

#[derive(Default)]
pub struct Room {
    pub members: BTreeMap<u64, Shown>,
    /// The time at which a member ends, in the order in which the connections ended.
    pub in_grace: Vec<(u64, u64)>,
    pub changes: Vec<Changed>,
    /// What each connection showed last.
    pub last: BTreeMap<u64, Shown>,
    /// The place that each connection had last, and the connection that has a place now.
    places: BTreeMap<u64, usize>,
    has_place: BTreeMap<usize, u64>,
}

impl Room {
    pub fn users(&self) -> usize {
        let users = self.members.values().map(|(user, _)| user);
        let mut named: Vec<_> = users.clone().flatten().collect();
        named.sort();
        named.dedup();
        named.len() + users.filter(|user| user.is_none()).count()
    }

    pub fn oldest_in_grace(&self, user: &Option<String>) -> Option<u64> {
        user.as_ref()?;
        let mut waiting = self.in_grace.iter().map(|(_, connection)| *connection);
        waiting.find(|connection| self.members[connection].0 == *user)
    }

    /// The member that has the place of a connection that is gone.
    pub fn successor(&self, gone: u64) -> Option<u64> {
        self.has_place.get(self.places.get(&gone)?).copied()
    }

    pub fn enter(&mut self, connection: u64, shown: Shown) {
        let before = self.members.get(&connection).cloned();
        let (kind, was) = match &before {
            Some(before) if *before == shown => return,
            Some(_) => (ChangeKind::Update, None),
            None => match self.oldest_in_grace(&shown.0) {
                Some(was) => {
                    self.members.remove(&was);
                    self.in_grace.retain(|(_, other)| *other != was);
                    (ChangeKind::Update, Some(was))
                }
                None => (ChangeKind::Enter, None),
            },
        };
        let place = match (kind, was) {
            (ChangeKind::Enter, _) => self.changes.len(),
            (_, was) => self.places[&was.unwrap_or(connection)],
        };
        self.places.insert(connection, place);
        self.has_place.insert(place, connection);
        self.members.insert(connection, shown.clone());
        self.last.insert(connection, shown.clone());
        self.changes.push(Changed { kind, connection, shown, was });
    }

    pub fn leave(&mut self, connection: u64) {
        self.in_grace.retain(|(_, other)| *other != connection);
        if let Some(shown) = self.members.remove(&connection) {
            self.has_place.remove(&self.places[&connection]);
            self.changes.push(Changed { kind: ChangeKind::Leave, connection, shown, was: None });
        }
    }
}
