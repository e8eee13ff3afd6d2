//! The command table, with everything that COMMAND reports.
//!
//! Names, arities, flags, tips and keys are those of Redis 7.4, and so is the set of sub-commands,
//! as far as they are supported. The most frequent commands come first.

use super::commands::{Category, CommandId, CommandSpec, Flag, Group, Keys};
use super::keyless_table::{ACL, CLUSTER, LATENCY, MEMORY, MODULE, SCRIPT, SLOWLOG};
use super::stream_table::{XADD, XINFO, XLEN, XRANGE, XREAD, XREVRANGE};

/// Allowed at any time.
pub(super) const ALWAYS: &[Flag] = &[Flag::Loading, Flag::Stale];
const ALWAYS_FAST: &[Flag] = &[Flag::Loading, Flag::Stale, Flag::Fast];
pub(super) const CONNECTION: &[Flag] = &[Flag::Noscript, Flag::Loading, Flag::Stale];
pub(super) const ADMIN: &[Flag] = &[Flag::Admin, Flag::Noscript, Flag::Loading, Flag::Stale];
const SUBSCRIBE: &[Flag] = &[Flag::Pubsub, Flag::Noscript, Flag::Loading, Flag::Stale];
const PUBLISH: &[Flag] = &[Flag::Pubsub, Flag::Loading, Flag::Stale, Flag::Fast];
const INTROSPECTION: &[Flag] = &[Flag::Pubsub, Flag::Loading, Flag::Stale];
const NO_AUTH: &[Flag] =
    &[Flag::Noscript, Flag::Loading, Flag::Stale, Flag::Fast, Flag::NoAuth, Flag::AllowBusy];

const TRANSACTION: &[Flag] =
    &[Flag::Noscript, Flag::Loading, Flag::Stale, Flag::Fast, Flag::AllowBusy];
const EXEC: &[Flag] = &[Flag::Noscript, Flag::Loading, Flag::Stale, Flag::SkipSlowlog];

const EVAL: &[Flag] =
    &[Flag::Noscript, Flag::Stale, Flag::SkipMonitor, Flag::NoMandatoryKeys, Flag::MovableKeys];

pub(super) const NONDETERMINISTIC: &[&str] = &["nondeterministic_output"];
pub(super) const NONDETERMINISTIC_ORDER: &[&str] = &["nondeterministic_output_order"];
const ALL_NODES: &[&str] = &["request_policy:all_nodes", "response_policy:all_succeeded"];
const ALL_SHARDS: &[&str] = &["request_policy:all_shards", "response_policy:all_succeeded"];
const INFO_TIPS: &[&str] =
    &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"];

/// The table.
pub(super) static COMMANDS: &[CommandSpec] = &[
    pubsub(CommandId::Publish, "publish", 3, PUBLISH)
        .since("2.0.0")
        .summary("Sends a message to a channel."),
    connection(CommandId::Ping, "ping", -1, &[Flag::Fast])
        .tips(ALL_SHARDS)
        .summary("Answers, to show that the server lives."),
    pubsub(CommandId::Subscribe, "subscribe", -2, SUBSCRIBE)
        .since("2.0.0")
        .summary("Listens to channels."),
    pubsub(CommandId::Unsubscribe, "unsubscribe", -1, SUBSCRIBE)
        .since("2.0.0")
        .summary("Stops listening to channels."),
    pubsub(CommandId::Psubscribe, "psubscribe", -2, SUBSCRIBE)
        .since("2.0.0")
        .summary("Listens to the channels that match patterns."),
    pubsub(CommandId::Punsubscribe, "punsubscribe", -1, SUBSCRIBE)
        .since("2.0.0")
        .summary("Stops listening to patterns."),
    XADD,
    XREAD,
    pubsub(CommandId::Spublish, "spublish", 3, PUBLISH)
        .keys(Keys::First)
        .since("7.0.0")
        .summary("Sends a message to a shard channel."),
    pubsub(CommandId::Ssubscribe, "ssubscribe", -2, SUBSCRIBE)
        .keys(Keys::All)
        .since("7.0.0")
        .summary("Listens to shard channels."),
    pubsub(CommandId::Sunsubscribe, "sunsubscribe", -1, SUBSCRIBE)
        .keys(Keys::All)
        .since("7.0.0")
        .summary("Stops listening to shard channels."),
    pubsub(CommandId::Container, "pubsub", -2, &[])
        .since("2.8.0")
        .summary("Reports subscriptions.")
        .subcommands(PUBSUB),
    connection(CommandId::Hello, "hello", -1, NO_AUTH)
        .since("6.0.0")
        .summary("Chooses the version of the protocol and introduces the connection."),
    connection(CommandId::Auth, "auth", -2, NO_AUTH).summary("Authenticates the connection."),
    connection(CommandId::Container, "client", -2, &[])
        .category(Category::None)
        .since("2.4.0")
        .summary("Reports on connections and configures them.")
        .subcommands(CLIENT),
    transaction(CommandId::Multi, "multi", 1, TRANSACTION)
        .summary("Queues the commands that follow until EXEC."),
    transaction(CommandId::Exec, "exec", 1, EXEC)
        .summary("Executes the commands since MULTI and answers them together."),
    transaction(CommandId::Discard, "discard", 1, TRANSACTION)
        .since("2.0.0")
        .summary("Drops the commands since MULTI."),
    transaction(CommandId::Watch, "watch", -2, TRANSACTION)
        .keys(Keys::Read)
        .since("2.2.0")
        .summary("Makes EXEC depend on keys; here there are none, so none changes."),
    transaction(CommandId::Unwatch, "unwatch", 1, TRANSACTION)
        .since("2.2.0")
        .summary("Ends the effect of WATCH."),
    connection(CommandId::Echo, "echo", 2, ALWAYS_FAST).summary("Answers with its argument."),
    connection(CommandId::Select, "select", 2, ALWAYS_FAST)
        .summary("Chooses a database; Pub/Sub does not care which."),
    connection(CommandId::Quit, "quit", -1, NO_AUTH).summary("Closes the connection."),
    connection(CommandId::Reset, "reset", 1, NO_AUTH)
        .since("6.2.0")
        .summary("Puts the connection into the state in which it started."),
    server(CommandId::Info, "info", -1, ALWAYS)
        .category(Category::Dangerous)
        .tips(INFO_TIPS)
        .summary("Reports on the server."),
    server(CommandId::Container, "config", -2, &[])
        .since("2.0.0")
        .summary("Reports the configuration of the server.")
        .subcommands(CONFIG),
    server(CommandId::Command, "command", -1, ALWAYS)
        .category(Category::Connection)
        .tips(NONDETERMINISTIC_ORDER)
        .since("2.8.13")
        .summary("Describes all commands.")
        .subcommands(COMMAND),
    scripting(CommandId::Eval, "eval", EVAL)
        .keys(Keys::Counted)
        .summary("Runs a script: one that publishes to several channels, and no other."),
    scripting(CommandId::Evalsha, "evalsha", EVAL)
        .keys(Keys::Counted)
        .summary("Runs a script that EVAL or SCRIPT LOAD had, by its digest."),
    XRANGE,
    XREVRANGE,
    XLEN,
    XINFO,
    container("script", Group::Scripting, "2.6.0", SCRIPT)
        .summary("Remembers and forgets scripts."),
    container("cluster", Group::Cluster, "3.0.0", CLUSTER)
        .summary("Is refused: this is no node of a Redis cluster."),
    cluster("readonly", &[Flag::Loading, Flag::Stale, Flag::Fast]),
    cluster("readwrite", &[Flag::Loading, Flag::Stale, Flag::Fast]),
    cluster("asking", &[Flag::Fast]),
    server(CommandId::Time, "time", 1, ALWAYS_FAST)
        .tips(NONDETERMINISTIC)
        .since("2.6.0")
        .summary("Returns the time of the server."),
    server(CommandId::Role, "role", 1, &[Flag::Noscript, Flag::Loading, Flag::Stale, Flag::Fast])
        .category(Category::Admin)
        .since("2.8.12")
        .summary("Returns the role in a replication: a master without replicas."),
    spec(CommandId::Wait, "wait", 3, &[Flag::Blocking], Group::Generic, Category::Connection)
        .tips(&["request_policy:all_shards", "response_policy:agg_min"])
        .since("3.0.0")
        .summary("Waits for replicas; here there are none."),
    container("acl", Group::Server, "6.0.0", ACL).summary("Reports the user."),
    server(CommandId::Zero, "dbsize", 1, &[Flag::Readonly, Flag::Fast])
        .category(Category::Keyspace)
        .tips(&["request_policy:all_shards", "response_policy:agg_sum"])
        .summary("Counts keys; here there are none."),
    server(CommandId::Lastsave, "lastsave", 1, ALWAYS_FAST)
        .category(Category::Admin)
        .tips(NONDETERMINISTIC)
        .summary("Returns when the server started, because nothing is saved."),
    container("slowlog", Group::Server, "2.2.12", SLOWLOG)
        .summary("Reports slow commands; here none are kept."),
    container("memory", Group::Server, "4.0.0", MEMORY)
        .summary("Reports the memory of keys; here there are none."),
    container("module", Group::Server, "4.0.0", MODULE)
        .summary("Reports Redis' modules; here there are none."),
    container("latency", Group::Server, "2.8.13", LATENCY)
        .summary("Reports slow events; here none are kept."),
];

pub(super) const fn container(
    name: &'static str,
    group: Group,
    since: &'static str,
    subcommands: &'static [CommandSpec],
) -> CommandSpec {
    spec(CommandId::Container, name, -2, &[], group, Category::None)
        .since(since)
        .subcommands(subcommands)
}

const fn scripting(id: CommandId, name: &'static str, flags: &'static [Flag]) -> CommandSpec {
    spec(id, name, -3, flags, Group::Scripting, Category::Scripting).since("2.6.0")
}

const fn cluster(name: &'static str, flags: &'static [Flag]) -> CommandSpec {
    spec(CommandId::Cluster, name, 1, flags, Group::Cluster, Category::Connection)
        .since("3.0.0")
        .summary("Is refused: this is no node of a Redis cluster.")
}

static PUBSUB: &[CommandSpec] = &[
    pubsub(CommandId::PubsubChannels, "pubsub|channels", -2, INTROSPECTION)
        .since("2.8.0")
        .summary("Lists the channels with subscribers."),
    pubsub(CommandId::PubsubNumsub, "pubsub|numsub", -2, INTROSPECTION)
        .since("2.8.0")
        .summary("Counts the subscribers of channels."),
    pubsub(CommandId::PubsubNumpat, "pubsub|numpat", 2, INTROSPECTION)
        .since("2.8.0")
        .summary("Counts the patterns with subscribers."),
    pubsub(CommandId::PubsubShardchannels, "pubsub|shardchannels", -2, INTROSPECTION)
        .since("7.0.0")
        .summary("Lists the shard channels with subscribers."),
    pubsub(CommandId::PubsubShardnumsub, "pubsub|shardnumsub", -2, INTROSPECTION)
        .since("7.0.0")
        .summary("Counts the subscribers of shard channels."),
    pubsub(CommandId::PubsubHelp, "pubsub|help", 2, ALWAYS)
        .since("6.2.0")
        .summary("Lists the sub-commands."),
];

static CLIENT: &[CommandSpec] = &[
    connection(CommandId::ClientId, "client|id", 2, CONNECTION)
        .since("5.0.0")
        .summary("Returns the id of the connection."),
    connection(CommandId::ClientGetname, "client|getname", 2, CONNECTION)
        .since("2.6.9")
        .summary("Returns the name of the connection."),
    connection(CommandId::ClientSetname, "client|setname", 3, CONNECTION)
        .tips(ALL_NODES)
        .since("2.6.9")
        .summary("Names the connection."),
    connection(CommandId::ClientSetinfo, "client|setinfo", 4, CONNECTION)
        .tips(ALL_NODES)
        .since("7.2.0")
        .summary("Says which library the connection is made with."),
    connection(CommandId::ClientReply, "client|reply", 3, CONNECTION)
        .since("3.2.0")
        .summary("Turns replies on and off."),
    connection(CommandId::ClientInfo, "client|info", 2, CONNECTION)
        .tips(NONDETERMINISTIC)
        .since("6.2.0")
        .summary("Describes the connection."),
    connection(CommandId::ClientList, "client|list", -2, ADMIN)
        .tips(NONDETERMINISTIC)
        .since("2.4.0")
        .summary("Describes all connections."),
    connection(CommandId::ClientNoEvict, "client|no-evict", 3, ADMIN)
        .since("7.0.0")
        .summary("Spares the connection when memory is short; here none is closed for that."),
    connection(CommandId::ClientNoTouch, "client|no-touch", 3, CONNECTION)
        .since("7.2.0")
        .summary("Leaves the age of keys alone; here there are none."),
    connection(CommandId::ClientTracking, "client|tracking", -3, CONNECTION)
        .since("6.0.0")
        .summary("Enables and disables client-side caching; here no key is ever invalidated."),
    connection(CommandId::ClientTrackinginfo, "client|trackinginfo", 2, CONNECTION)
        .since("6.2.0")
        .summary("Describes the client-side caching of the connection."),
    connection(CommandId::ClientCaching, "client|caching", 3, CONNECTION)
        .since("6.0.0")
        .summary("Says whether the keys of the next command are cached."),
    connection(CommandId::ClientGetredir, "client|getredir", 2, CONNECTION)
        .since("6.0.0")
        .summary("Returns the connection to which invalidations are redirected."),
    connection(CommandId::ClientKill, "client|kill", -3, ADMIN)
        .since("2.4.0")
        .summary("Closes connections."),
    connection(CommandId::ClientUnblock, "client|unblock", -3, ADMIN)
        .since("5.0.0")
        .summary("Ends the waiting of a connection."),
    connection(CommandId::Done, "client|unpause", 2, ADMIN)
        .since("6.2.0")
        .summary("Ends a pause of all connections; here there is none."),
    connection(CommandId::ClientHelp, "client|help", 2, ALWAYS)
        .since("5.0.0")
        .summary("Lists the sub-commands."),
];

static CONFIG: &[CommandSpec] = &[
    server(CommandId::ConfigGet, "config|get", -3, ADMIN)
        .since("2.0.0")
        .summary("Returns settings."),
    server(CommandId::ConfigSet, "config|set", -4, ADMIN)
        .tips(ALL_NODES)
        .since("2.0.0")
        .summary("Changes settings."),
    server(CommandId::ConfigResetstat, "config|resetstat", 2, ADMIN)
        .tips(ALL_NODES)
        .since("2.0.0")
        .summary("Sets the statistics of INFO to zero."),
    server(CommandId::ConfigRewrite, "config|rewrite", 2, ADMIN)
        .tips(ALL_NODES)
        .since("2.8.0")
        .summary("Writes the settings to the configuration file."),
    server(CommandId::ConfigHelp, "config|help", 2, ALWAYS)
        .since("5.0.0")
        .summary("Lists the sub-commands."),
];

static COMMAND: &[CommandSpec] = &[
    server(CommandId::CommandCount, "command|count", 2, ALWAYS)
        .category(Category::Connection)
        .since("2.8.13")
        .summary("Counts the commands."),
    server(CommandId::CommandDocs, "command|docs", -2, ALWAYS)
        .category(Category::Connection)
        .tips(NONDETERMINISTIC_ORDER)
        .since("7.0.0")
        .summary("Documents commands."),
    server(CommandId::CommandInfo, "command|info", -2, ALWAYS)
        .category(Category::Connection)
        .tips(NONDETERMINISTIC_ORDER)
        .since("2.8.13")
        .summary("Describes commands."),
    server(CommandId::CommandList, "command|list", -2, ALWAYS)
        .category(Category::Connection)
        .tips(NONDETERMINISTIC_ORDER)
        .since("7.0.0")
        .summary("Lists the names of commands."),
    server(CommandId::CommandGetkeys, "command|getkeys", -3, ALWAYS)
        .category(Category::Connection)
        .since("2.8.13")
        .summary("Returns the keys of a command."),
    server(CommandId::CommandGetkeysandflags, "command|getkeysandflags", -3, ALWAYS)
        .category(Category::Connection)
        .since("7.0.0")
        .summary("Returns the keys of a command, and how it uses them."),
    server(CommandId::CommandHelp, "command|help", 2, ALWAYS)
        .category(Category::Connection)
        .since("5.0.0")
        .summary("Lists the sub-commands."),
];

const fn pubsub(
    id: CommandId,
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
) -> CommandSpec {
    spec(id, name, arity, flags, Group::Pubsub, Category::None)
}

const fn connection(
    id: CommandId,
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
) -> CommandSpec {
    spec(id, name, arity, flags, Group::Connection, Category::Connection)
}

const fn transaction(
    id: CommandId,
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
) -> CommandSpec {
    spec(id, name, arity, flags, Group::Transactions, Category::Transaction).since("1.2.0")
}

const fn server(
    id: CommandId,
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
) -> CommandSpec {
    spec(id, name, arity, flags, Group::Server, Category::None)
}

pub(super) const fn spec(
    id: CommandId,
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
    group: Group,
    category: Category,
) -> CommandSpec {
    CommandSpec {
        id,
        name,
        arity,
        flags,
        category,
        tips: &[],
        keys: Keys::None,
        group,
        since: "1.0.0",
        summary: "",
        subcommands: &[],
    }
}

impl CommandSpec {
    const fn category(self, category: Category) -> CommandSpec {
        CommandSpec { category, ..self }
    }

    pub(super) const fn tips(self, tips: &'static [&'static str]) -> CommandSpec {
        CommandSpec { tips, ..self }
    }

    pub(super) const fn keys(self, keys: Keys) -> CommandSpec {
        CommandSpec { keys, ..self }
    }

    pub(super) const fn since(self, since: &'static str) -> CommandSpec {
        CommandSpec { since, ..self }
    }

    pub(super) const fn summary(self, summary: &'static str) -> CommandSpec {
        CommandSpec { summary, ..self }
    }

    pub(super) const fn subcommands(self, subcommands: &'static [CommandSpec]) -> CommandSpec {
        CommandSpec { subcommands, ..self }
    }
}
