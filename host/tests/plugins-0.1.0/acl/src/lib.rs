//! For tests: the plugin `acl` as it was built for `switchyard:pubsub@0.1.0`.
//!
//! This file has the exports for 0.1.0. The modules below are those of the plugin, which do not
//! depend on the contract.

#[path = "../../../../../plugins/acl/src/acl.rs"]
pub mod acl;
#[path = "../../../../../plugins/acl/src/settings.rs"]
pub mod settings;

#[path = "../../../../../plugins/acl/src/rules.rs"]
pub mod rules;
#[path = "../../../../../plugins/acl/src/subject.rs"]
pub mod subject;
#[path = "../../../../../plugins/acl/src/tokens.rs"]
pub mod tokens;

#[path = "../../../../../plugins/acl/src/pattern.rs"]
pub mod pattern;

use std::sync::OnceLock;

use acl::{Acl, Door};
use bindings::exports::switchyard::pubsub::access::{self, Action, Request};
use bindings::exports::switchyard::pubsub::admission::{self, Client, Credentials, Protocol};
use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::switchyard::pubsub::attributes;
use bindings::switchyard::pubsub::types::{ConnectionId, Refusal};
use plugin_kit::notes::{AUTH_REQUIRED, OF_IDENTITY, ROLES, USER, roles_in};
use plugin_kit::refused::Refused;
use rules::Operation;
use subject::Subject;

plugin_kit::declare!(name: "acl", on_failure: "closed");

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../wit/0.1.0", world: "gatekeeper" });

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
    fn on_connect(connection: ConnectionId, client: Client) -> Result<(), Refusal> {
        let door = match client.protocol {
            Protocol::Websocket => Door::Url(&client.path),
            Protocol::Resp => Door::Command,
        };
        let user = user_of(connection);
        match acl().admit(user.as_deref(), door)? {
            Some(user) => note_user(connection, user),
            None if acl().require_token && user.is_none() => {
                note(connection, AUTH_REQUIRED, Some("acl"))
            }
            None => Ok(()),
        }
    }

    fn on_authenticate(
        connection: ConnectionId,
        credentials: Credentials,
    ) -> Result<bool, Refusal> {
        let name = credentials.user.as_deref();
        match acl().authenticate(name, &credentials.secret) {
            Some(user) => note_user(connection, user).map(|()| true),
            None => Ok(false),
        }
    }

    fn on_disconnect(_connection: ConnectionId) {}
}

impl access::Guest for Plugin {
    fn on_access(requests: Vec<Request>) -> Vec<Option<Refusal>> {
        let mut refusals = Vec::with_capacity(requests.len());
        for requests in requests.chunk_by(|one, other| one.connection == other.connection) {
            let Some(Request { connection, .. }) = requests.first() else { continue };
            let subject = subject_of(*connection);
            let mut access = acl().access_of(&subject);
            refusals.extend(requests.iter().map(|request| {
                let decision = access.decide(match &request.action {
                    Action::Subscribe(channel) => Operation::Subscribe(channel),
                    Action::Psubscribe(pattern) => Operation::Psubscribe(pattern),
                    Action::Publish(intent) => Operation::Publish(&intent.channel),
                });
                decision.err().map(Refusal::from)
            }));
        }
        refusals
    }
}
