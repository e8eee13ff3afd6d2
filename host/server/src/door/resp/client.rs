//! The commands between a client and its door: HELLO, AUTH, RESET, SELECT and CLIENT.

use super::{REDIS_VERSION, ReplyMode, Resp};
use crate::session::Session;
use switchyard_hub::connections::Connection;
use switchyard_protocol::resp::commands::CommandId;
use switchyard_protocol::resp::{Arguments, ReplyWriter, RespVersion, errors, parse_integer};
use switchyard_types::command::{Credentials, Ending, Kind, Verb};

use super::reply::authentication_error;

/// How many databases there are: as many as in Redis, unless it is configured.
pub(super) const DATABASES: u8 = 16;

impl Resp {
    pub(super) fn auth(&mut self, arguments: Arguments<'_>, session: &mut Session) {
        let (user, secret) = match (arguments.get(1), arguments.get(2), arguments.get(3)) {
            (Some(secret), None, _) => (None, secret),
            (Some(user), Some(secret), None) => (Some(user), secret),
            _ => return self.error(session, errors::SYNTAX),
        };
        match self.authenticate(user, secret, session) {
            Some(answer) => self.finish_auth(answer, session),
            None => self.wait_for(Waiting::Auth),
        }
    }

    fn finish_auth(&self, answer: Result<(), Vec<u8>>, session: &mut Session) {
        match answer {
            Ok(()) => self.ok(session),
            Err(text) => self.error(session, &text),
        }
    }

    fn wait_for(&mut self, command: Waiting) {
        let is_skipped = self.skips_this;
        self.authenticating = Some(Authenticating { command, is_skipped });
    }

    /// Sends the reply that was delayed for the result of the authentication, if that is known.
    pub(super) fn finish_authenticating(&mut self, session: &mut Session) {
        let Some(answer) = session.authenticated() else { return };
        let Some(Authenticating { command, is_skipped }) = self.authenticating.take() else {
            return;
        };
        let answer = answer.map_err(|refusal| authentication_error(&refusal));
        // No command ran since, so all else is as it was.
        if is_skipped {
            self.skips_this = true;
        }
        self.ending.set(Ending::Ok);
        let verb = match command {
            Waiting::Auth => {
                self.finish_auth(answer, session);
                Verb::Auth
            }
            Waiting::Hello { version, name } => {
                self.finish_hello(answer, version, name, session);
                Verb::Hello
            }
        };
        self.is_done(verb, session);
        if is_skipped {
            self.end_skip();
        }
    }

    /// Without a plugin that authenticates, this is like a Redis without a password: the default
    /// user is admitted with any secret. `AUTH secret` and `AUTH default secret` are equivalent, so
    /// plugins receive both as a secret without a user.
    ///
    /// None: the result is pending.
    fn authenticate(
        &self,
        user: Option<&[u8]>,
        secret: &[u8],
        session: &mut Session,
    ) -> Option<Result<(), Vec<u8>>> {
        if !session.has_authentication() {
            return Some(match user {
                None => Err(errors::AUTHENTICATION_NOT_CONFIGURED.to_vec()),
                Some(b"default") => Ok(()),
                Some(_) => Err(errors::WRONG_CREDENTIALS.to_vec()),
            });
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
        let user = user.filter(|user| *user != b"default");
        let (Ok(user), Ok(secret)) = (user.map(text).transpose(), text(secret)) else {
            return Some(Err(errors::WRONG_CREDENTIALS.to_vec()));
        };
        let answer = session.authenticate(Credentials { user, secret })?;
        Some(answer.map_err(|refusal| authentication_error(&refusal)))
    }

    /// HELLO [version [AUTH user password] [SETNAME name]]: applies all of it or nothing.
    pub(super) fn hello(&mut self, arguments: Arguments<'_>, session: &mut Session) {
        let mut version = self.version;
        if let Some(wanted) = arguments.get(1) {
            let Some(number) = parse_integer(wanted) else {
                return self.error(session, errors::PROTOCOL_VERSION_INVALID);
            };
            match RespVersion::from_number(number) {
                Some(known) => version = known,
                None => return self.error(session, errors::PROTOCOL_VERSION_UNSUPPORTED),
            }
        }
        let mut credentials = None;
        let mut name = None;
        let mut place = 2;
        while let Some(option) = arguments.get(place) {
            let (first, second) = (arguments.get(place + 1), arguments.get(place + 2));
            if option.eq_ignore_ascii_case(b"AUTH")
                && let (Some(user), Some(secret)) = (first, second)
            {
                credentials = Some((user, secret));
                place += 3;
            } else if option.eq_ignore_ascii_case(b"SETNAME")
                && let Some(wanted) = first
            {
                if !errors::is_client_name(wanted) {
                    return self.error(session, errors::CLIENT_NAME_INVALID);
                }
                if let Err(text) = check_length(wanted, session) {
                    return self.error(session, &text);
                }
                name = Some(wanted);
                place += 2;
            } else {
                return self.error(session, &errors::hello_option(option));
            }
        }
        let name = name.map(<[u8]>::to_vec);
        let answer = match credentials {
            None => Some(Ok(())),
            Some((user, secret)) => self.authenticate(Some(user), secret, session),
        };
        match answer {
            Some(answer) => self.finish_hello(answer, version, name, session),
            None => self.wait_for(Waiting::Hello { version, name }),
        }
    }

    fn finish_hello(
        &mut self,
        answer: Result<(), Vec<u8>>,
        version: RespVersion,
        name: Option<Vec<u8>>,
        session: &mut Session,
    ) {
        if let Err(text) = answer {
            return self.error(session, &text);
        }
        if session.must_authenticate() {
            return self.error(session, errors::HELLO_UNAUTHENTICATED);
        }
        if let Some(name) = name {
            session.connection.set_client_name(&name);
            self.name = name;
        }
        self.set_version(version, session);
        let id = session.connection.id;
        self.reply(session, |reply| {
            reply.map(7);
            let mut entry = |key: &str, value: &dyn Fn(&mut ReplyWriter<'_>)| {
                reply.bulk(key.as_bytes());
                value(reply);
            };
            entry("server", &|reply| reply.bulk(b"redis"));
            entry("version", &|reply| reply.bulk(REDIS_VERSION.as_bytes()));
            entry("proto", &|reply| reply.integer(version.number()));
            entry("id", &|reply| reply.integer(id as i64));
            entry("mode", &|reply| reply.bulk(b"standalone"));
            entry("role", &|reply| reply.bulk(b"master"));
            entry("modules", &|reply| reply.array(0));
        });
    }

    pub(super) fn reset(&mut self, session: &mut Session) {
        for kind in [Kind::Channel, Kind::Pattern, Kind::Shard] {
            session.leave_all(kind);
        }
        session.connection.restore_attributes();
        self.set_version(RespVersion::Resp2, session);
        self.replies = ReplyMode::On;
        self.transaction = None;
        self.tracking = None;
        session.connection.set_database(0);
        self.name.clear();
        session.connection.set_client_name(b"");
        self.reply(session, |reply| reply.simple("RESET"));
    }

    /// SELECT. Publications and subscriptions of all databases are the same, as in Redis.
    pub(super) fn select(&self, arguments: Arguments<'_>, session: &mut Session) {
        match arguments.get(1).and_then(parse_integer) {
            None => self.error(session, errors::NOT_AN_INTEGER),
            Some(number) if i32::try_from(number).is_err() => {
                self.error(session, errors::NOT_A_SHORT_INTEGER);
            }
            Some(number) => match u8::try_from(number) {
                Ok(database) if database < DATABASES => {
                    session.connection.set_database(database);
                    self.ok(session);
                }
                _ => self.error(session, errors::DATABASE_OUT_OF_RANGE),
            },
        }
    }

    pub(super) fn client(
        &mut self,
        id: CommandId,
        arguments: Arguments<'_>,
        session: &mut Session,
    ) {
        let word = |place: usize| arguments.get(place).unwrap_or_default();
        match id {
            CommandId::ClientGetname if self.name.is_empty() => {
                self.reply(session, |reply| reply.null());
            }
            CommandId::ClientGetname => self.reply(session, |reply| reply.bulk(&self.name)),
            CommandId::ClientSetname if errors::is_client_name(word(2)) => {
                if let Err(text) = check_length(word(2), session) {
                    return self.error(session, &text);
                }
                self.name = word(2).to_vec();
                session.connection.set_client_name(word(2));
                self.ok(session);
            }
            CommandId::ClientSetname => self.error(session, errors::CLIENT_NAME_INVALID),
            CommandId::ClientSetinfo => self.client_setinfo(word(2), word(3), session),
            CommandId::ClientReply => self.client_reply(word(2), session),
            CommandId::ClientNoEvict | CommandId::ClientNoTouch => {
                match word(2).eq_ignore_ascii_case(b"on") || word(2).eq_ignore_ascii_case(b"off") {
                    true => self.ok(session),
                    false => self.error(session, errors::SYNTAX),
                }
            }
            CommandId::ClientUnblock => match (parse_integer(word(2)), arguments.get(3)) {
                (_, Some(reason))
                    if !reason.eq_ignore_ascii_case(b"timeout")
                        && !reason.eq_ignore_ascii_case(b"error")
                        || arguments.len() > 4 =>
                {
                    self.error(session, errors::UNBLOCK_REASON);
                }
                (None, _) => self.error(session, errors::NOT_AN_INTEGER),
                (Some(id), reason) => self.unblock(id, reason, session),
            },
            CommandId::ClientInfo => {
                let line = self.describe("client|info", session) + "\n";
                self.reply(session, |reply| reply.verbatim(line.as_bytes()));
            }
            CommandId::ClientList => match Selection::read(arguments) {
                Ok(selection) => self.client_list(selection, session),
                Err(text) => self.error(session, &text),
            },
            _ => self.error(session, errors::SYNTAX),
        }
    }

    fn client_setinfo(&mut self, attribute: &[u8], value: &[u8], session: &mut Session) {
        let [library, version] = &mut self.library;
        let slot = match attribute.to_ascii_lowercase().as_slice() {
            b"lib-name" => library,
            b"lib-ver" => version,
            _ => return self.error(session, &errors::client_attribute_unknown(attribute)),
        };
        if !errors::is_client_name(value) {
            return self.error(session, &errors::client_attribute_invalid(attribute));
        }
        if let Err(text) = check_length(value, session) {
            return self.error(session, &text);
        }
        *slot = value.to_vec();
        self.ok(session);
    }

    fn client_reply(&mut self, mode: &[u8], session: &mut Session) {
        match mode.to_ascii_lowercase().as_slice() {
            b"on" => {
                self.replies = ReplyMode::On;
                self.skips_this = false;
                self.ok(session);
            }
            b"off" => self.replies = ReplyMode::Off,
            // Redis ignores SKIP while replies are off.
            b"skip" if self.replies == ReplyMode::Off => {}
            b"skip" => self.skips_next = true,
            _ => self.error(session, errors::SYNTAX),
        }
    }

    /// The connection as CLIENT INFO describes it, while it executes `command`.
    pub(super) fn describe(&self, command: &str, session: &Session) -> String {
        let [library, version] = &self.library;
        format!(
            "{} name={} multi={} cmd={command} resp={} lib-name={} lib-ver={}",
            describe_other(&session.connection),
            String::from_utf8_lossy(&self.name),
            self.queued_commands(),
            self.version.number(),
            String::from_utf8_lossy(library),
            String::from_utf8_lossy(version),
        )
    }
}

/// Attributes of a client are kept for as long as it is connected.
fn check_length(value: &[u8], session: &Session) -> Result<(), Vec<u8>> {
    let bytes_max = session.services.limits.name_bytes_max();
    match value.len() > bytes_max {
        true => Err(errors::client_name_too_long(value.len(), bytes_max)),
        false => Ok(()),
    }
}

/// A command that waits for the result of its authentication.
pub(super) struct Authenticating {
    command: Waiting,
    /// Whether CLIENT REPLY SKIP came before it.
    is_skipped: bool,
}

enum Waiting {
    Auth,
    Hello { version: RespVersion, name: Option<Vec<u8>> },
}

/// The filter of CLIENT LIST.
pub(super) enum Selection {
    All,
    /// Those that are subscribed, or those that are not.
    Subscribed(bool),
    /// In rising order.
    Ids(Vec<i64>),
    /// Replicas and masters; there are none.
    None,
}

impl Selection {
    fn read(arguments: Arguments<'_>) -> Result<Selection, Vec<u8>> {
        let is = |word: &[u8], place| {
            arguments.get(place).is_some_and(|said: &[u8]| said.eq_ignore_ascii_case(word))
        };
        match arguments.len() {
            2 => Ok(Selection::All),
            4 if is(b"type", 2) => match arguments.get(3).unwrap_or_default() {
                _ if is(b"normal", 3) => Ok(Selection::Subscribed(false)),
                _ if is(b"pubsub", 3) => Ok(Selection::Subscribed(true)),
                _ if is(b"master", 3) || is(b"replica", 3) || is(b"slave", 3) => {
                    Ok(Selection::None)
                }
                unknown => Err(errors::client_type_unknown(unknown)),
            },
            4.. if is(b"id", 2) => {
                let ids = arguments.skip(3).iter().map(parse_integer);
                let ids: Option<Vec<i64>> = ids.collect();
                let mut ids = ids.ok_or_else(|| errors::CLIENT_ID_INVALID.to_vec())?;
                ids.sort_unstable();
                Ok(Selection::Ids(ids))
            }
            _ => Err(errors::SYNTAX.to_vec()),
        }
    }

    pub(super) fn has(&self, connection: &Connection) -> bool {
        match self {
            Selection::All => true,
            Selection::Subscribed(subscribed) => {
                connection.subscriptions().is_empty() != *subscribed
            }
            Selection::Ids(ids) => ids.binary_search(&(connection.id as i64)).is_ok(),
            Selection::None => false,
        }
    }
}

/// The public state of a connection.
pub(super) fn describe_other(connection: &Connection) -> String {
    let subscriptions = connection.subscriptions();
    let flags = match (subscriptions.is_empty(), connection.is_blocked()) {
        (true, false) => "N",
        (true, true) => "b",
        (false, false) => "P",
        (false, true) => "Pb",
    };
    format!(
        "id={} addr={} age={} flags={flags} db={} sub={} psub={} ssub={} omem={}",
        connection.id,
        connection.remote,
        connection.opened.elapsed().as_secs(),
        connection.database(),
        subscriptions.channels.len(),
        subscriptions.patterns.len(),
        subscriptions.shard_channels.len(),
        connection.outbox.bytes(),
    )
}
