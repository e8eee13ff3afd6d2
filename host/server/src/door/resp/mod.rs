//! Redis' protocol, over TCP or in the binary frames of a WebSocket.
//!
//! Consecutive publications in a read are one batch for the session. Everything else is executed
//! one by one, because what is allowed and how it is replied to depends on earlier commands: the
//! protocol's version, whether the connection is subscribed, CLIENT REPLY.

mod client;
mod client_list;
mod framed;
pub mod info;
mod reply;
mod tcp;
mod words;

use std::borrow::Cow;
use std::cell::Cell;

use bytes::Bytes;

use crate::decoder::{Decoder, Progress};
use crate::session::Session;
use switchyard_hub::connections::attributes::USER;
use switchyard_hub::encoding::Encoding;
use switchyard_middleware::items::Inspection;
use switchyard_protocol::resp::commands::{self, CommandId, CommandSpec};
use switchyard_protocol::resp::{
    Arguments, Authentication, Burst, Outcome, ProtocolError, ReplyWriter, RequestLimits,
    RequestParser, RespVersion, command_info, errors, help,
};
use switchyard_types::close::{CloseReason, ProtocolViolation};
use switchyard_types::command::{
    Command, EXPIRED, Ending, Kind, NOPERM, Publication, Refusal, Request, Space, Tag, Verb,
};

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
    skip: Skip,
    name: Vec<u8>,
    library: [Vec<u8>; 2],
    info: info::ServerInfo,
    /// An AUTH or HELLO whose authentication is pending.
    authenticating: Option<client::Authenticating>,
    /// A CLIENT LIST in progress. Commands after it wait.
    client_list: Option<Box<client_list::ClientList>>,
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

/// CLIENT REPLY SKIP: which reply is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Skip {
    None,
    /// The reply to the next command.
    Next,
    /// The reply to the current command.
    This,
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
            skip: Skip::None,
            name: Vec::new(),
            library: Default::default(),
            info,
            authenticating: None,
            client_list: None,
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
        session.has_pending() || self.client_list.is_some()
    }

    fn resume(&mut self, session: &mut Session) -> Flow {
        self.finish_authenticating(session);
        if let Some(reason) = session.take_ending() {
            session.flush();
            return Flow::Close(reason);
        }
        self.finish_client_list(session);
        match session.has_pending().then(|| session.resume(self.spelling())).flatten() {
            Some(reason) => Flow::Close(reason),
            None => Flow::Continue,
        }
    }

    /// The request as a publication, if it can be batched.
    fn publication<'a>(&self, arguments: Arguments<'a>, session: &Session) -> Option<Request<'a>> {
        let [Some(verb), Some(channel), Some(payload), None] =
            [0, 1, 2, 3].map(|place| arguments.get(place))
        else {
            return None;
        };
        let space = if verb.eq_ignore_ascii_case(b"PUBLISH") {
            Space::Channels
        } else if verb.eq_ignore_ascii_case(b"SPUBLISH") {
            Space::ShardChannels
        } else {
            return None;
        };
        if self.skip == Skip::Next || self.is_subscribed_in_resp2(session) {
            return None;
        }
        let (channel, payload) = (Cow::Borrowed(channel), Cow::Borrowed(payload));
        let command = Ok(Command::Publish(Publication { space, channel, payload }));
        Some(Request { tag: Tag::InOrder, command })
    }

    fn publish(&self, publications: &mut Vec<Request<'_>>, session: &mut Session, more: bool) {
        if !publications.is_empty() {
            session.execute(publications.drain(..), self.spelling(), more);
        }
    }

    fn execute_command(&mut self, arguments: Arguments<'_>, session: &mut Session) -> Flow {
        if self.skip == Skip::Next {
            self.skip = Skip::This;
        }
        self.ending.set(Ending::Ok);
        let flow = match commands::lookup(arguments) {
            Err(error) => {
                if !self.is_too_fast("(none)", session) {
                    self.error(session, &error.text());
                }
                self.is_done(Verb::None, session);
                Flow::Continue
            }
            Ok(spec) if session.must_authenticate() && !is_allowed_before_auth(spec.id) => {
                if !self.is_too_fast(spec.name, session) {
                    self.error(session, errors::AUTHENTICATION_REQUIRED);
                }
                self.is_done(verb(spec.id), session);
                Flow::Continue
            }
            Ok(spec)
                if !spec.is_allowed_while_subscribed() && self.is_subscribed_in_resp2(session) =>
            {
                if !self.is_too_fast(spec.name, session) {
                    self.error(session, &errors::not_while_subscribed(spec.name));
                }
                self.is_done(verb(spec.id), session);
                Flow::Continue
            }
            Ok(spec) => self.run(spec, arguments, session),
        };
        if self.skip == Skip::This {
            self.skip = Skip::None;
        }
        flow
    }

    fn run(&mut self, spec: &CommandSpec, arguments: Arguments<'_>, session: &mut Session) -> Flow {
        let names = || arguments.skip(1).iter().map(Cow::Borrowed).collect::<Vec<_>>();
        let rest = || arguments.skip(2).iter().map(Cow::Borrowed).collect::<Vec<_>>();
        let matching = || arguments.get(2).map(Cow::Borrowed);
        let command = match spec.id {
            CommandId::Subscribe => Command::Subscribe(Kind::Channel, names()),
            CommandId::Psubscribe => Command::Subscribe(Kind::Pattern, names()),
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
                Command::Publish(Publication { space, channel: argument(1), payload: argument(2) })
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
            id => {
                self.run_own(spec, arguments, session);
                // A pending command is not complete.
                if self.authenticating.is_none() && self.client_list.is_none() {
                    self.is_done(verb(id), session);
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
        match session.execute(std::iter::once(request), spelling, true) {
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
            | CommandId::ClientNoTouch => self.client(spec.id, arguments, session),
            CommandId::Info => self.info(arguments, session),
            CommandId::ConfigGet => self.config_get(arguments, session),
            CommandId::ConfigSet => self.config_set(arguments, session),
            CommandId::ConfigRewrite => self.error(session, errors::NO_CONFIG_FILE),
            CommandId::ConfigResetstat => self.reply(session, |reply| reply.simple("OK")),
            CommandId::Command => self.reply(session, |reply| {
                reply.array(commands::all().len());
                commands::all().iter().for_each(|spec| command_info::write_info(reply, Some(spec)));
            }),
            CommandId::CommandCount => {
                self.reply(session, |reply| reply.integer(commands::all().len() as i64));
            }
            CommandId::CommandInfo => self.command_info(arguments, session),
            CommandId::CommandDocs => self.command_docs(arguments, session),
            CommandId::CommandList => self.command_list(arguments, session),
            CommandId::PubsubHelp => self.help(session, "pubsub", help::PUBSUB),
            CommandId::ClientHelp => self.help(session, "client", help::CLIENT),
            CommandId::ConfigHelp => self.help(session, "config", help::CONFIG),
            CommandId::CommandHelp => self.help(session, "command", help::COMMAND),
            _ => self.error(session, errors::SYNTAX),
        }
    }

    /// Whether a command that replies for each of its arguments has few enough of them.
    fn check_words(&self, id: CommandId, arguments: Arguments<'_>) -> Result<(), Refusal> {
        match id {
            CommandId::CommandInfo | CommandId::CommandDocs => words::check(arguments.skip(2)),
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
    /// was replied to.
    fn is_too_fast(&self, verb: &'static str, session: &mut Session) -> bool {
        match session.pace(verb) {
            Ok(()) => false,
            Err(refusal) => {
                self.error(session, &reply::error(&refusal));
                true
            }
        }
    }

    fn command_info(&self, arguments: Arguments<'_>, session: &mut Session) {
        self.reply(session, |reply| {
            if arguments.len() == 2 {
                reply.array(commands::all().len());
                commands::all().iter().for_each(|spec| command_info::write_info(reply, Some(spec)));
                return;
            }
            reply.array(arguments.len() - 2);
            for name in arguments.skip(2).iter() {
                command_info::write_info(reply, commands::by_full_name(name));
            }
        });
    }

    fn command_docs(&self, arguments: Arguments<'_>, session: &mut Session) {
        let specs: Vec<&CommandSpec> = match arguments.len() {
            2 => commands::all().iter().collect(),
            _ => arguments.skip(2).iter().filter_map(commands::by_full_name).collect(),
        };
        self.reply(session, |reply| {
            reply.map(specs.len());
            for spec in specs {
                command_info::write_docs(reply, spec);
            }
        });
    }

    fn command_list(&self, arguments: Arguments<'_>, session: &mut Session) {
        if arguments.len() > 2 {
            return self.error(session, errors::SYNTAX);
        }
        let names = commands::all()
            .iter()
            .flat_map(|spec| std::iter::once(spec).chain(spec.subcommands))
            .map(|spec| spec.name.as_bytes());
        self.reply(session, |reply| {
            reply.array(names.clone().count());
            names.for_each(|name| reply.bulk(name));
        });
    }

    fn help(&self, session: &mut Session, container: &str, lines: &[&str]) {
        self.reply(session, |reply| help::write(reply, container, lines));
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
        self.replies == ReplyMode::Off || self.skip == Skip::This
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

/// Whether Redis executes it for a client that has not authenticated.
fn is_allowed_before_auth(id: CommandId) -> bool {
    matches!(id, CommandId::Auth | CommandId::Hello | CommandId::Quit | CommandId::Reset)
}

/// The verb under which a command is counted.
fn verb(id: CommandId) -> Verb {
    match id {
        CommandId::Auth => Verb::Auth,
        CommandId::ClientGetname
        | CommandId::ClientHelp
        | CommandId::ClientId
        | CommandId::ClientInfo
        | CommandId::ClientList
        | CommandId::ClientNoEvict
        | CommandId::ClientNoTouch
        | CommandId::ClientReply
        | CommandId::ClientSetinfo
        | CommandId::ClientSetname => Verb::Client,
        CommandId::Command
        | CommandId::CommandCount
        | CommandId::CommandDocs
        | CommandId::CommandHelp
        | CommandId::CommandInfo
        | CommandId::CommandList => Verb::Command,
        CommandId::ConfigGet
        | CommandId::ConfigHelp
        | CommandId::ConfigResetstat
        | CommandId::ConfigRewrite
        | CommandId::ConfigSet => Verb::Config,
        CommandId::Container => Verb::None,
        CommandId::Echo => Verb::Echo,
        CommandId::Hello => Verb::Hello,
        CommandId::Info => Verb::Info,
        CommandId::Ping => Verb::Ping,
        CommandId::Psubscribe => Verb::Psubscribe,
        CommandId::Publish => Verb::Publish,
        CommandId::PubsubChannels
        | CommandId::PubsubHelp
        | CommandId::PubsubNumpat
        | CommandId::PubsubNumsub
        | CommandId::PubsubShardchannels
        | CommandId::PubsubShardnumsub => Verb::Pubsub,
        CommandId::Punsubscribe => Verb::Punsubscribe,
        CommandId::Quit => Verb::Quit,
        CommandId::Reset => Verb::Reset,
        CommandId::Select => Verb::Select,
        CommandId::Spublish => Verb::Spublish,
        CommandId::Ssubscribe => Verb::Ssubscribe,
        CommandId::Subscribe => Verb::Subscribe,
        CommandId::Sunsubscribe => Verb::Sunsubscribe,
        CommandId::Unsubscribe => Verb::Unsubscribe,
    }
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

    fn forget_unfinished(&mut self) {
        self.parser = RequestParser::new(self.limits);
        self.burst = Burst::default();
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
