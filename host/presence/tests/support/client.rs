//! The model of a watcher: a client that applies what it receives.

use std::collections::BTreeMap;

use switchyard_presence::{Change, ChangeKind, Coalesced, EACH_MAX, Events, Member, Page};

use super::room::{Changed, Room, Shown};

#[derive(Default)]
pub struct Client {
    pub known: BTreeMap<u64, Shown>,
    pub is_complete: bool,
    pub pages: usize,
    /// How many changes of the room it knows, if its snapshot was one page.
    changes: Option<usize>,
}

pub fn shown(member: &Member) -> Shown {
    (member.user.as_deref().map(str::to_owned), member.data.to_string())
}

impl Client {
    pub fn take_page(&mut self, page: &Page, room: &Room) {
        for member in &page.members {
            let connection = member.connection;
            assert_eq!(room.members.get(&connection), Some(&shown(member)), "pages are current");
            assert!(self.known.last_key_value().is_none_or(|(last, _)| *last < connection));
            self.known.insert(connection, shown(member));
        }
        self.is_complete = !page.has_more;
        self.pages += 1;
        self.changes = (self.is_complete && self.pages == 1).then_some(room.changes.len());
    }

    pub fn take_events(&mut self, events: &Events, room: &Room, is_ending: bool) {
        assert!(self.is_complete || is_ending, "events wait for the snapshot");
        match events {
            Events::Each(changes) => {
                assert!(!changes.is_empty() && changes.len() <= EACH_MAX);
                self.check_each(changes, room);
                for change in changes {
                    self.apply(change, room, true);
                }
            }
            Events::Coalesced(coalesced) => {
                if let Some(known) = self.changes {
                    assert!(room.changes.len() - known > EACH_MAX, "few changes are single");
                }
                self.apply_coalesced(coalesced, room);
            }
            Events::Unwatched => panic!("the run handles it"),
        }
        // Whatever it missed, it now knows all. While a room is being ended it has no other changes.
        self.changes = Some(room.changes.len()).filter(|_| !is_ending);
    }

    /// An event-less flush: what it missed cancelled, or there was nothing.
    pub fn take_nothing(&mut self, room: &Room) {
        if let Some(known) = &mut self.changes {
            let missed = room.changes.len() - *known;
            assert!(missed == 0 || missed > EACH_MAX, "few changes are sent");
            *known = room.changes.len();
        } else if self.is_complete {
            self.changes = Some(room.changes.len());
        }
    }

    /// The order of its next changes is not known.
    pub fn forget_changes(&mut self) {
        self.changes = None;
    }

    /// If it misses so many changes that they may have cancelled, it may know them already.
    pub fn forget_if_many(&mut self, room: &Room) {
        self.changes = self.changes.filter(|known| room.changes.len() - known <= EACH_MAX);
    }

    fn check_each(&self, changes: &[Change], room: &Room) {
        let Some(known) = self.changes else { return };
        let expected = &room.changes[known..];
        let received: Vec<Changed> = changes
            .iter()
            .map(|change| Changed {
                kind: change.kind,
                connection: change.member.connection,
                shown: shown(&change.member),
                was: change.was,
            })
            .collect();
        assert_eq!(received, expected, "each change once, in order");
    }

    fn apply_coalesced(&mut self, coalesced: &Coalesced, room: &Room) {
        assert!(!coalesced.is_empty());
        let Coalesced { enter, update, leave } = coalesced;
        assert!(enter.is_sorted_by_key(|member| member.connection));
        assert!(update.is_sorted_by_key(|updated| updated.member.connection));
        assert!(leave.is_sorted_by_key(|member| member.connection));
        let change = |kind, member: &std::sync::Arc<Member>, was| Change {
            kind,
            member: member.clone(),
            was,
        };
        for member in enter {
            self.apply(&change(ChangeKind::Enter, member, None), room, false);
        }
        for updated in update {
            self.apply(&change(ChangeKind::Update, &updated.member, updated.was), room, false);
        }
        for member in leave {
            self.apply(&change(ChangeKind::Leave, member, None), room, false);
        }
    }

    /// `is_ordered`: single changes in their order, so that a later one may follow.
    fn apply(&mut self, change: &Change, room: &Room, is_ordered: bool) {
        let connection = change.member.connection;
        let shown = shown(&change.member);
        if !is_ordered && change.kind != ChangeKind::Leave {
            assert_eq!(room.members.get(&connection), Some(&shown), "a net change is current");
        }
        match (change.kind, change.was) {
            (ChangeKind::Enter, None) => {
                assert_eq!(self.known.insert(connection, shown), None, "enters once");
            }
            (ChangeKind::Update, None) => {
                let before = self.known.insert(connection, shown.clone());
                assert!(
                    before.is_some_and(|before| before != shown),
                    "an update changes something"
                );
            }
            (ChangeKind::Update, Some(was)) => {
                assert!(self.known.remove(&was).is_some(), "takes over what is known");
                self.known.insert(connection, shown);
                if !is_ordered {
                    assert_eq!(room.successor(was), Some(connection), "no other took it over");
                }
            }
            (ChangeKind::Leave, None) => {
                assert!(self.known.remove(&connection).is_some(), "leaves what is known");
                if !is_ordered {
                    assert_eq!(room.last.get(&connection), Some(&shown), "shows the last data");
                    assert_eq!(room.successor(connection), None, "a takeover is no leave");
                }
            }
            (kind, was) => panic!("{kind:?} with {was:?}"),
        }
    }
}
