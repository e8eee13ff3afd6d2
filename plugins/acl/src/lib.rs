//! A plugin of Switchyard: which users may subscribe and publish, by rules in its
//! settings. `README.md` says what they may be.
//!
//! Here stands the glue between the contract and the modules below, which know
//! nothing of it and are tested natively. The plugin keeps nothing but its
//! settings: the user of a connection is a note that the host pins to it.

pub mod acl;
pub mod settings;

pub mod rules;
pub mod subject;
pub mod tokens;

pub mod pattern;

use std::sync::OnceLock;

use acl::{Acl, Door};
use bindings::exports::switchyard::pubsub::access::{self, Action, Denial, Request};
use bindings::exports::switchyard::pubsub::admission::{
    self, Client, Credentials, Protocol, Welcome,
};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::switchyard::pubsub::attributes;
use bindings::switchyard::pubsub::types::{ConnectionId, Origin, Refusal};
use plugin_kit::actions::ActionKind;
use plugin_kit::items::named;
use plugin_kit::notes::{AUTH_REQUIRED, OF_IDENTITY, ROLES, USER, roles_in};
use plugin_kit::refused::Refused;
use rules::Operation;
use subject::Subject;

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

static ACL: OnceLock<Acl> = OnceLock::new();

fn acl() -> &'static Acl {
    ACL.get().expect("the host calls `init` before all else")
}

/// The user of the connection. An empty attribute counts as none.
fn user_of(connection: ConnectionId) -> Option<String> {
    attributes::get(connection, USER).filter(|user| !user.is_empty())
}

/// All that the rules ask about; each note is a call to the host.
fn subject_of(connection: ConnectionId) -> Subject {
    let roles = acl().needs_roles().then(|| attributes::get(connection, ROLES)).flatten();
    let names = acl().attributes.iter();
    let noted = names.filter_map(|name| Some((name.clone(), attributes::get(connection, name)?)));
    Subject {
        user: user_of(connection),
        roles: roles.map(|note| roles_in(&note)).unwrap_or_default(),
        attributes: noted.collect(),
    }
}

fn note(connection: ConnectionId, key: &str, value: Option<&str>) -> Result<(), Refusal> {
    attributes::set(connection, key, value).map_err(|_full| Refusal {
        code: "LIMIT".to_owned(),
        message: "there is no room to note who you are".to_owned(),
    })
}

/// Notes the user of the connection, in place of what another plugin has noted of another identity. It
/// need not authenticate any more.
fn note_user(connection: ConnectionId, user: &str) -> Result<(), Refusal> {
    for key in OF_IDENTITY {
        note(connection, key, None)?;
    }
    note(connection, USER, Some(user))?;
    note(connection, AUTH_REQUIRED, None)
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self { code: refused.code.to_owned(), message: refused.message }
    }
}

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn init(settings: String) -> Result<(), String> {
        let acl = settings::read(&settings)?;
        ACL.get_or_init(|| acl);
        Ok(())
    }
}

impl admission::Guest for Plugin {
    fn on_connect(connection: ConnectionId, client: Client) -> Result<Welcome, Refusal> {
        let door = match client.protocol {
            Protocol::Websocket | Protocol::Sse | Protocol::Http | Protocol::Pusher => {
                Door::Url(&client.path)
            }
            Protocol::Resp | Protocol::Internal => Door::Command,
        };
        let user = user_of(connection);
        match acl().admit(user.as_deref(), door)? {
            Some(user) => note_user(connection, user)?,
            None if acl().require_token && user.is_none() => {
                note(connection, AUTH_REQUIRED, Some("acl"))?;
            }
            None => {}
        }
        Ok(Welcome { subscriptions: vec![] })
    }

    fn on_authenticate(
        connection: ConnectionId,
        credentials: Credentials,
    ) -> Result<Option<Welcome>, Refusal> {
        let name = credentials.user.as_deref();
        let Some(user) = acl().authenticate(name, &credentials.secret) else {
            return Ok(None);
        };
        note_user(connection, user)?;
        Ok(Some(Welcome { subscriptions: vec![] }))
    }

    fn on_disconnect(_connection: ConnectionId) {}
}

impl access::Guest for Plugin {
    fn on_access(requests: Vec<Request>) -> Vec<Denial> {
        let mut denials = vec![];
        let mut items = named(&requests, |request| request.name.as_deref());
        for requests in requests.chunk_by(|one, other| one.origin == other.origin) {
            let Some(Request { origin, .. }) = requests.first() else { continue };
            let subject = match origin {
                Origin::Connection(connection) => subject_of(*connection),
                Origin::Token(_) | Origin::App(_) | Origin::Plugin(_) => Subject::default(),
            };
            let mut access = match origin {
                Origin::Connection(_) => acl().access_of(&subject),
                // It has no user, and is not taken for an anonymous client either: what the
                // operator allows to anonymous clients need not be meant for it.
                Origin::Token(name) => acl().access_of_other("token", name),
                Origin::App(id) => acl().access_of_other("app", id),
                Origin::Plugin(name) => acl().access_of_other("plugin", name),
            };
            for item in items.by_ref().take(requests.len()) {
                if let Err(refused) = access.decide(operation_of(&item.item.action, item.name)) {
                    denials.push(Denial { position: item.position, refusal: refused.into() });
                }
            }
        }
        denials
    }
}

/// What the rules decide about.
fn operation_of<'a>(action: &Action, name: &'a str) -> Operation<'a> {
    match plugin_kit::action_kind!(access, action) {
        ActionKind::Receive => Operation::Subscribe(name),
        ActionKind::ReceivePattern => Operation::Psubscribe(name),
        ActionKind::Send(_) => Operation::Publish(name),
        ActionKind::InspectServer => Operation::Inspect,
    }
}
