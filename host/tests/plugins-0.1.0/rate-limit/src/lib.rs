//! For tests: the plugin `rate-limit` as it was built for `switchyard:pubsub@0.1.0`.
//!
//! This file has the exports for 0.1.0. The modules below are those of the plugin, which do not
//! depend on the contract.

#[path = "../../../../../plugins/rate-limit/src/limits.rs"]
pub mod limits;
#[path = "../../../../../plugins/rate-limit/src/settings.rs"]
pub mod settings;

use std::sync::OnceLock;

use bindings::exports::switchyard::pubsub::access::{self, Action, Request};
use bindings::exports::switchyard::pubsub::admission::{self, Client, Credentials};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::switchyard::pubsub::types::{ConnectionId, Refusal};
use bindings::switchyard::pubsub::{attributes, counters};
use limits::{Draw, Full, Operation, Shortage, Source, Subject};
use plugin_kit::notes::{ROLES, USER, roles_in};
use plugin_kit::refused::Refused;
use settings::Settings;

plugin_kit::declare!(name: "rate-limit", on_failure: "closed");

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../wit/0.1.0", world: "gatekeeper" });

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

fn operation_of(request: &Request) -> Operation<'_> {
    match &request.action {
        Action::Subscribe(_) | Action::Psubscribe(_) => Operation::Subscribe,
        Action::Publish(intent) => {
            Operation::Publish { channel: &intent.channel, bytes: intent.payload_bytes.into() }
        }
    }
}

fn decide(subject: &Subject, operations: &[Operation<'_>]) -> Vec<Option<Refusal>> {
    let Settings { limits, when_full, .. } = settings();
    let decisions = limits::decide(limits, *when_full, subject, operations, take);
    decisions.into_iter().map(|decision| decision.err().map(Refusal::from)).collect()
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
    fn on_connect(connection: ConnectionId, client: Client) -> Result<(), Refusal> {
        let is_known = || attributes::get(connection, PROXY).is_some();
        let address = settings().address_of(&client.remote, &client.headers, is_known);
        let subject = Subject { address, ..subject_of(connection) };
        if let Some(Some(refusal)) = decide(&subject, &[Operation::Connect]).pop() {
            return Err(refusal);
        }
        let address = subject.address.as_deref().filter(|_| settings().needs.address);
        attributes::set(connection, ADDRESS, address).map_err(|_full| Refusal {
            code: "LIMIT".to_owned(),
            message: "there is no room to note your address".to_owned(),
        })
    }

    fn on_authenticate(_: ConnectionId, _: Credentials) -> Result<bool, Refusal> {
        Ok(false)
    }

    fn on_disconnect(_connection: ConnectionId) {}
}

impl access::Guest for Plugin {
    fn on_access(requests: Vec<Request>) -> Vec<Option<Refusal>> {
        let of_one = requests.chunk_by(|one, other| one.connection == other.connection);
        let decisions = of_one.filter_map(|requests| {
            let subject = subject_of(requests.first()?.connection);
            Some(decide(&subject, &requests.iter().map(operation_of).collect::<Vec<_>>()))
        });
        decisions.flatten().collect()
    }
}
