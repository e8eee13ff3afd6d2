//! For tests: the plugin `webhook-auth` as it was built for `switchyard:pubsub@0.1.0`.
//!
//! This file has the exports for 0.1.0. The modules below are those of the plugin, which do not
//! depend on the contract.

#[path = "../../../../../plugins/webhook-auth/src/settings.rs"]
pub mod settings;

#[path = "../../../../../plugins/webhook-auth/src/answer.rs"]
pub mod answer;
#[path = "../../../../../plugins/webhook-auth/src/question.rs"]
pub mod question;

#[path = "../../../../../plugins/webhook-auth/src/cache.rs"]
pub mod cache;

use std::cell::RefCell;
use std::sync::OnceLock;

use answer::Granted;
use bindings::exports::switchyard::pubsub::access::{self, Request};
use bindings::exports::switchyard::pubsub::admission::{self, Client, Credentials, Protocol};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::switchyard::pubsub::attributes;
use bindings::switchyard::pubsub::types::{ConnectionId, Refusal};
use cache::Cache;
use plugin_kit::notes::{AUTH_REQUIRED, OF_IDENTITY, ROLES, USER, note_of_roles};
use plugin_kit::refused::Refused;
use question::{Noted, Question};
use settings::Settings;

plugin_kit::declare!(name: "webhook-auth", on_failure: "closed");

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../wit/0.1.0", world: "gatekeeper" });

    #[cfg(target_family = "wasm")]
    export!(Plugin with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Plugin;
}

/// The note of what this plugin itself must remember of a connection.
const OWN: &str = "webhook-auth";

static SETTINGS: OnceLock<Settings> = OnceLock::new();

thread_local! {
    /// What the service said lately.
    static CACHE: RefCell<Option<Cache>> = const { RefCell::new(None) };
}

fn settings() -> &'static Settings {
    SETTINGS.get().expect("the host calls `init` before all else")
}

/// Asks the service, or remembers what it said. An answer that says nothing to the
/// question is none, and is not remembered.
fn ask(question: &Question<'_>) -> Result<Granted, Refused> {
    let settings = settings();
    let key = question.key();
    let known = CACHE.with_borrow_mut(|cache| cache.as_mut()?.get(&key));
    if let Some(granted) = known {
        return Ok(granted);
    }
    let body = question.body();
    let answered = plugin_ask::post(&settings.url, &settings.headers, body.as_bytes());
    let granted = match answered {
        Ok(answer) => answer::read(answer.status, &answer.body)?,
        Err(problem) => return Err(answer::unavailable(&problem.to_string())),
    };
    if granted.user.is_none() && matches!(question, Question::Authenticate { .. }) {
        return Err(answer::unavailable("its answer names no user"));
    }
    CACHE.with_borrow_mut(|cache| {
        if let Some(cache) = cache {
            cache.put(key, granted.clone());
        }
    });
    Ok(granted)
}

fn noted(connection: ConnectionId) -> Noted {
    attributes::get(connection, OWN).map(|note| Noted::read(&note)).unwrap_or_default()
}

fn note(connection: ConnectionId, key: &str, value: Option<&str>) -> Result<(), Refusal> {
    attributes::set(connection, key, value).map_err(|_full| Refusal {
        code: "LIMIT".to_owned(),
        message: "there is no room to note what is known of you".to_owned(),
    })
}

/// Stores the identity in the connection's attributes and replaces the previous one. The user
/// is set last: if there is no room for all, the connection has no user.
fn pin(connection: ConnectionId, granted: &Granted, mut own: Noted) -> Result<(), Refusal> {
    note(connection, USER, None)?;
    for key in OF_IDENTITY {
        note(connection, key, None)?;
    }
    for key in &own.attributes {
        note(connection, key, None)?;
    }
    own.attributes = granted.attributes.keys().cloned().collect();
    note(connection, OWN, Some(&own.write()))?;
    let roles = (!granted.roles.is_empty()).then(|| note_of_roles(&granted.roles));
    note(connection, ROLES, roles.as_deref())?;
    for (key, value) in &granted.attributes {
        note(connection, key, Some(value))?;
    }
    note(connection, USER, granted.user.as_deref())?;
    require_user(connection)
}

/// Has the server take nothing but credentials, as long as the user is not known and
/// must be.
fn require_user(connection: ConnectionId) -> Result<(), Refusal> {
    match is_known(connection) {
        true => note(connection, AUTH_REQUIRED, None),
        false if settings().requires_user => note(connection, AUTH_REQUIRED, Some("webhook-auth")),
        false => Ok(()),
    }
}

fn is_known(connection: ConnectionId) -> bool {
    attributes::get(connection, USER).is_some_and(|user| !user.is_empty())
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
        CACHE.set(settings.cache());
        SETTINGS.get_or_init(|| settings);
        Ok(())
    }
}

impl admission::Guest for Plugin {
    fn on_connect(connection: ConnectionId, client: Client) -> Result<(), Refusal> {
        let settings = settings();
        let protocol = match client.protocol {
            Protocol::Websocket => "websocket",
            Protocol::Resp => "resp",
        };
        let own = Noted {
            protocol: protocol.to_owned(),
            address: client.remote.clone(),
            attributes: Vec::new(),
        };
        if !settings.asks_at_connect(client.protocol == Protocol::Websocket) {
            note(connection, OWN, Some(&own.write()))?;
            return require_user(connection);
        }
        let granted = ask(&Question::Connect {
            connection,
            client: &own,
            path: &client.path,
            headers: &settings.passed(&client.headers),
        })?;
        pin(connection, &granted, own)
    }

    fn on_authenticate(
        connection: ConnectionId,
        Credentials { user, secret }: Credentials,
    ) -> Result<bool, Refusal> {
        if !settings().takes_auth {
            return Ok(false);
        }
        let own = noted(connection);
        let granted = ask(&Question::Authenticate {
            connection,
            client: &own,
            user: user.as_deref(),
            secret: &secret,
        })?;
        pin(connection, &granted, own).map(|()| true)
    }

    fn on_disconnect(_connection: ConnectionId) {}
}

impl access::Guest for Plugin {
    fn on_access(requests: Vec<Request>) -> Vec<Option<Refusal>> {
        let refusal =
            || Refusal { code: "NOAUTH".to_owned(), message: "say who you are first".to_owned() };
        let of_one = requests.chunk_by(|one, other| one.connection == other.connection);
        let decisions = of_one.flat_map(|requests| {
            let connection = requests.first().map(|request| request.connection);
            let is_refused = settings().requires_user && !connection.is_some_and(is_known);
            requests.iter().map(move |_| is_refused.then(refusal))
        });
        decisions.collect()
    }
}
