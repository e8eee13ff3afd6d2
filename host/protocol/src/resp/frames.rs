//! The frames of Pub/Sub: messages and acknowledgements.
//!
//! In RESP3 all of them are pushes, including acknowledgements; otherwise the two versions are the
//! same. A message is the same for all its recipients, so the caller may encode it once for each
//! version.

use super::reply::ReplyWriter;

/// The maximum size of a frame without its names and its payload: the header, the longest kind, and
/// three lengths or numbers of nineteen digits. Used to size a buffer.
pub const FRAME_BYTES_MAX: usize = 4 + 19 + 3 * 25;

/// The acknowledged command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// SUBSCRIBE of a channel.
    Subscribe,
    /// UNSUBSCRIBE of a channel.
    Unsubscribe,
    /// PSUBSCRIBE of a pattern.
    Psubscribe,
    /// PUNSUBSCRIBE of a pattern.
    Punsubscribe,
    /// SSUBSCRIBE of a shard channel.
    Ssubscribe,
    /// SUNSUBSCRIBE of a shard channel.
    Sunsubscribe,
}

impl Ack {
    fn encoded(self) -> &'static [u8] {
        match self {
            Ack::Subscribe => b"$9\r\nsubscribe\r\n",
            Ack::Unsubscribe => b"$11\r\nunsubscribe\r\n",
            Ack::Psubscribe => b"$10\r\npsubscribe\r\n",
            Ack::Punsubscribe => b"$12\r\npunsubscribe\r\n",
            Ack::Ssubscribe => b"$10\r\nssubscribe\r\n",
            Ack::Sunsubscribe => b"$12\r\nsunsubscribe\r\n",
        }
    }
}

impl ReplyWriter<'_> {
    /// A publication, for a subscriber of its channel.
    pub fn message(&mut self, channel: &[u8], payload: &[u8]) {
        self.publication(b"$7\r\nmessage\r\n", channel, payload);
    }

    /// A publication to a shard channel.
    pub fn smessage(&mut self, channel: &[u8], payload: &[u8]) {
        self.publication(b"$8\r\nsmessage\r\n", channel, payload);
    }

    /// A publication, for a subscriber of a pattern that matches its channel.
    pub fn pmessage(&mut self, pattern: &[u8], channel: &[u8], payload: &[u8]) {
        self.reserve(FRAME_BYTES_MAX + pattern.len() + channel.len() + payload.len());
        self.push(4);
        self.encoded(b"$8\r\npmessage\r\n");
        self.bulk(pattern);
        self.bulk(channel);
        self.bulk(payload);
    }

    /// The acknowledgement of one name. `None` is for the UNSUBSCRIBE from all names that had
    /// nothing to end. `count` is the number of subscriptions after this name: channels and
    /// patterns, or for the two shard kinds shard channels.
    pub fn ack(&mut self, ack: Ack, name: Option<&[u8]>, count: usize) {
        self.reserve(FRAME_BYTES_MAX + name.map_or(0, <[u8]>::len));
        self.push(3);
        self.encoded(ack.encoded());
        match name {
            Some(name) => self.bulk(name),
            None => self.null(),
        }
        self.integer(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The reply to PING in RESP2 while the connection is subscribed; `payload` is empty if PING
    /// had none.
    pub fn subscribed_pong(&mut self, payload: &[u8]) {
        self.array(2);
        self.bulk(b"pong");
        self.bulk(payload);
    }

    fn publication(&mut self, kind: &[u8], channel: &[u8], payload: &[u8]) {
        self.reserve(FRAME_BYTES_MAX + channel.len() + payload.len());
        self.push(3);
        self.encoded(kind);
        self.bulk(channel);
        self.bulk(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::super::RespVersion;
    use super::*;

    #[track_caller]
    fn check(write: impl Fn(&mut ReplyWriter<'_>), resp2: &str, resp3: &str) {
        for (version, expected) in [(RespVersion::Resp2, resp2), (RespVersion::Resp3, resp3)] {
            let mut out = Vec::new();
            write(&mut ReplyWriter::new(&mut out, version));
            assert_eq!(String::from_utf8_lossy(&out).replace("\r\n", " "), expected);
        }
    }

    #[test]
    fn messages() {
        check(
            |reply| reply.message(b"news", b"hi"),
            "*3 $7 message $4 news $2 hi ",
            ">3 $7 message $4 news $2 hi ",
        );
        check(
            |reply| reply.smessage(b"", b""),
            "*3 $8 smessage $0  $0  ",
            ">3 $8 smessage $0  $0  ",
        );
        check(
            |reply| reply.pmessage(b"n*", b"news", b"hi"),
            "*4 $8 pmessage $2 n* $4 news $2 hi ",
            ">4 $8 pmessage $2 n* $4 news $2 hi ",
        );
    }

    #[test]
    fn acknowledgements() {
        for (ack, kind) in [
            (Ack::Subscribe, "$9 subscribe"),
            (Ack::Unsubscribe, "$11 unsubscribe"),
            (Ack::Psubscribe, "$10 psubscribe"),
            (Ack::Punsubscribe, "$12 punsubscribe"),
            (Ack::Ssubscribe, "$10 ssubscribe"),
            (Ack::Sunsubscribe, "$12 sunsubscribe"),
        ] {
            check(
                |reply| reply.ack(ack, Some(b"a"), 12),
                &format!("*3 {kind} $1 a :12 "),
                &format!(">3 {kind} $1 a :12 "),
            );
            check(
                |reply| reply.ack(ack, None, 2),
                &format!("*3 {kind} $-1 :2 "),
                &format!(">3 {kind} _ :2 "),
            );
        }
    }

    #[test]
    fn no_frame_is_larger_than_what_is_reserved() {
        let mut out = Vec::new();
        ReplyWriter::new(&mut out, RespVersion::Resp3).ack(Ack::Sunsubscribe, None, usize::MAX);
        assert!(out.len() <= FRAME_BYTES_MAX);
    }

    #[test]
    fn pong_while_subscribed() {
        check(|reply| reply.subscribed_pong(b""), "*2 $4 pong $0  ", "*2 $4 pong $0  ");
        check(|reply| reply.subscribed_pong(b"x"), "*2 $4 pong $1 x ", "*2 $4 pong $1 x ");
    }
}
