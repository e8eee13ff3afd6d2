//! Redis' protocol, over TCP or in the binary frames of a WebSocket.
//!
//! Consecutive publications in a read are one batch for the session. Everything else is executed
//! one by one, because what is allowed and how it is replied to depends on earlier commands: the
//! protocol's version, whether the connection is subscribed, CLIENT REPLY.

mod client;
mod client_list;
mod framed;
pub mod info;
mod introspection;
mod keyless;
mod kill;
mod reply;
mod script;
mod streams;
mod tcp;
mod tracking;
mod transaction;
mod words;

use std::borrow::Cow;
use std::cell::Cell;

use bytes::Bytes;

use crate::decoder::{Decoder, Progress};
use crate::session::Session;
use switchyard_hub::connections::attributes::USER;
use switchyard_hub::encoding::Encoding;
use switchyard_middleware::items::Inspection;
use switchyard_protocol::resp::commands::{self, CommandError, CommandId, CommandSpec};
use switchyard_protocol::resp::{
    self, Arguments, Authentication, Burst, Outcome, ProtocolError, ReplyWriter, RequestLimits,
    RequestParser, RequestQueue, RespVersion, errors,
};
use switchyard_types::close::{CloseReason, ProtocolViolation};
use switchyard_types::command::{
    Command, EXPIRED, Ending, Kind, NOPERM, Publication, Refusal, Request, Space, Tag, Verb,
};

use transaction::{Scope, Transaction};

pub use framed::FramedResp;
pub use tcp::RespDoor;

/// The server name and version for clients, which choose their behaviour by it.
pub const REDIS_VERSION: &str = "7.4.0";

/// How many requests are parsed before they are executed.
const REQUESTS_MAX: usize = 128;

/// A connection that speaks RESP.
pub struct Resp {
    limits: RequestLimits,
    parser: RequestParser,
    /// The limits that the parser applied to what it has parsed of the next request.
    parsed_as: Authentication,
    /// Kept for reuse.
    burst: Burst,
    version: RespVersion,
    transport: Transport,
    replies: ReplyMode,
    /// Whether CLIENT REPLY SKIP was the command before the current one; for EXEC, before that.
    skips_this: bool,
    /// Whether CLIENT REPLY SKIP was executed, so that the next command has no reply.
    skips_next: bool,
    name: Vec<u8>,
    library: [Vec<u8>; 2],
    info: info::ServerInfo,
    /// An AUTH or HELLO whose authentication is pending.
    authenticating: Option<client::Authenticating>,
    /// A CLIENT LIST in progress. Commands after it wait.
    client_list: Option<Box<client_list::ClientList>>,
    /// A script in progress. Commands after it wait.
    script: Option<Box<script::RunningScript>>,
    /// The scripts that EVALSHA knows as long as this connection is open.
    scripts: script::LoadedScripts,
    /// CLIENT TRACKING, if it is on.
    tracking: Option<Box<tracking::Tracking>>,
    /// The commands since MULTI, if it is open.
    transaction: Option<Box<Transaction>>,
    /// The rest of an EXEC in progress. Commands after it wait.
    executing: Option<Box<RequestQueue>>,
    /// What executes commands now.
    scope: Scope,
    /// The result of the current command, as far as it is known.
    ending: Cell<Ending>,
}

/// The transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Stream,
    /// Binary WebSocket frames.
    Frames,
}

/// CLIENT REPLY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyMode {
    On,
    Off,
}

/// How many of a buffer's requests have been executed.
enum Flow {
    Continue,
    Close(CloseReason),
}

impl Resp {
    /// A connection without requests. It speaks RESP2.
    pub fn new(transport: Transport, limits: RequestLimits, info: info::ServerInfo) -> Resp {
        Resp {
            limits,
            parser: RequestParser::new(limits),
            parsed_as: Authentication::Settled,
            burst: Burst::default(),
            version: RespVersion::Resp2,
            transport,
            replies: ReplyMode::On,
            skips_this: false,
            skips_next: false,
            name: Vec::new(),
            library: Default::default(),
            scripts: script::LoadedScripts::new(info.scripts.clone()),
            info,
            authenticating: None,
            client_list: None,
            script: None,
            tracking: None,
            transaction: None,
            executing: None,
            scope: Scope::Connection,
            ending: Cell::new(Ending::Ok),
        }
    }

    /// How publications are encoded for a connection without requests.
    pub fn first_encoding(transport: Transport) -> Encoding {
        encoding(transport, RespVersion::Resp2)
    }

    /// Executes the complete requests at the beginning of `bytes`, until the time budget is
    /// exhausted.
    fn take_requests(&mut self, bytes: &[u8], session: &mut Session) -> (Progress, Flow) {
        let mut flow = self.resume(session);
        let mut burst = std::mem::take(&mut self.burst);
        let mut at = 0;
        let mut is_unfinished = self.is_waiting(session);
        while matches!(flow, Flow::Continue) && !is_unfinished {
            let rest = bytes.get(at..).unwrap_or_default();
            let authentication = authentication(session);
            if std::mem::replace(&mut self.parsed_as, authentication) != authentication {
                // A length that was allowed may now be too large.
                self.parser = RequestParser::new(self.limits);
            }
            // While authentication is required, one by one: each may be the one that authenticates.
            let requests_max = match authentication {
                Authentication::Owed => 1,
                Authentication::Settled => REQUESTS_MAX,
            };
            let mut outcome = Outcome::Complete;
            let mut parsed = 0;
            while outcome == Outcome::Complete && parsed < requests_max {
                outcome = self.parser.parse(rest, authentication, &mut burst);
                parsed += 1;
            }
            let done;
            (done, flow) = self.execute(&burst, rest, session);
            let is_cut_short = done < burst.consumed();
            if is_cut_short {
                // The session continues at this request. What the parser knows of a later,
                // incomplete one is parsed again then.
                self.parser = RequestParser::new(self.limits);
            }
            let has_changed = self::authentication(session) != authentication;
            at += done;
            burst.clear();
            is_unfinished = is_cut_short || self.is_waiting(session);
            match outcome {
                Outcome::Complete => {}
                // The next request was parsed in part with other limits.
                _ if has_changed => {}
                Outcome::Refused(error) if matches!(flow, Flow::Continue) && !is_unfinished => {
                    flow = Flow::Close(self.refuse(error, session));
                }
                Outcome::Incomplete { .. } | Outcome::Refused(_) => break,
            }
            is_unfinished |= outcome == Outcome::Complete && session.is_budget_exhausted();
        }
        session.flush();
        self.burst = burst;
        (Progress { bytes: at, is_unfinished }, flow)
    }

    /// Executes the requests of a burst until the time budget is exhausted. Returns where it
    /// stopped.
    fn execute(&mut self, burst: &Burst, bytes: &[u8], session: &mut Session) -> (usize, Flow) {
        let mut done = 0;
        let mut publications: Vec<Request<'_>> = Vec::new();
        let mut must_authenticate = session.must_authenticate();
        for (arguments, end) in burst.requests_and_ends(bytes) {
            if !must_authenticate && let Some(publication) = self.publication(arguments, session) {
                publications.push(publication);
                self.end_caching();
                done = end;
                continue;
            }
            self.publish(&mut publications, session, true);
            if session.has_pending() {
                return (done, Flow::Continue);
            }
            let flow = self.execute_command(arguments, session);
            must_authenticate = session.must_authenticate();
            done = end;
            if matches!(flow, Flow::Close(_))
                || session.is_budget_exhausted()
                || self.is_waiting(session)
            {
                return (done, flow);
            }
        }
        self.publish(&mut publications, session, false);
        (burst.consumed(), Flow::Continue)
    }

    /// Whether the reply to a command is pending: later commands wait for it.
    fn is_waiting(&self, session: &Session) -> bool {
        self.executing.is_some() || self.is_reply_pending(session)
    }

    /// The same, of a command that EXEC may have executed.
    fn is_reply_pending(&self, session: &Session) -> bool {
        session.has_pending() || self.client_list.is_some() || self.script.is_some()
    }

    fn resume(&mut self, session: &mut Session) -> Flow {
        self.finish_authenticating(session);
        if let Some(reason) = session.take_ending() {
            session.flush();
            return Flow::Close(reason);
        }
        self.finish_client_list(session);
        self.finish_script(session);
        match session.has_pending().then(|| session.resume(self.spelling())).flatten() {
            Some(reason) => Flow::Close(reason),
            None => self.go_on_with_exec(session),
        }
    }

    /// The request as a publication, if it can be batched.
    fn publication<'a>(&self, arguments: Arguments<'a>, session: &Session) -> Option<Request<'a>> {
        let verb = arguments.get(0)?;
        let command = match (arguments.get(1), arguments.get(2), arguments.len()) {
            (Some(channel), Some(payload), 3) => {
                let space = if verb.eq_ignore_ascii_case(b"PUBLISH") {
                    Space::Channels
                } else if verb.eq_ignore_ascii_case(b"SPUBLISH") {
                    Space::ShardChannels
                } else {
                    return None;
                };
                let (channel, payload) = (Cow::Borrowed(channel), Cow::Borrowed(payload));
                Command::Publish(Publication::new(space, channel, payload))
            }
            (.., 5) if verb.eq_ignore_ascii_case(b"XADD") => {
                let (channel, payload) = resp::streams::appended(arguments)?;
                resp::streams::append(channel, payload)
            }
            _ => return None,
        };
        let is_direct = self.scope == Scope::Connection;
        if is_direct
            && (self.skips_next
                || self.transaction.is_some()
                || self.is_subscribed_in_resp2(session))
        {
            return None;
        }
        Some(Request { tag: Tag::InOrder, command: Ok(command) })
    }

    fn publish(&self, publications: &mut Vec<Request<'_>>, session: &mut Session, more: bool) {
        if !publications.is_empty() {
            self.pass_on(publications.drain(..), self.spelling(), session, more);
        }
    }

    /// Has the session execute commands. Those of an EXEC were counted when they were queued.
    fn pass_on<'a>(
        &self,
        requests: impl Iterator<Item = Request<'a>>,
        spelling: reply::RespReplies,
        session: &mut Session,
        more: bool,
    ) -> Option<CloseReason> {
        match self.scope {
            Scope::Connection => session.execute(requests, spelling, more),
            Scope::Exec { .. } => session.execute_paced(requests, spelling, true),
        }
    }

    fn execute_command(&mut self, arguments: Arguments<'_>, session: &mut Session) -> Flow {
        let is_direct = self.scope == Scope::Connection;
        if is_direct && std::mem::take(&mut self.skips_next) {
            self.skips_this = true;
        }
        let keeps_caching = self.tracking.is_none() || is_of_client(arguments);
        self.ending.set(Ending::Ok);
        let flow = match self.checked(arguments, session) {
            Err((spec, text)) => {
                if !self.is_too_fast(spec.map_or("(none)", |spec| spec.name), session) {
                    self.refuse_command(spec.map(|spec| spec.id), &text, session);
                }
                self.is_done(spec.map_or(Verb::None, verb), session);
                Flow::Continue
            }
            Ok(spec) if self.is_queued(spec) => {
                self.queue(spec, arguments, session);
                if self.ending.get() != Ending::Ok {
                    self.is_done(verb(spec), session);
                }
                Flow::Continue
            }
            Ok(spec) => self.run(spec, arguments, session),
        };
        self.end_skip();
        if !keeps_caching {
            self.end_caching();
        }
        flow
    }

    /// A command is complete: CLIENT REPLY SKIP no longer applies, except to the rest of an EXEC.
    fn end_skip(&mut self) {
        if self.scope == Scope::Connection {
            self.skips_this = false;
        }
    }

    /// The command of a request, if it may be executed or queued; otherwise the text of the error,
    /// with the command that it names, if it is about one.
    fn checked(
        &self,
        arguments: Arguments<'_>,
        session: &Session,
    ) -> Result<&'static CommandSpec, (Option<&'static CommandSpec>, Cow<'static, [u8]>)> {
        let spec = commands::lookup(arguments).map_err(|error| {
            let spec = match error {
                CommandError::WrongArity(spec) if spec.id == CommandId::Exec => Some(spec),
                _ => None,
            };
            (spec, Cow::Owned(error.text()))
        })?;
        if session.must_authenticate() && !is_allowed_before_auth(spec.id) {
            return Err((Some(spec), Cow::Borrowed(errors::AUTHENTICATION_REQUIRED)));
        }
        if self.scope == Scope::Connection
            && !spec.is_allowed_while_subscribed()
            && self.is_subscribed_in_resp2(session)
        {
            return Err((Some(spec), Cow::Owned(errors::not_while_subscribed(spec.name))));
        }
        let names_max = session.services.limits.names_per_command_max();
        match words::check_size(spec.id, arguments, names_max) {
            Ok(()) => Ok(spec),
            Err(refusal) => Err((Some(spec), Cow::Owned(reply::error(&refusal)))),
        }
    }

    fn run(&mut self, spec: &CommandSpec, arguments: Arguments<'_>, session: &mut Session) -> Flow {
        let names = || arguments.skip(1).iter().map(Cow::Borrowed).collect::<Vec<_>>();
        let rest = || arguments.skip(2).iter().map(Cow::Borrowed).collect::<Vec<_>>();
        let matching = || arguments.get(2).map(Cow::Borrowed);
        let command = match spec.id {
            CommandId::Subscribe => Command::Subscribe(Kind::Channel, names()),
            CommandId::Psubscribe => Command::Subscribe(Kind::Pattern, names()),
            CommandId::Ssubscribe if self.scope != Scope::Connection => {
                self.error(session, errors::SSUBSCRIBE_IN_EXEC);
                self.is_done(Verb::Ssubscribe, session);
                return Flow::Continue;
            }
            CommandId::Ssubscribe => Command::Subscribe(Kind::Shard, names()),
            CommandId::Unsubscribe => Command::Unsubscribe(Kind::Channel, names()),
            CommandId::Punsubscribe => Command::Unsubscribe(Kind::Pattern, names()),
            CommandId::Sunsubscribe => Command::Unsubscribe(Kind::Shard, names()),
            CommandId::Publish | CommandId::Spublish => {
                let space = match spec.id {
                    CommandId::Publish => Space::Channels,
                    _ => Space::ShardChannels,
                };
                let argument = |place| Cow::Borrowed(arguments.get(place).unwrap_or_default());
                Command::Publish(Publication::new(space, argument(1), argument(2)))
            }
            CommandId::PubsubChannels | CommandId::PubsubShardchannels if arguments.len() > 3 => {
                let word = |place| arguments.get(place).unwrap_or_default();
                self.error(session, &errors::wrong_subcommand_arity(word(0), word(1)));
                self.is_done(Verb::Pubsub, session);
                return Flow::Continue;
            }
            CommandId::PubsubChannels => Command::Channels(Space::Channels, matching()),
            CommandId::PubsubShardchannels => Command::Channels(Space::ShardChannels, matching()),
            CommandId::PubsubNumsub => Command::SubscriberCounts(Space::Channels, rest()),
            CommandId::PubsubShardnumsub => Command::SubscriberCounts(Space::ShardChannels, rest()),
            CommandId::PubsubNumpat => Command::PatternCount,
            CommandId::Ping if arguments.len() <= 2 => {
                Command::Ping(arguments.get(1).map(Cow::Borrowed))
            }
            CommandId::Quit => Command::Quit,
            CommandId::Exec => return self.exec(session),
            CommandId::Xadd
            | CommandId::Xrange
            | CommandId::Xrevrange
            | CommandId::Xlen
            | CommandId::Xread
            | CommandId::XinfoStream => match self.stream_command(spec, arguments, session) {
                Some(command) => command,
                None => return Flow::Continue,
            },
            _ => {
                self.run_own(spec, arguments, session);
                // A pending command is not complete.
                if self.authenticating.is_none() && !self.is_reply_pending(session) {
                    self.is_done(verb(spec), session);
                }
                return match session.take_ending() {
                    Some(reason) => Flow::Close(reason),
                    None => Flow::Continue,
                };
            }
        };
        // In RESP2, the reply to a subscriber's PING has the form of a message.
        let spelling = self.spelling().while_subscribed(self.is_subscribed_in_resp2(session));
        let request = Request { tag: Tag::InOrder, command: Ok(command) };
        match self.pass_on(std::iter::once(request), spelling, session, true) {
            Some(reason) => Flow::Close(reason),
            None => Flow::Continue,
        }
    }

    /// Commands between the client and its door, which the session does not have.
    fn run_own(&mut self, spec: &CommandSpec, arguments: Arguments<'_>, session: &mut Session) {
        if self.is_too_fast(spec.name, session) {
            return;
        }
        if let Err(refusal) = self.check_words(spec.id, arguments) {
            return self.error(session, &reply::error(&refusal));
        }
        if let Err(refusal) = self.check_visible(spec.id, session) {
            let user = session.connection.attribute(USER);
            let error = match &*refusal.code {
                NOPERM => errors::no_permission(user.as_deref(), spec.name),
                _ => reply::error(&refusal),
            };
            return self.error(session, &error);
        }
        match spec.id {
            CommandId::Ping => self.error(session, &errors::wrong_arity(spec.name)),
            CommandId::Echo => {
                self.reply(session, |reply| reply.bulk(arguments.get(1).unwrap_or_default()));
            }
            CommandId::Auth => self.auth(arguments, session),
            CommandId::Hello => self.hello(arguments, session),
            CommandId::Reset => self.reset(session),
            CommandId::Select => self.select(arguments, session),
            CommandId::ClientId => {
                let id = session.connection.id;
                self.reply(session, |reply| reply.integer(id as i64));
            }
            CommandId::ClientGetname
            | CommandId::ClientSetname
            | CommandId::ClientSetinfo
            | CommandId::ClientReply
            | CommandId::ClientInfo
            | CommandId::ClientList
            | CommandId::ClientNoEvict
            | CommandId::ClientNoTouch
            | CommandId::ClientUnblock => self.client(spec.id, arguments, session),
            CommandId::Info => self.info(arguments, session),
            CommandId::ConfigGet => self.config_get(arguments, session),
            CommandId::ConfigSet => self.config_set(arguments, session),
            CommandId::ConfigRewrite => self.error(session, errors::NO_CONFIG_FILE),
            CommandId::ConfigResetstat => self.reply(session, |reply| reply.simple("OK")),
            CommandId::Multi | CommandId::Discard | CommandId::Watch | CommandId::Unwatch => {
                self.transaction(spec.id, session);
            }
            CommandId::Eval | CommandId::Evalsha => self.eval(spec, arguments, session),
            CommandId::ScriptLoad
            | CommandId::ScriptExists
            | CommandId::ScriptFlush
            | CommandId::ScriptKill => self.script(spec.id, arguments, session),
            CommandId::ClientTracking
            | CommandId::ClientTrackinginfo
            | CommandId::ClientCaching
            | CommandId::ClientGetredir => self.tracking(spec.id, arguments, session),
            CommandId::ClientKill => self.kill(arguments, session),
            CommandId::AclWhoami
            | CommandId::Cluster
            | CommandId::Done
            | CommandId::Lastsave
            | CommandId::LatencyGraph
            | CommandId::MemoryUsage
            | CommandId::Nothing
            | CommandId::Role
            | CommandId::SlowlogGet
            | CommandId::Time
            | CommandId::Wait
            | CommandId::Zero => self.keyless(spec.id, arguments, session),
            id => self.introspect(id, arguments, session),
        }
    }

    /// Whether the arguments of a command that replies for each of them are short enough.
    fn check_words(&self, id: CommandId, arguments: Arguments<'_>) -> Result<(), Refusal> {
        match id {
            CommandId::CommandInfo | CommandId::CommandDocs => words::check(arguments.skip(2)),
            CommandId::CommandList => {
                let names = commands::all().iter().map(|spec| spec.name);
                words::check_patterns(arguments.skip(4), names)
            }
            CommandId::ScriptExists => words::check(arguments.skip(2)),
            CommandId::Info => words::check(arguments.skip(1)),
            CommandId::ConfigGet => {
                let settings = self.info.settings.iter().map(|(name, _)| *name);
                words::check_patterns(arguments.skip(2), settings)
            }
            _ => Ok(()),
        }
    }

    /// Whether it shows no more than this client may see. Over a WebSocket the client may be a
    /// browser page; there, plugins decide what it may look at.
    fn check_visible(&self, id: CommandId, session: &Session) -> Result<(), Refusal> {
        if self.transport != Transport::Frames {
            return Ok(());
        }
        let subject = match id {
            CommandId::Info => Inspection::Server,
            CommandId::ClientList => Inspection::Clients,
            CommandId::ConfigGet => Inspection::Configuration,
            _ => return Ok(()),
        };
        session.may_inspect(subject)
    }

    /// Counts a command that is not passed to the session.
    fn is_done(&self, verb: Verb, session: &Session) {
        session.services.stats.record_command(verb, self.ending.get(), 1);
    }

    /// Counts a command that is not passed to the session. True: it was over the rate limit, and
    /// was replied to; a transaction that it would belong to is aborted. Those of an EXEC were
    /// counted when they were queued.
    fn is_too_fast(&mut self, verb: &'static str, session: &mut Session) -> bool {
        if self.scope != Scope::Connection {
            return false;
        }
        match session.pace(verb) {
            Ok(()) => false,
            Err(refusal) => {
                let exec = verb.eq("exec").then_some(CommandId::Exec);
                self.refuse_command(exec, &reply::error(&refusal), session);
                true
            }
        }
    }

    /// Replies to bytes that are no request, and closes.
    fn refuse(&self, error: ProtocolError, session: &mut Session) -> CloseReason {
        if let Some(text) = error.reply() {
            self.error(session, &text);
        }
        CloseReason::Violation(ProtocolViolation::Resp)
    }

    fn reply(&self, session: &mut Session, write: impl FnOnce(&mut ReplyWriter<'_>)) {
        if !self.is_muted() {
            session.reply(|out| write(&mut ReplyWriter::new(out, self.version)));
        }
    }

    fn error(&self, session: &mut Session, text: &[u8]) {
        let code = text.split(|byte| *byte == b' ').next().unwrap_or_default();
        self.ending.set(Ending::of(std::str::from_utf8(code).unwrap_or_default()));
        self.reply(session, |reply| reply.error(text));
    }

    fn ok(&self, session: &mut Session) {
        self.reply(session, |reply| reply.simple("OK"));
    }

    fn spelling(&self) -> reply::RespReplies {
        reply::RespReplies::new(self.version, self.is_muted())
    }

    fn is_muted(&self) -> bool {
        self.replies == ReplyMode::Off || self.skips_this
    }

    fn is_subscribed_in_resp2(&self, session: &Session) -> bool {
        self.version == RespVersion::Resp2 && !session.connection.subscriptions().is_empty()
    }

    fn set_version(&mut self, version: RespVersion, session: &Session) {
        self.version = version;
        session.connection.set_encoding(encoding(self.transport, version));
    }
}

fn authentication(session: &Session) -> Authentication {
    match session.must_authenticate() {
        true => Authentication::Owed,
        false => Authentication::Settled,
    }
}

/// Whether it is CLIENT with a sub-command that exists.
fn is_of_client(arguments: Arguments<'_>) -> bool {
    let spec = match commands::lookup(arguments) {
        Ok(spec) | Err(CommandError::WrongArity(spec)) => spec,
        Err(_) => return false,
    };
    spec.name.starts_with("client|")
}

/// Whether Redis executes it for a client that has not authenticated.
fn is_allowed_before_auth(id: CommandId) -> bool {
    matches!(id, CommandId::Auth | CommandId::Hello | CommandId::Quit | CommandId::Reset)
}

/// The verb under which a command is counted: that of its container.
fn verb(spec: &CommandSpec) -> Verb {
    Verb::by_name(spec.name.split('|').next().unwrap_or_default())
}

fn encoding(transport: Transport, version: RespVersion) -> Encoding {
    match (transport, version) {
        (Transport::Stream, RespVersion::Resp2) => Encoding::RESP2,
        (Transport::Stream, RespVersion::Resp3) => Encoding::RESP3,
        (Transport::Frames, RespVersion::Resp2) => Encoding::FRAMED_RESP2,
        (Transport::Frames, RespVersion::Resp3) => Encoding::FRAMED_RESP3,
    }
}

impl Decoder for Resp {
    fn decode(&mut self, bytes: &mut [u8], session: &mut Session) -> Progress {
        let (progress, flow) = self.take_requests(bytes, session);
        if let Flow::Close(reason) = flow {
            session.close(reason);
        }
        progress
    }

    fn unfinished_bytes(&self) -> usize {
        self.parser.unfinished_bytes()
    }

    fn kept_bytes(&self) -> usize {
        self.queued_bytes()
    }

    fn forget_unfinished(&mut self) {
        self.parser = RequestParser::new(self.limits);
        self.burst = Burst::default();
        self.transaction = None;
        self.executing = None;
    }

    /// A client may end its half of the stream and wait for the replies.
    fn end_of_input(&self) -> Option<CloseReason> {
        Some(CloseReason::Peer(None))
    }

    /// Redis sends nothing to clients that it closes.
    fn last_bytes(&self, reason: &CloseReason) -> Bytes {
        last_words(reason)
    }
}

/// An error line for a client whose credentials expired. No reply may follow it: an error that
/// belongs to no command would shift all later replies.
fn last_words(reason: &CloseReason) -> Bytes {
    let CloseReason::Expired(why) = reason else { return Bytes::new() };
    let mut out = Vec::new();
    let text = format!("{EXPIRED} {why}");
    ReplyWriter::new(&mut out, RespVersion::Resp2).error(text.as_bytes());
    out.into()
}

/// The reply for a rejected client over TCP.
pub fn rejection_reply(reason: &CloseReason) -> Bytes {
    let mut out = Vec::new();
    let text = match reason {
        CloseReason::OverCapacity => errors::TOO_MANY_CONNECTIONS.to_vec(),
        CloseReason::OverAddressCapacity => format!("ERR {}", reason.text()).into_bytes(),
        CloseReason::AuthFlood => format!("LIMIT {}", reason.text()).into_bytes(),
        CloseReason::Expired(why) => format!("{EXPIRED} {why}").into_bytes(),
        // A Redis that shuts down sends nothing either. Clients take an error for a reply, and do
        // not reconnect.
        CloseReason::Draining => return Bytes::new(),
        CloseReason::Unauthorised(why) => format!("NOAUTH {why}").into_bytes(),
        CloseReason::Unavailable(why) => format!("UNAVAILABLE {why}").into_bytes(),
        CloseReason::Limited(why) => format!("LIMIT {why}").into_bytes(),
        other => format!("NOPERM {}", other.text()).into_bytes(),
    };
    ReplyWriter::new(&mut out, RespVersion::Resp2).error(&text);
    out.into()
}
