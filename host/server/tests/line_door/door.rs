//! A door for a protocol of lines: what another protocol takes, from the first byte to the last.
//!
//! | client sends | server sends |
//! |---|---|
//! | `SUB channel` | `+1`: the number of its subscriptions |
//! | `PUB channel text` | `+2`: the number of receivers |
//! | `QUIT` | `+` |
//! | | `channel text`: a message |
//! | | `-CODE why`: a refusal, the end of a subscription, or of the connection |

use bytes::Bytes;
use switchyard_hub::encoding::{Encoder, Encoding, Ended, Message};
use switchyard_middleware::bindings::{Client, Door as ClientDoor};
use switchyard_net::socket::Stream;
use switchyard_server::connection_setup::ConnectionSetup;
use switchyard_server::decoder::{Decoder, Progress};
use switchyard_server::door::{Door, Incoming};
use switchyard_server::session::{Framing, Session, WriteReply};
use switchyard_types::close::{CloseReason, ProtocolViolation};
use switchyard_types::command::{Command, Kind, Publication, Refusal, Reply, Request, Space, Tag};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

const LINE_BYTES_MAX: usize = 64 << 10;

/// The door.
pub struct LineDoor(pub Encoding);

impl Door for LineDoor {
    const NAME: &'static str = "line";

    async fn open<S: Stream>(&self, incoming: Incoming<S>) {
        let client = Client {
            // The plugins' contract has a name for two protocols.
            door: ClientDoor::Resp,
            remote: incoming.peer.remote.to_string(),
            path: String::new(),
            headers: Vec::new(),
        };
        if let Some((stream, connection, setup)) = incoming.admit(client, self.0, last_line).await {
            setup.serve(stream, connection, Lines, Vec::new(), Framing::None);
        }
    }

    async fn refuse_shortly<S: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        stream: &mut S,
        _: &ConnectionSetup,
    ) {
        let _gone = stream.write_all(&last_line(&CloseReason::OverCapacity)).await;
    }
}

struct Lines;

impl Decoder for Lines {
    fn decode(&mut self, bytes: &mut [u8], session: &mut Session) -> Progress {
        let mut close = session.has_pending().then(|| session.resume(LineReplies)).flatten();
        let mut at = 0;
        while close.is_none() && !session.has_pending() {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
                if rest.len() > LINE_BYTES_MAX {
                    close = Some(CloseReason::Violation(ProtocolViolation::TooBig));
                }
                break;
            };
            at += length + 1;
            let request = Request { tag: Tag::InOrder, command: command(rest.split_at(length).0) };
            close = session.execute(std::iter::once(request), LineReplies, false);
            if session.is_budget_exhausted() {
                break;
            }
        }
        let is_unfinished =
            close.is_none() && (session.has_pending() || session.is_budget_exhausted());
        if let Some(reason) = close {
            session.close(reason);
        }
        Progress { bytes: at, is_unfinished }
    }

    fn end_of_input(&self) -> Option<CloseReason> {
        Some(CloseReason::Peer(None))
    }

    fn last_bytes(&self, reason: &CloseReason) -> Bytes {
        last_line(reason)
    }
}

fn command(line: &[u8]) -> Result<Command<'_>, Refusal> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    match (words.next(), words.next(), words.next()) {
        (Some(b"SUB"), Some(channel), None) => {
            Ok(Command::Subscribe(Kind::Channel, vec![channel.into()]))
        }
        (Some(b"PUB"), Some(channel), Some(payload)) => {
            let (channel, payload) = (channel.into(), payload.into());
            Ok(Command::Publish(Publication::new(Space::Channels, channel, payload)))
        }
        (Some(b"QUIT"), None, None) => Ok(Command::Quit),
        _ => Err(Refusal::new("BADLINE", "there is SUB channel, PUB channel text, and QUIT")),
    }
}

#[derive(Clone, Copy)]
struct LineReplies;

impl WriteReply for LineReplies {
    fn write(&self, _: Tag, reply: &Reply<'_>, output: &mut Vec<u8>) {
        let line = match reply {
            Reply::Listening { held: number, .. } | Reply::Published(number) => {
                format!("+{number}\n")
            }
            Reply::Refused(refusal) => format!("-{} {}\n", refusal.code, refusal.message),
            _ => "+\n".to_owned(),
        };
        output.extend_from_slice(line.as_bytes());
    }
}

/// Messages and notices as lines.
pub struct LineEncoder;

impl Encoder for LineEncoder {
    fn name(&self) -> &'static str {
        "line"
    }

    fn message(&self, message: &Message<'_>, bytes: &mut Vec<u8>) {
        bytes.extend([message.channel, b" ", message.payload, b"\n"].into_iter().flatten());
    }

    fn ended(&self, _: Kind, ended: &[Ended<'_>], bytes: &mut Vec<u8>) {
        for Ended { refusal, .. } in ended {
            bytes.extend(format!("-{} {}\n", refusal.code, refusal.message).into_bytes());
        }
    }
}

fn last_line(reason: &CloseReason) -> Bytes {
    format!("-{} {}\n", reason.label(), reason.text()).into()
}
