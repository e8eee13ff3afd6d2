//! The types that all doors share: commands, replies and refusals.

use std::borrow::Cow;
use std::sync::Arc;

use guest_core::Names;

use crate::history::{HistoryOptions, HistoryPage, PublishOptions, ResumeOptions, Resumed};
use crate::position::Position;
use crate::presence::{PresenceOptions, PresencePage};
use crate::stream::{StreamCommand, StreamReply};

/// A name of a channel or pattern, or a payload: any bytes. Borrowed from the read buffer if it is
/// there unescaped.
pub type Bytestring<'a> = Cow<'a, [u8]>;

/// The kind of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A channel, by its name.
    Channel,
    /// All channels that match a pattern.
    Pattern,
    /// A shard channel (Redis' SSUBSCRIBE): a name space of its own.
    Shard,
}

/// A name space of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// What SUBSCRIBE and PUBLISH mean.
    Channels,
    /// What SSUBSCRIBE and SPUBLISH mean. Patterns do not see it.
    ShardChannels,
}

/// A publication on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication<'a> {
    /// The name space of the channel.
    pub space: Space,
    /// The channel's name.
    pub channel: Bytestring<'a>,
    /// The message itself.
    pub payload: Bytestring<'a>,
    /// What it carries besides; none for most.
    pub options: Option<Box<PublishOptions>>,
}

impl<'a> Publication<'a> {
    /// A publication that carries nothing but its payload.
    pub fn new(space: Space, channel: Bytestring<'a>, payload: Bytestring<'a>) -> Publication<'a> {
        Publication { space, channel, payload, options: None }
    }

    /// The name of its command.
    pub fn verb(&self) -> Verb {
        match self.space {
            Space::ShardChannels => Verb::Spublish,
            Space::Channels if self.options.as_ref().is_some_and(|it| it.is_append) => Verb::Xadd,
            Space::Channels => Verb::Publish,
        }
    }

    /// The same, with owned bytes.
    pub fn into_owned(self) -> Publication<'static> {
        let Publication { space, channel, payload, options } = self;
        let own = |bytes: Bytestring<'_>| Cow::Owned(bytes.into_owned());
        Publication { space, channel: own(channel), payload: own(payload), options }
    }

    /// Its approximate heap size.
    fn heap_bytes(&self) -> usize {
        let options = self.options.as_ref().map_or(0, |options| {
            size_of::<PublishOptions>()
                + options.key.as_ref().map_or(0, |key| key.len())
                + options.tags.as_ref().map_or(0, |tags| tags.len())
        });
        self.bytes() + options
    }

    /// The length of name and payload.
    pub fn bytes(&self) -> usize {
        self.channel.len() + self.payload.len()
    }
}

/// A command of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// SUBSCRIBE, PSUBSCRIBE, SSUBSCRIBE; at least one name.
    Subscribe(Kind, Vec<Bytestring<'a>>),
    /// The corresponding unsubscribe commands; no name: all of the kind.
    Unsubscribe(Kind, Vec<Bytestring<'a>>),
    /// PUBLISH, SPUBLISH.
    Publish(Publication<'a>),
    /// RESUME.
    Resume(Bytestring<'a>, ResumeOptions),
    /// HISTORY.
    History(Bytestring<'a>, HistoryOptions),
    /// XRANGE, XREVRANGE, XLEN, XREAD, XINFO STREAM.
    Stream(StreamCommand<'a>),
    /// ENTER, with a text in JSON.
    Enter(Bytestring<'a>, Cow<'a, str>),
    /// LEAVE.
    Leave(Bytestring<'a>),
    /// PRESENCE.
    Presence(Bytestring<'a>, PresenceOptions),
    /// WATCH on a room.
    WatchRoom(Bytestring<'a>, PresenceOptions),
    /// UNWATCH on a room.
    UnwatchRoom(Bytestring<'a>),
    /// PUBSUB CHANNELS, SHARDCHANNELS: those that match, or all.
    Channels(Space, Option<Bytestring<'a>>),
    /// PUBSUB NUMSUB, SHARDNUMSUB.
    SubscriberCounts(Space, Vec<Bytestring<'a>>),
    /// PUBSUB NUMPAT.
    PatternCount,
    /// PING.
    Ping(Option<Bytestring<'a>>),
    /// AUTH.
    Authenticate(Credentials),
    /// HELLO.
    Hello,
    /// QUIT.
    Quit,
}

impl Command<'_> {
    /// Whether a connection that must authenticate may send it.
    pub fn is_allowed_before_auth(&self) -> bool {
        matches!(self, Command::Authenticate(_) | Command::Hello | Command::Ping(_) | Command::Quit)
    }

    /// Whether its cost grows with what the server holds instead of with its length.
    pub fn may_take_long(&self) -> bool {
        let is_listing = matches!(self, Command::Channels(..) | Command::SubscriberCounts(..));
        let is_of_room = matches!(self, Command::Presence(..) | Command::WatchRoom(..));
        is_listing || is_of_room || self.reads_history()
    }

    /// Whether its reply has messages of a history.
    pub fn reads_history(&self) -> bool {
        let is_range = matches!(self, Command::Stream(StreamCommand::Range(..)));
        is_range || matches!(self, Command::Resume(..) | Command::History(..))
    }

    /// Its name, for logs and counters.
    pub fn verb(&self) -> Verb {
        match self {
            Command::Subscribe(kind, _) => ListenVerb::Subscribe(*kind).into(),
            Command::Unsubscribe(kind, _) => ListenVerb::Unsubscribe(*kind).into(),
            Command::Publish(publication) => publication.verb(),
            Command::Resume(..) => Verb::Resume,
            Command::History(..) => Verb::History,
            Command::Stream(StreamCommand::Range(_, options)) if options.is_reverse => {
                Verb::Xrevrange
            }
            Command::Stream(StreamCommand::Range(..)) => Verb::Xrange,
            Command::Stream(StreamCommand::Length(_)) => Verb::Xlen,
            Command::Stream(StreamCommand::Read(_)) => Verb::Xread,
            Command::Stream(StreamCommand::Info(..)) => Verb::Xinfo,
            Command::Enter(..) => Verb::Enter,
            Command::Leave(_) => Verb::Leave,
            Command::Presence(..) => Verb::Presence,
            Command::WatchRoom(..) => Verb::Watch,
            Command::UnwatchRoom(_) => Verb::Unwatch,
            Command::Channels(..) | Command::SubscriberCounts(..) | Command::PatternCount => {
                Verb::Pubsub
            }
            Command::Ping(_) => Verb::Ping,
            Command::Authenticate(_) => Verb::Auth,
            Command::Hello => Verb::Hello,
            Command::Quit => Verb::Quit,
        }
    }

    /// The same, with owned bytes.
    pub fn into_owned(self) -> Command<'static> {
        let own = |bytes: Bytestring<'_>| Cow::Owned(bytes.into_owned());
        let own_all = |names: Vec<Bytestring<'_>>| names.into_iter().map(own).collect();
        match self {
            Command::Subscribe(kind, names) => Command::Subscribe(kind, own_all(names)),
            Command::Unsubscribe(kind, names) => Command::Unsubscribe(kind, own_all(names)),
            Command::Publish(publication) => Command::Publish(publication.into_owned()),
            Command::Resume(channel, options) => Command::Resume(own(channel), options),
            Command::History(channel, options) => Command::History(own(channel), options),
            Command::Stream(command) => Command::Stream(command.into_owned()),
            Command::Enter(channel, data) => {
                Command::Enter(own(channel), Cow::Owned(data.into_owned()))
            }
            Command::Leave(channel) => Command::Leave(own(channel)),
            Command::Presence(channel, options) => Command::Presence(own(channel), options),
            Command::WatchRoom(channel, options) => Command::WatchRoom(own(channel), options),
            Command::UnwatchRoom(channel) => Command::UnwatchRoom(own(channel)),
            Command::Channels(space, matching) => Command::Channels(space, matching.map(own)),
            Command::SubscriberCounts(space, names) => {
                Command::SubscriberCounts(space, own_all(names))
            }
            Command::PatternCount => Command::PatternCount,
            Command::Ping(text) => Command::Ping(text.map(own)),
            Command::Authenticate(credentials) => Command::Authenticate(credentials),
            Command::Hello => Command::Hello,
            Command::Quit => Command::Quit,
        }
    }
}

/// The name of a command, for logs and counters: the commands of all doors, without their
/// sub-commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are Redis' verbs")]
pub enum Verb {
    Subscribe,
    Psubscribe,
    Ssubscribe,
    Unsubscribe,
    Punsubscribe,
    Sunsubscribe,
    Publish,
    Spublish,
    Resume,
    History,
    Enter,
    Leave,
    Presence,
    Pubsub,
    Ping,
    Echo,
    Auth,
    Hello,
    Reset,
    Select,
    Client,
    Command,
    Config,
    Info,
    Quit,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    Eval,
    Evalsha,
    Script,
    Xadd,
    Xrange,
    Xrevrange,
    Xlen,
    Xread,
    Xinfo,
    /// The other commands of Redis.
    Other,
    /// A frame that was no command, or was over the rate limit before it was parsed.
    None,
}

impl Verb {
    /// All, in the order in which they are counted.
    pub const ALL: [Verb; 41] = [
        Verb::Subscribe,
        Verb::Psubscribe,
        Verb::Ssubscribe,
        Verb::Unsubscribe,
        Verb::Punsubscribe,
        Verb::Sunsubscribe,
        Verb::Publish,
        Verb::Spublish,
        Verb::Resume,
        Verb::History,
        Verb::Enter,
        Verb::Leave,
        Verb::Presence,
        Verb::Pubsub,
        Verb::Ping,
        Verb::Echo,
        Verb::Auth,
        Verb::Hello,
        Verb::Reset,
        Verb::Select,
        Verb::Client,
        Verb::Command,
        Verb::Config,
        Verb::Info,
        Verb::Quit,
        Verb::Multi,
        Verb::Exec,
        Verb::Discard,
        Verb::Watch,
        Verb::Unwatch,
        Verb::Eval,
        Verb::Evalsha,
        Verb::Script,
        Verb::Xadd,
        Verb::Xrange,
        Verb::Xrevrange,
        Verb::Xlen,
        Verb::Xread,
        Verb::Xinfo,
        Verb::Other,
        Verb::None,
    ];

    /// The verb that is written so, in any case.
    pub fn by_name(name: &str) -> Verb {
        let is_named = |verb: &Verb| verb.name().eq_ignore_ascii_case(name);
        Verb::ALL.into_iter().find(is_named).unwrap_or(Verb::Other)
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Subscribe => "SUBSCRIBE",
            Verb::Psubscribe => "PSUBSCRIBE",
            Verb::Ssubscribe => "SSUBSCRIBE",
            Verb::Unsubscribe => "UNSUBSCRIBE",
            Verb::Punsubscribe => "PUNSUBSCRIBE",
            Verb::Sunsubscribe => "SUNSUBSCRIBE",
            Verb::Publish => "PUBLISH",
            Verb::Spublish => "SPUBLISH",
            Verb::Resume => "RESUME",
            Verb::History => "HISTORY",
            Verb::Enter => "ENTER",
            Verb::Leave => "LEAVE",
            Verb::Presence => "PRESENCE",
            Verb::Pubsub => "PUBSUB",
            Verb::Ping => "PING",
            Verb::Echo => "ECHO",
            Verb::Auth => "AUTH",
            Verb::Hello => "HELLO",
            Verb::Reset => "RESET",
            Verb::Select => "SELECT",
            Verb::Client => "CLIENT",
            Verb::Command => "COMMAND",
            Verb::Config => "CONFIG",
            Verb::Info => "INFO",
            Verb::Quit => "QUIT",
            Verb::Multi => "MULTI",
            Verb::Exec => "EXEC",
            Verb::Discard => "DISCARD",
            Verb::Watch => "WATCH",
            Verb::Unwatch => "UNWATCH",
            Verb::Eval => "EVAL",
            Verb::Evalsha => "EVALSHA",
            Verb::Script => "SCRIPT",
            Verb::Xadd => "XADD",
            Verb::Xrange => "XRANGE",
            Verb::Xrevrange => "XREVRANGE",
            Verb::Xlen => "XLEN",
            Verb::Xread => "XREAD",
            Verb::Xinfo => "XINFO",
            Verb::Other => "(other)",
            Verb::None => "(none)",
        }
    }
}

/// The ending of a command, for counters. All codes of plugins are counted as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the codes of refusals")]
pub enum Ending {
    Ok,
    BadFrame,
    Unknown,
    Arity,
    BadValue,
    TooLarge,
    Limit,
    NoAuth,
    NoPerm,
    Rejected,
    NoHistory,
    NoPresence,
    Unavailable,
    /// Redis' code for errors without another one.
    Err,
    Other,
}

impl Ending {
    /// All, in the order in which they are counted.
    pub const ALL: [Ending; 15] = [
        Ending::Ok,
        Ending::BadFrame,
        Ending::Unknown,
        Ending::Arity,
        Ending::BadValue,
        Ending::TooLarge,
        Ending::Limit,
        Ending::NoAuth,
        Ending::NoPerm,
        Ending::Rejected,
        Ending::NoHistory,
        Ending::NoPresence,
        Ending::Unavailable,
        Ending::Err,
        Ending::Other,
    ];

    /// The ending for a refusal with this code.
    pub fn of(code: &str) -> Ending {
        match code {
            BADFRAME => Ending::BadFrame,
            UNKNOWN => Ending::Unknown,
            ARITY => Ending::Arity,
            BADVALUE => Ending::BadValue,
            TOOLARGE => Ending::TooLarge,
            LIMIT => Ending::Limit,
            // The last is Redis'.
            NOAUTH | EXPIRED | "WRONGPASS" => Ending::NoAuth,
            NOPERM => Ending::NoPerm,
            REJECTED => Ending::Rejected,
            NOHISTORY => Ending::NoHistory,
            NOPRESENCE => Ending::NoPresence,
            UNAVAILABLE => Ending::Unavailable,
            "ERR" => Ending::Err,
            _ => Ending::Other,
        }
    }

    /// A stable label for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Ending::Ok => "ok",
            Ending::BadFrame => "badframe",
            Ending::Unknown => "unknown",
            Ending::Arity => "arity",
            Ending::BadValue => "badvalue",
            Ending::TooLarge => "toolarge",
            Ending::Limit => "limit",
            Ending::NoAuth => "noauth",
            Ending::NoPerm => "noperm",
            Ending::Rejected => "rejected",
            Ending::NoHistory => "nohistory",
            Ending::NoPresence => "nopresence",
            Ending::Unavailable => "unavailable",
            Ending::Err => "err",
            Ending::Other => "other",
        }
    }
}

impl From<&Refusal> for Ending {
    fn from(refusal: &Refusal) -> Ending {
        Ending::of(&refusal.code)
    }
}

/// The arguments of AUTH.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name, if one was given.
    pub user: Option<String>,
    /// The password or token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    /// Without the secret, so that no log contains it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A command as received, or why it is invalid, with its tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// The tag of the client.
    pub tag: Tag,
    /// The command, or its error.
    pub command: Result<Command<'a>, Refusal>,
}

impl Request<'_> {
    /// Its approximate heap size.
    pub fn heap_bytes(&self) -> usize {
        let names = |names: &[Bytestring<'_>]| {
            names.iter().map(|name| size_of::<Bytestring<'_>>() + name.len()).sum::<usize>()
        };
        match &self.command {
            Ok(Command::Publish(publication)) => publication.heap_bytes(),
            Ok(
                Command::Subscribe(_, all)
                | Command::Unsubscribe(_, all)
                | Command::SubscriberCounts(_, all),
            ) => names(all),
            Ok(Command::Stream(command)) => names(command.channels()),
            Ok(Command::Enter(channel, data)) => channel.len() + data.len(),
            Ok(
                Command::Resume(channel, _)
                | Command::History(channel, _)
                | Command::Leave(channel)
                | Command::Presence(channel, _)
                | Command::WatchRoom(channel, _)
                | Command::UnwatchRoom(channel),
            ) => channel.len(),
            Ok(Command::Channels(_, text) | Command::Ping(text)) => {
                text.as_ref().map_or(0, |text| text.len())
            }
            Ok(Command::Authenticate(credentials)) => credentials.secret.len(),
            Ok(Command::PatternCount | Command::Hello | Command::Quit) => 0,
            Err(refusal) => refusal.message.len(),
        }
    }

    /// The same, with owned bytes.
    pub fn into_owned(self) -> Request<'static> {
        Request { tag: self.tag, command: self.command.map(Command::into_owned) }
    }
}

/// The tag by which a client recognizes the reply to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// Nothing: success has no reply, and a failure has none to name (JSON).
    None,
    /// A number of its own (JSON).
    Id(u64),
    /// Replies come in the order of the commands (RESP).
    InOrder,
}

/// The reply to a command.
#[derive(Debug)]
pub enum Reply<'a> {
    /// Subscribed or unsubscribed: each name with the number of subscriptions after it, as RESP
    /// counts them; `held` is the number of channels and patterns in the end.
    Listening {
        /// The verb.
        verb: ListenVerb,
        /// Each name with the number after it; no name: there was nothing to unsubscribe from.
        acks: &'a [(Option<Bytestring<'a>>, u64)],
        /// Channels and patterns in the end.
        held: u64,
    },
    /// The number of receivers.
    Published(u64),
    /// The number of receivers of a publication that wanted more than that in its reply.
    PublishedWith(Published),
    /// The answer to RESUME; the messages follow.
    Resumed(Resumed),
    /// The answer to HISTORY.
    History(&'a HistoryPage<'a>),
    /// The answer to a command that reads streams.
    Stream(StreamReply<'a>),
    /// The answer to PRESENCE, or to WATCH; further members follow.
    Presence(&'a PresencePage<'a>),
    /// The answer to UNWATCH.
    True,
    /// Names of channels.
    Names(&'a Names),
    /// Channels, and as many numbers of subscribers.
    Counts(&'a Names, &'a [u64]),
    /// A number.
    Number(u64),
    /// The answer to a PING.
    Pong(Option<&'a [u8]>),
    /// Done.
    Ok,
    /// The answer to HELLO.
    Hello(&'a Greeting),
    /// Refused.
    Refused(&'a Refusal),
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// The number of receivers.
    pub deliveries: u64,
    /// Where it is in the history of its channel; none: it is not retained there.
    pub position: Option<Position>,
    /// Whether it was dropped because of its version.
    pub is_stale: bool,
}

/// The verb of a `Reply::Listening`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenVerb {
    /// Subscribed.
    Subscribe(Kind),
    /// Unsubscribed.
    Unsubscribe(Kind),
}

impl From<ListenVerb> for Verb {
    fn from(verb: ListenVerb) -> Verb {
        match verb {
            ListenVerb::Subscribe(Kind::Channel) => Verb::Subscribe,
            ListenVerb::Subscribe(Kind::Pattern) => Verb::Psubscribe,
            ListenVerb::Subscribe(Kind::Shard) => Verb::Ssubscribe,
            ListenVerb::Unsubscribe(Kind::Channel) => Verb::Unsubscribe,
            ListenVerb::Unsubscribe(Kind::Pattern) => Verb::Punsubscribe,
            ListenVerb::Unsubscribe(Kind::Shard) => Verb::Sunsubscribe,
        }
    }
}

/// The fields of the reply to HELLO.
#[derive(Debug)]
pub struct Greeting {
    /// The connection's id.
    pub connection: u64,
    /// Named limits that a client should know.
    pub limits: [(&'static str, usize); 4],
    /// The features of the server beyond the common verbs.
    pub features: &'static [&'static str],
    /// The user of the connection; none: it is not known.
    pub user: Option<String>,
    /// In how many milliseconds the credentials expire; none: they do not.
    pub expires_in_ms: Option<u64>,
    /// The server's clock, in milliseconds since 1970.
    pub now_ms: u64,
}

/// Why something was refused, as a message for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A stable code, such as `NOPERM`.
    pub code: Cow<'static, str>,
    /// One line of text.
    pub message: Cow<'static, str>,
    /// The plugin that decided, as `name@version`.
    pub by: Option<Arc<str>>,
}

impl Refusal {
    /// A refusal by the server itself.
    pub fn new(code: &'static str, message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { code: code.into(), message: message.into(), by: None }
    }
}

/// Not a command: the form of the frame is wrong.
pub const BADFRAME: &str = "BADFRAME";
/// No such verb.
pub const UNKNOWN: &str = "UNKNOWN";
/// The wrong number of arguments.
pub const ARITY: &str = "ARITY";
/// An argument of the wrong form.
pub const BADVALUE: &str = "BADVALUE";
/// A name or payload over its limit.
pub const TOOLARGE: &str = "TOOLARGE";
/// More than the server lets a connection have.
pub const LIMIT: &str = "LIMIT";
/// Not authenticated.
pub const NOAUTH: &str = "NOAUTH";
/// The credentials expired.
pub const EXPIRED: &str = "EXPIRED";
/// Not allowed.
pub const NOPERM: &str = "NOPERM";
/// A plugin rejects it.
pub const REJECTED: &str = "REJECTED";
/// The channel has no history.
pub const NOHISTORY: &str = "NOHISTORY";
/// The channel has no presence.
pub const NOPRESENCE: &str = "NOPRESENCE";
/// Temporary; a retry may succeed.
pub const UNAVAILABLE: &str = "UNAVAILABLE";
