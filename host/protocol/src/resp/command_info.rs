//! The replies to COMMAND INFO and COMMAND DOCS.
//!
//! Clients and proxies read them to learn about commands, so their structure is that of Redis,
//! including which aggregates are sets in RESP3.

use super::commands::{Category, CommandSpec, Flag, Group, Keys};
use super::reply::ReplyWriter;

/// The element of COMMAND, and of COMMAND INFO, that describes a command and its
/// sub-commands; null for a name that no command has.
pub fn write_info(reply: &mut ReplyWriter<'_>, spec: Option<&CommandSpec>) {
    let Some(spec) = spec else {
        return reply.null();
    };
    let (first, last, step) = match spec.keys {
        Keys::None | Keys::Counted | Keys::Streams => (0, 0, 0),
        Keys::First => (1, 1, 1),
        Keys::All | Keys::Read => (1, -1, 1),
        Keys::Second => (2, 2, 1),
        Keys::One { place, .. } => (place as i64, place as i64, 1),
    };
    reply.array(10);
    reply.bulk(spec.name.as_bytes());
    reply.integer(spec.arity);
    reply.set(spec.flags.len());
    for flag in spec.flags {
        reply.simple(flag_name(*flag));
    }
    reply.integer(first);
    reply.integer(last);
    reply.integer(step);
    reply.set(categories(spec).count());
    for category in categories(spec) {
        reply.simple(category);
    }
    reply.set(spec.tips.len());
    for tip in spec.tips {
        reply.bulk(tip.as_bytes());
    }
    match spec.keys {
        Keys::None => reply.set(0),
        Keys::First => write_key_specification(reply, "", &["not_key"], 1, 0),
        Keys::All => write_key_specification(reply, "", &["not_key"], 1, -1),
        Keys::Read => write_key_specification(reply, "", &["RO"], 1, -1),
        Keys::Second => write_key_specification(reply, "", &["RO"], 2, 0),
        Keys::One { place, flags, notes } => {
            write_key_specification(reply, notes, flags, place as i64, 0);
        }
        Keys::Counted => write_counted_keys(reply),
        Keys::Streams => write_streams(reply),
    }
    match spec.subcommands {
        [] => reply.set(0),
        subcommands => {
            reply.array(subcommands.len());
            for subcommand in subcommands {
                write_info(reply, Some(subcommand));
            }
        }
    }
}

/// The key and the value of a command in COMMAND DOCS, with its sub-commands.
pub fn write_docs(reply: &mut ReplyWriter<'_>, spec: &CommandSpec) {
    let group = match spec.group {
        Group::Connection => "connection",
        Group::Pubsub => "pubsub",
        Group::Server => "server",
        Group::Transactions => "transactions",
        Group::Scripting => "scripting",
        Group::Cluster => "cluster",
        Group::Stream => "stream",
        Group::Generic => "generic",
    };
    reply.bulk(spec.name.as_bytes());
    reply.map(if spec.subcommands.is_empty() { 3 } else { 4 });
    for (key, value) in [("summary", spec.summary), ("since", spec.since), ("group", group)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
    if !spec.subcommands.is_empty() {
        reply.bulk(b"subcommands");
        reply.map(spec.subcommands.len());
        for subcommand in spec.subcommands {
            write_docs(reply, subcommand);
        }
    }
}

/// The ACL categories of a command, with their at signs, in the order in which
/// Redis lists them.
pub fn categories(spec: &CommandSpec) -> impl Iterator<Item = &'static str> {
    let has = |flag| spec.flags.contains(&flag);
    let admin = has(Flag::Admin) || spec.category == Category::Admin;
    [
        (spec.category == Category::Keyspace).then_some("@keyspace"),
        has(Flag::Readonly).then_some("@read"),
        has(Flag::Write).then_some("@write"),
        (spec.category == Category::Stream).then_some("@stream"),
        has(Flag::Pubsub).then_some("@pubsub"),
        admin.then_some("@admin"),
        Some(if has(Flag::Fast) { "@fast" } else { "@slow" }),
        has(Flag::Blocking).then_some("@blocking"),
        (admin || spec.category == Category::Dangerous).then_some("@dangerous"),
        (spec.category == Category::Connection).then_some("@connection"),
        (spec.category == Category::Transaction).then_some("@transaction"),
        (spec.category == Category::Scripting).then_some("@scripting"),
    ]
    .into_iter()
    .flatten()
}

fn flag_name(flag: Flag) -> &'static str {
    match flag {
        Flag::Admin => "admin",
        Flag::Pubsub => "pubsub",
        Flag::Noscript => "noscript",
        Flag::Loading => "loading",
        Flag::Stale => "stale",
        Flag::Fast => "fast",
        Flag::NoAuth => "no_auth",
        Flag::AllowBusy => "allow_busy",
        Flag::SkipSlowlog => "skip_slowlog",
        Flag::SkipMonitor => "skip_monitor",
        Flag::Readonly => "readonly",
        Flag::Write => "write",
        Flag::Denyoom => "denyoom",
        Flag::Blocking => "blocking",
        Flag::NoMandatoryKeys => "no_mandatory_keys",
        Flag::MovableKeys => "movablekeys",
        Flag::NoAsyncLoading => "no_async_loading",
    }
}

/// The positions of keys, and how they are used: from the argument `first` to `last_key` (0: only
/// that one; -1: to the end).
fn write_key_specification(
    reply: &mut ReplyWriter<'_>,
    notes: &str,
    flags: &[&'static str],
    first: i64,
    last_key: i64,
) {
    reply.set(1);
    reply.map(if notes.is_empty() { 3 } else { 4 });
    if !notes.is_empty() {
        reply.bulk(b"notes");
        reply.bulk(notes.as_bytes());
    }
    write_flags(reply, flags);
    reply.bulk(b"begin_search");
    write_search(reply, "index", &[("index", first)]);
    reply.bulk(b"find_keys");
    write_search(reply, "range", &[("lastkey", last_key), ("keystep", 1), ("limit", 0)]);
}

/// The positions of the keys of XREAD.
fn write_streams(reply: &mut ReplyWriter<'_>) {
    reply.set(1);
    reply.map(3);
    write_flags(reply, STREAM_KEY_FLAGS);
    reply.bulk(b"begin_search");
    reply.map(2);
    reply.bulk(b"type");
    reply.bulk(b"keyword");
    reply.bulk(b"spec");
    reply.map(2);
    reply.bulk(b"keyword");
    reply.bulk(b"STREAMS");
    reply.bulk(b"startfrom");
    reply.integer(1);
    reply.bulk(b"find_keys");
    write_search(reply, "range", &[("lastkey", -1), ("keystep", 1), ("limit", 2)]);
}

fn write_flags(reply: &mut ReplyWriter<'_>, flags: &[&'static str]) {
    reply.bulk(b"flags");
    reply.set(flags.len());
    flags.iter().for_each(|flag| reply.simple(flag));
}

/// The positions of the keys of scripts.
fn write_counted_keys(reply: &mut ReplyWriter<'_>) {
    reply.set(1);
    reply.map(3);
    write_flags(reply, SCRIPT_KEY_FLAGS);
    reply.bulk(b"begin_search");
    write_search(reply, "index", &[("index", 2)]);
    reply.bulk(b"find_keys");
    write_search(reply, "keynum", &[("keynumidx", 0), ("firstkey", 1), ("keystep", 1)]);
}

/// How the entries of a stream are read.
pub const STREAM_KEY_FLAGS: &[&str] = &["RO", "access"];

/// How scripts may use their keys.
pub const SCRIPT_KEY_FLAGS: &[&str] = &["RW", "access", "update"];

fn write_search(reply: &mut ReplyWriter<'_>, kind: &str, parameters: &[(&str, i64)]) {
    reply.map(2);
    reply.bulk(b"type");
    reply.bulk(kind.as_bytes());
    reply.bulk(b"spec");
    reply.map(parameters.len());
    for (name, value) in parameters {
        reply.bulk(name.as_bytes());
        reply.integer(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::super::RespVersion;
    use super::super::commands::by_full_name;
    use super::*;

    /// Compares with the replies of a real server of version 7.4.0, line by line.
    #[track_caller]
    fn check(version: RespVersion, name: &str, expected: &str) {
        let mut out = Vec::new();
        write_info(&mut ReplyWriter::new(&mut out, version), by_full_name(name.as_bytes()));
        let lines = String::from_utf8_lossy(&out).replace("\r\n", " ");
        assert_eq!(lines.trim_end(), expected);
    }

    #[test]
    fn describes_commands() {
        check(
            RespVersion::Resp3,
            "publish",
            "*10 $7 publish :3 ~4 +pubsub +loading +stale +fast :0 :0 :0 ~2 +@pubsub +@fast ~0 ~0 \
             ~0",
        );
        check(
            RespVersion::Resp3,
            "config|get",
            "*10 $10 config|get :-3 ~4 +admin +noscript +loading +stale :0 :0 :0 ~3 +@admin +@slow \
             +@dangerous ~0 ~0 ~0",
        );
        check(
            RespVersion::Resp3,
            "command|docs",
            "*10 $12 command|docs :-2 ~2 +loading +stale :0 :0 :0 ~2 +@slow +@connection ~1 $29 \
             nondeterministic_output_order ~0 ~0",
        );
        check(
            RespVersion::Resp3,
            "ssubscribe",
            "*10 $10 ssubscribe :-2 ~4 +pubsub +noscript +loading +stale :1 :-1 :1 ~2 +@pubsub \
             +@slow ~0 ~1 %3 $5 flags ~1 +not_key $12 begin_search %2 $4 type $5 index $4 spec %1 \
             $5 index :1 $9 find_keys %2 $4 type $5 range $4 spec %3 $7 lastkey :-1 $7 keystep :1 \
             $5 limit :0 ~0",
        );
        check(
            RespVersion::Resp2,
            "ssubscribe",
            "*10 $10 ssubscribe :-2 *4 +pubsub +noscript +loading +stale :1 :-1 :1 *2 +@pubsub \
             +@slow *0 *1 *6 $5 flags *1 +not_key $12 begin_search *4 $4 type $5 index $4 spec *2 \
             $5 index :1 $9 find_keys *4 $4 type $5 range $4 spec *6 $7 lastkey :-1 $7 keystep :1 \
             $5 limit :0 *0",
        );
        check(RespVersion::Resp2, "nothing", "$-1");
        check(RespVersion::Resp3, "nothing", "_");
    }
}
