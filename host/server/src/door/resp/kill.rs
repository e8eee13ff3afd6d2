//! CLIENT KILL and CLIENT UNBLOCK.

use std::sync::Arc;

use super::{Resp, Transport};
use crate::goaway::close_gracefully;
use crate::session::Session;
use switchyard_hub::connections::Connection;
use switchyard_hub::connections::attributes::USER;
use switchyard_hub::stream_readers::Woken;
use switchyard_protocol::resp::{Arguments, errors, parse_integer};
use switchyard_types::close::CloseReason;

/// Which connections are closed: those to which all of it applies.
#[derive(Default)]
struct Filter {
    id: Option<u64>,
    address: Option<Vec<u8>>,
    /// Of the server; no connection has one that is known here.
    has_local_address: bool,
    /// Whether it is subscribed; none: replicas and masters, of which there are none.
    kind: Option<Option<bool>>,
    user: Option<Vec<u8>>,
    age_secs_min: u64,
    skips_own: bool,
}

impl Filter {
    /// `has_users`: whether there are other users than `default`.
    fn read(arguments: Arguments<'_>, has_users: bool) -> Result<Filter, Vec<u8>> {
        if arguments.len() == 3 {
            let address = arguments.get(2).map(<[u8]>::to_vec);
            return Ok(Filter { address, ..Filter::default() });
        }
        let mut filter = Filter { skips_own: true, ..Filter::default() };
        let words: Vec<&[u8]> = arguments.skip(2).iter().collect();
        for option in words.chunks(2) {
            let [name, value] = option else { return Err(errors::SYNTAX.to_vec()) };
            match name.to_ascii_lowercase().as_slice() {
                b"id" => {
                    let id = parse_integer(value).and_then(|id| u64::try_from(id).ok());
                    let id = id.filter(|id| *id > 0);
                    filter.id = Some(id.ok_or_else(|| errors::KILL_ID.to_vec())?);
                }
                b"addr" => filter.address = Some(value.to_vec()),
                b"laddr" => filter.has_local_address = true,
                b"type" => {
                    filter.kind = Some(match value.to_ascii_lowercase().as_slice() {
                        b"normal" => Some(false),
                        b"pubsub" => Some(true),
                        b"master" | b"replica" | b"slave" => None,
                        _ => return Err(errors::client_type_unknown(value)),
                    });
                }
                b"user" if !has_users && *value != b"default" => {
                    return Err(errors::user_unknown(value));
                }
                b"user" => filter.user = Some(value.to_vec()),
                b"maxage" => {
                    let age = parse_integer(value).ok_or_else(|| errors::KILL_AGE.to_vec())?;
                    let age = u64::try_from(age).ok().filter(|age| *age > 0);
                    filter.age_secs_min = age.ok_or_else(|| errors::KILL_AGE_MIN.to_vec())?;
                }
                b"skipme" => {
                    filter.skips_own = match value.to_ascii_lowercase().as_slice() {
                        b"yes" => true,
                        b"no" => false,
                        _ => return Err(errors::SYNTAX.to_vec()),
                    };
                }
                _ => return Err(errors::SYNTAX.to_vec()),
            }
        }
        Ok(filter)
    }

    fn has(&self, connection: &Connection, own: u64) -> bool {
        let is_subscribed = || !connection.subscriptions().is_empty();
        let user = || connection.attribute(USER).filter(|user| !user.is_empty());
        self.id.is_none_or(|id| id == connection.id)
            && !(self.skips_own && connection.id == own)
            && !self.has_local_address
            && self.address.as_ref().is_none_or(|address| {
                connection.remote.to_string().as_bytes() == address.as_slice()
            })
            && self.kind.is_none_or(|kind| kind == Some(is_subscribed()))
            && self.user.as_ref().is_none_or(|wanted| {
                user().as_deref().unwrap_or("default").as_bytes() == wanted.as_slice()
            })
            && connection.opened.elapsed().as_secs() >= self.age_secs_min
    }
}

impl Resp {
    /// CLIENT KILL. Over TCP, where no plugin decides about clients, a client may close all
    /// connections, as in Redis; otherwise its own.
    pub(super) fn kill(&self, arguments: Arguments<'_>, session: &mut Session) {
        let has_users = has_users(session);
        let filter = match Filter::read(arguments, has_users) {
            Ok(filter) => filter,
            Err(text) => return self.error(session, &text),
        };
        let own = session.connection.clone();
        let mut found: Vec<Arc<Connection>> = match filter.id {
            Some(id) => session.services.hub.connections().get(id).into_iter().collect(),
            None => session.services.hub.connections().opened_ones(),
        };
        found.retain(|connection| filter.has(connection, own.id));
        if !self.is_open_to_clients(has_users)
            && found.iter().any(|connection| connection.id != own.id)
        {
            let user = own.attribute(USER);
            return self.error(session, &errors::no_permission(user.as_deref(), "client|kill"));
        }
        match (arguments.len(), found.len()) {
            (3, 0) => self.error(session, errors::NO_SUCH_CLIENT),
            (3, _) => self.ok(session),
            (_, count) => self.reply(session, |reply| reply.integer(count as i64)),
        }
        for connection in found {
            match connection.id == own.id {
                true => session.end_after_reply(CloseReason::Operator),
                false => close_gracefully(&connection, CloseReason::Operator),
            }
        }
    }

    /// CLIENT UNBLOCK: ends an XREAD that waits, of any client where CLIENT KILL closes any.
    pub(super) fn unblock(&self, id: i64, reason: Option<&[u8]>, session: &mut Session) {
        let hub = session.services.hub.clone();
        let id = u64::try_from(id).unwrap_or(0);
        let is_other = id != session.connection.id && hub.connections().get(id).is_some();
        if is_other && !self.is_open_to_clients(has_users(session)) {
            let user = session.connection.attribute(USER);
            return self.error(session, &errors::no_permission(user.as_deref(), "client|unblock"));
        }
        let how = match reason.is_some_and(|reason| reason.eq_ignore_ascii_case(b"error")) {
            true => Woken::Failed,
            false => Woken::TimedOut,
        };
        let is_done = hub.stream_readers().unblock(id, how);
        self.reply(session, |reply| reply.integer(is_done.into()));
    }

    /// Whether a client may act on the connections of others, as in Redis.
    fn is_open_to_clients(&self, has_users: bool) -> bool {
        self.transport == Transport::Stream && !has_users
    }
}

/// Whether there may be other users than `default`. Plugins know users that are not connected.
fn has_users(session: &Session) -> bool {
    session.has_authentication() || session.services.middleware.chain().has_access()
}
