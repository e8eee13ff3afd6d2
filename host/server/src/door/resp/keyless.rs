//! Commands about what this server does not have: keys, replicas, Redis' cluster, modules, logs of
//! slow commands. The replies are those of a Redis that has none of them.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Resp;
use crate::session::Session;
use switchyard_hub::connections::attributes::USER;
use switchyard_protocol::resp::commands::CommandId;
use switchyard_protocol::resp::{Arguments, errors, parse_integer};

impl Resp {
    /// Executes one of these commands.
    pub(super) fn keyless(&self, id: CommandId, arguments: Arguments<'_>, session: &mut Session) {
        let word = |place| arguments.get(place).unwrap_or_default();
        let since_1970 = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match id {
            CommandId::Cluster => self.error(session, errors::CLUSTER_DISABLED),
            CommandId::Time => {
                let now = since_1970();
                self.reply(session, |reply| {
                    reply.array(2);
                    reply.bulk(now.as_secs().to_string().as_bytes());
                    reply.bulk(now.subsec_micros().to_string().as_bytes());
                });
            }
            CommandId::Role => self.reply(session, |reply| {
                reply.array(3);
                reply.bulk(b"master");
                reply.integer(0);
                reply.array(0);
            }),
            CommandId::AclWhoami => {
                let user = session.connection.attribute(USER).filter(|user| !user.is_empty());
                let user = user.as_deref().unwrap_or("default").as_bytes();
                self.reply(session, |reply| reply.bulk(user));
            }
            CommandId::Wait => match (parse_integer(word(1)), parse_integer(word(2))) {
                (None, _) => self.error(session, errors::NOT_AN_INTEGER),
                (_, None) => self.error(session, errors::TIMEOUT_INVALID),
                (_, Some(..0)) => self.error(session, errors::TIMEOUT_NEGATIVE),
                // There are no replicas that could become as many in time.
                _ => self.reply(session, |reply| reply.integer(0)),
            },
            CommandId::Lastsave => {
                let started = since_1970().saturating_sub(session.services.stats.started.elapsed());
                self.reply(session, |reply| reply.integer(started.as_secs() as i64));
            }
            CommandId::Zero => self.reply(session, |reply| reply.integer(0)),
            CommandId::Nothing => self.reply(session, |reply| reply.array(0)),
            CommandId::Done => self.ok(session),
            CommandId::LatencyGraph => self.error(session, &errors::latency_event_unknown(word(2))),
            CommandId::SlowlogGet if arguments.len() > 3 => {
                self.error(session, &errors::wrong_subcommand_arity(word(0), word(1)));
            }
            CommandId::SlowlogGet => {
                match arguments.get(2).map_or(Some(0), parse_integer).filter(|count| *count >= -1) {
                    Some(_) => self.reply(session, |reply| reply.array(0)),
                    None => self.error(session, errors::SLOWLOG_COUNT),
                }
            }
            CommandId::MemoryUsage => {
                let options: Vec<&[u8]> = arguments.skip(3).iter().collect();
                for option in options.chunks(2) {
                    match option {
                        [name, count] if name.eq_ignore_ascii_case(b"SAMPLES") => {
                            match parse_integer(count) {
                                None => return self.error(session, errors::NOT_AN_INTEGER),
                                Some(..0) => return self.error(session, errors::SYNTAX),
                                Some(_) => {}
                            }
                        }
                        _ => return self.error(session, errors::SYNTAX),
                    }
                }
                self.reply(session, |reply| reply.null());
            }
            _ => self.error(session, errors::SYNTAX),
        }
    }
}
