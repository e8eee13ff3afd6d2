//! Calls of a plugin for several items, and what becomes of the items when a call fails.
//!
//! A call has items of several connections, and it is unknown which item makes it fail. So the
//! items of a failed call are tried again, on the instance that replaced the failed one: by
//! connection, and then item by item. Only an item that fails alone gets the policy, and counts
//! against its connection. The processor time for this is bounded.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Plugin, panicked};
use crate::bindings::{Fault, Instance};
use crate::declaration::TrapPolicy;
use crate::isolation::Cause;
use crate::items::Item;
use crate::stats::{Failure, Hook};
use switchyard_telemetry::panics;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Refusal, TOOLARGE};
use switchyard_types::ids::ConnectionId;

/// How much processor time may be spent to repeat a failed call for its items, in budgets of one
/// call.
const AGAIN_BUDGETS: u32 = 8;

/// What a plugin said of some items: one answer for each, in order.
pub enum Answers<V> {
    /// One call answered them all.
    All(Batch<V>),
    /// Some have no answer.
    Each(Vec<Result<V, Absence>>),
}

/// Why a plugin did not answer about an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// It failed, or no instance of it is available.
    Failed,
    /// Items of the connection made it fail repeatedly: it was not called.
    Isolated,
    /// It would not have ended within its budget: it was not called.
    TooLarge,
    /// What it made of the item is over a limit.
    OverLimit,
}

impl<V> Answers<V> {
    fn none(items: usize) -> Answers<V> {
        Answers::Each((0..items).map(|_| Err(Absence::Failed)).collect())
    }

    /// What was said of the item in this place; none: nothing.
    pub fn get(&self, place: usize) -> Option<&V> {
        match self {
            Answers::All(all) => all.get(place),
            Answers::Each(each) => each.get(place)?.as_ref().ok(),
        }
    }

    /// The same, but for those that may not be: they count as not given.
    pub fn without(self, is_bad: impl Fn(&V) -> bool) -> Answers<V> {
        match self {
            Answers::All(all) if !all.iter().any(&is_bad) => Answers::All(all),
            answers => Answers::Each(
                answers
                    .into_each()
                    .map(|answer| match answer {
                        Ok(answer) if is_bad(&answer) => Err(Absence::OverLimit),
                        answer => answer,
                    })
                    .collect(),
            ),
        }
    }

    /// What was said, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let (all, each): (&mut [V], &mut [Result<V, Absence>]) = match self {
            Answers::All(all) => (all, &mut []),
            Answers::Each(each) => (&mut [], each),
        };
        all.iter_mut().chain(each.iter_mut().flatten())
    }

    /// All of them, in order.
    pub fn into_each(self) -> impl Iterator<Item = Result<V, Absence>> {
        let (all, each) = match self {
            Answers::All(all) => (all, Vec::new()),
            Answers::Each(each) => (Batch::new(), each),
        };
        all.into_iter().map(Ok).chain(each)
    }
}

/// What came of one call.
enum Called<V> {
    Answered(Batch<V>),
    Failed,
    /// There was no instance to be called.
    Absent,
}

/// How much processor time may still be spent.
struct Patience {
    began: Duration,
    limit: Duration,
}

impl Patience {
    fn is_over(&self) -> bool {
        switchyard_wasm::thread_cpu_time().saturating_sub(self.began) >= self.limit
    }
}

impl Plugin {
    /// Calls the instance that serves this connection. None: it is not available, and the policy
    /// decides. A failure counts against its cause.
    pub(crate) fn call_instance<T>(
        &self,
        connection: ConnectionId,
        cause: Cause,
        question: impl FnOnce(&mut Instance) -> Result<T, Fault>,
    ) -> Option<T> {
        if self.is_parked() {
            return None;
        }
        let number = self.instance_of(connection);
        let mut state = self.instances.get(number)?.lock();
        let instance = state.instance.as_mut()?;
        let answer = panics::contain(|| question(instance));
        match answer.unwrap_or_else(|| Err(panicked("call"))) {
            Ok(answer) => Some(answer),
            Err(fault) => {
                self.failed(number, &mut state, &fault, cause);
                None
            }
        }
    }

    /// As `call_instance`, counted as a call of this hook for this many items. Also returns how
    /// long it took, without the wait for the instance.
    pub fn call<T>(
        &self,
        hook: Hook,
        items: usize,
        connection: ConnectionId,
        question: impl FnOnce(&mut Instance) -> Result<T, Fault>,
    ) -> (Option<T>, Duration) {
        // The end of a connection is always delivered.
        if hook != Hook::OnDisconnect
            && self.isolation.is_used()
            && self.is_isolated(Instant::now(), connection)
        {
            return (None, Duration::ZERO);
        }
        let mut took = None;
        let answer = self.call_instance(connection, Cause::Connection(connection), |instance| {
            let started = Instant::now();
            let answer = question(instance);
            took = Some(started.elapsed());
            answer
        });
        if let Some(took) = took {
            self.stats.of(hook).called(items, took);
        }
        (answer, took.unwrap_or_default())
    }

    /// Calls the instance that serves these items to decide about each, and counts the calls for
    /// this hook. All items are served by one instance and have this weight in total. Also returns
    /// how long the calls took, without the wait for the instance.
    pub fn call_batch<T, V>(
        &self,
        hook: Hook,
        items: &[Item<T>],
        weight: usize,
        question: impl Fn(&mut Instance, &[Item<T>]) -> Result<Batch<V>, Fault>,
    ) -> (Answers<V>, Duration) {
        if !self.isolation.is_used() {
            return self.call_with_retry(hook, items, weight, &question);
        }
        let isolated = self.isolated_among(items.iter().map(|item| item.connection));
        let is_isolated = |item: &Item<T>| isolated.contains(&item.connection);
        if isolated.is_empty() {
            return self.call_with_retry(hook, items, weight, &question);
        }
        let (mut each, mut took) = (Vec::with_capacity(items.len()), Duration::ZERO);
        for run in items.chunk_by(|one, other| is_isolated(one) == is_isolated(other)) {
            if run.first().is_some_and(is_isolated) {
                each.extend(run.iter().map(|_| Err(Absence::Isolated)));
                continue;
            }
            // The weight is that of all items: a part of them would give a wrong estimate.
            let (answers, time) = self.call_with_retry(hook, run, 0, &question);
            took += time;
            each.extend(answers.into_each());
        }
        (Answers::Each(each), took)
    }

    fn call_with_retry<T, V>(
        &self,
        hook: Hook,
        items: &[Item<T>],
        weight: usize,
        question: &impl Fn(&mut Instance, &[Item<T>]) -> Result<Batch<V>, Fault>,
    ) -> (Answers<V>, Duration) {
        let size = self.call_size(hook);
        let alone = match items {
            [] => return (Answers::All(Batch::new()), Duration::ZERO),
            [alone] => Some(alone.connection),
            _ => None,
        };
        if alone.is_some() && self.policy == TrapPolicy::Closed && !size.can_manage(weight) {
            return (Answers::Each(vec![Err(Absence::TooLarge)]), Duration::ZERO);
        }
        let cause = alone.map_or(Cause::Batch, Cause::Connection);
        let (called, took) = self.call_once(hook, items, cause, question);
        match called {
            Called::Answered(answers) => {
                if weight > 0 {
                    size.learn(weight, took);
                }
                if alone.is_some() {
                    size.managed(weight, took);
                }
                (Answers::All(answers), took)
            }
            Called::Absent => (Answers::none(items.len()), took),
            Called::Failed if alone.is_some() => (Answers::none(1), took),
            Called::Failed => {
                let (each, again) = self.retry_items(hook, items, question);
                // No item fails alone: together they were too many.
                if weight > 0 && each.iter().all(Result::is_ok) {
                    size.learn(weight, took);
                }
                (Answers::Each(each), took + again)
            }
        }
    }

    /// Repeats a failed call for its items, by connection and then item by item.
    fn retry_items<T, V>(
        &self,
        hook: Hook,
        items: &[Item<T>],
        question: &impl Fn(&mut Instance, &[Item<T>]) -> Result<Batch<V>, Fault>,
    ) -> (Vec<Result<V, Absence>>, Duration) {
        self.stats.retried(items.len());
        let limit = self.config.limits.call_budget.saturating_mul(AGAIN_BUDGETS);
        let patience = Patience { began: switchyard_wasm::thread_cpu_time(), limit };
        let (mut each, mut took) = (Vec::with_capacity(items.len()), Duration::ZERO);
        for of_one in items.chunk_by(|one, other| one.connection == other.connection) {
            let is_part = of_one.len() < items.len();
            if is_part && of_one.len() > 1 && !patience.is_over() {
                let (called, time) = self.call_once(hook, of_one, Cause::Batch, question);
                took += time;
                if let Called::Answered(answers) = called {
                    each.extend(answers.into_iter().map(Ok));
                    continue;
                }
            }
            for item in of_one {
                if self.is_isolated(Instant::now(), item.connection) {
                    each.push(Err(Absence::Isolated));
                    continue;
                }
                if patience.is_over() {
                    each.push(Err(Absence::Failed));
                    continue;
                }
                let item = std::slice::from_ref(item);
                let cause =
                    item.first().map_or(Cause::Batch, |item| Cause::Connection(item.connection));
                let (called, time) = self.call_once(hook, item, cause, question);
                took += time;
                each.push(match called {
                    Called::Answered(answers) => answers.into_iter().next().ok_or(Absence::Failed),
                    Called::Failed | Called::Absent => Err(Absence::Failed),
                });
            }
        }
        (each, took)
    }

    fn call_once<T, V>(
        &self,
        hook: Hook,
        items: &[Item<T>],
        cause: Cause,
        question: &impl Fn(&mut Instance, &[Item<T>]) -> Result<Batch<V>, Fault>,
    ) -> (Called<V>, Duration) {
        let Some(Item { connection, .. }) = items.first() else {
            return (Called::Absent, Duration::ZERO);
        };
        let mut took = None;
        let answer = self.call_instance(*connection, cause, |instance| {
            let started = Instant::now();
            let answer = question(instance, items);
            took = Some(started.elapsed());
            answer
        });
        if let Some(took) = took {
            self.stats.of(hook).called(items.len(), took);
        }
        let called = match (answer, took) {
            (Some(answers), _) => Called::Answered(answers),
            (None, Some(_)) => Called::Failed,
            (None, None) => Called::Absent,
        };
        (called, took.unwrap_or_default())
    }

    /// Whether it made a payload that is larger than any may be. That is kept and counted as
    /// a failure.
    pub fn is_over_limit(&self, hook: Hook, payload: &[u8]) -> bool {
        let (bytes, bytes_max) = (payload.len(), self.payload_bytes_max());
        if bytes <= bytes_max {
            return false;
        }
        self.stats.failed(Failure {
            at: SystemTime::now(),
            plugin: self.identity.clone(),
            step: hook.name(),
            problem: format!(
                "it made a payload of {bytes} bytes, which is over limits.payload_bytes_max \
                 ({bytes_max})"
            ),
            file: None,
        });
        true
    }

    /// The refusal of an item where the policy is closed.
    pub fn refusal(&self, absence: Absence) -> Refusal {
        match absence {
            Absence::Failed => self.unavailable(),
            Absence::Isolated => self.unavailable_because(
                "what this connection sent made it fail repeatedly, and it is not asked about \
                 more of it for a while",
            ),
            Absence::OverLimit => self.signed(Refusal::new(
                TOOLARGE,
                format!("the plugin {} made a payload that is over the limit", self.config.name),
            )),
            Absence::TooLarge => self.signed(Refusal::new(
                TOOLARGE,
                format!(
                    "the plugin {} cannot look at so large a payload within its budget of {} ms",
                    self.config.name,
                    self.config.limits.call_budget.as_millis()
                ),
            )),
        }
    }
}
