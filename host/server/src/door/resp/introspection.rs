//! COMMAND and the HELP sub-commands: what the server says about its commands.

use super::Resp;
use crate::session::Session;
use guest_core::glob;
use switchyard_protocol::resp::commands::{self, CommandError, CommandId, CommandSpec, Keys};
use switchyard_protocol::resp::{Arguments, command_info, errors, help, parse_integer};

impl Resp {
    /// COMMAND, its sub-commands, and HELP of all containers.
    pub(super) fn introspect(
        &self,
        id: CommandId,
        arguments: Arguments<'_>,
        session: &mut Session,
    ) {
        match id {
            CommandId::Command => self.command_infos(commands::all().iter().map(Some), session),
            CommandId::CommandCount => {
                self.reply(session, |reply| reply.integer(commands::all().len() as i64));
            }
            CommandId::CommandInfo if arguments.len() == 2 => {
                self.command_infos(commands::all().iter().map(Some), session);
            }
            CommandId::CommandInfo => {
                let specs = arguments.skip(2).iter().map(commands::by_full_name);
                self.command_infos(specs, session);
            }
            CommandId::CommandDocs => self.command_docs(arguments, session),
            CommandId::CommandList => self.command_list(arguments, session),
            CommandId::PubsubHelp => self.help(session, "pubsub", help::PUBSUB),
            CommandId::ClientHelp => self.help(session, "client", help::CLIENT),
            CommandId::ConfigHelp => self.help(session, "config", help::CONFIG),
            CommandId::CommandHelp => self.help(session, "command", help::COMMAND),
            CommandId::CommandGetkeys => self.command_keys(arguments.skip(2), false, session),
            CommandId::CommandGetkeysandflags => {
                self.command_keys(arguments.skip(2), true, session);
            }
            CommandId::AclHelp => self.help(session, "acl", help::ACL),
            CommandId::LatencyHelp => self.help(session, "latency", help::LATENCY),
            CommandId::MemoryHelp => self.help(session, "memory", help::MEMORY),
            CommandId::ModuleHelp => self.help(session, "module", help::MODULE),
            CommandId::ScriptHelp => self.help(session, "script", help::SCRIPT),
            CommandId::XinfoHelp => self.help(session, "xinfo", help::XINFO),
            CommandId::SlowlogHelp => self.help(session, "slowlog", help::SLOWLOG),
            _ => self.error(session, errors::SYNTAX),
        }
    }

    fn command_infos(
        &self,
        specs: impl ExactSizeIterator<Item = Option<&'static CommandSpec>>,
        session: &mut Session,
    ) {
        self.reply(session, |reply| {
            reply.array(specs.len());
            specs.for_each(|spec| command_info::write_info(reply, spec));
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
        let word = |place| arguments.get(place).unwrap_or_default().to_ascii_lowercase();
        let (filter, value) = (word(3), word(4));
        let has = |spec: &&CommandSpec| match filter.as_slice() {
            b"" => true,
            b"aclcat" => command_info::categories(spec)
                .any(|category| category.as_bytes().get(1..) == Some(value.as_slice())),
            b"pattern" => glob::matches(&value, spec.name.as_bytes()),
            // There are no modules.
            _ => false,
        };
        let is_filter = matches!(filter.as_slice(), b"aclcat" | b"pattern" | b"module");
        match arguments.len() {
            2 => {}
            5 if word(2) == b"filterby" && is_filter => {}
            _ => return self.error(session, errors::SYNTAX),
        }
        let names = commands::all()
            .iter()
            .flat_map(|spec| std::iter::once(spec).chain(spec.subcommands))
            .filter(has)
            .map(|spec| spec.name.as_bytes());
        self.reply(session, |reply| {
            reply.array(names.clone().count());
            names.for_each(|name| reply.bulk(name));
        });
    }

    /// COMMAND GETKEYS and GETKEYSANDFLAGS of a command with its arguments.
    fn command_keys(&self, command: Arguments<'_>, with_flags: bool, session: &mut Session) {
        let spec = match commands::lookup(command) {
            Ok(spec) => spec,
            Err(CommandError::WrongArity(spec)) => spec,
            Err(_) => return self.error(session, errors::GETKEYS_UNKNOWN),
        };
        let all = command.len();
        let (keys, flags) = match spec.keys {
            // Channels are no keys.
            Keys::None | Keys::First | Keys::All => (None, ["RO"].as_slice()),
            Keys::Read => (Some(1..all), ["RO"].as_slice()),
            Keys::Second => (Some(2..3), ["RO"].as_slice()),
            Keys::One { place, flags, .. } => (Some(place..place + 1), flags),
            Keys::Streams => {
                let word = |word: &[u8]| word.eq_ignore_ascii_case(b"STREAMS");
                let start = command.iter().skip(1).position(word).map_or(all, |place| place + 2);
                let count = all.saturating_sub(start) / 2;
                if count == 0 && spec.takes(all) {
                    return self.error(session, errors::GETKEYS_INVALID);
                }
                (Some(start..start + count), command_info::STREAM_KEY_FLAGS)
            }
            Keys::Counted => {
                let count = command.get(2).and_then(parse_integer).unwrap_or(0);
                let end = usize::try_from(count).ok().map(|count| 3 + count);
                let end = end.filter(|end| *end <= all).unwrap_or(3);
                (Some(3..end), command_info::SCRIPT_KEY_FLAGS)
            }
        };
        let Some(keys) = keys else { return self.error(session, errors::GETKEYS_NONE) };
        if !spec.takes(all) {
            return self.error(session, errors::GETKEYS_ARITY);
        }
        self.reply(session, |reply| {
            reply.array(keys.len());
            for key in keys.filter_map(|place| command.get(place)) {
                if with_flags {
                    reply.array(2);
                }
                reply.bulk(key);
                if with_flags {
                    reply.set(flags.len());
                    flags.iter().for_each(|flag| reply.simple(flag));
                }
            }
        });
    }

    fn help(&self, session: &mut Session, container: &str, lines: &[&str]) {
        self.reply(session, |reply| help::write(reply, container, lines));
    }
}
