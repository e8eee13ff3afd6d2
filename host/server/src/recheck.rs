//! Rechecks existing subscriptions when the rules change.
//!
//! A plugin with `access` that was added or replaced is called for the existing subscriptions, and
//! those that it refuses end with a notice. This happens off the data path and at a bounded rate: a
//! slice is one call, and the chain is locked for a slice at a time, so a swap waits for no more
//! than that. If the plugin is replaced during its check, the check ends; the check of its
//! successor starts from the beginning.
//!
//! A refusal that is about a rate (LIMIT), or says that the plugin cannot decide (UNAVAILABLE),
//! ends no subscription, and a call that fails is made again later, a bounded number of times.

use std::collections::{HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::session::publish::as_text;
use switchyard_hub::Hub;
use switchyard_hub::connections::Connection;
use switchyard_hub::ending::Refused;
use switchyard_middleware::Middleware;
use switchyard_middleware::chain::Chain;
use switchyard_middleware::plugin::Plugin;
use switchyard_middleware::recheck::{Against, Answers, Question, Recheck, Room, connections_of};
use switchyard_middleware::stats::PluginStats;
use switchyard_telemetry::supervise::Ended;
use switchyard_types::command::{Kind, LIMIT, Refusal, UNAVAILABLE};
use switchyard_types::ids::ConnectionId;

/// How many names are visited in a slice that calls no plugin, and how many connections in any
/// slice: a few tenths of a millisecond.
const SLICE_NAMES_MAX: usize = 1_000;
const SLICE_CONNECTIONS_MAX: usize = 1_000;

/// How many subscriptions of one connection end under one lock of their shards.
const ENDS_MAX: usize = 64;

/// How often a connection is checked again because its rights changed during the check. After
/// that the last result counts: otherwise a client could keep a subscription that is not
/// permitted by changing its rights again and again.
const REVISIONS_MAX: usize = 3;

/// How many calls of one check may fail. Each is a strike against the plugin, and a check must
/// not be what parks it.
const FAULTS_MAX: usize = 3;

/// Late timers are compensated for, up to this.
const LATE_MAX: Duration = Duration::from_millis(10);

/// The longest pause after a slice, which is as long as the slice took.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// The first wait for a missing instance; each further one is twice as long.
const RETRY_TIME: Duration = Duration::from_millis(50);
/// The longest wait.
const RETRY_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a check continues while instances are missing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the checks that are due, until it is aborted. All checks together visit no more than
/// `names_per_second_max` names per second.
pub async fn run(middleware: Arc<Middleware>, hub: Arc<Hub>, names_per_second_max: usize) -> Ended {
    let pace = Arc::new(Mutex::new(Pace { names_per_second_max, next: Instant::now() }));
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            due = middleware.rechecks() => {
                for due in due {
                    let check = Check::new(due, middleware.clone(), hub.clone());
                    running.spawn(check_all(check, pace.clone()));
                }
            }
            Some(ended) = running.join_next() => {
                if let Err(problem) = ended {
                    error!(%problem, "a check of existing subscriptions failed");
                }
            }
        }
    }
}

/// When the next slice may begin. Held for a slice, so that there is one at a time.
struct Pace {
    names_per_second_max: usize,
    next: Instant,
}

impl Pace {
    /// Accounts for a slice of this many names. The plugin is left to other callers for as long as
    /// the slice took, up to a limit, because the slice may have been preempted.
    fn spent(&mut self, names: usize, began: Instant, ended: Instant) {
        let time = Duration::from_secs_f64(names as f64 / self.names_per_second_max as f64);
        let earliest = began.checked_sub(LATE_MAX).unwrap_or(began);
        let due = self.next.max(earliest) + time;
        self.next = due.max(ended + (ended - began).min(PAUSE_MAX));
    }
}

async fn check_all(check: Check, pace: Arc<Mutex<Pace>>) {
    let mut check = Some(Box::new(check));
    while let Some(mut slicing) = check.take() {
        let mut pace = pace.lock().await;
        tokio::time::sleep_until(pace.next).await;
        let sliced = spawn_blocking(move || {
            let began = Instant::now();
            let step = slicing.slice();
            (slicing, step, began, Instant::now())
        });
        let (sliced, step, began, ended) = match sliced.await {
            Ok(sliced) => sliced,
            Err(problem) => {
                error!(%problem, "a check of existing subscriptions failed");
                return;
            }
        };
        match step {
            Step::Checked { names } => pace.spent(names, began, ended),
            Step::Wait(time) => {
                drop(pace);
                tokio::time::sleep(time).await;
            }
            Step::Replaced => return,
            Step::Done => return sliced.report(),
        }
        check = Some(sliced);
    }
}

/// The result of a slice.
enum Step {
    /// This many names were checked; there may be more.
    Checked { names: usize },
    /// No call is possible within this time.
    Wait(Duration),
    /// Nothing is left to check.
    Done,
    /// The plugin is no longer in use.
    Replaced,
}

/// A question, and the refusal.
type Answer = (Question, Option<Refusal>);

/// One check: of all subscriptions that existed when it began.
struct Check {
    due: Recheck,
    middleware: Arc<Middleware>,
    hub: Arc<Hub>,
    began: Instant,
    /// None: it has not begun.
    walks: Option<VecDeque<Walk>>,
    /// Connections of a call that failed; each is checked in a call of its own at the end.
    suspects: HashSet<ConnectionId>,
    faults: usize,
    checked: usize,
    ended: usize,
    unanswered: usize,
    _running: Running,
}

/// Counts the check among those that run.
struct Running(Arc<PluginStats>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.rechecks().is_over();
    }
}

impl Check {
    fn new(due: Recheck, middleware: Arc<Middleware>, hub: Arc<Hub>) -> Check {
        let stats = due.plugin.stats.clone();
        stats.rechecks().began();
        Check {
            due,
            middleware,
            hub,
            began: Instant::now(),
            walks: None,
            suspects: HashSet::new(),
            faults: 0,
            checked: 0,
            ended: 0,
            unanswered: 0,
            _running: Running(stats),
        }
    }

    /// Calls the plugin for some subscriptions, and ends those that it refuses. Blocks.
    fn slice(&mut self) -> Step {
        let middleware = self.middleware.clone();
        let chain = middleware.chain();
        if !self.due.is_wanted(&chain) {
            return Step::Replaced;
        }
        let before = [self.checked, self.ended, self.unanswered];
        let step = match self.due.against {
            Against::Access => self.ask_slice(&chain),
            Against::Text => self.look_slice(),
        };
        self.due.plugin.stats.rechecks().add(
            self.checked - before[0],
            self.ended - before[1],
            self.unanswered - before[2],
        );
        step
    }

    /// The iterations over the connections: one for those that each instance serves. Connections
    /// made later are subject to the new rules from the beginning.
    fn walks(&mut self) -> &mut VecDeque<Walk> {
        let Check { due, hub, walks, .. } = self;
        walks.get_or_insert_with(|| {
            let mut by_instance: Vec<Vec<ConnectionId>> = Vec::new();
            let ids: Vec<ConnectionId> = hub.connections().read().keys().copied().collect();
            for id in ids {
                let number = match due.against {
                    Against::Access => due.plugin.instance_of(id),
                    Against::Text => 0,
                };
                if by_instance.len() <= number {
                    by_instance.resize_with(number + 1, Vec::new);
                }
                if let Some(ids) = by_instance.get_mut(number) {
                    ids.push(id);
                }
            }
            by_instance.into_iter().filter_map(Walk::new).collect()
        })
    }

    /// A slice that calls the plugin.
    fn ask_slice(&mut self, chain: &Chain) -> Step {
        let plugin = self.due.plugin.clone();
        if plugin.is_parked() || self.faults > FAULTS_MAX {
            return self.give_up();
        }
        let hub = self.hub.clone();
        let now = Instant::now();
        let walks = self.walks();
        let ready = walks.iter().position(|walk| walk.waits_until.is_none_or(|until| until <= now));
        let Some(mut walk) = ready.and_then(|position| walks.remove(position)) else {
            let next = walks.iter().filter_map(|walk| walk.waits_until).min();
            return match next {
                Some(next) => Step::Wait(next.saturating_duration_since(now)),
                None => self.ask_suspects(),
            };
        };
        let served = walk.served;
        let answers = chain.recheck(&plugin, served, |room| walk.collect(&hub, room));
        let names = match answers {
            Answers::Given(answers) => {
                walk.failures = 0;
                self.settle(chain, &plugin, answers)
            }
            Answers::Failed(questions) => {
                self.faults += 1;
                if walk.is_of_suspect {
                    self.unanswered += questions.len();
                } else {
                    self.suspects.extend(connections_of(&questions));
                }
                walk.wait(now);
                questions.len()
            }
            Answers::Missing if self.began.elapsed() > PATIENCE => {
                self.walks().push_front(walk);
                return self.give_up();
            }
            Answers::Missing => {
                walk.wait(now);
                0
            }
        };
        if !walk.is_over() {
            // It stays at the head of the queue until it is done; the others wait behind it.
            self.walks().push_front(walk);
        }
        Step::Checked { names }
    }

    /// Called when all others have been checked.
    fn ask_suspects(&mut self) -> Step {
        let suspects = std::mem::take(&mut self.suspects);
        if suspects.is_empty() {
            return Step::Done;
        }
        let walks = suspects
            .into_iter()
            .filter_map(|id| Walk::new(vec![id]))
            .map(|walk| Walk { is_of_suspect: true, ..walk });
        let walks: Vec<_> = walks.collect();
        self.walks().extend(walks);
        Step::Checked { names: 0 }
    }

    /// Subscriptions that were not checked stay, and are counted.
    fn give_up(&mut self) -> Step {
        let hub = self.hub.clone();
        let suspects = std::mem::take(&mut self.suspects);
        let walks = std::mem::take(self.walks());
        let left = walks
            .into_iter()
            .flat_map(|walk| walk.at.map(|at| at.0.id).into_iter().chain(walk.ids));
        let left: HashSet<ConnectionId> = left.chain(suspects).collect();
        let held = |id: ConnectionId| Some(hub.connections().get(id)?.subscriptions().len());
        self.unanswered += left.into_iter().filter_map(held).sum::<usize>();
        Step::Done
    }

    /// Ends the refused subscriptions; returns how many names this was about.
    fn settle(&mut self, chain: &Chain, plugin: &Plugin, answers: Vec<Answer>) -> usize {
        let names = answers.len();
        self.checked += names;
        let is_like = |(one, _): &Answer, (other, _): &Answer| {
            one.connection.id == other.connection.id && one.kind == other.kind
        };
        for answers in answers.chunk_by(is_like) {
            let Some((Question { connection, revision, kind, .. }, _)) = answers.first() else {
                continue;
            };
            for refused in refused_of(answers).chunks(ENDS_MAX) {
                self.ended += self.end(chain, plugin, connection, *kind, refused, *revision);
            }
        }
        names
    }

    /// Ends the refused subscriptions of one connection. If its rights changed or it subscribed
    /// again since the call, it is checked again.
    fn end(
        &mut self,
        chain: &Chain,
        plugin: &Plugin,
        connection: &Arc<Connection>,
        kind: Kind,
        refused: &[Refused<'_>],
        revision: u64,
    ) -> usize {
        if let Some(ended) = self.hub.end_refused(connection, kind, refused, Some(revision)) {
            return ended;
        }
        let names: Vec<Box<str>> = refused
            .iter()
            .filter_map(|(name, _)| std::str::from_utf8(name).ok().map(Box::from))
            .collect();
        for attempt in 1..=REVISIONS_MAX {
            let revision = connection.revision();
            let collect = |_| {
                let subscriptions = connection.subscriptions();
                let held =
                    names.iter().filter(|name| subscriptions.of(kind).contains(name.as_bytes()));
                held.map(|name| Question {
                    connection: connection.clone(),
                    revision,
                    kind,
                    name: name.clone(),
                })
                .collect()
            };
            let answers = match chain.recheck(plugin, connection.id, collect) {
                Answers::Given(answers) => answers,
                Answers::Failed(_) => {
                    self.faults += 1;
                    self.suspects.insert(connection.id);
                    return 0;
                }
                Answers::Missing => {
                    self.suspects.insert(connection.id);
                    return 0;
                }
            };
            let refused = refused_of(&answers);
            let revision = (attempt < REVISIONS_MAX).then_some(revision);
            if let Some(ended) = self.hub.end_refused(connection, kind, &refused, revision) {
                return ended;
            }
        }
        0
    }

    /// A slice that searches for names that are not UTF-8.
    fn look_slice(&mut self) -> Step {
        let hub = self.hub.clone();
        let Some(walk) = self.walks().front_mut() else { return Step::Done };
        let (mut looked_at, mut found) = (0, Vec::new());
        walk.visit(&hub, |connection, kind, name| {
            if looked_at == SLICE_NAMES_MAX || found.len() == ENDS_MAX {
                return false;
            }
            looked_at += 1;
            if let Err(refusal) = as_text(name) {
                found.push((connection.clone(), kind, (name.to_vec().into(), refusal)));
            }
            true
        });
        if walk.is_over() {
            self.walks().pop_front();
        }
        // No plugin was called for those that stay.
        self.checked += found.len();
        for (connection, kind, refused) in found {
            let ended = hub.end_refused(&connection, kind, &[refused], None);
            self.ended += ended.unwrap_or_default();
        }
        Step::Checked { names: looked_at }
    }

    fn report(&self) {
        let Check { due: Recheck { plugin, .. }, checked, ended, unanswered, .. } = self;
        let plugin = &plugin.identity;
        let ms = self.began.elapsed().as_millis() as u64;
        if *unanswered > 0 {
            warn!(%plugin, asked = checked, ended, unanswered, ms,
                "existing subscriptions stay because the plugin could not decide about all of them");
        } else if *checked > 0 {
            info!(%plugin, asked = checked, ended, ms,
                "existing subscriptions were checked again");
        } else {
            debug!(%plugin, asked = checked, ended, ms,
                "existing subscriptions were checked again");
        }
    }
}

/// The subscriptions that end: an exceeded rate, and a plugin that cannot decide, end none.
fn refused_of(answers: &[Answer]) -> Vec<Refused<'_>> {
    answers
        .iter()
        .filter_map(|(question, refusal)| Some((question, refusal.as_ref()?)))
        .filter(|(_, refusal)| refusal.code != LIMIT && refusal.code != UNAVAILABLE)
        .map(|(question, refusal)| (question.name.as_bytes().into(), refusal.clone()))
        .collect()
}

/// A connection, a kind of names, and the last name that was visited.
type At = (Arc<Connection>, Kind, Option<Box<[u8]>>);

/// The position in the subscriptions of some connections.
struct Walk {
    /// One of the connections: all are served by the same instance.
    served: ConnectionId,
    ids: std::vec::IntoIter<ConnectionId>,
    /// The current connection, the kind of names, and the last name.
    at: Option<At>,
    /// Whether a call for this connection and others failed before.
    is_of_suspect: bool,
    failures: u32,
    waits_until: Option<Instant>,
}

impl Walk {
    /// Over these connections; none if there are none.
    fn new(ids: Vec<ConnectionId>) -> Option<Walk> {
        Some(Walk {
            served: *ids.first()?,
            ids: ids.into_iter(),
            at: None,
            is_of_suspect: false,
            failures: 0,
            waits_until: None,
        })
    }

    fn is_over(&self) -> bool {
        self.at.is_none() && self.ids.len() == 0
    }

    /// The instance is not available now.
    fn wait(&mut self, now: Instant) {
        let time = RETRY_TIME.saturating_mul(1 << self.failures.min(10)).min(RETRY_TIME_MAX);
        self.failures += 1;
        self.waits_until = Some(now + time);
    }

    /// The next subscriptions, as many as fit.
    fn collect(&mut self, hub: &Hub, mut room: Room) -> Vec<Question> {
        self.waits_until = None;
        let mut questions = Vec::new();
        let mut last: Option<(ConnectionId, u64)> = None;
        self.visit(hub, |connection, kind, name| {
            // Names that are not UTF-8 have a check of their own.
            let Ok(name) = std::str::from_utf8(name) else { return true };
            if !room.take(name.len()) {
                return false;
            }
            let revision = match last {
                Some((id, revision)) if id == connection.id => revision,
                _ => connection.revision(),
            };
            last = Some((connection.id, revision));
            let (connection, name) = (connection.clone(), name.into());
            questions.push(Question { connection, revision, kind, name });
            true
        });
        questions
    }

    /// Visits the next subscriptions until `visit` returns false, which is about one that it has
    /// not visited, or until many connections were visited.
    fn visit(&mut self, hub: &Hub, mut visit: impl FnMut(&Arc<Connection>, Kind, &[u8]) -> bool) {
        for _ in 0..SLICE_CONNECTIONS_MAX {
            let (connection, mut kind, mut after) = match self.at.take() {
                Some(at) => at,
                None => match self.ids.next() {
                    // A connection that is closed has no subscriptions.
                    Some(id) => match hub.connections().get(id) {
                        Some(connection) => (connection, Kind::Channel, None),
                        None => continue,
                    },
                    None => return,
                },
            };
            loop {
                let subscriptions = connection.subscriptions();
                let first = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let mut last = None;
                let mut names = subscriptions.of(kind).range::<[u8], _>((first, Bound::Unbounded));
                let stopped = names.any(|name| {
                    let goes_on = visit(&connection, kind, name);
                    if goes_on {
                        last = Some(name);
                    }
                    !goes_on
                });
                let last = last.cloned();
                drop(subscriptions);
                if stopped {
                    self.at = Some((connection, kind, last.or(after)));
                    return;
                }
                (kind, after) = match kind {
                    Kind::Channel => (Kind::Pattern, None),
                    Kind::Pattern => (Kind::Shard, None),
                    Kind::Shard => break,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_kept_on_average_and_leaves_time_to_others() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pace = Pace { names_per_second_max: 1_000, next: start };
        pace.spent(10, at(0), at(1));
        assert_eq!(pace.next, at(10));
        // The timer was 2 ms late.
        pace.spent(10, at(12), at(13));
        assert_eq!(pace.next, at(20));
        // A slice that takes too long is followed by a pause.
        pace.spent(1, at(20), at(22));
        assert_eq!(pace.next, at(24));
        pace.spent(10, at(24), at(50));
        assert_eq!(pace.next, at(52));
        // Unused time is not saved up.
        pace.spent(10, at(1_000), at(1_001));
        assert_eq!(pace.next, at(1_002));
    }
}
