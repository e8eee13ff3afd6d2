//! Checks of existing subscriptions by a plugin.
//!
//! A plugin with new rules decides about new subscriptions. Subscriptions that were permitted
//! before are checked again, by that plugin alone, off the data path. This module has the checks
//! that are due, and a single call; the server iterates over the subscriptions.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Middleware;
use super::call_size::ITEM_WEIGHT;
use super::chain::{CALL_BYTES_MAX, Chain, failed};
use super::isolation::Cause;
use super::items::{Action, Item};
use super::plugin::Plugin;
use super::stats::{Hook, Verdict};
use super::trace::{Call, Seen};
use switchyard_hub::connections::Connection;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Kind, Refusal};
use switchyard_types::ids::ConnectionId;

/// The rule for a check of existing subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The plugin's `access` hook.
    Access,
    /// That names are UTF-8, because a plugin sees them from now on.
    Text,
}

/// A check of existing subscriptions that is due.
#[derive(Clone)]
pub struct Recheck {
    /// The plugin that was added or replaced.
    pub plugin: Arc<Plugin>,
    /// The rule.
    pub against: Against,
}

impl Recheck {
    /// Whether the check is still needed. If the plugin has been replaced since, it is not
    /// called, and another check is due for its successor.
    pub fn is_wanted(&self, chain: &Chain) -> bool {
        match self.against {
            Against::Access => chain.plugins().iter().any(|p| Arc::ptr_eq(p, &self.plugin)),
            Against::Text => chain.sees_names(),
        }
    }
}

/// The checks that are due.
#[derive(Default)]
pub(super) struct Rechecks {
    /// One for each slot and kind at most.
    due: Mutex<Vec<Recheck>>,
    added: Notify,
}

impl Rechecks {
    /// A plugin may decide differently from now on.
    pub fn add(&self, plugin: &Arc<Plugin>, against: Against) {
        let mut due = self.due.lock();
        let is_same = |other: &Recheck| {
            other.against == against && Arc::ptr_eq(&other.plugin.stats, &plugin.stats)
        };
        due.retain(|other| !is_same(other));
        due.push(Recheck { plugin: plugin.clone(), against });
        self.added.notify_one();
    }

    /// Adds the checks that are due because one chain replaced another.
    pub fn add_for(&self, old: &Chain, new: &Chain) {
        let was_there = |plugin: &Arc<Plugin>| old.plugins().iter().any(|p| Arc::ptr_eq(p, plugin));
        for plugin in new.plugins().iter().filter(|plugin| !was_there(plugin)) {
            if plugin.hooks().access {
                self.add(plugin, Against::Access);
            }
            if new.sees_names() && !old.sees_names() {
                self.add(plugin, Against::Text);
            }
        }
    }
}

impl Middleware {
    /// Drops the checks that are due: the plugins were loaded before any client connected.
    pub fn forget_rechecks(&self) {
        self.rechecks.due.lock().clear();
    }

    /// Waits until checks of existing subscriptions are due, and takes them.
    pub async fn rechecks(&self) -> Vec<Recheck> {
        loop {
            let due = std::mem::take(&mut *self.rechecks.due.lock());
            if !due.is_empty() {
                return due;
            }
            self.rechecks.added.notified().await;
        }
    }
}

/// A subscription that is checked.
pub struct Question {
    /// The connection that it belongs to.
    pub connection: Arc<Connection>,
    /// The connection's revision before the check.
    pub revision: u64,
    /// The subscribed kind.
    pub kind: Kind,
    /// Its name.
    pub name: Box<str>,
}

impl Question {
    fn action(&self) -> Action<'_> {
        match self.kind {
            Kind::Pattern => Action::Psubscribe(&self.name),
            Kind::Channel | Kind::Shard => Action::Subscribe(&self.name),
        }
    }
}

/// How many names one call may have: fewer than on the data path, so that callers that wait for the
/// instance, or for a processor, wait less.
const ITEMS_MAX: usize = 64;

/// The limits of one call.
#[derive(Clone, Copy)]
pub struct Room {
    items: usize,
    bytes: usize,
    weight: usize,
}

impl Room {
    /// For a plugin with this call size.
    fn of(weight: usize) -> Room {
        Room { items: ITEMS_MAX, bytes: CALL_BYTES_MAX, weight }
    }

    /// Takes room for one more name. False: there is none. The first name always fits.
    pub fn take(&mut self, bytes: usize) -> bool {
        let is_first = self.items == ITEMS_MAX;
        let weight = bytes + ITEM_WEIGHT;
        let has_room = self.items > 0 && bytes <= self.bytes && weight <= self.weight;
        if !(is_first || has_room) {
            return false;
        }
        self.items -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.weight = self.weight.saturating_sub(weight);
        true
    }
}

/// The result of a call.
pub enum Answers {
    /// One for each question; none: allowed.
    Given(Vec<(Question, Option<Refusal>)>),
    /// The call about these failed, and ended the instance.
    Failed(Vec<Question>),
    /// The instance is not available.
    Missing,
}

impl Chain {
    /// Calls the instance of a plugin that serves this connection to check its subscriptions.
    /// They are collected while the instance is locked: a connection that still has subscriptions
    /// then has not reached `on-disconnect`, so the plugin is never called for a connection after
    /// its end. Nothing is counted against the client.
    pub fn recheck(
        &self,
        plugin: &Plugin,
        served: ConnectionId,
        collect: impl FnOnce(Room) -> Vec<Question>,
    ) -> Answers {
        let size = plugin.call_size(Hook::OnAccess);
        let mut collected = None;
        let mut call = None;
        let answers = plugin.call_instance(served, Cause::Plugin, |instance| {
            let questions = collected.insert(collect(Room::of(size.weight_max())));
            if questions.is_empty() {
                return Ok(Batch::new());
            }
            let items: Vec<_> = questions
                .iter()
                .enumerate()
                .map(|(place, question)| Item {
                    place,
                    connection: question.connection.id,
                    about: question.action(),
                })
                .collect();
            let started = Instant::now();
            let answers = instance.recheck(&items);
            let weight: usize = items.iter().map(|item| item.about.bytes() + ITEM_WEIGHT).sum();
            call = Some((started.elapsed(), weight));
            answers
        });
        let Some(questions) = collected else { return Answers::Missing };
        if let Some((took, weight)) = call {
            let verdict = |place: usize| match answers.as_ref().map(|all| all.get(place)) {
                Some(Some(Some(_))) => Verdict::Reject,
                Some(_) => Verdict::Pass,
                None => failed(plugin),
            };
            let stats = plugin.stats.of(Hook::OnAccess);
            stats.called(questions.len(), took);
            stats.said_all((0..questions.len()).map(verdict));
            size.learn(weight, took);
            if let Some(tracer) = self.tracer() {
                let call = Call {
                    plugin: &plugin.identity,
                    hook: Hook::OnAccess,
                    took,
                    items: questions.len(),
                };
                for (place, question) in questions.iter().enumerate() {
                    let channel = Some(question.name.as_bytes());
                    if !tracer.is_wanted(question.connection.id, [channel, None]) {
                        continue;
                    }
                    let refusal = answers.as_ref().and_then(|all| all.get(place)?.as_ref());
                    let seen = Seen {
                        action: "recheck",
                        channel,
                        verdict: verdict(place),
                        refusal,
                        ..Seen::default()
                    };
                    call.show(tracer, question.connection.id, seen);
                }
            }
        }
        match answers {
            Some(answers) => {
                let signed = answers.into_iter().map(|answer| answer.map(|no| plugin.signed(no)));
                Answers::Given(questions.into_iter().zip(signed).collect())
            }
            None => Answers::Failed(questions),
        }
    }
}

/// The connections of the questions, each once.
pub fn connections_of(questions: &[Question]) -> HashSet<ConnectionId> {
    questions.iter().map(|question| question.connection.id).collect()
}
