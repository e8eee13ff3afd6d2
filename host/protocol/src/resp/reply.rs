//! Writes replies.
//!
//! There is one method for each RESP type. It writes the protocol version of the connection; types
//! that RESP2 lacks are written as Redis does. Aggregates are headers; the caller writes as many
//! elements as it announced. Whole Pub/Sub frames are in `frames`.

use super::integer::NumberLine;

/// The version of the protocol that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RespVersion {
    /// The version of a new connection.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

impl RespVersion {
    /// The number in `HELLO`.
    pub fn number(self) -> i64 {
        match self {
            RespVersion::Resp2 => 2,
            RespVersion::Resp3 => 3,
        }
    }

    /// The version with this number.
    pub fn from_number(number: i64) -> Option<RespVersion> {
        match number {
            2 => Some(RespVersion::Resp2),
            3 => Some(RespVersion::Resp3),
            _ => None,
        }
    }
}

/// Writes replies to the end of a buffer.
pub struct ReplyWriter<'a> {
    out: &'a mut Vec<u8>,
    version: RespVersion,
}

impl<'a> ReplyWriter<'a> {
    /// A writer for a connection that speaks `version`.
    pub fn new(out: &'a mut Vec<u8>, version: RespVersion) -> ReplyWriter<'a> {
        ReplyWriter { out, version }
    }

    /// A short text of the server, such as `OK`, without CR and LF.
    pub fn simple(&mut self, text: &str) {
        debug_assert!(!text.contains(['\r', '\n']));
        self.line(b'+', text.as_bytes());
    }

    /// An error. `text` starts with its code (`ERR syntax error`). A CR or LF that it contains from
    /// a request becomes a space, because it would end the reply.
    pub fn error(&mut self, text: &[u8]) {
        let start = self.out.len() + 1;
        self.line(b'-', text);
        let written = self.out.get_mut(start..start + text.len()).unwrap_or_default();
        for byte in written {
            if matches!(byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
    }

    /// A number.
    pub fn integer(&mut self, number: i64) {
        self.header(b':', number);
    }

    /// Any bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.out.reserve(bytes.len() + 25);
        self.length(b'$', bytes.len());
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Null.
    pub fn null(&mut self) {
        self.out.extend_from_slice(match self.version {
            RespVersion::Resp2 => b"$-1\r\n",
            RespVersion::Resp3 => b"_\r\n",
        });
    }

    /// No array.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(match self.version {
            RespVersion::Resp2 => b"*-1\r\n",
            RespVersion::Resp3 => b"_\r\n",
        });
    }

    /// Announces a map whose entries RESP2 groups: an array of pairs.
    pub fn map_of_pairs(&mut self, entries: usize) {
        match self.version {
            RespVersion::Resp2 => self.length(b'*', entries),
            RespVersion::Resp3 => self.length(b'%', entries),
        }
    }

    /// Begins an entry of such a map.
    pub fn pair(&mut self) {
        if self.version == RespVersion::Resp2 {
            self.array(2);
        }
    }

    /// A text for people (RESP2: a bulk).
    pub fn verbatim(&mut self, text: &[u8]) {
        match self.version {
            RespVersion::Resp2 => self.bulk(text),
            RespVersion::Resp3 => {
                self.length(b'=', text.len() + 4);
                self.out.extend_from_slice(b"txt:");
                self.out.extend_from_slice(text);
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Announces an array.
    pub fn array(&mut self, elements: usize) {
        self.length(b'*', elements);
    }

    /// Announces a map: a key and a value for each entry (RESP2: an array of
    /// twice as many elements).
    pub fn map(&mut self, entries: usize) {
        match self.version {
            RespVersion::Resp2 => self.length(b'*', entries * 2),
            RespVersion::Resp3 => self.length(b'%', entries),
        }
    }

    /// Announces a set (RESP2: an array).
    pub fn set(&mut self, elements: usize) {
        match self.version {
            RespVersion::Resp2 => self.length(b'*', elements),
            RespVersion::Resp3 => self.length(b'~', elements),
        }
    }

    /// Starts a push (RESP2: an array).
    pub fn push(&mut self, elements: usize) {
        match self.version {
            RespVersion::Resp2 => self.length(b'*', elements),
            RespVersion::Resp3 => self.length(b'>', elements),
        }
    }

    /// Appends RESP bytes.
    pub(super) fn encoded(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Reserves this many bytes.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.out.reserve(bytes);
    }

    fn line(&mut self, marker: u8, text: &[u8]) {
        self.out.reserve(text.len() + 3);
        self.out.extend_from_slice(&[marker]);
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }

    fn length(&mut self, marker: u8, length: usize) {
        self.header(marker, i64::try_from(length).unwrap_or(i64::MAX));
    }

    fn header(&mut self, marker: u8, number: i64) {
        self.out.extend_from_slice(NumberLine::new(marker, number).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(write: impl Fn(&mut ReplyWriter<'_>), resp2: &[u8], resp3: &[u8]) {
        for (version, expected) in [(RespVersion::Resp2, resp2), (RespVersion::Resp3, resp3)] {
            let mut out = b"+OK\r\n".to_vec();
            write(&mut ReplyWriter::new(&mut out, version));
            let expected = [b"+OK\r\n", expected].concat();
            assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string());
        }
    }

    #[track_caller]
    fn check_same(write: impl Fn(&mut ReplyWriter<'_>), expected: &[u8]) {
        check(write, expected, expected);
    }

    #[test]
    fn writes_each_shape() {
        check_same(|reply| reply.simple("PONG"), b"+PONG\r\n");
        check_same(|reply| reply.error(b"ERR syntax error"), b"-ERR syntax error\r\n");
        check_same(|reply| reply.integer(-1), b":-1\r\n");
        check_same(|reply| reply.integer(i64::MIN), b":-9223372036854775808\r\n");
        check_same(|reply| reply.bulk(b""), b"$0\r\n\r\n");
        check_same(|reply| reply.bulk(b"a\r\n\0\xff"), b"$5\r\na\r\n\0\xff\r\n");
        check_same(|reply| reply.array(0), b"*0\r\n");
        check(|reply| reply.null(), b"$-1\r\n", b"_\r\n");
        check(|reply| reply.null_array(), b"*-1\r\n", b"_\r\n");
        let pairs = |reply: &mut ReplyWriter<'_>| {
            reply.map_of_pairs(1);
            reply.pair();
        };
        check(pairs, b"*1\r\n*2\r\n", b"%1\r\n");
        check(|reply| reply.verbatim(b"role"), b"$4\r\nrole\r\n", b"=8\r\ntxt:role\r\n");
        check(|reply| reply.map(7), b"*14\r\n", b"%7\r\n");
        check(|reply| reply.set(2), b"*2\r\n", b"~2\r\n");
        check(|reply| reply.push(3), b"*3\r\n", b">3\r\n");
    }

    #[test]
    fn an_error_stays_on_one_line() {
        check_same(|reply| reply.error(b"ERR \r\n'a\nb\r'\n"), b"-ERR   'a b ' \r\n");
        check_same(|reply| reply.error(b"ERR '\xff\0'"), b"-ERR '\xff\0'\r\n");
    }

    #[test]
    fn versions_have_numbers() {
        for version in [RespVersion::Resp2, RespVersion::Resp3] {
            assert_eq!(RespVersion::from_number(version.number()), Some(version));
        }
        assert_eq!(RespVersion::from_number(1), None);
        assert_eq!(RespVersion::from_number(4), None);
    }
}
