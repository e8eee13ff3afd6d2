//! The commands about what a server without keys does not have, and scripts: the rest of the table.

use super::command_table::spec;
use super::command_table::{ADMIN, ALWAYS, CONNECTION, NONDETERMINISTIC, NONDETERMINISTIC_ORDER};
use super::commands::{Category, CommandId, CommandSpec, Flag, Group, Keys};

const ADMIN_STALE: &[Flag] = &[Flag::Admin, Flag::Stale];
const CLUSTER_CHANGE: &[Flag] = &[Flag::Admin, Flag::Stale, Flag::NoAsyncLoading];
const STALE: &[Flag] = &[Flag::Stale];
const SLOWLOG_FLAGS: &[Flag] = &[Flag::Admin, Flag::Loading, Flag::Stale];
const SCRIPT_FLAGS: &[Flag] = &[Flag::Noscript];

const HELP: &str = "Lists the sub-commands.";
const REFUSED: &str = "Is refused: this is no node of a Redis cluster.";
const LATENCY_TIPS: &[&str] =
    &["nondeterministic_output", "request_policy:all_nodes", "response_policy:special"];

/// `SCRIPT`
pub(super) static SCRIPT: &[CommandSpec] = &[
    script(CommandId::ScriptLoad, "script|load", 3, &[Flag::Noscript, Flag::Stale])
        .tips(&["request_policy:all_nodes", "response_policy:all_succeeded"])
        .summary("Remembers the one script that is served, for EVALSHA."),
    script(CommandId::ScriptExists, "script|exists", -3, SCRIPT_FLAGS)
        .tips(&["request_policy:all_shards", "response_policy:agg_logical_and"])
        .summary("Says which scripts EVALSHA knows."),
    script(CommandId::ScriptFlush, "script|flush", -2, SCRIPT_FLAGS)
        .tips(&["request_policy:all_nodes", "response_policy:all_succeeded"])
        .summary("Forgets the scripts that EVALSHA knows."),
    script(CommandId::ScriptKill, "script|kill", 2, &[Flag::Noscript, Flag::AllowBusy])
        .tips(&["request_policy:all_shards", "response_policy:one_succeeded"])
        .summary("Ends a script; none runs for long."),
    script(CommandId::ScriptHelp, "script|help", 2, ALWAYS).since("5.0.0").summary(HELP),
];

/// `CLUSTER`
pub(super) static CLUSTER: &[CommandSpec] = &[
    cluster("cluster|addslots", -3, CLUSTER_CHANGE),
    cluster("cluster|addslotsrange", -4, CLUSTER_CHANGE).since("7.0.0"),
    cluster("cluster|bumpepoch", 2, CLUSTER_CHANGE).tips(NONDETERMINISTIC),
    cluster("cluster|count-failure-reports", 3, ADMIN_STALE).tips(NONDETERMINISTIC),
    cluster("cluster|countkeysinslot", 3, STALE),
    cluster("cluster|delslots", -3, CLUSTER_CHANGE),
    cluster("cluster|delslotsrange", -4, CLUSTER_CHANGE).since("7.0.0"),
    cluster("cluster|failover", -2, CLUSTER_CHANGE),
    cluster("cluster|flushslots", 2, CLUSTER_CHANGE),
    cluster("cluster|forget", 3, CLUSTER_CHANGE),
    cluster("cluster|getkeysinslot", 4, STALE).tips(NONDETERMINISTIC),
    cluster("cluster|help", 2, ALWAYS).since("5.0.0"),
    cluster("cluster|info", 2, STALE).tips(NONDETERMINISTIC),
    cluster("cluster|keyslot", 3, STALE),
    cluster("cluster|links", 2, STALE).since("7.0.0").tips(NONDETERMINISTIC),
    cluster("cluster|meet", -4, CLUSTER_CHANGE),
    cluster("cluster|myid", 2, STALE),
    cluster("cluster|myshardid", 2, STALE).since("7.2.0").tips(NONDETERMINISTIC),
    cluster("cluster|nodes", 2, STALE).tips(NONDETERMINISTIC),
    cluster("cluster|replicas", 3, ADMIN_STALE).since("5.0.0").tips(NONDETERMINISTIC),
    cluster("cluster|replicate", 3, CLUSTER_CHANGE),
    cluster("cluster|reset", -2, &[Flag::Admin, Flag::Noscript, Flag::Stale]),
    cluster("cluster|saveconfig", 2, CLUSTER_CHANGE),
    cluster("cluster|set-config-epoch", 3, CLUSTER_CHANGE),
    cluster("cluster|setslot", -4, CLUSTER_CHANGE),
    cluster("cluster|shards", 2, STALE).since("7.0.0").tips(NONDETERMINISTIC),
    cluster("cluster|slaves", 3, ADMIN_STALE).tips(NONDETERMINISTIC),
    cluster("cluster|slots", 2, STALE).tips(NONDETERMINISTIC),
];

/// `ACL`
pub(super) static ACL: &[CommandSpec] = &[
    server(CommandId::AclWhoami, "acl|whoami", 2, CONNECTION)
        .since("6.0.0")
        .summary("Returns the user of the connection."),
    server(CommandId::AclHelp, "acl|help", 2, ALWAYS).since("6.0.0").summary(HELP),
];

/// `SLOWLOG`
pub(super) static SLOWLOG: &[CommandSpec] = &[
    server(CommandId::SlowlogGet, "slowlog|get", -2, SLOWLOG_FLAGS)
        .tips(&["request_policy:all_nodes", "nondeterministic_output"])
        .since("2.2.12")
        .summary("Lists slow commands; here none are kept."),
    server(CommandId::Zero, "slowlog|len", 2, SLOWLOG_FLAGS)
        .tips(&["request_policy:all_nodes", "response_policy:agg_sum", "nondeterministic_output"])
        .since("2.2.12")
        .summary("Counts slow commands; here none are kept."),
    server(CommandId::Done, "slowlog|reset", 2, SLOWLOG_FLAGS)
        .tips(&["request_policy:all_nodes", "response_policy:all_succeeded"])
        .since("2.2.12")
        .summary("Forgets slow commands; here none are kept."),
    server(CommandId::SlowlogHelp, "slowlog|help", 2, ALWAYS).since("6.2.0").summary(HELP),
];

/// `MEMORY`
pub(super) static MEMORY: &[CommandSpec] = &[
    server(CommandId::MemoryUsage, "memory|usage", -3, &[Flag::Readonly])
        .keys(Keys::Second)
        .since("4.0.0")
        .summary("Returns how much memory a key uses; here there are none."),
    server(CommandId::Done, "memory|purge", 2, &[])
        .tips(&["request_policy:all_shards", "response_policy:all_succeeded"])
        .since("4.0.0")
        .summary("Frees memory that keys no longer use; here there are none."),
    server(CommandId::MemoryHelp, "memory|help", 2, ALWAYS).since("4.0.0").summary(HELP),
];

/// `MODULE`
pub(super) static MODULE: &[CommandSpec] = &[
    server(CommandId::Nothing, "module|list", 2, &[Flag::Admin, Flag::Noscript])
        .tips(NONDETERMINISTIC_ORDER)
        .since("4.0.0")
        .summary("Lists Redis' modules; here there are none."),
    server(CommandId::ModuleHelp, "module|help", 2, ALWAYS).since("5.0.0").summary(HELP),
];

/// `LATENCY`
pub(super) static LATENCY: &[CommandSpec] = &[
    server(CommandId::Nothing, "latency|latest", 2, ADMIN)
        .tips(LATENCY_TIPS)
        .since("2.8.13")
        .summary("Lists the last slow events; here none are kept."),
    server(CommandId::Nothing, "latency|history", 3, ADMIN)
        .tips(LATENCY_TIPS)
        .since("2.8.13")
        .summary("Lists slow events of one kind; here none are kept."),
    server(CommandId::LatencyGraph, "latency|graph", 3, ADMIN)
        .tips(LATENCY_TIPS)
        .since("2.8.13")
        .summary("Draws slow events of one kind; here none are kept."),
    server(CommandId::Zero, "latency|reset", -2, ADMIN)
        .tips(&["request_policy:all_nodes", "response_policy:agg_sum"])
        .since("2.8.13")
        .summary("Forgets slow events; here none are kept."),
    server(CommandId::LatencyHelp, "latency|help", 2, ALWAYS).since("2.8.13").summary(HELP),
];

const fn server(
    id: CommandId,
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
) -> CommandSpec {
    spec(id, name, arity, flags, Group::Server, Category::None)
}

const fn cluster(name: &'static str, arity: i64, flags: &'static [Flag]) -> CommandSpec {
    spec(CommandId::Cluster, name, arity, flags, Group::Cluster, Category::None)
        .since("3.0.0")
        .summary(REFUSED)
}

const fn script(
    id: CommandId,
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
) -> CommandSpec {
    spec(id, name, arity, flags, Group::Scripting, Category::Scripting).since("2.6.0")
}
