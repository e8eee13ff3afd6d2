//! Version 0.2.0 of the contract.

use smallvec::smallvec;
use wasmtime::Store;

use super::exports::{Exports, Linked, exports, unchanged_calls};
use super::extras::{self, Texts};
use super::host_imports::host_imports;
use super::{Client, Fault, fault, text};
use crate::items::{Action, DeliverVerdict, Inspection, Item, PublishVerdict};
use switchyard_hub::filter::{Delivery, Extras};
use switchyard_types::batch::Batch;
use switchyard_types::command::{Credentials, Publication, Refusal};
use switchyard_types::ids::ConnectionId;
use switchyard_wasm::StoreState;

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod generated {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "middleware",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

exports!();
host_imports!();

/// It has all actions.
fn refusal_of_unknown(_action: Action<'_>) -> Option<Refusal> {
    None
}

fn wit_action(action: Action<'_>) -> exports::access::Action {
    use exports::access::{Action as Wit, Inspection as Subject};
    let bytes = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
    match action {
        Action::Subscribe(_) => Wit::Subscribe,
        Action::Psubscribe(_) => Wit::Psubscribe,
        Action::Publish { payload_bytes, .. } => Wit::Publish(bytes(payload_bytes)),
        Action::Resume(_) => Wit::Resume,
        Action::History(_) => Wit::History,
        Action::Presence(_) => Wit::Presence,
        Action::Watch(_) => Wit::Watch,
        Action::Enter { data_bytes, .. } => Wit::Enter(bytes(data_bytes)),
        Action::Call { argument_bytes, .. } => Wit::Call(bytes(argument_bytes)),
        Action::Inspect(subject) => Wit::Inspect(match subject {
            Inspection::Channel(_) => Subject::Channel,
            Inspection::Patterns => Subject::Patterns,
            Inspection::Server => Subject::Server,
            Inspection::Clients => Subject::Clients,
            Inspection::Configuration => Subject::Configuration,
        }),
    }
}

/// The names of items, each only where it differs from the one before.
fn changes<N: Copy + PartialEq>(names: impl Iterator<Item = N>) -> impl Iterator<Item = Option<N>> {
    let mut before = None;
    names.map(move |name| (before.replace(name) != Some(name)).then_some(name))
}

impl Exports for Guests {
    unchanged_calls!();

    fn on_connect(
        &self,
        store: &mut Store<StoreState>,
        connection: ConnectionId,
        client: &Client,
    ) -> Result<Result<(), Refusal>, Fault> {
        let Some(admission) = &self.admission else { return Ok(Ok(())) };
        let headers = client.header_slices();
        let client = wit_client(client, &headers);
        let hook = "on-connect";
        match admission.call_on_connect(store, connection, client).map_err(fault(hook))? {
            Ok(welcome) => check_welcome(hook, &welcome).map(Ok),
            Err(why) => Ok(Err(refusal(why))),
        }
    }

    fn on_authenticate(
        &self,
        store: &mut Store<StoreState>,
        connection: ConnectionId,
        credentials: &Credentials,
    ) -> Result<Result<bool, Refusal>, Fault> {
        let Some(admission) = &self.admission else { return Ok(Ok(false)) };
        let credentials = wit_credentials(credentials);
        let hook = "on-authenticate";
        match admission.call_on_authenticate(store, connection, credentials).map_err(fault(hook))? {
            Ok(Some(welcome)) => check_welcome(hook, &welcome).map(|()| Ok(true)),
            Ok(None) => Ok(Ok(false)),
            Err(why) => Ok(Err(refusal(why))),
        }
    }

    fn on_access(
        &self,
        store: &mut Store<StoreState>,
        items: &[Item<Action<'_>>],
        is_recheck: bool,
    ) -> Result<Batch<Option<Refusal>>, Fault> {
        use exports::access as wit;
        let mut refusals: Batch<Option<Refusal>> = smallvec![None; items.len()];
        let Some(access) = &self.access else { return Ok(refusals) };
        let requests: Batch<wit::Request<'_>> = items
            .iter()
            .zip(changes(items.iter().map(|item| item.about.name())))
            .map(|(item, name)| wit::Request {
                origin: imports::types::Origin::Connection(item.connection),
                name,
                action: wit_action(item.about),
                recheck: is_recheck && !matches!(item.about, Action::Inspect(_)),
            })
            .collect();
        let denials = access.call_on_access(store, &requests).map_err(fault("on-access"))?;
        let denials = denials
            .into_iter()
            .map(|wit::Denial { position, refusal: why }| Ok((position, Some(refusal(why)))));
        set_all("on-access", &mut refusals, denials)?;
        Ok(refusals)
    }

    fn on_publish(
        &self,
        store: &mut Store<StoreState>,
        items: &[Item<&Publication<'_>>],
    ) -> Result<Batch<PublishVerdict>, Fault> {
        use exports::messages as wit;
        let Some(messages) = &self.messages else { return Ok(Batch::new()) };
        let submissions: Batch<wit::Submission<'_>> = items
            .iter()
            .zip(changes(items.iter().map(|item| &*item.about.channel)))
            .map(|(Item { connection, about: publication, .. }, channel)| wit::Submission {
                origin: imports::types::Origin::Connection(*connection),
                channel: channel.map(text),
                payload: &publication.payload,
            })
            .collect();
        let carried =
            Carried::of(items.iter().map(|item| Extras::of(item.about.options.as_deref())));
        let decisions = carried
            .pass(|extras| messages.call_on_publish(store, &submissions, extras))
            .map_err(fault("on-publish"))?;
        let mut verdicts: Batch<PublishVerdict> = Batch::with_capacity(items.len());
        verdicts.extend(items.iter().map(|_| PublishVerdict::Continue));
        let decisions = decisions.into_iter().map(|wit::Decision { position, verdict }| {
            let verdict = match verdict {
                wit::PublishVerdict::Replace(wit::Change { channel, payload, tags }) => {
                    let tags = tags.map(extras::tags_as_json).transpose();
                    let tags = tags.map_err(|problem| Fault { hook: "on-publish", problem })?;
                    PublishVerdict::Replace { channel, payload, tags }
                }
                wit::PublishVerdict::Reject(why) => PublishVerdict::Reject(refusal(why)),
                wit::PublishVerdict::Absorb(receivers) => PublishVerdict::Absorb(receivers),
            };
            Ok((position, verdict))
        });
        set_all("on-publish", &mut verdicts, decisions)?;
        Ok(verdicts)
    }

    fn on_deliver(
        &self,
        store: &mut Store<StoreState>,
        items: &[Item<Delivery<'_>>],
    ) -> Result<Batch<DeliverVerdict>, Fault> {
        use exports::deliveries as wit;
        let Some(hook) = &self.deliveries else { return Ok(Batch::new()) };
        let mut deliveries: Vec<wit::Delivery<'_>> = items
            .iter()
            .zip(changes(items.iter().map(|item| item.about.channel)))
            .map(|(Item { about: delivery, .. }, channel)| wit::Delivery {
                channel: channel.map(text),
                payload: &delivery.payload,
                position: None,
                recipients: &delivery.recipients,
            })
            .collect();
        let positions: Batch<Option<String>> = items
            .iter()
            .map(|item| item.about.position.map(|position| position.to_string()))
            .collect();
        for (delivery, position) in deliveries.iter_mut().zip(&positions) {
            delivery.position = position.as_deref();
        }
        let carried = Carried::of(items.iter().map(|item| item.about.extras));
        let decisions = carried
            .pass(|extras| hook.call_on_deliver(store, &deliveries, extras))
            .map_err(fault("on-deliver"))?;
        let mut verdicts: Batch<DeliverVerdict> = Batch::with_capacity(items.len());
        verdicts.extend(items.iter().map(|_| DeliverVerdict::Continue));
        let decisions = decisions.into_iter().map(|wit::Decision { position, verdict }| {
            let verdict = match verdict {
                wit::DeliverVerdict::Replace(payload) => DeliverVerdict::Replace(payload),
                wit::DeliverVerdict::Narrow(only) => DeliverVerdict::Narrow(only),
            };
            Ok((position, verdict))
        });
        set_all("on-deliver", &mut verdicts, decisions)?;
        Ok(verdicts)
    }
}

/// What the items of a call carry besides: empty for most calls.
struct Carried<'a>(Vec<(u32, Extras<'a>, Texts)>);

impl<'a> Carried<'a> {
    fn of(extras: impl Iterator<Item = Option<Extras<'a>>>) -> Carried<'a> {
        let carried = (0..).zip(extras).filter_map(|(position, extras)| {
            let extras = extras?;
            Some((position, extras, extras::tags_as_texts(extras.tags)))
        });
        Carried(carried.collect())
    }

    /// Calls a hook with them.
    fn pass<T>(&self, call: impl FnOnce(&[imports::types::Extras<'_>]) -> T) -> T {
        let pairs: Vec<Vec<(&str, &str)>> = self
            .0
            .iter()
            .map(|(.., tags)| tags.iter().map(|(name, value)| (&**name, &**value)).collect())
            .collect();
        let carried: Vec<imports::types::Extras<'_>> = self
            .0
            .iter()
            .zip(&pairs)
            .map(|((position, extras, _), tags)| imports::types::Extras {
                position: *position,
                key: extras.key,
                version: extras.version,
                tags,
            })
            .collect();
        call(&carried)
    }
}

/// Sets the verdicts at the positions of a plugin's decisions, which ascend and are within the list.
fn set_all<T>(
    hook: &'static str,
    verdicts: &mut [T],
    decisions: impl Iterator<Item = Result<(u32, T), Fault>>,
) -> Result<(), Fault> {
    let (items, mut next) = (verdicts.len(), 0);
    for decision in decisions {
        let (position, verdict) = decision?;
        let place = position as usize;
        match verdicts.get_mut(place) {
            Some(slot) if place >= next => *slot = verdict,
            _ => {
                let problem = format!(
                    "it answered about position {position} of {items} items, where {next} or more \
                     was expected"
                );
                return Err(Fault { hook, problem });
            }
        }
        next = place + 1;
    }
    Ok(())
}

/// Fails if a plugin gave an accepted client subscriptions: the server does not make them yet.
fn check_welcome(hook: &'static str, welcome: &exports::admission::Welcome) -> Result<(), Fault> {
    if welcome.subscriptions.is_empty() {
        return Ok(());
    }
    let problem = "it gave the client subscriptions, which this version of the server does not make \
                   yet";
    Err(Fault { hook, problem: problem.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_passed_once_for_the_items_that_follow_with_it() {
        let names = ["a", "a", "b", "a", "a"];
        let passed: Vec<_> = changes(names.into_iter()).collect();
        assert_eq!(passed, [Some("a"), None, Some("b"), Some("a"), None]);
        assert_eq!(changes([""].into_iter()).next(), Some(Some("")));
    }

    #[test]
    fn positions_ascend_and_are_within_the_list() {
        let set = |positions: &[u32]| {
            let mut verdicts = [' '; 3];
            let decisions = positions.iter().map(|position| Ok((*position, 'x')));
            set_all("on-publish", &mut verdicts, decisions).map(|()| verdicts)
        };
        assert_eq!(set(&[]), Ok([' ', ' ', ' ']));
        assert_eq!(set(&[0, 2]), Ok(['x', ' ', 'x']));
        for wrong in [&[0, 2, 0][..], &[2, 2], &[3], &[u32::MAX]] {
            assert!(set(wrong).is_err(), "{wrong:?}");
        }
    }
}
