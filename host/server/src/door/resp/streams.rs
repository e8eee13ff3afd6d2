//! The commands of a Redis stream: the history of a channel, as Redis clients read it.

use super::{Resp, Scope, verb};
use crate::session::Session;
use switchyard_protocol::resp::commands::CommandSpec;
use switchyard_protocol::resp::{Arguments, ReplyWriter, streams};
use switchyard_types::command::Command;
use switchyard_types::history::RetainedMessage;
use switchyard_types::position::Position;
use switchyard_types::stream::{InfoEntries, StreamCommand, StreamInfo, StreamReply};

/// How many entries a node of Redis' tree has unless it is configured
/// (`stream-node-max-entries`).
const NODE_ENTRIES: usize = 100;

impl Resp {
    /// The command of a request for the session; none: it is wrong, and was answered.
    pub(super) fn stream_command<'a>(
        &mut self,
        spec: &CommandSpec,
        arguments: Arguments<'a>,
        session: &mut Session,
    ) -> Option<Command<'a>> {
        match streams::parse(spec.id, arguments) {
            // As in Redis, nothing waits in a transaction.
            Ok(Command::Stream(StreamCommand::Read(mut read)))
                if self.scope != Scope::Connection =>
            {
                read.block_ms = None;
                Some(Command::Stream(StreamCommand::Read(read)))
            }
            Ok(command) => Some(command),
            Err(text) => {
                if !self.is_too_fast(spec.name, session) {
                    self.error(session, &text);
                }
                self.is_done(verb(spec), session);
                None
            }
        }
    }
}

/// Writes the reply to a command.
pub(super) fn write(writer: &mut ReplyWriter<'_>, reply: &StreamReply<'_>) {
    match reply {
        StreamReply::Entries(entries) => write_entries(writer, entries),
        StreamReply::Read(found) => {
            writer.map_of_pairs(found.len());
            for (channel, entries) in *found {
                writer.pair();
                writer.bulk(channel);
                write_entries(writer, entries);
            }
        }
        StreamReply::Nothing => writer.null_array(),
        StreamReply::Info(info) => write_info(writer, info),
    }
}

fn write_entries(writer: &mut ReplyWriter<'_>, entries: &[RetainedMessage<'_>]) {
    writer.array(entries.len());
    entries.iter().for_each(|entry| write_entry(writer, entry));
}

fn write_entry(writer: &mut ReplyWriter<'_>, entry: &RetainedMessage<'_>) {
    writer.array(2);
    write_position(writer, entry.position);
    writer.array(2);
    writer.bulk(streams::FIELD);
    writer.bulk(&entry.payload);
}

fn write_position(writer: &mut ReplyWriter<'_>, position: Position) {
    let mut text = Vec::new();
    position.write(&mut text);
    writer.bulk(&text);
}

/// The reply to XINFO STREAM, with all fields that Redis 7.4 has. There is no radix tree: its size is
/// that of one with as many entries.
fn write_info(writer: &mut ReplyWriter<'_>, info: &StreamInfo<'_>) {
    let nodes = info.length.div_ceil(NODE_ENTRIES) as i64;
    writer.map(if matches!(info.entries, InfoEntries::Full(_)) { 9 } else { 10 });
    for (name, number) in [
        ("length", info.length as i64),
        ("radix-tree-keys", nodes),
        ("radix-tree-nodes", nodes + 1),
    ] {
        writer.bulk(name.as_bytes());
        writer.integer(number);
    }
    for (name, position) in
        [("last-generated-id", info.position), ("max-deleted-entry-id", info.deleted)]
    {
        writer.bulk(name.as_bytes());
        write_position(writer, position);
    }
    writer.bulk(b"entries-added");
    writer.integer(info.position.offset as i64);
    writer.bulk(b"recorded-first-entry-id");
    write_position(writer, info.first);
    match &info.entries {
        InfoEntries::Ends(ends) => {
            writer.bulk(b"groups");
            writer.integer(0);
            for (name, entry) in [b"first-entry".as_slice(), b"last-entry"].into_iter().zip(ends) {
                writer.bulk(name);
                match entry {
                    Some(entry) => write_entry(writer, entry),
                    None => writer.null(),
                }
            }
        }
        InfoEntries::Full(entries) => {
            writer.bulk(b"entries");
            write_entries(writer, entries);
            writer.bulk(b"groups");
            writer.array(0);
        }
    }
}
