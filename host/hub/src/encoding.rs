//! What clients receive without a request: messages and notices, encoded for each kind of client.
//!
//! A message is encoded at most once for each encoding that has a receiver, headers included:
//! frames from server to client are not masked, so that one `Bytes` serves all receivers. A protocol
//! that this file does not know adds its own encoder.

use bytes::Bytes;
use parking_lot::RwLock;
use smallvec::SmallVec;

use switchyard_protocol::json;
use switchyard_protocol::resp::{self, Ack, ReplyWriter, RespVersion};
use switchyard_protocol::websocket::{self, MessageKind, write_message};
use switchyard_types::command::{Kind, Refusal, Space};
use switchyard_types::position::Position;

/// Writes messages and notices for one kind of client.
pub trait Encoder: Send + Sync {
    /// Its name, in metrics and in lists of connections.
    fn name(&self) -> &'static str;

    /// Whether the client may be a web page.
    fn is_web(&self) -> bool {
        false
    }

    /// Appends a message.
    fn message(&self, message: &Message<'_>, bytes: &mut Vec<u8>);

    /// Appends the notice that the server has ended these subscriptions of one kind, in order.
    fn ended(&self, kind: Kind, ended: &[Ended<'_>], bytes: &mut Vec<u8>);

    /// The notice that the client's credentials expire in this many milliseconds; none: the
    /// protocol has no such notice.
    fn expiring(&self, _left_ms: u64) -> Option<Vec<u8>> {
        None
    }

    /// The notice that the connection will be closed for this reason, within which time the client
    /// should reconnect, and after which time at the earliest the connection is closed, in
    /// milliseconds; none: the protocol has no such notice.
    fn goaway(&self, _reason: &str, _within_ms: [u64; 2], _closes_in_ms: u64) -> Option<Vec<u8>> {
        None
    }

    /// A request that a client must reply to, or its connection is closed; none: TCP detects
    /// whether the client is still there.
    fn ping(&self) -> Option<Bytes> {
        None
    }
}

/// A message on its way to subscribers of its channel, or of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// The name space of its channel.
    pub space: Space,
    /// The pattern that the receivers are subscribed to; none: the channel itself.
    pub pattern: Option<&'a [u8]>,
    /// Its channel.
    pub channel: &'a [u8],
    /// What was published.
    pub payload: &'a [u8],
    /// Where it is in the history of its channel; none: it is not retained there.
    pub position: Option<Position>,
    /// Its tags: a JSON object of texts.
    pub tags: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    /// A message that is not retained.
    pub fn new(
        space: Space,
        pattern: Option<&'a [u8]>,
        channel: &'a [u8],
        payload: &'a [u8],
    ) -> Message<'a> {
        Message { space, pattern, channel, payload, position: None, tags: None }
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

/// The encoding of messages to a connection: the index of its encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding(u8);

/// In the order of the constants of `Encoding`.
const BUILT_IN: [&dyn Encoder; 5] = [
    &Json,
    &Resp(RespVersion::Resp2),
    &Resp(RespVersion::Resp3),
    &FramedResp(RespVersion::Resp2),
    &FramedResp(RespVersion::Resp3),
];

/// Those that other protocols added.
static ADDED: RwLock<Vec<&'static dyn Encoder>> = RwLock::new(Vec::new());

impl Encoding {
    /// JSON in WebSocket text frames.
    pub const JSON: Encoding = Encoding(0);
    /// RESP2 over TCP.
    pub const RESP2: Encoding = Encoding(1);
    /// RESP3 over TCP.
    pub const RESP3: Encoding = Encoding(2);
    /// RESP2 in binary WebSocket frames.
    pub const FRAMED_RESP2: Encoding = Encoding(3);
    /// RESP3 in binary WebSocket frames.
    pub const FRAMED_RESP3: Encoding = Encoding(4);

    /// Adds the encoding of a protocol, until the process ends. None: there are 256 already.
    pub fn add(encoder: &'static dyn Encoder) -> Option<Encoding> {
        let mut added = ADDED.write();
        let index = u8::try_from(BUILT_IN.len() + added.len()).ok()?;
        added.push(encoder);
        Some(Encoding(index))
    }

    /// All, in the order of their indexes.
    pub fn all() -> impl Iterator<Item = Encoding> {
        let count = BUILT_IN.len() + ADDED.read().len();
        (0..count).filter_map(|index| u8::try_from(index).ok().map(Encoding))
    }

    /// Its index, below the length of `all`.
    pub fn index(self) -> u8 {
        self.0
    }

    /// The encoding with this index.
    pub(crate) fn from_index(index: u8) -> Encoding {
        Encoding(index)
    }

    /// What encodes.
    pub fn encoder(self) -> &'static dyn Encoder {
        let index = usize::from(self.0);
        match BUILT_IN.get(index) {
            Some(encoder) => *encoder,
            None => {
                let added = ADDED.read().get(index - BUILT_IN.len()).copied();
                added.expect("an encoding has the index of an encoder")
            }
        }
    }
}

/// The bytes for each encoding that has a receiver: most often one or two.
#[derive(Default)]
pub struct PerEncoding(SmallVec<[(Encoding, Bytes); 2]>);

impl PerEncoding {
    /// The bytes for this encoding, made by `encode` if there are none.
    pub fn get_or_insert_with(
        &mut self,
        encoding: Encoding,
        encode: impl FnOnce() -> Bytes,
    ) -> Bytes {
        if let Some((_, bytes)) = self.0.iter().find(|(of, _)| *of == encoding) {
            return bytes.clone();
        }
        let bytes = encode();
        self.0.push((encoding, bytes.clone()));
        bytes
    }
}

/// One message on its way to one group of receivers.
pub struct Push<'a> {
    message: Message<'a>,
    encoded: PerEncoding,
}

impl<'a> Push<'a> {
    /// The message, not encoded yet.
    pub fn new(message: Message<'a>) -> Push<'a> {
        Push { message, encoded: PerEncoding::default() }
    }

    /// Whether both go to the same receivers of the same channel.
    pub fn is_like(&self, other: &Push<'_>) -> bool {
        let Message { space, pattern, channel, .. } = self.message;
        (space, pattern, channel)
            == (other.message.space, other.message.pattern, other.message.channel)
    }

    /// The length of its names and its payload.
    pub fn bytes(&self) -> usize {
        let Message { pattern, channel, payload, .. } = self.message;
        pattern.map_or(0, <[u8]>::len) + channel.len() + payload.len()
    }

    /// The bytes for this encoding.
    pub fn encoded(&mut self, encoding: Encoding) -> Bytes {
        let message = &self.message;
        let encode = || {
            let names = message.channel.len() + message.pattern.map_or(0, <[u8]>::len);
            let mut bytes =
                Vec::with_capacity(names + message.payload.len() + resp::FRAME_BYTES_MAX);
            encoding.encoder().message(message, &mut bytes);
            Bytes::from(exact(bytes))
        };
        self.encoded.get_or_insert_with(encoding, encode)
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

/// `switchyard.v1.json`.
struct Json;

impl Encoder for Json {
    fn name(&self) -> &'static str {
        "websocket/json"
    }

    fn is_web(&self) -> bool {
        true
    }

    fn message(&self, message: &Message<'_>, bytes: &mut Vec<u8>) {
        let Message { space: _, pattern, channel, payload, position, tags } = *message;
        json::write_push(pattern, channel, payload, position, tags, bytes);
    }

    /// One frame for all that ended for the same reason.
    fn ended(&self, kind: Kind, ended: &[Ended<'_>], bytes: &mut Vec<u8>) {
        for alike in ended.chunk_by(|one, other| one.refusal == other.refusal) {
            let Some(Ended { count, refusal, .. }) = alike.last() else { continue };
            let names = || alike.iter().map(|ended| ended.name);
            json::write_unsubscribed(kind, names(), *count, refusal, bytes);
        }
    }

    fn expiring(&self, left_ms: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        json::write_expiring(left_ms, &mut bytes);
        Some(bytes)
    }

    fn goaway(&self, reason: &str, within_ms: [u64; 2], closes_in_ms: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        json::write_goaway(reason, within_ms, closes_in_ms, &mut bytes);
        Some(bytes)
    }

    fn ping(&self) -> Option<Bytes> {
        Some(websocket::PING)
    }
}

/// Redis' protocol over TCP.
struct Resp(RespVersion);

impl Encoder for Resp {
    fn name(&self) -> &'static str {
        match self.0 {
            RespVersion::Resp2 => "resp2",
            RespVersion::Resp3 => "resp3",
        }
    }

    fn message(&self, message: &Message<'_>, bytes: &mut Vec<u8>) {
        let Message { space, pattern, channel, payload, .. } = *message;
        let mut writer = ReplyWriter::new(bytes, self.0);
        match (space, pattern) {
            (_, Some(pattern)) => writer.pmessage(pattern, channel, payload),
            (Space::Channels, None) => writer.message(channel, payload),
            (Space::ShardChannels, None) => writer.smessage(channel, payload),
        }
    }

    /// A reply for each name. There is no field for a reason.
    fn ended(&self, kind: Kind, ended: &[Ended<'_>], bytes: &mut Vec<u8>) {
        let ack = match kind {
            Kind::Channel => Ack::Unsubscribe,
            Kind::Pattern => Ack::Punsubscribe,
            Kind::Shard => Ack::Sunsubscribe,
        };
        let mut writer = ReplyWriter::new(bytes, self.0);
        for ended in ended {
            let count = usize::try_from(ended.count).unwrap_or(usize::MAX);
            writer.ack(ack, Some(ended.name), count);
        }
    }
}

/// Redis' protocol in binary WebSocket frames.
struct FramedResp(RespVersion);

impl Encoder for FramedResp {
    fn name(&self) -> &'static str {
        match self.0 {
            RespVersion::Resp2 => "websocket/resp2",
            RespVersion::Resp3 => "websocket/resp3",
        }
    }

    fn is_web(&self) -> bool {
        true
    }

    fn message(&self, message: &Message<'_>, bytes: &mut Vec<u8>) {
        write_message(MessageKind::Binary, bytes, |bytes| Resp(self.0).message(message, bytes));
    }

    fn ended(&self, kind: Kind, ended: &[Ended<'_>], bytes: &mut Vec<u8>) {
        write_message(MessageKind::Binary, bytes, |bytes| Resp(self.0).ended(kind, ended, bytes));
    }

    fn ping(&self) -> Option<Bytes> {
        Some(websocket::PING)
    }
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
        let encoded = |encoding: Encoding, kind| {
            let mut bytes = Vec::new();
            encoding.encoder().ended(kind, &ended, &mut bytes);
            bytes
        };
        let check = |encoding, kind, expected: &str| {
            let bytes = encoded(encoding, kind);
            assert_eq!(bytes.escape_ascii().to_string().replace("\\r\\n", " "), expected);
        };
        let resp = "3 $12 punsubscribe $1 a :3 *3 $12 punsubscribe $1 \\xff :2 \
                    *3 $12 punsubscribe $1 c :1 ";
        check(Encoding::RESP2, Kind::Pattern, &format!("*{resp}"));
        check(Encoding::RESP3, Kind::Pattern, &format!(">{resp}").replace(" *3", " >3"));
        let framed = encoded(Encoding::FRAMED_RESP3, Kind::Shard);
        assert_eq!(framed.first(), Some(&0x82), "a binary frame");
        assert!(framed.ends_with(b">3\r\n$12\r\nsunsubscribe\r\n$1\r\nc\r\n:1\r\n"));
        let json = encoded(Encoding::JSON, Kind::Channel);
        let json = String::from_utf8_lossy(&json);
        let first = r#"["unsubscribed",{"channels":["a",{"base64":"/w=="}],"patterns":[],"listening":2,"code":"NOPERM","message":"no","by":"acl@1"}]"#;
        assert!(json.contains(first), "{json}");
        let second = r#"{"channels":["c"],"patterns":[],"listening":1,"code":"NOPERM","message":"never","by":"acl@1"}]"#;
        assert!(json.ends_with(second), "{json}");
    }

    #[test]
    fn each_encoding_has_a_name_of_its_own_and_one_can_be_added() {
        struct Raw;
        impl Encoder for Raw {
            fn name(&self) -> &'static str {
                "raw"
            }

            fn message(&self, message: &Message<'_>, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(message.payload);
            }

            fn ended(&self, _: Kind, _: &[Ended<'_>], _: &mut Vec<u8>) {}
        }
        let raw = Encoding::add(&Raw).expect("there are few");
        assert!(Encoding::all().any(|encoding| encoding == raw));
        let names: Vec<_> = Encoding::all().map(|encoding| encoding.encoder().name()).collect();
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(names.len(), distinct.len(), "{names:?}");
        assert_eq!(Encoding::FRAMED_RESP3.encoder().name(), "websocket/resp3");
        let message = Message::new(Space::Channels, None, b"a", b"hello");
        let mut push = Push::new(message);
        assert_eq!(push.encoded(raw), b"hello"[..]);
        assert_eq!(
            push.encoded(Encoding::RESP2),
            b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n"[..]
        );
        assert_eq!(push.encoded(raw), b"hello"[..]);
    }
}
