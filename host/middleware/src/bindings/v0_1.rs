//! Version 0.1.0 of the contract. An action that it does not have is passed as one that it has, or
//! refused without a call.

use smallvec::smallvec;
use wasmtime::Store;

use super::exports::{Exports, Linked, exports, unchanged_calls};
use super::host_imports::host_imports;
use super::{Client, Fault, fault, text};
use crate::items::{Action, DeliverVerdict, Inspection, Item, PublishVerdict};
use switchyard_hub::filter::Delivery;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Credentials, NOPERM, Publication, Refusal};
use switchyard_types::ids::ConnectionId;
use switchyard_wasm::StoreState;

/// Its number.
pub const VERSION: &str = "0.1.0";

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod generated {
    wasmtime::component::bindgen!({
        path: "../../wit/0.1.0",
        world: "middleware",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

exports!();
host_imports!();

/// The action that a plugin decides about; an error: the refusal of an action that no plugin for this
/// version can decide about.
fn wit_action(action: Action<'_>) -> Result<exports::access::Action<'_>, Refusal> {
    use exports::access as wit;
    let publish = |channel, bytes| {
        let payload_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(wit::Action::Publish(wit::PublishIntent { channel, payload_bytes }))
    };
    match action {
        Action::Subscribe(name)
        | Action::Resume(name)
        | Action::History(name)
        | Action::Presence(name)
        | Action::Watch(name)
        | Action::Inspect(Inspection::Channel(name)) => Ok(wit::Action::Subscribe(name)),
        Action::Psubscribe(pattern) => Ok(wit::Action::Psubscribe(pattern)),
        Action::Publish { channel, payload_bytes } => publish(channel, payload_bytes),
        Action::Enter { channel, data_bytes } => publish(channel, data_bytes),
        Action::Call { .. } => Err(Refusal::new(
            NOPERM,
            "a plugin in the chain decides about actions, and does not know calls",
        )),
        Action::Inspect(
            Inspection::Patterns
            | Inspection::Server
            | Inspection::Clients
            | Inspection::Configuration,
        ) => Err(Refusal::new(NOPERM, "not over a WebSocket, where plugins decide who may listen")),
    }
}

fn refusal_of_unknown(action: Action<'_>) -> Option<Refusal> {
    wit_action(action).err()
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
        let answer =
            admission.call_on_connect(store, connection, client).map_err(fault("on-connect"))?;
        Ok(answer.map_err(refusal))
    }

    fn on_authenticate(
        &self,
        store: &mut Store<StoreState>,
        connection: ConnectionId,
        credentials: &Credentials,
    ) -> Result<Result<bool, Refusal>, Fault> {
        let Some(admission) = &self.admission else { return Ok(Ok(false)) };
        let answer = admission
            .call_on_authenticate(store, connection, wit_credentials(credentials))
            .map_err(fault("on-authenticate"))?;
        Ok(answer.map_err(refusal))
    }

    fn on_access(
        &self,
        store: &mut Store<StoreState>,
        items: &[Item<Action<'_>>],
        _is_recheck: bool,
    ) -> Result<Batch<Option<Refusal>>, Fault> {
        use exports::access as wit;
        let Some(access) = &self.access else { return Ok(smallvec![None; items.len()]) };
        let mut requests: Batch<wit::Request<'_>> = Batch::with_capacity(items.len());
        for Item { connection, about, .. } in items {
            let action = wit_action(*about).map_err(|_| Fault {
                hook: "on-access",
                problem: format!("it cannot be called about {}", about.verb()),
            })?;
            requests.push(wit::Request { connection: *connection, action });
        }
        let answers = access.call_on_access(store, &requests).map_err(fault("on-access"))?;
        expect_count("on-access", answers.len(), requests.len())?;
        Ok(answers.into_iter().map(|answer| answer.map(refusal)).collect())
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
            .map(|Item { connection, about: publication, .. }| wit::Submission {
                connection: *connection,
                publication: imports::types::PublicationParam {
                    channel: text(&publication.channel),
                    payload: &publication.payload,
                },
            })
            .collect();
        let verdicts =
            messages.call_on_publish(store, &submissions).map_err(fault("on-publish"))?;
        expect_count("on-publish", verdicts.len(), submissions.len())?;
        let own = |verdict| match verdict {
            wit::PublishVerdict::Continue => PublishVerdict::Continue,
            wit::PublishVerdict::Replace(new) => PublishVerdict::Replace {
                channel: Some(new.channel),
                payload: Some(new.payload),
                tags: None,
            },
            wit::PublishVerdict::Reject(why) => PublishVerdict::Reject(refusal(why)),
            wit::PublishVerdict::Absorb(receivers) => PublishVerdict::Absorb(receivers),
        };
        Ok(verdicts.into_iter().map(own).collect())
    }

    fn on_deliver(
        &self,
        store: &mut Store<StoreState>,
        items: &[Item<Delivery<'_>>],
    ) -> Result<Batch<DeliverVerdict>, Fault> {
        use exports::deliveries as wit;
        let Some(hook) = &self.deliveries else { return Ok(Batch::new()) };
        let deliveries: Vec<wit::Delivery<'_>> = items
            .iter()
            .map(|Item { about: delivery, .. }| wit::Delivery {
                publication: imports::types::PublicationParam {
                    channel: text(delivery.channel),
                    payload: &delivery.payload,
                },
                recipients: &delivery.recipients,
            })
            .collect();
        let verdicts = hook.call_on_deliver(store, &deliveries).map_err(fault("on-deliver"))?;
        expect_count("on-deliver", verdicts.len(), deliveries.len())?;
        let own = |verdict| match verdict {
            wit::DeliverVerdict::Continue => DeliverVerdict::Continue,
            wit::DeliverVerdict::Replace(payload) => DeliverVerdict::Replace(payload),
            wit::DeliverVerdict::Narrow(recipients) => DeliverVerdict::Narrow(recipients),
        };
        Ok(verdicts.into_iter().map(own).collect())
    }
}

fn expect_count(hook: &'static str, answers: usize, questions: usize) -> Result<(), Fault> {
    if answers == questions {
        return Ok(());
    }
    Err(Fault { hook, problem: format!("it gave {answers} answers to {questions} questions") })
}
