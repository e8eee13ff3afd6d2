//! The command table, with everything that COMMAND reports.
//!
//! Names, arities, flags, tips and keys are those of Redis 7.4, and so is the set of sub-commands,
//! as far as they are supported. The most frequent commands come first.

use super::commands::{Category, CommandId, CommandSpec, Flag, Group, Keys};

/// Allowed at any time.
const ALWAYS: &[Flag] = &[Flag::Loading, Flag::Stale];
const ALWAYS_FAST: &[Flag] = &[Flag::Loading, Flag::Stale, Flag::Fast];
const CONNECTION: &[Flag] = &[Flag::Noscript, Flag::Loading, Flag::Stale];
const ADMIN: &[Flag] = &[Flag::Admin, Flag::Noscript, Flag::Loading, Flag::Stale];
const SUBSCRIBE: &[Flag] = &[Flag::Pubsub, Flag::Noscript, Flag::Loading, Flag::Stale];
const PUBLISH: &[Flag] = &[Flag::Pubsub, Flag::Loading, Flag::Stale, Flag::Fast];
const INTROSPECTION: &[Flag] = &[Flag::Pubsub, Flag::Loading, Flag::Stale];
const NO_AUTH: &[Flag] =
    &[Flag::Noscript, Flag::Loading, Flag::Stale, Flag::Fast, Flag::NoAuth, Flag::AllowBusy];

const NONDETERMINISTIC: &[&str] = &["nondeterministic_output"];
const NONDETERMINISTIC_ORDER: &[&str] = &["nondeterministic_output_order"];
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
];

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

const fn server(
    id: CommandId,
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
) -> CommandSpec {
    spec(id, name, arity, flags, Group::Server, Category::None)
}

const fn spec(
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

    const fn tips(self, tips: &'static [&'static str]) -> CommandSpec {
        CommandSpec { tips, ..self }
    }

    const fn keys(self, keys: Keys) -> CommandSpec {
        CommandSpec { keys, ..self }
    }

    const fn since(self, since: &'static str) -> CommandSpec {
        CommandSpec { since, ..self }
    }

    const fn summary(self, summary: &'static str) -> CommandSpec {
        CommandSpec { summary, ..self }
    }

    const fn subcommands(self, subcommands: &'static [CommandSpec]) -> CommandSpec {
        CommandSpec { subcommands, ..self }
    }
}
