//! A plugin of Switchyard: how often a client may connect, listen and publish, and
//! how much, by limits in its settings. `README.md` says what they may be.
//!
//! Here stands the glue between the contract and the modules below, which know
//! nothing of it and are tested natively. The plugin keeps nothing but its
//! settings: the tokens are the host's to keep, so that a successor goes on where
//! this one was.

pub mod limits;
pub mod settings;

use std::sync::OnceLock;

use bindings::exports::switchyard::pubsub::access::{self, Denial, Request};
use bindings::exports::switchyard::pubsub::admission::{self, Client, Credentials, Welcome};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::switchyard::pubsub::types::{ConnectionId, Origin, Refusal};
use bindings::switchyard::pubsub::{attributes, counters};
use limits::{Draw, Full, Operation, Shortage, Source, Subject};
use plugin_kit::actions::ActionKind;
use plugin_kit::items::{Named, named};
use plugin_kit::notes::{ROLES, USER, roles_in};
use plugin_kit::refused::Refused;
use settings::Settings;

plugin_kit::declare!(on_failure: "closed");

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "gatekeeper",
        additional_derives: [PartialEq],
    });

    #[cfg(target_family = "wasm")]
    export!(Plugin with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Plugin;
}

/// The note of the address that a connection came from.
const ADDRESS: &str = "rate-limit.address";
/// The note of the server for a client behind a proxy whose own address it knows.
const PROXY: &str = "proxy.address";

static SETTINGS: OnceLock<Settings> = OnceLock::new();

fn settings() -> &'static Settings {
    SETTINGS.get().expect("the host calls `init` before all else")
}

/// All that the limits ask about; each note is a call to the host.
fn subject_of(connection: ConnectionId) -> Subject {
    let needs = settings().needs;
    let noted =
        |is_needed: bool, key| is_needed.then(|| attributes::get(connection, key)).flatten();
    let roles = noted(needs.roles, ROLES);
    Subject {
        source: Source::Connection(connection),
        user: noted(needs.user, USER).filter(|user| !user.is_empty()),
        roles: roles.map(|note| roles_in(&note)).unwrap_or_default(),
        address: noted(needs.address, ADDRESS),
    }
}

/// An origin that is no connection has neither notes nor an address, so limits per user and per
/// address do not concern it.
fn subject_of_other(source: Source) -> Subject {
    Subject { source, user: None, roles: vec![], address: None }
}

/// Takes tokens out of all buckets, or out of none. The outer error: there is no
/// room for a new bucket.
fn take(draws: &[Draw<'_>]) -> Result<Result<(), Shortage>, Full> {
    let withdrawals = draws.iter().map(|draw| counters::Withdrawal {
        bucket: counters::Bucket {
            key: draw.bucket.key.clone(),
            capacity: draw.bucket.limit.burst,
            refill: draw.bucket.limit.rate,
            refill_ms: draw.bucket.limit.every_ms,
        },
        tokens: draw.tokens,
    });
    match counters::take(&withdrawals.collect::<Vec<_>>()) {
        Ok(counters::Taking::Taken) => Ok(Ok(())),
        Ok(counters::Taking::Short(counters::Shortage { position, retry_ms })) => {
            Ok(Err(Shortage { position: position as usize, retry_ms }))
        }
        Err(counters::CountersError::Full) => Err(Full),
    }
}

/// What is received of a channel counts as a subscription, and what is sent as a message. For
/// `inspect` the host takes no tokens.
fn operation_of<'a>(item: &Named<'a, Request>) -> Operation<'a> {
    match plugin_kit::action_kind!(access, &item.item.action) {
        ActionKind::Receive | ActionKind::ReceivePattern => Operation::Subscribe,
        ActionKind::Send(bytes) => Operation::Publish { channel: item.name, bytes: bytes.into() },
        ActionKind::InspectServer => Operation::InspectServer,
    }
}

fn decide(subject: &Subject, operations: &[Operation<'_>]) -> Vec<Result<(), Refused>> {
    let Settings { limits, when_full, .. } = settings();
    limits::decide(limits, *when_full, subject, operations, take)
}

impl From<Refused> for Refusal {
    fn from(Refused { code, message }: Refused) -> Self {
        Self { code: code.to_owned(), message }
    }
}

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn init(settings: String) -> Result<(), String> {
        let settings = settings::read(&settings)?;
        SETTINGS.get_or_init(|| settings);
        Ok(())
    }
}

impl admission::Guest for Plugin {
    fn on_connect(connection: ConnectionId, client: Client) -> Result<Welcome, Refusal> {
        let is_known = || attributes::get(connection, PROXY).is_some();
        let address = settings().address_of(&client.remote, &client.headers, is_known);
        let subject = Subject { address, ..subject_of(connection) };
        if let Some(decision) = decide(&subject, &[Operation::Connect]).pop() {
            decision?;
        }
        let address = subject.address.as_deref().filter(|_| settings().needs.address);
        attributes::set(connection, ADDRESS, address).map_err(|_full| Refusal {
            code: "LIMIT".to_owned(),
            message: "there is no room to note your address".to_owned(),
        })?;
        Ok(Welcome { subscriptions: vec![] })
    }

    fn on_authenticate(_: ConnectionId, _: Credentials) -> Result<Option<Welcome>, Refusal> {
        Ok(None)
    }

    fn on_disconnect(_connection: ConnectionId) {}
}

impl access::Guest for Plugin {
    fn on_access(requests: Vec<Request>) -> Vec<Denial> {
        let mut denials = vec![];
        let mut items = named(&requests, |request| request.name.as_deref());
        let mut positions = 0..;
        for requests in requests.chunk_by(|one, other| one.origin == other.origin) {
            let Some(Request { origin, .. }) = requests.first() else { continue };
            let subject = match origin {
                Origin::Connection(connection) => subject_of(*connection),
                Origin::Token(name) => subject_of_other(Source::Token(name.clone())),
                Origin::App(id) => subject_of_other(Source::App(id.clone())),
                Origin::Plugin(name) => subject_of_other(Source::Plugin(name.clone())),
            };
            let items = items.by_ref().take(requests.len());
            let operations: Vec<_> = items.map(|item| operation_of(&item)).collect();
            for (decision, position) in
                decide(&subject, &operations).into_iter().zip(&mut positions)
            {
                if let Err(refused) = decision {
                    denials.push(Denial { position, refusal: refused.into() });
                }
            }
        }
        denials
    }
}
