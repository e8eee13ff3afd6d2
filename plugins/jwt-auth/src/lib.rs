//! A plugin of Switchyard: the user of a connection, by JSON Web Tokens.
//! `README.md` says what the settings may be.
//!
//! Here stands the glue between the contract and the modules below, which know
//! nothing of it and are tested natively. The plugin keeps nothing but its
//! settings: what a token said is noted on the connection, so that a successor
//! knows it too.

pub mod settings;

pub mod keys;
pub mod verify;

pub mod grant;

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use bindings::exports::switchyard::pubsub::access::{self, Action, Denial, Request};
use bindings::exports::switchyard::pubsub::admission::{
    self, Client, Credentials, Protocol, Welcome,
};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::switchyard::pubsub::types::{ConnectionId, Origin, Refusal};
use bindings::switchyard::pubsub::{attributes, log};
use grant::{Grant, Operation};
use plugin_kit::actions::ActionKind;
use plugin_kit::items::{Named, named};
use plugin_kit::notes::{AUTH_REQUIRED, EXPIRES_AT, ROLES, USER, note_of_roles};
use plugin_kit::refused::Refused;
use settings::{Settings, WithoutToken};
use verify::Identity;

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
    fn on_connect(connection: ConnectionId, client: Client) -> Result<Welcome, Refusal> {
        let settings = settings();
        let token = settings.token_of(&client.path, &client.headers);
        match token.filter(|token| verify::is_token(token)) {
            Some(token) => note_identity(connection, &settings.verifier.verify(&token)?)?,
            None if settings.without_token == WithoutToken::Allow || is_known(connection) => {}
            None if settings.without_token == WithoutToken::Refuse
                && can_bring_token(client.protocol) =>
            {
                return Err(Refused::unknown("connect with a token").into());
            }
            None => note(connection, AUTH_REQUIRED, Some("jwt-auth"))?,
        }
        Ok(Welcome { subscriptions: vec![] })
    }

    fn on_authenticate(
        connection: ConnectionId,
        Credentials { user, secret }: Credentials,
    ) -> Result<Option<Welcome>, Refusal> {
        if !settings().takes_auth || !verify::is_token(&secret) {
            return Ok(None);
        }
        let identity = settings().verifier.verify(&secret)?;
        match user {
            // The name that Redis clients send when they are given none.
            Some(user) if user != "default" && user != identity.user => {
                Err(Refused::unknown("the token belongs to another user").into())
            }
            _ => {
                note_identity(connection, &identity)?;
                Ok(Some(Welcome { subscriptions: vec![] }))
            }
        }
    }

    fn on_disconnect(_connection: ConnectionId) {}
}

/// Whether a client can show a token before it is let in: in its HTTP request.
fn can_bring_token(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Websocket | Protocol::Sse | Protocol::Http | Protocol::Pusher => true,
        Protocol::Resp | Protocol::Internal => false,
    }
}

impl access::Guest for Plugin {
    fn on_access(requests: Vec<Request>) -> Vec<Denial> {
        let mut denials = vec![];
        let mut items = named(&requests, |request| request.name.as_deref());
        for requests in requests.chunk_by(|one, other| one.origin == other.origin) {
            let Some(Request { origin, .. }) = requests.first() else { continue };
            let items = items.by_ref().take(requests.len());
            denials.extend(match origin {
                Origin::Connection(connection) => decide(*connection, items),
                Origin::Token(_) | Origin::App(_) | Origin::Plugin(_) => decide_for_other(items),
            });
        }
        denials
    }
}

/// The requests that are refused; all are of this connection.
fn decide<'a>(
    connection: ConnectionId,
    items: impl Iterator<Item = Named<'a, Request>>,
) -> Vec<Denial> {
    let grant = attributes::get(connection, GRANT).map(|note| Grant::from_note(&note));
    let grant = match grant {
        Some(Some(grant)) => grant,
        Some(None) => {
            let refused = Refused::unknown("what was noted of your token cannot be read");
            return refuse_all(items, &refused);
        }
        None if settings().without_token != WithoutToken::Allow && !is_known(connection) => {
            let refused = Refused::unknown("say who you are first: AUTH and your token");
            return refuse_all(items, &refused);
        }
        None => return decide_without_token(items),
    };
    if grant.has_ended(now(), settings().leeway_s) {
        return refuse_all(items, &Refused::unknown("your token expired; AUTH with a new one"));
    }
    let mut access = grant.access();
    let decide = |item: Named<'a, Request>| {
        let refused = access.decide(operation_of(&item.item.action, item.name)).err()?;
        Some(Denial { position: item.position, refusal: refused.into() })
    };
    items.filter_map(decide).collect()
}

/// The requests that are refused; none is of a connection. Their origin has no token and cannot
/// show one, so it may do what a connection without a token may do for good.
fn decide_for_other<'a>(items: impl Iterator<Item = Named<'a, Request>>) -> Vec<Denial> {
    match settings().without_token {
        WithoutToken::Allow => decide_without_token(items),
        WithoutToken::Refuse | WithoutToken::Wait => {
            let message = "only a connection with a token may do this".to_owned();
            refuse_all(items, &Refused { code: "NOPERM", message })
        }
    }
}

/// The requests that are refused where no token is needed: other plugins decide about channels.
fn decide_without_token<'a>(items: impl Iterator<Item = Named<'a, Request>>) -> Vec<Denial> {
    let is_refused = |item: &Named<'a, Request>| {
        operation_of(&item.item.action, item.name) == Operation::Inspect
    };
    let message = "no token lets you look at the server".to_owned();
    refuse_all(items.filter(is_refused), &Refused { code: "NOPERM", message })
}

fn refuse_all<'a>(
    items: impl Iterator<Item = Named<'a, Request>>,
    refused: &Refused,
) -> Vec<Denial> {
    let deny = |item: Named<'a, Request>| Denial {
        position: item.position,
        refusal: refused.clone().into(),
    };
    items.map(deny).collect()
}

/// What a token decides about.
fn operation_of<'a>(action: &Action, name: &'a str) -> Operation<'a> {
    match plugin_kit::action_kind!(access, action) {
        ActionKind::Receive => Operation::Subscribe(name),
        ActionKind::ReceivePattern => Operation::Psubscribe(name),
        ActionKind::Send(_) => Operation::Publish(name),
        ActionKind::InspectServer => Operation::Inspect,
    }
}

/// In seconds since 1970, as tokens count.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
