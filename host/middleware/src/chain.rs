//! The plugins in order, and their effect on commands.
//!
//! A connection task that runs a burst of commands holds the chain's read lock from the first hook
//! to the last delivery; a swap takes the write lock. So each message is processed by one version
//! of each plugin, and a swap waits only for the bursts that are running.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use smallvec::smallvec;

use super::bindings::{Client, Fault, Hooks, Instance};
use super::call_size::ITEM_WEIGHT;
use super::declaration::TrapPolicy;
use super::items::{Action, Asked, DeliverVerdict, PublishVerdict};
use super::plugin::Plugin;
use super::plugin::call::Absence;
use super::stats::{Hook, PluginStats, Verdict};
use super::trace::{TraceEvent, Tracer};
use switchyard_hub::filter::{Delivery, DeliveryEdit, DeliveryFilter};
use switchyard_types::batch::Batch;
use switchyard_types::command::{Credentials, NOAUTH};
pub use switchyard_types::command::{Publication, Refusal, Space};
use switchyard_types::ids::ConnectionId;

/// The maximum bytes of names and payloads in one call, unless a single item has more: the budget
/// is for the call, and must not depend on how much a client sends at once.
pub(super) const CALL_BYTES_MAX: usize = 64 << 10;
/// The largest receiver count that a publisher is sent, whatever a plugin returns: the largest
/// number that JSON and RESP both carry unchanged.
const RECEIVERS_MAX: u64 = (1 << 53) - 1;
/// The maximum number of items in one call, for the same reason.
const CALL_ITEMS_MAX: usize = 256;

/// Splits items into calls, with the weight of each call: at most what `weight_max` returns at that
/// time, unless it is a single item.
fn chunks<T>(
    items: &[T],
    bytes: impl Fn(&T) -> usize,
    weight_max: impl Fn() -> usize,
) -> impl Iterator<Item = (&[T], usize)> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let (mut count, mut sum, mut weight, weight_max) = (0, 0, 0, weight_max());
        for item in rest.iter().take(CALL_ITEMS_MAX) {
            let bytes = bytes(item);
            let more = bytes + ITEM_WEIGHT;
            if count > 0 && (sum + bytes > CALL_BYTES_MAX || weight + more > weight_max) {
                break;
            }
            (count, sum, weight) = (count + 1, sum + bytes, weight + more);
        }
        let (chunk, after) = rest.split_at(count);
        rest = after;
        (!chunk.is_empty()).then_some((chunk, weight))
    })
}

/// Splits the items of a hook into the calls of each instance, with their weights. The items of
/// one connection stay in order.
fn calls<'a, T>(
    plugin: &'a Plugin,
    hook: Hook,
    asked: &'a mut [Asked<T>],
    bytes: impl Fn(&T) -> usize + Copy,
) -> impl Iterator<Item = (&'a [Asked<T>], usize)> {
    let instance = |asked: &Asked<T>| plugin.instance_of(asked.connection);
    if !asked.is_sorted_by_key(instance) {
        asked.sort_by_key(instance);
    }
    let bytes = move |asked: &Asked<T>| bytes(&asked.about);
    asked
        .chunk_by(move |one, other| instance(one) == instance(other))
        .flat_map(move |asked| chunks(asked, bytes, move || plugin.call_size(hook).weight_max()))
}

/// The plugins in their order.
#[derive(Default)]
pub struct Chain {
    plugins: Vec<Arc<Plugin>>,
    /// The hooks that any of them has.
    any: Hooks,
    /// Increases with every change.
    generation: u64,
    /// Traces single messages. None: tracing is not available.
    tracer: Option<Arc<Tracer>>,
}

/// The outcome of a publication in the chain.
#[derive(Debug)]
pub enum PublishOutcome<'a> {
    /// It is published, perhaps changed.
    Forward(Publication<'a>),
    /// The publisher receives this refusal.
    Refused(Refusal),
    /// The publisher receives this receiver count.
    Absorbed(u64),
}

impl Chain {
    /// A chain of these plugins.
    pub fn new(plugins: Vec<Arc<Plugin>>) -> Chain {
        let mut any = Hooks::default();
        for hooks in plugins.iter().map(|plugin| plugin.hooks()) {
            any.admission |= hooks.admission;
            any.access |= hooks.access;
            any.messages |= hooks.messages;
            any.deliveries |= hooks.deliveries;
        }
        Chain { plugins, any, generation: 0, tracer: None }
    }

    /// The same chain, as the successor of another.
    pub fn after(self, old: &Chain) -> Chain {
        Chain { generation: old.generation + 1, ..self }
    }

    /// The number of this chain. A chain with another number has other plugins.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The same chain, borrowed.
    pub fn traced_by(self, tracer: Arc<Tracer>) -> Chain {
        Chain { tracer: Some(tracer), ..self }
    }

    /// The plugins in their order.
    pub fn plugins(&self) -> &[Arc<Plugin>] {
        &self.plugins
    }

    /// Whether a plugin decides about connects and checks credentials.
    pub fn has_admission(&self) -> bool {
        self.any.admission
    }

    /// Whether a plugin decides about subscriptions or publications.
    pub fn has_access(&self) -> bool {
        self.any.access
    }

    /// Whether a plugin receives names, as strings.
    pub fn sees_names(&self) -> bool {
        self.any.access || self.any.messages || self.any.deliveries
    }

    /// May this client connect? Calls the remaining plugins that are called on the data path. When
    /// one refuses, the caller must call `let_go`.
    pub fn connect(
        &self,
        connection: ConnectionId,
        client: &Client,
        progress: &mut AdmissionProgress,
    ) -> Step<Result<(), Refusal>> {
        for plugin in self.with(|hooks| hooks.admission) {
            if progress.is_past(plugin, connection) {
                continue;
            }
            if plugin.pool().is_some() {
                return Step::Apart(plugin.clone());
            }
            let (answer, _) = plugin.call(Hook::OnConnect, 1, connection, |instance| {
                instance.on_connect(connection, client)
            });
            let answer = answer.ok_or_else(|| plugin.unavailable());
            if let Err(refusal) = may_connect(plugin, answer) {
                return Step::Settled(Err(refusal));
            }
            progress.meet(plugin);
        }
        Step::Settled(Ok(()))
    }

    /// Notifies the plugins that admitted a client of its end, after another plugin has refused it.
    /// Returns the plugins that must be notified off the data path.
    pub fn let_go(
        &self,
        connection: ConnectionId,
        progress: &AdmissionProgress,
    ) -> Vec<Arc<Plugin>> {
        self.say_gone(connection, |plugin| progress.has_met(plugin))
    }

    /// Are these credentials valid? Calls the remaining plugins that are called on the data path.
    /// Also refuses when no plugin accepts the credentials.
    pub fn authenticate(
        &self,
        connection: ConnectionId,
        credentials: &Credentials,
        progress: &mut AdmissionProgress,
    ) -> Step<Result<(), Refusal>> {
        if !self.any.admission {
            return Step::Settled(Err(Refusal::new(
                NOAUTH,
                "no authentication plugin is in the chain, so there is nothing to authenticate for",
            )));
        }
        for plugin in self.with(|hooks| hooks.admission) {
            if progress.has_met(plugin) {
                continue;
            }
            if plugin.pool().is_some() {
                return Step::Apart(plugin.clone());
            }
            let (answer, took) = plugin.call(Hook::OnAuthenticate, 1, connection, |instance| {
                instance.on_authenticate(connection, credentials)
            });
            let answer = answer.ok_or_else(|| plugin.unavailable());
            if let Some(settled) = are_good(self.tracer(), plugin, connection, answer, took) {
                return Step::Settled(settled);
            }
            progress.meet(plugin);
        }
        Step::Settled(Err(Refusal::new(NOAUTH, "no plugin knows these credentials")))
    }

    /// Notifies the plugins that admitted the connection of its end. Returns the plugins that must
    /// be notified off the data path.
    pub fn disconnect(&self, connection: ConnectionId) -> Vec<Arc<Plugin>> {
        self.say_gone(connection, |plugin| plugin.admitted(connection))
    }

    fn say_gone(
        &self,
        connection: ConnectionId,
        let_it_in: impl Fn(&Plugin) -> bool,
    ) -> Vec<Arc<Plugin>> {
        let mut apart = Vec::new();
        for plugin in self.with(|hooks| hooks.admission).filter(|plugin| let_it_in(plugin)) {
            if plugin.pool().is_some_and(|pool| !pool.is_outside()) {
                apart.push(plugin.clone());
            } else {
                plugin.call(Hook::OnDisconnect, 1, connection, |instance| {
                    instance.on_disconnect(connection)
                });
            }
        }
        apart
    }

    /// Whether these connections may do this. One result for each; none: allowed. An empty list: no
    /// plugin was called, and everything is allowed.
    pub fn access(&self, actions: &[(ConnectionId, Action<'_>)]) -> Batch<Option<Refusal>> {
        self.ask_access(actions, Instance::on_access)
    }

    /// The same for what another chain allowed before: nothing is counted twice.
    pub fn access_again(&self, actions: &[(ConnectionId, Action<'_>)]) -> Batch<Option<Refusal>> {
        self.ask_access(actions, Instance::recheck)
    }

    fn ask_access(
        &self,
        actions: &[(ConnectionId, Action<'_>)],
        ask: impl Fn(&mut Instance, &[Asked<Action<'_>>]) -> Result<Batch<Option<Refusal>>, Fault>,
    ) -> Batch<Option<Refusal>> {
        if !self.any.access || actions.is_empty() {
            return Batch::new();
        }
        let mut refusals: Batch<Option<Refusal>> = smallvec![None; actions.len()];
        for plugin in self.with(|hooks| hooks.access) {
            // Items that a plugin has refused are not passed to the plugins after it.
            let open = refusals.iter().zip(actions).enumerate();
            let mut asked: Batch<Asked<Action<'_>>> = Batch::with_capacity(actions.len());
            asked.extend(
                open.filter(|(_, (refusal, _))| refusal.is_none())
                    .map(|(place, (_, &(connection, about)))| Asked { place, connection, about }),
            );
            for (asked, weight) in calls(plugin, Hook::OnAccess, &mut asked, Action::bytes) {
                let (answers, took) =
                    plugin.ask_all(Hook::OnAccess, asked, weight, |instance, asked| {
                        ask(instance, asked)
                    });
                let verdict = |place: usize| match answers.get(place) {
                    Some(Some(_)) => Verdict::Reject,
                    Some(None) => Verdict::Pass,
                    None => failed(plugin),
                };
                plugin.stats.of(Hook::OnAccess).said_all((0..asked.len()).map(verdict));
                if let Some(tracer) = self.tracer() {
                    let call = Call { plugin, hook: Hook::OnAccess, took, items: asked.len() };
                    for (place, Asked { connection, about: action, .. }) in asked.iter().enumerate()
                    {
                        let refusal = answers.get(place).and_then(Option::as_ref);
                        call.show(
                            tracer,
                            *connection,
                            Seen {
                                action: action.verb(),
                                channel: Some(action.name().as_bytes()),
                                verdict: verdict(place),
                                refusal,
                                ..Seen::default()
                            },
                        );
                    }
                }
                for (Asked { place, .. }, answer) in asked.iter().zip(answers.into_each()) {
                    let refusal = match answer {
                        Ok(refusal) => refusal,
                        Err(absence) => refused(plugin, absence),
                    };
                    if let (Some(slot), Some(refusal)) = (refusals.get_mut(*place), refusal) {
                        *slot = Some(plugin.signed(refusal));
                    }
                }
            }
        }
        refusals
    }

    /// The outcomes of these publications, one for each, in order.
    pub fn publish<'a>(
        &self,
        publications: Batch<(ConnectionId, Publication<'a>)>,
    ) -> Batch<PublishOutcome<'a>> {
        let mut outcomes: Batch<PublishOutcome<'a>> = Batch::with_capacity(publications.len());
        if !self.any.messages {
            outcomes.extend(
                publications
                    .into_iter()
                    .map(|(_, publication)| PublishOutcome::Forward(publication)),
            );
            return outcomes;
        }
        let mut connections: Batch<ConnectionId> = Batch::with_capacity(publications.len());
        for (connection, publication) in publications {
            connections.push(connection);
            outcomes.push(PublishOutcome::Forward(publication));
        }
        for plugin in self.with(|hooks| hooks.messages) {
            let mut asked: Batch<Asked<&Publication<'_>>> = Batch::with_capacity(outcomes.len());
            for (place, (outcome, connection)) in outcomes.iter().zip(&connections).enumerate() {
                if let PublishOutcome::Forward(about) = outcome {
                    asked.push(Asked { place, connection: *connection, about });
                }
            }
            let mut verdicts = Batch::new();
            let bytes = |about: &&Publication<'_>| about.payload.len();
            for (asked, weight) in calls(plugin, Hook::OnPublish, &mut asked, bytes) {
                let (answers, took) =
                    plugin.ask_all(Hook::OnPublish, asked, weight, |instance, asked| {
                        instance.on_publish(asked)
                    });
                let verdict = |place: usize| match answers.get(place) {
                    Some(answer) => answer.kind(),
                    None => failed(plugin),
                };
                plugin.stats.of(Hook::OnPublish).said_all((0..asked.len()).map(verdict));
                if let Some(tracer) = self.tracer() {
                    let call = Call { plugin, hook: Hook::OnPublish, took, items: asked.len() };
                    for (place, Asked { connection, about, .. }) in asked.iter().enumerate() {
                        let before = about.payload.len();
                        let answer = answers.get(place);
                        let (channel_after, after, refusal) = match answer {
                            Some(PublishVerdict::Replace { channel, payload }) => {
                                (Some(channel.as_bytes()), payload.len(), None)
                            }
                            Some(PublishVerdict::Reject(refusal)) => (None, before, Some(refusal)),
                            _ => (None, before, None),
                        };
                        call.show(
                            tracer,
                            *connection,
                            Seen {
                                action: "publish",
                                channel: Some(&about.channel),
                                channel_after: channel_after
                                    .filter(|after| **after != *about.channel),
                                verdict: verdict(place),
                                refusal,
                                bytes: Some((before, after)),
                                recipients: None,
                            },
                        );
                    }
                }
                let places = asked.iter().map(|asked| asked.place);
                let of = |answer| match answer {
                    Ok(verdict) => verdict,
                    Err(absence) => match refused(plugin, absence) {
                        Some(refusal) => PublishVerdict::Reject(refusal),
                        None => PublishVerdict::Continue,
                    },
                };
                verdicts.extend(places.zip(answers.into_each().map(of)));
            }
            drop(asked);
            for (place, verdict) in verdicts {
                if let Some(outcome) = outcomes.get_mut(place) {
                    plugin_says(plugin, verdict, outcome);
                }
            }
        }
        outcomes
    }

    /// The trace subscribers, if any.
    pub(super) fn tracer(&self) -> Option<&Tracer> {
        self.tracer.as_deref().filter(|tracer| tracer.is_used())
    }

    fn with(&self, wanted: impl Fn(Hooks) -> bool) -> impl Iterator<Item = &Arc<Plugin>> {
        self.plugins.iter().filter(move |plugin| wanted(plugin.hooks()))
    }
}

impl DeliveryFilter for Chain {
    fn has_deliveries(&self) -> bool {
        self.any.deliveries
    }

    /// The publisher of a delivery selects the instance.
    fn deliver(
        &self,
        deliveries: Vec<(ConnectionId, Delivery<'_>)>,
    ) -> Vec<Result<DeliveryEdit, Refusal>> {
        let mut changes: Vec<Result<DeliveryEdit, Refusal>> =
            deliveries.iter().map(|_| Ok(DeliveryEdit::default())).collect();
        let mut deliveries: Vec<Asked<Delivery<'_>>> = deliveries
            .into_iter()
            .enumerate()
            .map(|(place, (connection, about))| Asked { place, connection, about })
            .collect();
        for plugin in self.with(|hooks| hooks.deliveries) {
            let mut verdicts = Vec::with_capacity(deliveries.len());
            for (asked, weight) in calls(plugin, Hook::OnDeliver, &mut deliveries, Delivery::bytes)
            {
                let (answers, took) =
                    plugin.ask_all(Hook::OnDeliver, asked, weight, |instance, asked| {
                        instance.on_deliver(asked)
                    });
                let mut answers = answers.without(|verdict| match verdict {
                    DeliverVerdict::Replace(payload) => {
                        plugin.is_over_limit(Hook::OnDeliver, payload)
                    }
                    DeliverVerdict::Continue | DeliverVerdict::Narrow(_) => false,
                });
                // Sorted once, for the trace and for the delivery: both look up each recipient.
                for answer in answers.iter_mut() {
                    if let DeliverVerdict::Narrow(only) = answer {
                        only.sort_unstable();
                    }
                }
                let verdict = |place: usize| match answers.get(place) {
                    Some(answer) => answer.kind(),
                    None => failed(plugin),
                };
                plugin.stats.of(Hook::OnDeliver).said_all((0..asked.len()).map(verdict));
                if let Some(tracer) = self.tracer() {
                    let call = Call { plugin, hook: Hook::OnDeliver, took, items: asked.len() };
                    for (place, Asked { connection, about, .. }) in asked.iter().enumerate() {
                        // The shards are locked: recipients are only counted for a trace.
                        if !tracer.is_wanted(*connection, [Some(about.channel), None]) {
                            continue;
                        }
                        let answer = answers.get(place);
                        let (bytes, recipients) = (about.payload.len(), about.recipients.len());
                        let (bytes_after, recipients_after) = match answer {
                            Some(DeliverVerdict::Replace(payload)) => (payload.len(), recipients),
                            Some(DeliverVerdict::Narrow(only)) => {
                                let left = |id: &&ConnectionId| only.binary_search(id).is_ok();
                                (bytes, about.recipients.iter().filter(left).count())
                            }
                            _ => (bytes, recipients),
                        };
                        call.show(
                            tracer,
                            *connection,
                            Seen {
                                action: "deliver",
                                channel: Some(about.channel),
                                verdict: verdict(place),
                                bytes: Some((bytes, bytes_after)),
                                recipients: Some((recipients, recipients_after)),
                                ..Seen::default()
                            },
                        );
                    }
                }
                let of = |answer: Result<DeliverVerdict, Absence>| match answer {
                    Ok(verdict) => Ok(verdict),
                    Err(absence) => match refused(plugin, absence) {
                        Some(refusal) => Err(refusal),
                        None => Ok(DeliverVerdict::Continue),
                    },
                };
                verdicts.extend(answers.into_each().map(of));
            }
            for (Asked { place, about: delivery, .. }, verdict) in
                deliveries.iter_mut().zip(verdicts)
            {
                let Some(change) = changes.get_mut(*place) else { continue };
                let verdict = match verdict {
                    Ok(verdict) => verdict,
                    Err(refusal) => {
                        *change = Err(refusal);
                        continue;
                    }
                };
                let Ok(change) = change else { continue };
                match verdict {
                    DeliverVerdict::Continue => {}
                    DeliverVerdict::Replace(payload) => {
                        delivery.payload = Cow::Owned(payload.clone());
                        change.payload = Some(payload);
                    }
                    DeliverVerdict::Narrow(only) => {
                        delivery.recipients.retain(|id| only.binary_search(id).is_ok());
                        change.recipients = Some(delivery.recipients.clone());
                    }
                }
            }
        }
        changes
    }
}

/// How far the admission of one client has come. The chain may change before it continues.
#[derive(Default)]
pub struct AdmissionProgress {
    /// The counters of their slots, by which they are recognized when they are swapped or moved.
    met: Vec<Arc<PluginStats>>,
}

/// The result of calling the chain.
pub enum Step<T> {
    /// The result.
    Settled(T),
    /// The next plugin is called off the data path, while the chain is not locked. The caller calls
    /// it, and `meet`s it before it continues with the rest of the chain.
    Apart(Arc<Plugin>),
}

impl AdmissionProgress {
    /// Records that the plugin was called and has not refused.
    pub fn meet(&mut self, plugin: &Plugin) {
        self.met.push(plugin.stats.clone());
    }

    fn has_met(&self, plugin: &Plugin) -> bool {
        self.met.iter().any(|met| Arc::ptr_eq(met, &plugin.stats))
    }

    /// Whether the plugin was called already, or was added when the connection had its id
    /// already: then it is not notified of the connection's end either.
    fn is_past(&self, plugin: &Plugin, connection: ConnectionId) -> bool {
        !self.met.is_empty() && (self.has_met(plugin) || !plugin.admitted(connection))
    }
}

/// The verdict of one plugin on a client that wants to connect. The outer error: it could not
/// decide.
///
/// # Errors
///
/// It is refused.
pub fn may_connect(
    plugin: &Plugin,
    answer: Result<Result<(), Refusal>, Refusal>,
) -> Result<(), Refusal> {
    let verdict = match &answer {
        Ok(Ok(())) => Verdict::Pass,
        Ok(Err(_)) => Verdict::Reject,
        Err(_) => failed(plugin),
    };
    plugin.stats.of(Hook::OnConnect).said(verdict, 1);
    match (answer, plugin.policy) {
        (Ok(Ok(())), _) | (Err(_), TrapPolicy::Open) => Ok(()),
        (Ok(Err(refusal)), _) => Err(plugin.signed(refusal)),
        (Err(unavailable), TrapPolicy::Closed) => Err(unavailable),
    }
}

/// The verdict of one plugin on credentials. None: the next plugin decides. The outer error: it
/// was not available.
pub fn are_good(
    tracer: Option<&Tracer>,
    plugin: &Plugin,
    connection: ConnectionId,
    answer: Result<Result<bool, Refusal>, Refusal>,
    took: Duration,
) -> Option<Result<(), Refusal>> {
    let verdict = match &answer {
        Ok(Ok(true)) => Verdict::Pass,
        Ok(Ok(false)) => Verdict::Abstain,
        Ok(Err(_)) => Verdict::Reject,
        Err(_) => failed(plugin),
    };
    plugin.stats.of(Hook::OnAuthenticate).said(verdict, 1);
    if let Some(tracer) = tracer {
        let refusal = match &answer {
            Ok(Err(refusal)) => Some(refusal),
            _ => None,
        };
        let seen = Seen { action: "authenticate", verdict, refusal, ..Seen::default() };
        let call = Call { plugin, hook: Hook::OnAuthenticate, took, items: 1 };
        call.show(tracer, connection, seen);
    }
    match (answer, plugin.policy) {
        (Ok(Ok(true)), _) => Some(Ok(())),
        (Ok(Ok(false)), _) | (Err(_), TrapPolicy::Open) => None,
        (Ok(Err(refusal)), _) => Some(Err(plugin.signed(refusal))),
        (Err(unavailable), TrapPolicy::Closed) => Some(Err(unavailable)),
    }
}

/// The outcome of an item about which a plugin did not decide; none: it continues.
fn refused(plugin: &Plugin, absence: Absence) -> Option<Refusal> {
    (plugin.policy == TrapPolicy::Closed).then(|| plugin.refusal(absence))
}

/// The verdict in place of a plugin that could not decide.
pub(super) fn failed(plugin: &Plugin) -> Verdict {
    match plugin.policy {
        TrapPolicy::Closed => Verdict::FailedClosed,
        TrapPolicy::Open => Verdict::FailedOpen,
    }
}

/// Reports a call to the traces.
pub(super) struct Call<'a> {
    pub plugin: &'a Plugin,
    pub hook: Hook,
    pub took: Duration,
    pub items: usize,
}

/// One item of a call, and the decision about it.
#[derive(Default)]
pub(super) struct Seen<'a> {
    pub action: &'static str,
    pub channel: Option<&'a [u8]>,
    pub channel_after: Option<&'a [u8]>,
    pub verdict: Verdict,
    pub refusal: Option<&'a Refusal>,
    pub bytes: Option<(usize, usize)>,
    pub recipients: Option<(usize, usize)>,
}

impl Call<'_> {
    /// Sends the item to the traces whose filter matches. Without one nothing is copied.
    pub fn show(&self, tracer: &Tracer, connection: ConnectionId, seen: Seen<'_>) {
        if tracer.is_wanted(connection, [seen.channel, seen.channel_after]) {
            tracer.show(&self.sight(connection, seen));
        }
    }

    fn sight(&self, connection: ConnectionId, seen: Seen<'_>) -> TraceEvent {
        TraceEvent {
            at: SystemTime::now(),
            connection,
            action: seen.action,
            channel: seen.channel.map(Box::from),
            channel_after: seen.channel_after.map(Box::from),
            plugin: self.plugin.identity.clone(),
            hook: self.hook,
            verdict: seen.verdict,
            refusal: seen
                .refusal
                .map(|refusal| (refusal.code.to_string(), refusal.message.to_string())),
            took: self.took,
            items: self.items,
            bytes: seen.bytes,
            recipients: seen.recipients,
        }
    }
}

fn plugin_says(plugin: &Plugin, verdict: PublishVerdict, outcome: &mut PublishOutcome<'_>) {
    let PublishOutcome::Forward(publication) = outcome else { return };
    match verdict {
        PublishVerdict::Continue => {}
        PublishVerdict::Replace { channel, payload } => {
            publication.channel = Cow::Owned(channel.into_bytes());
            publication.payload = Cow::Owned(payload);
        }
        PublishVerdict::Reject(refusal) => {
            *outcome = PublishOutcome::Refused(plugin.signed(refusal))
        }
        PublishVerdict::Absorb(receivers) => {
            *outcome = PublishOutcome::Absorbed(receivers.min(RECEIVERS_MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_chunk_is_over_its_limits_and_none_is_lost() {
        let check = |weight_max: usize, items: &[usize], expected: &[usize]| {
            let lengths: Vec<_> = chunks(items, |bytes| *bytes, || weight_max)
                .map(|(items, weight)| {
                    assert_eq!(weight, items.iter().sum::<usize>() + items.len() * ITEM_WEIGHT);
                    items.len()
                })
                .collect();
            assert_eq!(lengths, expected);
        };
        check(usize::MAX, &[], &[]);
        check(usize::MAX, &[CALL_BYTES_MAX + 1, 1, CALL_BYTES_MAX, 0, 1], &[1, 1, 2, 1]);
        check(usize::MAX, &[0; CALL_ITEMS_MAX + 1], &[CALL_ITEMS_MAX, 1]);
        check(0, &[0, 1], &[1, 1]);
        check(2 * ITEM_WEIGHT + 10, &[5, 5, 5, 11, 0], &[2, 1, 1, 1]);
    }
}
