//! The plugins in order, and their effect on commands.
//!
//! A connection task that runs a burst of commands holds the chain's read lock from the first hook
//! to the last delivery; a swap takes the write lock. So each message is processed by one version
//! of each plugin, and a swap waits only for the bursts that are running.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::smallvec;

use super::bindings::{Fault, Hooks, Instance};
use super::call_size::ITEM_WEIGHT;
use super::declaration::TrapPolicy;
use super::items::{Action, DeliverVerdict, Item, PublishVerdict};
use super::plugin::Plugin;
use super::plugin::call::{Absence, Answers};
use super::stats::{Hook, Verdict};
use super::trace::{Call, Seen, Tracer};
use switchyard_hub::filter::{Delivery, DeliveryEdit, DeliveryFilter};
use switchyard_types::batch::Batch;
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
    items: &'a mut [Item<T>],
    bytes: impl Fn(&T) -> usize + Copy,
) -> impl Iterator<Item = (&'a [Item<T>], usize)> {
    let instance = |item: &Item<T>| plugin.instance_of(item.connection);
    if !items.is_sorted_by_key(instance) {
        items.sort_by_key(instance);
    }
    let bytes = move |item: &Item<T>| bytes(&item.about);
    items
        .chunk_by(move |one, other| instance(one) == instance(other))
        .flat_map(move |items| chunks(items, bytes, move || plugin.call_size(hook).weight_max()))
}

/// A hook that decides about several items of type `T` in one call.
trait BatchHook<T> {
    const HOOK: Hook;
    type Verdict;

    /// How much an item adds to a call.
    fn bytes(item: &T) -> usize;

    /// Calls an instance: one verdict for each item, in order.
    fn call(
        &self,
        instance: &mut Instance,
        items: &[Item<T>],
    ) -> Result<Batch<Self::Verdict>, Fault>;

    /// Takes back what the plugin may not say.
    fn check(_plugin: &Plugin, answers: Answers<Self::Verdict>) -> Answers<Self::Verdict> {
        answers
    }

    /// The verdict, as it is counted.
    fn kind(verdict: &Self::Verdict) -> Verdict;

    /// The item's channel, and the one that replaces it.
    fn channels<'a>(item: &'a T, verdict: Option<&'a Self::Verdict>) -> [Option<&'a [u8]>; 2];

    /// The item and the verdict, as a trace shows them.
    fn seen<'a>(item: &'a T, verdict: Option<&'a Self::Verdict>) -> Seen<'a>;
}

/// `on-access`, and the same for what is checked again.
#[derive(Clone, Copy)]
struct Access(fn(&mut Instance, &[Item<Action<'_>>]) -> Refusals);

/// The refusal of each item; none: it is allowed.
type Refusals = Result<Batch<Option<Refusal>>, Fault>;

impl<'t> BatchHook<Action<'t>> for Access {
    const HOOK: Hook = Hook::OnAccess;
    type Verdict = Option<Refusal>;

    fn bytes(item: &Action<'t>) -> usize {
        item.bytes()
    }

    fn call(&self, instance: &mut Instance, items: &[Item<Action<'t>>]) -> Refusals {
        self.0(instance, items)
    }

    fn kind(verdict: &Option<Refusal>) -> Verdict {
        if verdict.is_some() { Verdict::Reject } else { Verdict::Pass }
    }

    fn channels<'a>(item: &'a Action<'t>, _: Option<&'a Option<Refusal>>) -> [Option<&'a [u8]>; 2] {
        [Some(item.name().as_bytes()), None]
    }

    fn seen<'a>(item: &'a Action<'t>, verdict: Option<&'a Option<Refusal>>) -> Seen<'a> {
        Seen {
            action: item.verb(),
            channel: Some(item.name().as_bytes()),
            refusal: verdict.and_then(Option::as_ref),
            ..Seen::default()
        }
    }
}

/// `on-publish`.
struct Publish;

impl<'t> BatchHook<&'t Publication<'t>> for Publish {
    const HOOK: Hook = Hook::OnPublish;
    type Verdict = PublishVerdict;

    fn bytes(item: &&'t Publication<'t>) -> usize {
        item.payload.len()
    }

    fn call(
        &self,
        instance: &mut Instance,
        items: &[Item<&'t Publication<'t>>],
    ) -> Result<Batch<PublishVerdict>, Fault> {
        instance.on_publish(items)
    }

    fn kind(verdict: &PublishVerdict) -> Verdict {
        verdict.kind()
    }

    fn channels<'a>(
        item: &'a &'t Publication<'t>,
        verdict: Option<&'a PublishVerdict>,
    ) -> [Option<&'a [u8]>; 2] {
        let after = match verdict {
            Some(PublishVerdict::Replace { channel: Some(channel), .. }) => {
                Some(channel.as_bytes())
            }
            _ => None,
        };
        [Some(&item.channel), after.filter(|after| **after != *item.channel)]
    }

    fn seen<'a>(item: &'a &'t Publication<'t>, verdict: Option<&'a PublishVerdict>) -> Seen<'a> {
        let [channel, channel_after] = Self::channels(item, verdict);
        let before = item.payload.len();
        let (after, refusal) = match verdict {
            Some(PublishVerdict::Replace { payload: Some(payload), .. }) => (payload.len(), None),
            Some(PublishVerdict::Reject(refusal)) => (before, Some(refusal)),
            _ => (before, None),
        };
        Seen {
            action: "publish",
            channel,
            channel_after,
            refusal,
            bytes: Some((before, after)),
            ..Seen::default()
        }
    }
}

/// `on-deliver`.
struct Deliver;

impl<'t> BatchHook<Delivery<'t>> for Deliver {
    const HOOK: Hook = Hook::OnDeliver;
    type Verdict = DeliverVerdict;

    fn bytes(item: &Delivery<'t>) -> usize {
        item.bytes()
    }

    fn call(
        &self,
        instance: &mut Instance,
        items: &[Item<Delivery<'t>>],
    ) -> Result<Batch<DeliverVerdict>, Fault> {
        instance.on_deliver(items)
    }

    fn check(plugin: &Plugin, answers: Answers<DeliverVerdict>) -> Answers<DeliverVerdict> {
        let mut answers = answers.without(|verdict| match verdict {
            DeliverVerdict::Replace(payload) => plugin.is_over_limit(Hook::OnDeliver, payload),
            DeliverVerdict::Continue | DeliverVerdict::Narrow(_) => false,
        });
        // Sorted once, for the trace and for the delivery: both look up each recipient.
        for answer in answers.iter_mut() {
            if let DeliverVerdict::Narrow(only) = answer {
                only.sort_unstable();
            }
        }
        answers
    }

    fn kind(verdict: &DeliverVerdict) -> Verdict {
        verdict.kind()
    }

    fn channels<'a>(
        item: &'a Delivery<'t>,
        _: Option<&'a DeliverVerdict>,
    ) -> [Option<&'a [u8]>; 2] {
        [Some(item.channel), None]
    }

    fn seen<'a>(item: &'a Delivery<'t>, verdict: Option<&'a DeliverVerdict>) -> Seen<'a> {
        let (bytes, recipients) = (item.payload.len(), item.recipients.len());
        let (bytes_after, recipients_after) = match verdict {
            Some(DeliverVerdict::Replace(payload)) => (payload.len(), recipients),
            Some(DeliverVerdict::Narrow(only)) => {
                let left = |id: &&ConnectionId| only.binary_search(id).is_ok();
                (bytes, item.recipients.iter().filter(left).count())
            }
            _ => (bytes, recipients),
        };
        Seen {
            action: "deliver",
            channel: Some(item.channel),
            bytes: Some((bytes, bytes_after)),
            recipients: Some((recipients, recipients_after)),
            ..Seen::default()
        }
    }
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

    /// Whether a plugin may change or move publications.
    pub fn has_messages(&self) -> bool {
        self.any.messages
    }

    /// Whether a plugin receives names, as strings.
    pub fn sees_names(&self) -> bool {
        self.any.access || self.any.messages || self.any.deliveries
    }

    /// Whether these connections may do this. One result for each; none: allowed. An empty list: no
    /// plugin was called, and everything is allowed.
    pub fn access(&self, actions: &[(ConnectionId, Action<'_>)]) -> Batch<Option<Refusal>> {
        self.check_access(actions, Access(Instance::on_access))
    }

    /// The same for what another chain allowed before: nothing is counted twice.
    pub fn access_again(&self, actions: &[(ConnectionId, Action<'_>)]) -> Batch<Option<Refusal>> {
        self.check_access(actions, Access(Instance::recheck))
    }

    fn check_access(
        &self,
        actions: &[(ConnectionId, Action<'_>)],
        hook: Access,
    ) -> Batch<Option<Refusal>> {
        if !self.any.access || actions.is_empty() {
            return Batch::new();
        }
        let mut refusals: Batch<Option<Refusal>> = smallvec![None; actions.len()];
        // Whatever the policies of the plugins: this is no matter of whether they can answer.
        for (refusal, (_, action)) in refusals.iter_mut().zip(actions) {
            if action.may_be_unknown() {
                let mut plugins = self.with(|hooks| hooks.access);
                *refusal = plugins.find_map(|plugin| plugin.compiled().refusal_of_unknown(action));
            }
        }
        for plugin in self.with(|hooks| hooks.access) {
            // Items that a plugin has refused are not passed to the plugins after it.
            let open = refusals.iter().zip(actions).enumerate();
            let mut items: Batch<Item<Action<'_>>> = Batch::with_capacity(actions.len());
            items.extend(
                open.filter(|(_, (refusal, _))| refusal.is_none())
                    .map(|(place, (_, &(connection, about)))| Item { place, connection, about }),
            );
            self.call_plugin(plugin, &hook, &mut items, |place, verdict| {
                let refusal = verdict.unwrap_or_else(Some);
                if let (Some(slot), Some(refusal)) = (refusals.get_mut(place), refusal) {
                    *slot = Some(plugin.signed(refusal));
                }
            });
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
            let mut items: Batch<Item<&Publication<'_>>> = Batch::with_capacity(outcomes.len());
            for (place, (outcome, connection)) in outcomes.iter().zip(&connections).enumerate() {
                if let PublishOutcome::Forward(about) = outcome {
                    items.push(Item { place, connection: *connection, about });
                }
            }
            let mut verdicts = Batch::new();
            self.call_plugin(plugin, &Publish, &mut items, |place, verdict| {
                verdicts.push((place, verdict.unwrap_or_else(PublishVerdict::Reject)));
            });
            drop(items);
            for (place, verdict) in verdicts {
                if let Some(outcome) = outcomes.get_mut(place) {
                    plugin_says(plugin, verdict, outcome);
                }
            }
        }
        outcomes
    }

    /// Has one plugin decide about these items, in as few calls as may be; counts and traces the
    /// verdicts. `decide` is called with the place of an item and the verdict on it, or with the
    /// refusal if the plugin could not decide and its policy is closed. It is not called for an
    /// item that just continues.
    fn call_plugin<T, H: BatchHook<T>>(
        &self,
        plugin: &Plugin,
        hook: &H,
        items: &mut [Item<T>],
        mut decide: impl FnMut(usize, Result<H::Verdict, Refusal>),
    ) {
        for (items, weight) in calls(plugin, H::HOOK, items, H::bytes) {
            let (answers, took) = plugin
                .call_batch(H::HOOK, items, weight, |instance, items| hook.call(instance, items));
            let answers = H::check(plugin, answers);
            let verdict = |index: usize| answers.get(index).map_or_else(|| failed(plugin), H::kind);
            plugin.stats.of(H::HOOK).said_all((0..items.len()).map(verdict));
            if let Some(tracer) = self.tracer() {
                let call =
                    Call { plugin: &plugin.identity, hook: H::HOOK, took, items: items.len() };
                for (index, Item { connection, about, .. }) in items.iter().enumerate() {
                    let answer = answers.get(index);
                    if tracer.is_wanted(*connection, H::channels(about, answer)) {
                        let seen = Seen { verdict: verdict(index), ..H::seen(about, answer) };
                        call.show(tracer, *connection, seen);
                    }
                }
            }
            for (Item { place, .. }, answer) in items.iter().zip(answers.into_each()) {
                match answer {
                    Ok(verdict) if H::kind(&verdict) == Verdict::Pass => {}
                    Ok(verdict) => decide(*place, Ok(verdict)),
                    Err(absence) => {
                        if let Some(refusal) = refused(plugin, absence) {
                            decide(*place, Err(refusal));
                        }
                    }
                }
            }
        }
    }

    /// The trace subscribers, if any.
    pub(super) fn tracer(&self) -> Option<&Tracer> {
        self.tracer.as_deref().filter(|tracer| tracer.is_used())
    }

    pub(super) fn with(
        &self,
        wanted: impl Fn(Hooks) -> bool,
    ) -> impl Iterator<Item = &Arc<Plugin>> {
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
        let mut deliveries: Vec<Item<Delivery<'_>>> = deliveries
            .into_iter()
            .enumerate()
            .map(|(place, (connection, about))| Item { place, connection, about })
            .collect();
        for plugin in self.with(|hooks| hooks.deliveries) {
            let mut verdicts = Vec::with_capacity(deliveries.len());
            self.call_plugin(plugin, &Deliver, &mut deliveries, |place, verdict| {
                verdicts.push((place, verdict));
            });
            // They are in the order of the deliveries, and those are missing that just continue.
            let mut verdicts = verdicts.into_iter().peekable();
            for Item { place, about: delivery, .. } in &mut deliveries {
                let Some((_, verdict)) = verdicts.next_if(|(of, _)| of == place) else { continue };
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

fn plugin_says(plugin: &Plugin, verdict: PublishVerdict, outcome: &mut PublishOutcome<'_>) {
    let PublishOutcome::Forward(publication) = outcome else { return };
    match verdict {
        PublishVerdict::Continue => {}
        PublishVerdict::Replace { channel, payload, tags } => {
            if let Some(tags) = tags {
                let options = publication.options.get_or_insert_default();
                options.tags = (!tags.is_empty()).then_some(tags);
            }
            if let Some(channel) = channel {
                publication.channel = Cow::Owned(channel.into_bytes());
            }
            if let Some(payload) = payload {
                publication.payload = Cow::Owned(payload);
            }
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
