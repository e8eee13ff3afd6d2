//! A publication, encoded for each kind of connection.
//!
//! It is encoded at most once for each kind that has a receiver, headers included: frames from
//! server to client are not masked, so that one `Bytes` serves all receivers.

use bytes::Bytes;

use switchyard_protocol::json;
use switchyard_protocol::resp::{self, Ack, ReplyWriter, RespVersion};
use switchyard_protocol::websocket::{MessageKind, write_message};
use switchyard_types::command::{Kind, Refusal, Space};

/// The encoding of messages to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// JSON in WebSocket text frames.
    Json,
    /// RESP2 over TCP.
    Resp2,
    /// RESP3 over TCP.
    Resp3,
    /// RESP2 in binary WebSocket frames.
    FramedResp2,
    /// RESP3 in binary WebSocket frames.
    FramedResp3,
}

impl Encoding {
    /// All, in the order of their indexes.
    pub const ALL: [Encoding; 5] = [
        Encoding::Json,
        Encoding::Resp2,
        Encoding::Resp3,
        Encoding::FramedResp2,
        Encoding::FramedResp3,
    ];

    /// Whether it is framed for WebSocket.
    pub fn is_framed(self) -> bool {
        !matches!(self, Encoding::Resp2 | Encoding::Resp3)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Json => "websocket/json",
            Encoding::Resp2 => "resp2",
            Encoding::Resp3 => "resp3",
            Encoding::FramedResp2 => "websocket/resp2",
            Encoding::FramedResp3 => "websocket/resp3",
        }
    }

    /// Its index.
    pub fn index(self) -> u8 {
        self as u8
    }

    /// The encoding at this index.
    pub fn from_index(index: u8) -> Encoding {
        Encoding::ALL.get(usize::from(index)).copied().expect("only `index` makes indices")
    }
}

/// The bytes without unused capacity, if that is large: it would be kept as long as the bytes, and
/// would not be counted.
fn exact(bytes: Vec<u8>) -> Vec<u8> {
    let is_wasteful = bytes.capacity() - bytes.len() > (bytes.len() / 4).max(WASTE_BYTES_MAX);
    if is_wasteful { bytes.as_slice().to_vec() } else { bytes }
}

/// How much unused capacity is ignored.
const WASTE_BYTES_MAX: usize = 4 << 10;

/// One publication on its way to one group of receivers.
pub struct Push<'a> {
    space: Space,
    pattern: Option<&'a [u8]>,
    channel: &'a [u8],
    payload: &'a [u8],
    encoded: [Option<Bytes>; Encoding::ALL.len()],
}

impl<'a> Push<'a> {
    /// The publication for subscribers of the channel, or of the pattern.
    pub fn new(
        space: Space,
        pattern: Option<&'a [u8]>,
        channel: &'a [u8],
        payload: &'a [u8],
    ) -> Push<'a> {
        Push { space, pattern, channel, payload, encoded: [const { None }; Encoding::ALL.len()] }
    }

    /// Whether both go to the same receivers of the same channel.
    pub fn is_like(&self, other: &Push<'_>) -> bool {
        (self.space, self.pattern, self.channel) == (other.space, other.pattern, other.channel)
    }

    /// The length of its names and its payload.
    pub fn bytes(&self) -> usize {
        self.pattern.map_or(0, <[u8]>::len) + self.channel.len() + self.payload.len()
    }

    /// The bytes for this encoding.
    pub fn encoded(&mut self, encoding: Encoding) -> Bytes {
        let slot = usize::from(encoding.index());
        if let Some(Some(encoded)) = self.encoded.get(slot) {
            return encoded.clone();
        }
        let encoded = Bytes::from(exact(self.encode(encoding)));
        if let Some(slot) = self.encoded.get_mut(slot) {
            *slot = Some(encoded.clone());
        }
        encoded
    }

    fn encode(&self, encoding: Encoding) -> Vec<u8> {
        let names = self.channel.len() + self.pattern.map_or(0, <[u8]>::len);
        let mut bytes = Vec::with_capacity(names + self.payload.len() + resp::FRAME_BYTES_MAX);
        match encoding {
            Encoding::Json => {
                json::write_push(self.pattern, self.channel, self.payload, &mut bytes);
            }
            Encoding::Resp2 => self.write_resp(RespVersion::Resp2, &mut bytes),
            Encoding::Resp3 => self.write_resp(RespVersion::Resp3, &mut bytes),
            Encoding::FramedResp2 | Encoding::FramedResp3 => {
                write_message(MessageKind::Binary, &mut bytes, |bytes| {
                    let version = match encoding {
                        Encoding::FramedResp2 => RespVersion::Resp2,
                        _ => RespVersion::Resp3,
                    };
                    self.write_resp(version, bytes);
                });
            }
        }
        bytes
    }

    fn write_resp(&self, version: RespVersion, bytes: &mut Vec<u8>) {
        let mut writer = ReplyWriter::new(bytes, version);
        match (self.space, self.pattern) {
            (_, Some(pattern)) => writer.pmessage(pattern, self.channel, self.payload),
            (Space::Channels, None) => writer.message(self.channel, self.payload),
            (Space::ShardChannels, None) => writer.smessage(self.channel, self.payload),
        }
    }
}

/// A subscription that the server has ended.
pub struct Ended<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The number of remaining subscriptions of its kind, as acknowledgements count.
    pub count: u64,
    /// Why it ended.
    pub refusal: &'a Refusal,
}

/// The notice of ended subscriptions of one kind, in order. JSON has one frame for all that ended
/// for the same reason; RESP has a frame for each name, and no field for a reason.
pub fn encode_ended(encoding: Encoding, kind: Kind, ended: &[Ended<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let write_resp = |version, bytes: &mut Vec<u8>| {
        let ack = match kind {
            Kind::Channel => Ack::Unsubscribe,
            Kind::Pattern => Ack::Punsubscribe,
            Kind::Shard => Ack::Sunsubscribe,
        };
        let mut writer = ReplyWriter::new(bytes, version);
        for ended in ended {
            let count = usize::try_from(ended.count).unwrap_or(usize::MAX);
            writer.ack(ack, Some(ended.name), count);
        }
    };
    match encoding {
        Encoding::Json => {
            for alike in ended.chunk_by(|one, other| one.refusal == other.refusal) {
                let Some(Ended { count, refusal, .. }) = alike.last() else { continue };
                let names = || alike.iter().map(|ended| ended.name);
                json::write_unsubscribed(kind, names(), *count, refusal, &mut bytes);
            }
        }
        Encoding::Resp2 => write_resp(RespVersion::Resp2, &mut bytes),
        Encoding::Resp3 => write_resp(RespVersion::Resp3, &mut bytes),
        Encoding::FramedResp2 => write_message(MessageKind::Binary, &mut bytes, |bytes| {
            write_resp(RespVersion::Resp2, bytes);
        }),
        Encoding::FramedResp3 => write_message(MessageKind::Binary, &mut bytes, |bytes| {
            write_resp(RespVersion::Resp3, bytes);
        }),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_protocol_has_a_notice_for_subscriptions_that_end() {
        let refusal = |message: &'static str| Refusal {
            by: Some("acl@1".into()),
            ..Refusal::new("NOPERM", message)
        };
        let (no, never) = (refusal("no"), refusal("never"));
        let ended = [
            Ended { name: b"a", count: 3, refusal: &no },
            Ended { name: b"\xff", count: 2, refusal: &no },
            Ended { name: b"c", count: 1, refusal: &never },
        ];
        let check = |encoding, kind, expected: &str| {
            let bytes = encode_ended(encoding, kind, &ended[..]);
            assert_eq!(bytes.escape_ascii().to_string().replace("\\r\\n", " "), expected);
        };
        let resp = "3 $12 punsubscribe $1 a :3 *3 $12 punsubscribe $1 \\xff :2 \
                    *3 $12 punsubscribe $1 c :1 ";
        check(Encoding::Resp2, Kind::Pattern, &format!("*{resp}"));
        check(Encoding::Resp3, Kind::Pattern, &format!(">{resp}").replace(" *3", " >3"));
        let framed = encode_ended(Encoding::FramedResp3, Kind::Shard, &ended[..]);
        assert_eq!(framed.first(), Some(&0x82), "a binary frame");
        assert!(framed.ends_with(b">3\r\n$12\r\nsunsubscribe\r\n$1\r\nc\r\n:1\r\n"));
        let json = encode_ended(Encoding::Json, Kind::Channel, &ended[..]);
        let json = String::from_utf8_lossy(&json);
        let first = r#"["unsubscribed",{"channels":["a",{"base64":"/w=="}],"patterns":[],"listening":2,"code":"NOPERM","message":"no","by":"acl@1"}]"#;
        assert!(json.contains(first), "{json}");
        let second = r#"{"channels":["c"],"patterns":[],"listening":1,"code":"NOPERM","message":"never","by":"acl@1"}]"#;
        assert!(json.ends_with(second), "{json}");
    }
}
