//! For tests: the plugin `jwt-auth` as it was built for `switchyard:pubsub@0.1.0`.
//!
//! This file has the exports for 0.1.0. The modules below are those of the plugin, which do not
//! depend on the contract.

#[path = "../../../../../plugins/jwt-auth/src/settings.rs"]
pub mod settings;

#[path = "../../../../../plugins/jwt-auth/src/keys.rs"]
pub mod keys;
#[path = "../../../../../plugins/jwt-auth/src/verify.rs"]
pub mod verify;

#[path = "../../../../../plugins/jwt-auth/src/grant.rs"]
pub mod grant;

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use bindings::exports::switchyard::pubsub::access::{self, Action, Request};
use bindings::exports::switchyard::pubsub::admission::{self, Client, Credentials, Protocol};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::switchyard::pubsub::types::{ConnectionId, Refusal};
use bindings::switchyard::pubsub::{attributes, log};
use grant::{Grant, Operation};
use plugin_kit::notes::{AUTH_REQUIRED, EXPIRES_AT, ROLES, USER, note_of_roles};
use plugin_kit::refused::Refused;
use settings::{Settings, WithoutToken};
use verify::Identity;

plugin_kit::declare!(name: "jwt-auth", on_failure: "closed");

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../wit/0.1.0", world: "gatekeeper" });

    #[cfg(target_family = "wasm")]
    export!(Plugin with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Plugin;
}

/// The note of what a token lets its bearer do, and until when.
const GRANT: &str = "jwt-auth";

static SETTINGS: OnceLock<Settings> = OnceLock::new();

fn settings() -> &'static Settings {
    SETTINGS.get().expect("the host calls `init` before all else")
}

fn is_known(connection: ConnectionId) -> bool {
    attributes::get(connection, USER).is_some_and(|user| !user.is_empty())
}

fn note(connection: ConnectionId, key: &str, value: Option<&str>) -> Result<(), Refusal> {
    attributes::set(connection, key, value).map_err(|_full| Refusal {
        code: "LIMIT".to_owned(),
        message: "there is no room to note what your token says".to_owned(),
    })
}

/// Stores the claims of a token in the connection's attributes and replaces those of the token
/// before. The user is set last: if there is no room for all, the connection has no user.
fn note_identity(connection: ConnectionId, identity: &Identity) -> Result<(), Refusal> {
    let note = |key: &str, value: Option<&str>| note(connection, key, value);
    note(USER, None)?;
    note(ROLES, identity.roles.as_deref().map(note_of_roles).as_deref())?;
    for (key, value) in &identity.attributes {
        note(key, value.as_deref())?;
    }
    note(GRANT, Some(&identity.grant.to_note()))?;
    let ends = identity.grant.ends.map(|ends| ends.saturating_add(settings().leeway_s));
    note(EXPIRES_AT, ends.map(|ends| ends.to_string()).as_deref())?;
    note(USER, Some(&identity.user))?;
    note(AUTH_REQUIRED, None)
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
        for warning in &settings.warnings {
            log::log(log::Level::Warn, warning);
        }
        SETTINGS.get_or_init(|| settings);
        Ok(())
    }
}

impl admission::Guest for Plugin {
    fn on_connect(connection: ConnectionId, client: Client) -> Result<(), Refusal> {
        let settings = settings();
        let token = settings.token_of(&client.path, &client.headers);
        match token.filter(|token| verify::is_token(token)) {
            Some(token) => note_identity(connection, &settings.verifier.verify(&token)?),
            None if settings.without_token == WithoutToken::Allow || is_known(connection) => Ok(()),
            None if settings.without_token == WithoutToken::Refuse
                && client.protocol == Protocol::Websocket =>
            {
                Err(Refused::unknown("connect with a token").into())
            }
            // Over RESP a client can show no token before it is let in.
            None => note(connection, AUTH_REQUIRED, Some("jwt-auth")),
        }
    }

    fn on_authenticate(
        connection: ConnectionId,
        Credentials { user, secret }: Credentials,
    ) -> Result<bool, Refusal> {
        if !settings().takes_auth || !verify::is_token(&secret) {
            return Ok(false);
        }
        let identity = settings().verifier.verify(&secret)?;
        match user {
            // The name that Redis clients send when they are given none.
            Some(user) if user != "default" && user != identity.user => {
                Err(Refused::unknown("the token belongs to another user").into())
            }
            _ => note_identity(connection, &identity).map(|()| true),
        }
    }

    fn on_disconnect(_connection: ConnectionId) {}
}

impl access::Guest for Plugin {
    fn on_access(requests: Vec<Request>) -> Vec<Option<Refusal>> {
        requests
            .chunk_by(|one, other| one.connection == other.connection)
            .flat_map(decide)
            .collect()
    }
}

/// One answer for each request; all are of one connection.
fn decide(requests: &[Request]) -> Vec<Option<Refusal>> {
    let Some(&Request { connection, .. }) = requests.first() else { return Vec::new() };
    let grant = attributes::get(connection, GRANT).map(|note| Grant::from_note(&note));
    let refuse_all = |why: &str| {
        let refusal = || Some(Refusal::from(Refused::unknown(why)));
        requests.iter().map(|_| refusal()).collect()
    };
    let grant = match grant {
        Some(Some(grant)) => grant,
        Some(None) => return refuse_all("what was noted of your token cannot be read"),
        None if settings().without_token != WithoutToken::Allow && !is_known(connection) => {
            return refuse_all("say who you are first: AUTH and your token");
        }
        None => return requests.iter().map(|_| None).collect(),
    };
    if grant.has_ended(now(), settings().leeway_s) {
        return refuse_all("your token expired; AUTH with a new one");
    }
    let mut access = grant.access();
    let decisions = requests.iter().map(|request| {
        access.decide(match &request.action {
            Action::Subscribe(channel) => Operation::Subscribe(channel),
            Action::Psubscribe(pattern) => Operation::Psubscribe(pattern),
            Action::Publish(intent) => Operation::Publish(&intent.channel),
        })
    });
    decisions.map(|decision| decision.err().map(Refusal::from)).collect()
}

/// In seconds since 1970, as tokens count.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
