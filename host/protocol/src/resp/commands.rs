//! Finds the command of a request, or the error that Redis would reply.
//!
//! The checks are the first two of Redis: does the command or sub-command exist, and does it accept
//! this number of arguments. The session does the remaining ones, in this order: authentication,
//! permissions, the subscribed mode of RESP2, and then the command itself. The commands are in
//! `command_table`.

use std::fmt;

use super::arguments::Arguments;
use super::command_table::COMMANDS;
use super::errors;

/// The id of a command for sessions. Commands that are executed alike have one in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "they are Redis' commands, by their names")]
pub enum CommandId {
    AclHelp,
    AclWhoami,
    Auth,
    ClientCaching,
    ClientGetname,
    ClientGetredir,
    ClientHelp,
    ClientId,
    ClientInfo,
    ClientKill,
    ClientList,
    ClientNoEvict,
    ClientNoTouch,
    ClientReply,
    ClientSetinfo,
    ClientSetname,
    ClientTracking,
    ClientTrackinginfo,
    ClientUnblock,
    /// CLUSTER, READONLY, READWRITE and ASKING: all are refused.
    Cluster,
    Command,
    CommandCount,
    CommandDocs,
    CommandGetkeys,
    CommandGetkeysandflags,
    CommandHelp,
    CommandInfo,
    CommandList,
    ConfigGet,
    ConfigHelp,
    ConfigResetstat,
    ConfigRewrite,
    ConfigSet,
    /// CLIENT, CONFIG, PUBSUB and their kind without a sub-command. They always lack an argument, so no lookup
    /// returns them.
    Container,
    Discard,
    /// What has nothing to do, and says that it is done.
    Done,
    Echo,
    Eval,
    Evalsha,
    Exec,
    Hello,
    Info,
    Lastsave,
    LatencyGraph,
    LatencyHelp,
    MemoryHelp,
    MemoryUsage,
    ModuleHelp,
    Multi,
    /// What lists things of which there are none.
    Nothing,
    Ping,
    Psubscribe,
    Publish,
    PubsubChannels,
    PubsubHelp,
    PubsubNumpat,
    PubsubNumsub,
    PubsubShardchannels,
    PubsubShardnumsub,
    Punsubscribe,
    Quit,
    Reset,
    Role,
    ScriptExists,
    ScriptFlush,
    ScriptHelp,
    ScriptKill,
    ScriptLoad,
    Select,
    SlowlogGet,
    SlowlogHelp,
    Spublish,
    Ssubscribe,
    Subscribe,
    Sunsubscribe,
    Time,
    Unsubscribe,
    Unwatch,
    Wait,
    Watch,
    Xadd,
    XinfoHelp,
    XinfoStream,
    Xlen,
    Xrange,
    Xread,
    Xrevrange,
    /// What counts things of which there are none.
    Zero,
}

/// A property of a command that COMMAND INFO names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// For operators.
    Admin,
    /// Pub/Sub.
    Pubsub,
    /// Not in scripts.
    Noscript,
    /// While data is loaded; here that is never.
    Loading,
    /// While data is stale; here that is never.
    Stale,
    /// In constant or logarithmic time.
    Fast,
    /// Before authentication.
    NoAuth,
    /// While a script runs; here that is never.
    AllowBusy,
    /// Not in the log of slow commands.
    SkipSlowlog,
    /// Not shown by MONITOR.
    SkipMonitor,
    /// Reads keys.
    Readonly,
    /// Changes keys.
    Write,
    /// Not when memory is short; here that is never.
    Denyoom,
    /// May wait.
    Blocking,
    /// May have no keys.
    NoMandatoryKeys,
    /// An argument says how many keys there are.
    MovableKeys,
    /// Not while data is loaded in the background.
    NoAsyncLoading,
}

/// An ACL category that does not follow from the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// None.
    None,
    /// About connections.
    Connection,
    /// Reads or changes what only operators may.
    Dangerous,
    /// About transactions.
    Transaction,
    /// About scripts.
    Scripting,
    /// About all keys.
    Keyspace,
    /// About streams.
    Stream,
    /// For operators, although its flags do not say so.
    Admin,
}

/// The arguments that a cluster treats as keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// None.
    None,
    /// The first, which is a shard channel.
    First,
    /// All, which are shard channels.
    All,
    /// All, which are keys that are only read.
    Read,
    /// The second, which is a key that is only read.
    Second,
    /// As many as the second argument says, from the third on.
    Counted,
    /// One, which is the history of a channel.
    One {
        /// Its place.
        place: usize,
        /// How it is used.
        flags: &'static [&'static str],
        /// A remark on that; may be empty.
        notes: &'static str,
    },
    /// Half of what follows the word `STREAMS`.
    Streams,
}

/// The group of a command in the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Connections.
    Connection,
    /// Pub/Sub.
    Pubsub,
    /// The server itself.
    Server,
    /// MULTI.
    Transactions,
    /// Scripts.
    Scripting,
    /// Redis' cluster.
    Cluster,
    /// Streams.
    Stream,
    /// Of no other group.
    Generic,
}

/// A command or sub-command, as COMMAND INFO and COMMAND DOCS describe it.
#[derive(Debug)]
pub struct CommandSpec {
    /// Its id.
    pub id: CommandId,
    /// Its full name in lower case, such as `pubsub|channels`.
    pub name: &'static str,
    /// The number of its arguments, including its names; if negative, the minimum.
    pub arity: i64,
    /// Its flags, in the order in which Redis lists them.
    pub flags: &'static [Flag],
    /// Its category, besides those that follow from the flags.
    pub category: Category,
    /// Hints for proxies and clients of a cluster.
    pub tips: &'static [&'static str],
    /// Its keys.
    pub keys: Keys,
    /// Its group.
    pub group: Group,
    /// The version of Redis that introduced it.
    pub since: &'static str,
    /// Its description, in a sentence.
    pub summary: &'static str,
    /// Its sub-commands.
    pub subcommands: &'static [CommandSpec],
}

impl CommandSpec {
    /// Whether it runs in RESP2 while the connection is subscribed.
    pub fn is_allowed_while_subscribed(&self) -> bool {
        matches!(
            self.id,
            CommandId::Ping
                | CommandId::Subscribe
                | CommandId::Unsubscribe
                | CommandId::Psubscribe
                | CommandId::Punsubscribe
                | CommandId::Ssubscribe
                | CommandId::Sunsubscribe
                | CommandId::Quit
                | CommandId::Reset
        )
    }

    /// Whether it runs at once between MULTI and EXEC, where all others are queued.
    pub fn is_never_queued(&self) -> bool {
        matches!(
            self.id,
            CommandId::Exec
                | CommandId::Discard
                | CommandId::Multi
                | CommandId::Watch
                | CommandId::Quit
                | CommandId::Reset
        )
    }

    /// Whether it accepts this number of arguments, including its names.
    pub fn takes(&self, arguments: usize) -> bool {
        let arguments = i64::try_from(arguments).unwrap_or(i64::MAX);
        if self.arity < 0 { arguments >= -self.arity } else { arguments == self.arity }
    }

    fn subcommand(&self, word: &[u8]) -> Option<&'static CommandSpec> {
        let behind_bar = self.name.len() + 1;
        self.subcommands.iter().find(|subcommand| {
            let name = subcommand.name.get(behind_bar..).unwrap_or_default();
            name.as_bytes().eq_ignore_ascii_case(word)
        })
    }
}

/// All commands; sub-commands are under their containers.
pub fn all() -> &'static [CommandSpec] {
    COMMANDS
}

/// The command of a request, if it exists and accepts the number of arguments.
pub fn lookup(arguments: Arguments<'_>) -> Result<&'static CommandSpec, CommandError<'_>> {
    let name = arguments.get(0).unwrap_or_default();
    let command = command(name).ok_or(CommandError::UnknownCommand(arguments))?;
    let spec = match arguments.get(1) {
        Some(subcommand) if !command.subcommands.is_empty() => {
            command.subcommand(subcommand).ok_or(CommandError::UnknownSubcommand(arguments))?
        }
        _ => command,
    };
    if !spec.takes(arguments.len()) {
        return Err(CommandError::WrongArity(spec));
    }
    Ok(spec)
}

/// The command with this full name, such as `publish` or `pubsub|channels`.
pub fn by_full_name(name: &[u8]) -> Option<&'static CommandSpec> {
    let mut words = name.split(|byte| *byte == b'|');
    let command = command(words.next()?)?;
    match (words.next(), words.next()) {
        (None, _) => Some(command),
        (Some(word), None) => command.subcommand(word),
        (Some(_), Some(_)) => None,
    }
}

fn command(name: &[u8]) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|command| command.name.as_bytes().eq_ignore_ascii_case(name))
}

/// Why a request is no valid command. The connection stays.
#[derive(Clone, Copy)]
pub enum CommandError<'a> {
    /// There is no such command.
    UnknownCommand(Arguments<'a>),
    /// There is no such sub-command.
    UnknownSubcommand(Arguments<'a>),
    /// Too few or too many arguments.
    WrongArity(&'static CommandSpec),
}

impl CommandError<'_> {
    /// The text of the error reply.
    pub fn text(&self) -> Vec<u8> {
        match self {
            CommandError::UnknownCommand(arguments) => errors::unknown_command(
                arguments.get(0).unwrap_or_default(),
                arguments.skip(1).iter(),
            ),
            CommandError::UnknownSubcommand(arguments) => errors::unknown_subcommand(
                arguments.get(0).unwrap_or_default(),
                arguments.get(1).unwrap_or_default(),
            ),
            CommandError::WrongArity(spec) => errors::wrong_arity(spec.name),
        }
    }
}

impl fmt::Debug for CommandError<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CommandError({})", self.text().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Authentication, Burst, Outcome, RequestLimits, RequestParser};
    use super::*;

    /// Looks up an inline request and compares the full name or the error text.
    #[track_caller]
    fn check(line: &str, expected: &str) {
        let line = format!("{line}\n").into_bytes();
        let mut burst = Burst::default();
        let mut parser = RequestParser::new(RequestLimits::default());
        let outcome = parser.parse(&line, Authentication::Settled, &mut burst);
        assert_eq!(outcome, Outcome::Complete);
        let found = match lookup(burst.last(&line).unwrap()) {
            Ok(spec) => spec.name.to_owned(),
            Err(error) => String::from_utf8_lossy(&error.text()).into_owned(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn finds_commands() {
        check("publish a b", "publish");
        check("PuBlIsH a b", "publish");
        check("SUBSCRIBE a b c d", "subscribe");
        check("unsubscribe", "unsubscribe");
        check("PUBSUB channels", "pubsub|channels");
        check("pubsub NUMPAT", "pubsub|numpat");
        check("client NO-evict on", "client|no-evict");
        check("command", "command");
        check("command docs", "command|docs");
        check("quit a b c", "quit");
        check("info everything", "info");
    }

    #[test]
    fn refuses_as_redis_does() {
        check("FOO a \"b c\"", "ERR unknown command 'FOO', with args beginning with: 'a' 'b c' ");
        check("\"\"", "ERR unknown command '', with args beginning with: ");
        check(
            "pubsub|channels",
            "ERR unknown command 'pubsub|channels', with args beginning with: ",
        );
        check("PUBLISH a", "ERR wrong number of arguments for 'publish' command");
        check("publish a b c", "ERR wrong number of arguments for 'publish' command");
        check("subscribe", "ERR wrong number of arguments for 'subscribe' command");
        check("PUBSUB", "ERR wrong number of arguments for 'pubsub' command");
        check("client", "ERR wrong number of arguments for 'client' command");
        check("config", "ERR wrong number of arguments for 'config' command");
        check("pubsub NUMPAT x", "ERR wrong number of arguments for 'pubsub|numpat' command");
        check("config get", "ERR wrong number of arguments for 'config|get' command");
        check("reset x", "ERR wrong number of arguments for 'reset' command");
        check("PubSub Foo", "ERR unknown subcommand 'Foo'. Try PUBSUB HELP.");
        check("client ''", "ERR unknown subcommand ''. Try CLIENT HELP.");
        check(
            "CLIENT MAINT_NOTIFICATIONS ON",
            "ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.",
        );
        check("command x", "ERR unknown subcommand 'x'. Try COMMAND HELP.");
    }

    #[test]
    fn every_command_is_found_by_its_name() {
        for command in all() {
            assert!(std::ptr::eq(by_full_name(command.name.as_bytes()).unwrap(), command));
            for subcommand in command.subcommands {
                let name = subcommand.name.to_ascii_uppercase();
                assert!(std::ptr::eq(by_full_name(name.as_bytes()).unwrap(), subcommand));
                assert!(subcommand.name.starts_with(&format!("{}|", command.name)));
            }
        }
        for name in ["", "pubsub|", "pubsub|x", "publish|x", "publish|", "pubsub|channels|x", "|"] {
            assert!(by_full_name(name.as_bytes()).is_none(), "{name}");
        }
    }

    #[test]
    fn says_where_a_command_is_allowed() {
        let names = |wanted: fn(&CommandSpec) -> bool| {
            let mut names: Vec<_> =
                all().iter().filter(|spec| wanted(spec)).map(|spec| spec.name).collect();
            names.sort_unstable();
            names.join(" ")
        };
        assert_eq!(
            names(CommandSpec::is_allowed_while_subscribed),
            "ping psubscribe punsubscribe quit reset ssubscribe subscribe sunsubscribe unsubscribe"
        );
    }
}
