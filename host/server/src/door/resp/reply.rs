//! The replies of a session, encoded as Redis does.

use super::streams;
use crate::session::WriteReply;
use switchyard_protocol::resp::{Ack, ReplyWriter, RespVersion, errors};
use switchyard_types::command::{Kind, ListenVerb, NOAUTH, Published, Refusal, Reply, Tag};

/// How replies are encoded now.
#[derive(Debug, Clone, Copy)]
pub struct RespReplies {
    version: RespVersion,
    /// CLIENT REPLY OFF or SKIP: replies are left out, acknowledgements are not.
    is_muted: bool,
    is_subscribed_in_resp2: bool,
}

impl RespReplies {
    pub fn new(version: RespVersion, is_muted: bool) -> RespReplies {
        RespReplies { version, is_muted, is_subscribed_in_resp2: false }
    }

    pub fn while_subscribed(self, is_subscribed_in_resp2: bool) -> RespReplies {
        RespReplies { is_subscribed_in_resp2, ..self }
    }
}

impl WriteReply for RespReplies {
    fn write(&self, _: Tag, reply: &Reply<'_>, output: &mut Vec<u8>) {
        let mut writer = ReplyWriter::new(output, self.version);
        match reply {
            Reply::Listening { verb, acks, .. } => {
                for (name, count) in *acks {
                    writer.ack(ack(*verb), name.as_deref(), *count as usize);
                }
            }
            _ if self.is_muted => {}
            Reply::Published(number) | Reply::Number(number) => writer.integer(*number as i64),
            // XADD.
            Reply::PublishedWith(Published { position: Some(position), .. }) => {
                writer.bulk(position.to_string().as_bytes());
            }
            Reply::PublishedWith(Published { position: None, .. }) => writer.null(),
            Reply::Resumed(_) | Reply::History(_) | Reply::Presence(_) | Reply::True => {
                unreachable!("no command of Redis has this reply")
            }
            Reply::Stream(reply) => streams::write(&mut writer, reply),
            Reply::Names(names) => {
                writer.array(names.len());
                names.iter().for_each(|name| writer.bulk(name));
            }
            Reply::Counts(names, counts) => {
                writer.array(2 * names.len());
                for (name, count) in names.iter().zip(*counts) {
                    writer.bulk(name);
                    writer.integer(*count as i64);
                }
            }
            Reply::Pong(text) if self.is_subscribed_in_resp2 => {
                writer.subscribed_pong(text.unwrap_or_default());
            }
            Reply::Pong(Some(text)) => writer.bulk(text),
            Reply::Pong(None) => writer.simple("PONG"),
            // The door replies to HELLO, because it knows the fields.
            Reply::Ok | Reply::Hello(_) => writer.simple("OK"),
            Reply::Refused(refusal) => writer.error(&error(refusal)),
        }
    }
}

fn ack(verb: ListenVerb) -> Ack {
    match verb {
        ListenVerb::Subscribe(Kind::Channel) => Ack::Subscribe,
        ListenVerb::Subscribe(Kind::Pattern) => Ack::Psubscribe,
        ListenVerb::Subscribe(Kind::Shard) => Ack::Ssubscribe,
        ListenVerb::Unsubscribe(Kind::Channel) => Ack::Unsubscribe,
        ListenVerb::Unsubscribe(Kind::Pattern) => Ack::Punsubscribe,
        ListenVerb::Unsubscribe(Kind::Shard) => Ack::Sunsubscribe,
    }
}

/// The code first, as in Redis, and last the plugin that decided.
pub fn error(refusal: &Refusal) -> Vec<u8> {
    let Refusal { code, message, by } = refusal;
    match by {
        Some(plugin) => format!("{code} {message} [{plugin}]"),
        None => format!("{code} {message}"),
    }
    .into_bytes()
}

/// The error for credentials. If no plugin accepts them, it has Redis' text.
pub fn authentication_error(refusal: &Refusal) -> Vec<u8> {
    match refusal.by {
        None if refusal.code == NOAUTH => errors::WRONG_CREDENTIALS.to_vec(),
        _ => error(refusal),
    }
}
