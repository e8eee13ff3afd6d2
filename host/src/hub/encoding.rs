//! A publication as the bytes that each kind of connection is sent.
//!
//! Encoded at most once for each kind that has a receiver, headers included:
//! frames from server to client are not masked, so that one `Bytes` serves them
//! all.

use bytes::Bytes;

use crate::protocol::command::Space;
use crate::protocol::json;
use crate::protocol::resp::{self, ReplyWriter, RespVersion};
use crate::protocol::websocket::{MessageKind, write_message};

/// How a connection is written to.
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
    /// All, in the order of their places in tables.
    pub const ALL: [Encoding; 5] = [
        Encoding::Json,
        Encoding::Resp2,
        Encoding::Resp3,
        Encoding::FramedResp2,
        Encoding::FramedResp3,
    ];

    /// Whether there is a WebSocket under it.
    pub fn is_framed(self) -> bool {
        !matches!(self, Encoding::Resp2 | Encoding::Resp3)
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Json => "websocket/json",
            Encoding::Resp2 => "resp2",
            Encoding::Resp3 => "resp3",
            Encoding::FramedResp2 => "websocket/resp2",
            Encoding::FramedResp3 => "websocket/resp3",
        }
    }

    /// Its place in a table of all.
    pub fn index(self) -> u8 {
        self as u8
    }

    /// The one at this place.
    pub fn from_index(index: u8) -> Encoding {
        Encoding::ALL.get(usize::from(index)).copied().expect("only `index` makes indices")
    }
}

/// One publication on its way to one group of receivers.
pub struct Push<'a> {
    space: Space,
    pattern: Option<&'a [u8]>,
    channel: &'a [u8],
    payload: &'a [u8],
    encoded: [Option<Bytes>; Encoding::ALL.len()],
}

impl<'a> Push<'a> {
    /// What the subscribers of the channel get, or those of the pattern.
    pub fn new(
        space: Space,
        pattern: Option<&'a [u8]>,
        channel: &'a [u8],
        payload: &'a [u8],
    ) -> Push<'a> {
        Push { space, pattern, channel, payload, encoded: [const { None }; Encoding::ALL.len()] }
    }

    /// Whether both go to the same listeners of the same channel.
    pub fn is_like(&self, other: &Push<'_>) -> bool {
        (self.space, self.pattern, self.channel) == (other.space, other.pattern, other.channel)
    }

    /// How long its names and its payload are.
    pub fn bytes(&self) -> usize {
        self.pattern.map_or(0, <[u8]>::len) + self.channel.len() + self.payload.len()
    }

    /// The bytes for connections of this kind.
    pub fn encoded(&mut self, encoding: Encoding) -> Bytes {
        let slot = usize::from(encoding.index());
        if let Some(Some(encoded)) = self.encoded.get(slot) {
            return encoded.clone();
        }
        let encoded = Bytes::from(self.encode(encoding));
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
