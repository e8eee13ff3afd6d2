//! The plugins in their order, and what they make of commands.
//!
//! Whoever runs a burst of commands holds the chain for reading from the first
//! hook to the last delivery; a swap takes it for writing. So every message is
//! treated by one version of each plugin, and a swap waits for no more than the
//! bursts under way.

use std::borrow::Cow;
use std::sync::Arc;

use super::bindings::{Client, Hooks};
use super::plugin::{Plugin, TrapPolicy};
use crate::hub::connections::ConnectionId;
use crate::protocol::command::{Credentials, NOAUTH};
pub use crate::protocol::command::{Publication, Refusal, Space};

/// How many bytes of names and payloads a plugin is shown in one call, unless a
/// single item has more: its budget is for the call, and must not depend on how
/// much a client sends at once.
const CALL_BYTES_MAX: usize = 64 << 10;
/// How many items it is shown in one call, for the same reason.
const CALL_ITEMS_MAX: usize = 256;

/// Cuts items into what a plugin is shown in one call each.
fn chunks<T>(items: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = rest.iter().take(CALL_ITEMS_MAX).take_while(|item| {
            sum += bytes(item);
            sum <= CALL_BYTES_MAX
        });
        let count = fits.count().max(1).min(rest.len());
        let (chunk, after) = rest.split_at(count);
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// The plugins in their order.
#[derive(Default)]
pub struct Chain {
    plugins: Vec<Arc<Plugin>>,
    /// Which hooks any of them has.
    any: Hooks,
}

/// One thing that a connection wants to do with one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Listen to a channel.
    Subscribe(&'a str),
    /// Listen to all channels that match.
    Psubscribe(&'a str),
    /// Publish.
    #[allow(missing_docs, reason = "the contract documents them")]
    Publish { channel: &'a str, payload_bytes: usize },
}

impl Action<'_> {
    fn bytes(&self) -> usize {
        match self {
            Action::Subscribe(name) | Action::Psubscribe(name) => name.len(),
            Action::Publish { channel, .. } => channel.len(),
        }
    }
}

/// What a plugin makes of a publication on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the contract documents them")]
pub enum PublishVerdict {
    Continue,
    Replace { channel: String, payload: Vec<u8> },
    Reject(Refusal),
    Absorb(u64),
}

/// A publication on its way out.
#[derive(Debug, Clone)]
pub struct Delivery<'a> {
    /// Its channel.
    pub channel: &'a [u8],
    /// The message, as the plugins before left it.
    pub payload: Cow<'a, [u8]>,
    /// Who is about to receive it; they rise.
    pub recipients: Vec<ConnectionId>,
}

impl Delivery<'_> {
    fn bytes(&self) -> usize {
        self.payload.len() + self.recipients.len() * size_of::<ConnectionId>()
    }
}

/// What a plugin makes of a publication on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the contract documents them")]
pub enum DeliverVerdict {
    Continue,
    Replace(Vec<u8>),
    Narrow(Vec<ConnectionId>),
}

/// What the whole chain made of a publication on its way out.
#[derive(Debug, Default)]
pub struct Change {
    /// Another payload.
    pub payload: Option<Vec<u8>>,
    /// Only these receive it; they rise.
    pub recipients: Option<Vec<ConnectionId>>,
}

/// What becomes of a publication after the chain.
#[derive(Debug)]
pub enum Fate<'a> {
    /// It is published, perhaps changed.
    Forward(Publication<'a>),
    /// The publisher is told why not.
    Refused(Refusal),
    /// The publisher is told it reached so many.
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
        Chain { plugins, any }
    }

    /// The plugins in their order.
    pub fn plugins(&self) -> &[Arc<Plugin>] {
        &self.plugins
    }

    /// Whether a plugin decides who may connect, and takes credentials.
    pub fn has_admission(&self) -> bool {
        self.any.admission
    }

    /// Whether names reach a plugin, which takes them as strings.
    pub fn sees_names(&self) -> bool {
        self.any.access || self.any.messages || self.any.deliveries
    }

    /// Whether what is delivered must be shown to it.
    pub fn has_deliveries(&self) -> bool {
        self.any.deliveries
    }

    /// May this client connect? When one says no, those that said yes before are
    /// told that it is gone.
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub fn connect(&self, connection: ConnectionId, client: &Client) -> Result<(), Refusal> {
        for (position, plugin) in self.with(|hooks| hooks.admission).enumerate() {
            let answer = plugin.ask(connection, |instance| instance.on_connect(connection, client));
            let refusal = match (answer, plugin.policy) {
                (Some(Ok(())), _) | (None, TrapPolicy::Open) => continue,
                (Some(Err(refusal)), _) => plugin.signed(refusal),
                (None, TrapPolicy::Closed) => plugin.unavailable(),
            };
            for earlier in self.with(|hooks| hooks.admission).take(position) {
                earlier.ask(connection, |instance| instance.on_disconnect(connection));
            }
            return Err(refusal);
        }
        Ok(())
    }

    /// Are these credentials good?
    ///
    /// # Errors
    ///
    /// The first refusal; also when no plugin knows the credentials.
    pub fn authenticate(
        &self,
        connection: ConnectionId,
        credentials: &Credentials,
    ) -> Result<(), Refusal> {
        if !self.any.admission {
            return Err(Refusal::new(
                NOAUTH,
                "no authentication plugin is in the chain, so there is nothing to authenticate for",
            ));
        }
        for plugin in self.with(|hooks| hooks.admission) {
            let answer = plugin
                .ask(connection, |instance| instance.on_authenticate(connection, credentials));
            match (answer, plugin.policy) {
                (Some(Ok(true)), _) => return Ok(()),
                (Some(Ok(false)), _) | (None, TrapPolicy::Open) => {}
                (Some(Err(refusal)), _) => return Err(plugin.signed(refusal)),
                (None, TrapPolicy::Closed) => return Err(plugin.unavailable()),
            }
        }
        Err(Refusal::new(NOAUTH, "no plugin knows these credentials"))
    }

    /// Tells those that let the connection in that it is gone.
    pub fn disconnect(&self, connection: ConnectionId) {
        for plugin in self.with(|hooks| hooks.admission) {
            if plugin.admitted(connection) {
                plugin.ask(connection, |instance| instance.on_disconnect(connection));
            }
        }
    }

    /// May the connection do these things? One answer for each; none: allowed.
    /// An empty list: nobody was asked, and all is allowed.
    pub fn access(&self, connection: ConnectionId, actions: &[Action<'_>]) -> Vec<Option<Refusal>> {
        if !self.any.access || actions.is_empty() {
            return Vec::new();
        }
        let mut refusals: Vec<Option<Refusal>> = vec![None; actions.len()];
        for plugin in self.with(|hooks| hooks.access) {
            // Those that a plugin before refused are not asked about again.
            let mut open: Vec<&mut Option<Refusal>> = Vec::with_capacity(actions.len());
            let mut asked = Vec::with_capacity(actions.len());
            for (refusal, action) in refusals.iter_mut().zip(actions) {
                if refusal.is_none() {
                    open.push(refusal);
                    asked.push(*action);
                }
            }
            if asked.is_empty() {
                break;
            }
            let mut open = open.into_iter();
            for asked in chunks(&asked, Action::bytes) {
                let answers =
                    plugin.ask(connection, |instance| instance.on_access(connection, asked));
                let slots = open.by_ref().take(asked.len());
                match answers {
                    Some(answers) => {
                        for (slot, answer) in slots.zip(answers) {
                            *slot = answer.map(|refusal| plugin.signed(refusal));
                        }
                    }
                    None if plugin.policy == TrapPolicy::Closed => {
                        slots.for_each(|slot| *slot = Some(plugin.unavailable()));
                    }
                    None => slots.for_each(drop),
                }
            }
        }
        refusals
    }

    /// What becomes of these publications, one fate for each, in order.
    pub fn publish<'a>(
        &self,
        connection: ConnectionId,
        publications: Vec<Publication<'a>>,
    ) -> Vec<Fate<'a>> {
        let mut fates: Vec<Fate<'a>> = publications.into_iter().map(Fate::Forward).collect();
        if !self.any.messages {
            return fates;
        }
        for plugin in self.with(|hooks| hooks.messages) {
            // Their places, so that the verdicts find their way back.
            let forwarded = fates.iter().enumerate().filter_map(|(place, fate)| match fate {
                Fate::Forward(publication) => Some((place, publication)),
                Fate::Refused(_) | Fate::Absorbed(_) => None,
            });
            let (places, asked): (Vec<usize>, Vec<&Publication<'a>>) = forwarded.unzip();
            let mut places = places.into_iter();
            let mut verdicts = Vec::new();
            for asked in chunks(&asked, |publication| publication.payload.len()) {
                let answers =
                    plugin.ask(connection, |instance| instance.on_publish(connection, asked));
                let places = places.by_ref().take(asked.len());
                match answers {
                    Some(answers) => verdicts.extend(places.zip(answers)),
                    None if plugin.policy == TrapPolicy::Closed => {
                        let refusal = || PublishVerdict::Reject(plugin.unavailable());
                        verdicts.extend(places.map(|place| (place, refusal())));
                    }
                    None => places.for_each(drop),
                }
            }
            for (place, verdict) in verdicts {
                if let Some(fate) = fates.get_mut(place) {
                    plugin_says(plugin, verdict, fate);
                }
            }
        }
        fates
    }

    /// What becomes of these deliveries, one answer for each, in order. Shards
    /// are held meanwhile. `publisher` chooses the instance that is asked.
    pub fn deliver(
        &self,
        publisher: ConnectionId,
        mut deliveries: Vec<Delivery<'_>>,
    ) -> Vec<Result<Change, Refusal>> {
        let mut changes: Vec<Result<Change, Refusal>> =
            deliveries.iter().map(|_| Ok(Change::default())).collect();
        if deliveries.is_empty() {
            return changes;
        }
        for plugin in self.with(|hooks| hooks.deliveries) {
            let mut verdicts = Vec::with_capacity(deliveries.len());
            for asked in chunks(&deliveries, Delivery::bytes) {
                match plugin.ask(publisher, |instance| instance.on_deliver(asked)) {
                    Some(answers) => verdicts.extend(answers.into_iter().map(Ok)),
                    None if plugin.policy == TrapPolicy::Closed => {
                        verdicts.extend(asked.iter().map(|_| Err(plugin.unavailable())));
                    }
                    None => verdicts.extend(asked.iter().map(|_| Ok(DeliverVerdict::Continue))),
                }
            }
            for ((delivery, change), verdict) in
                deliveries.iter_mut().zip(&mut changes).zip(verdicts)
            {
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
                    DeliverVerdict::Narrow(mut only) => {
                        only.sort_unstable();
                        delivery.recipients.retain(|id| only.binary_search(id).is_ok());
                        change.recipients = Some(delivery.recipients.clone());
                    }
                }
            }
        }
        changes
    }

    fn with(&self, wanted: impl Fn(Hooks) -> bool) -> impl Iterator<Item = &Arc<Plugin>> {
        self.plugins.iter().filter(move |plugin| wanted(plugin.hooks()))
    }
}

fn plugin_says(plugin: &Plugin, verdict: PublishVerdict, fate: &mut Fate<'_>) {
    let Fate::Forward(publication) = fate else { return };
    match verdict {
        PublishVerdict::Continue => {}
        PublishVerdict::Replace { channel, payload } => {
            publication.channel = Cow::Owned(channel.into_bytes());
            publication.payload = Cow::Owned(payload);
        }
        PublishVerdict::Reject(refusal) => *fate = Fate::Refused(plugin.signed(refusal)),
        PublishVerdict::Absorb(receivers) => *fate = Fate::Absorbed(receivers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_chunk_is_over_its_limits_and_none_is_lost() {
        let check = |items: &[usize], expected: &[usize]| {
            let lengths: Vec<_> = chunks(items, |bytes| *bytes).map(<[usize]>::len).collect();
            assert_eq!(lengths, expected);
        };
        check(&[], &[]);
        check(&[CALL_BYTES_MAX + 1, 1, CALL_BYTES_MAX, 0, 1], &[1, 1, 2, 1]);
        check(&[0; CALL_ITEMS_MAX + 1], &[CALL_ITEMS_MAX, 1]);
    }
}
