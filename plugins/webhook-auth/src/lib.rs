//! A plugin of Switchyard: the user of a connection, by querying an HTTP service.
//! `README.md` describes the settings, the requests and the responses.
//!
//! Here stands the glue between the contract and the modules below, which know
//! nothing of it and are tested natively. The user of a connection is noted on
//! the connection, so that a successor knows it too.

pub mod settings;

pub mod answer;
pub mod question;

pub mod cache;

use std::cell::RefCell;
use std::sync::OnceLock;

use answer::Granted;
use bindings::exports::switchyard::pubsub::access::{self, Action, Denial, Request};
use bindings::exports::switchyard::pubsub::admission::{
    self, Client, Credentials, Protocol, Welcome,
};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::switchyard::pubsub::attributes;
use bindings::switchyard::pubsub::types::{ConnectionId, Origin, Refusal};
use cache::Cache;
use plugin_kit::actions::ActionKind;
use plugin_kit::notes::{AUTH_REQUIRED, OF_IDENTITY, ROLES, USER, note_of_roles};
use plugin_kit::refused::Refused;
use question::{Noted, Question};
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
    fn on_connect(connection: ConnectionId, client: Client) -> Result<Welcome, Refusal> {
        let settings = settings();
        let (protocol, has_request) = match client.protocol {
            Protocol::Websocket => ("websocket", true),
            Protocol::Resp => ("resp", false),
            Protocol::Sse => ("sse", true),
            Protocol::Http => ("http", true),
            Protocol::Pusher => ("pusher", true),
            Protocol::Internal => ("internal", false),
        };
        let own = Noted {
            protocol: protocol.to_owned(),
            address: client.remote.clone(),
            attributes: Vec::new(),
        };
        if settings.asks_at_connect(has_request) {
            let granted = ask(&Question::Connect {
                connection,
                client: &own,
                path: &client.path,
                headers: &settings.passed(&client.headers),
            })?;
            pin(connection, &granted, own)?;
        } else {
            note(connection, OWN, Some(&own.write()))?;
            require_user(connection)?;
        }
        Ok(Welcome { subscriptions: vec![] })
    }

    fn on_authenticate(
        connection: ConnectionId,
        Credentials { user, secret }: Credentials,
    ) -> Result<Option<Welcome>, Refusal> {
        if !settings().takes_auth {
            return Ok(None);
        }
        let own = noted(connection);
        let granted = ask(&Question::Authenticate {
            connection,
            client: &own,
            user: user.as_deref(),
            secret: &secret,
        })?;
        pin(connection, &granted, own)?;
        Ok(Some(Welcome { subscriptions: vec![] }))
    }

    fn on_disconnect(_connection: ConnectionId) {}
}

impl access::Guest for Plugin {
    fn on_access(requests: Vec<Request>) -> Vec<Denial> {
        let mut denials = vec![];
        let mut items = (0..).zip(&requests);
        for requests in requests.chunk_by(|one, other| one.origin == other.origin) {
            let Some(Request { origin, .. }) = requests.first() else { continue };
            let refusal_of_all = match origin {
                _ if !settings().requires_user => None,
                Origin::Connection(connection) => {
                    let is_refused = !is_known(*connection);
                    is_refused.then(|| Refused::unknown("say who you are first"))
                }
                // It has no user, and cannot say who it is.
                Origin::Token(_) | Origin::App(_) | Origin::Plugin(_) => {
                    Some(refused("only a connection with a user may do this"))
                }
            };
            for (position, request) in items.by_ref().take(requests.len()) {
                let refused = refusal_of_all.clone().or_else(|| refusal_of(&request.action));
                denials.extend(refused.map(|refused| Denial { position, refusal: refused.into() }));
            }
        }
        denials
    }
}

/// Other plugins decide about channels. No user may look at the server itself: the service is not
/// queried about it.
fn refusal_of(action: &Action) -> Option<Refused> {
    let is_server = plugin_kit::action_kind!(access, action) == ActionKind::InspectServer;
    is_server.then(|| refused("no user may look at the server"))
}

fn refused(message: &str) -> Refused {
    Refused { code: "NOPERM", message: message.to_owned() }
}
