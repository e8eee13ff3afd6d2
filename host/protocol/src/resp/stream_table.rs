//! The commands of a Redis stream, by which clients read the history of channels and append to it.

use super::command_info::STREAM_KEY_FLAGS;
use super::command_table::{ALWAYS, NONDETERMINISTIC, container, spec};
use super::commands::{Category, CommandId, CommandSpec, Flag, Group, Keys};

const READ: &[Flag] = &[Flag::Readonly];

/// `XADD`
pub(super) const XADD: CommandSpec =
    stream(CommandId::Xadd, "xadd", -5, &[Flag::Write, Flag::Denyoom, Flag::Fast])
        .keys(Keys::One {
            place: 1,
            flags: &["RW", "update"],
            notes: "UPDATE instead of INSERT because of the optional trimming feature",
        })
        .tips(NONDETERMINISTIC)
        .summary("Sends a message to a channel with history, and returns its ID.");

/// `XREAD`
pub(super) const XREAD: CommandSpec =
    stream(CommandId::Xread, "xread", -4, &[Flag::Readonly, Flag::Blocking, Flag::MovableKeys])
        .keys(Keys::Streams)
        .summary("Returns the messages of channels after an ID, or waits for some.");

/// `XRANGE`
pub(super) const XRANGE: CommandSpec = stream(CommandId::Xrange, "xrange", -4, READ)
    .keys(accessed(1))
    .summary("Returns the messages of a channel between two IDs.");

/// `XREVRANGE`
pub(super) const XREVRANGE: CommandSpec = stream(CommandId::Xrevrange, "xrevrange", -4, READ)
    .keys(accessed(1))
    .summary("Returns the messages of a channel between two IDs, the newest first.");

/// `XLEN`
pub(super) const XLEN: CommandSpec =
    stream(CommandId::Xlen, "xlen", 2, &[Flag::Readonly, Flag::Fast])
        .keys(Keys::One { place: 1, flags: &["RO"], notes: "" })
        .summary("Counts the messages that are kept of a channel.");

/// `XINFO`
pub(super) const XINFO: CommandSpec = container("xinfo", Group::Stream, "5.0.0", INFO)
    .summary("Describes what is kept of a channel.");

static INFO: &[CommandSpec] = &[
    stream(CommandId::XinfoStream, "xinfo|stream", -3, READ)
        .keys(accessed(2))
        .summary("Describes what is kept of a channel."),
    stream(CommandId::XinfoHelp, "xinfo|help", 2, ALWAYS).summary("Lists the sub-commands."),
];

const fn accessed(place: usize) -> Keys {
    Keys::One { place, flags: STREAM_KEY_FLAGS, notes: "" }
}

const fn stream(
    id: CommandId,
    name: &'static str,
    arity: i64,
    flags: &'static [Flag],
) -> CommandSpec {
    spec(id, name, arity, flags, Group::Stream, Category::Stream).since("5.0.0")
}
