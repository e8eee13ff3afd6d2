//! What the backplane refuses: a right that every node needs, and names that its user may not
//! publish on or subscribe to.
//!
//! Without a required right the node stays disconnected until it is granted. A refused name
//! concerns that name only: publications on it are treated as `cluster.when_away` says, and the
//! subscription is retried from time to time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::warn;

use super::interest::Name;
use switchyard_telemetry::log::Throttle;
use switchyard_types::command::Space;

/// How many refused names of each kind are remembered. Above that, each publication is sent to the
/// backplane again, and subscriptions are retried after a reconnect.
const NAMES_MAX: usize = 10_000;
/// How long publications on a name are not sent to the backplane after it refused one.
const REFUSED_TIME: Duration = Duration::from_secs(10);
/// How long a refused publication stays in the health report.
const SHOWN_TIME: Duration = Duration::from_secs(60);

/// What is refused at present.
#[derive(Default)]
pub struct Refusals {
    /// Whether publications on some name are refused: a single load in the common case of none.
    has_publications: AtomicBool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// The required right that is missing: the node is disconnected for it.
    missing_right: Option<String>,
    /// Rights that the user has only in part, found when the link was made.
    restrictions: Vec<String>,
    /// Until when publications are not sent, by space and channel. Clients choose the names, so the
    /// hash has a key of this process.
    publications: HashMap<(bool, Vec<u8>), Instant>,
    /// When a publication was last refused.
    publication_refused: Option<Instant>,
    /// Names that cannot be subscribed to.
    names: HashSet<Name>,
    throttle: Throttle,
    /// How many refusals were not logged.
    unlogged: u64,
}

impl Refusals {
    /// Forgets the state of the last link: a new one is made.
    pub fn begin(&self) {
        let mut table = self.table.lock();
        table.restrictions.clear();
        table.publications.clear();
        table.names.clear();
        self.has_publications.store(false, Ordering::Relaxed);
    }

    /// Sets the required right that is missing; none: no right is missing.
    pub fn set_missing_right(&self, right: Option<&str>) {
        self.table.lock().missing_right = right.map(str::to_owned);
    }

    /// The required right that is missing.
    pub fn missing_right(&self) -> Option<String> {
        self.table.lock().missing_right.clone()
    }

    /// Records a right that the user has only in part.
    pub fn restricted(&self, what: &str, said: &str) {
        let mut table = self.table.lock();
        if !table.restrictions.iter().any(|it| it == what) {
            warn!(said, "the user of the backplane {what}");
            table.restrictions.push(what.to_owned());
        }
    }

    /// A publication on this channel was refused.
    pub fn refused_publication(&self, space: Space, channel: &[u8], said: &str) {
        let now = Instant::now();
        let mut table = self.table.lock();
        table.publication_refused = Some(now);
        if table.publications.len() >= NAMES_MAX {
            table.publications.retain(|_, until| *until > now);
        }
        if table.publications.len() < NAMES_MAX {
            table.publications.insert(place(space, channel), now + REFUSED_TIME);
            self.has_publications.store(true, Ordering::Relaxed);
        }
        table.log(said, "the backplane refused publications");
    }

    /// Whether publications on this channel are refused at present.
    pub fn refuses(&self, space: Space, channel: &[u8]) -> bool {
        if !self.has_publications.load(Ordering::Relaxed) {
            return false;
        }
        let mut table = self.table.lock();
        let place = place(space, channel);
        let Some(until) = table.publications.get(&place) else { return false };
        if *until > Instant::now() {
            return true;
        }
        table.publications.remove(&place);
        if table.publications.is_empty() {
            self.has_publications.store(false, Ordering::Relaxed);
        }
        false
    }

    /// This name cannot be subscribed to.
    pub fn refused_name(&self, name: &Name, said: &str) {
        let mut table = self.table.lock();
        if table.names.len() < NAMES_MAX {
            table.names.insert(name.clone());
        }
        table.log(said, "the backplane refused to let this node listen to names");
    }

    /// This name has no subscribers any more.
    pub fn forget_name(&self, name: &Name) {
        self.table.lock().names.remove(name);
    }

    /// Takes the names that cannot be subscribed to, for another try.
    pub fn take_names(&self) -> Vec<Name> {
        self.table.lock().names.drain().collect()
    }

    /// What is wrong while the backplane is connected, as text; none: nothing.
    pub fn problem(&self) -> Option<String> {
        let table = self.table.lock();
        let mut problems: Vec<String> = table
            .restrictions
            .iter()
            .map(|what| format!("the user of the backplane {what}"))
            .collect();
        if table.publication_refused.is_some_and(|at| at.elapsed() < SHOWN_TIME) {
            problems.push("the backplane refuses publications on some names".to_owned());
        }
        if !table.names.is_empty() {
            let count = table.names.len();
            problems.push(format!("the backplane lets this node not listen to {count} names"));
        }
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}

impl Table {
    fn log(&mut self, said: &str, what: &'static str) {
        self.unlogged += 1;
        if self.throttle.is_due() {
            let count = std::mem::take(&mut self.unlogged);
            warn!(said, count, "{what}");
        }
    }
}

fn place(space: Space, channel: &[u8]) -> (bool, Vec<u8>) {
    (space == Space::ShardChannels, channel.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_name_concerns_itself_only() {
        let refusals = Refusals::default();
        assert!(!refusals.refuses(Space::Channels, b"a"));
        assert_eq!(refusals.problem(), None);
        refusals.refused_publication(Space::Channels, b"a", "NOPERM");
        assert!(refusals.refuses(Space::Channels, b"a"));
        assert!(!refusals.refuses(Space::ShardChannels, b"a"));
        assert!(!refusals.refuses(Space::Channels, b"b"));
        assert!(refusals.problem().is_some_and(|problem| problem.contains("publications")));
        refusals.begin();
        assert!(!refusals.refuses(Space::Channels, b"a"), "another link may allow it");
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let refusals = Refusals::default();
        for number in 0..NAMES_MAX + 10 {
            refusals.refused_publication(Space::Channels, number.to_string().as_bytes(), "NOPERM");
        }
        assert_eq!(refusals.table.lock().publications.len(), NAMES_MAX);
    }
}
