//! RFC 6455 frames: bytes in, whole messages out, and the frames that the server sends.
//!
//! `tungstenite` parses and formats the headers and does the handshake. The rest is implemented
//! here, because tungstenite buffers per connection, where this server reads into one buffer per
//! thread; it accepts lengths that are not in their shortest form; and its errors are less specific
//! than our close codes. This module owns no socket.

use std::io::Cursor;
use std::ops::Range;

use bytes::Bytes;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use switchyard_types::close::{CloseReason, ProtocolViolation};

/// Assembles messages from frames. Holds bytes only between the fragments of one message.
#[derive(Default)]
pub struct FrameReader {
    fragments: Option<Box<(MessageKind, Vec<u8>)>>,
}

/// The type of a data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// UTF-8, checked.
    Text,
    /// Any bytes.
    Binary,
}

/// A frame from a peer.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A whole message.
    Message(MessageKind, Body),
    /// To be answered with `pong`.
    Ping(Range<usize>),
    /// A pong.
    Pong,
    /// A fragment of an incomplete message.
    Fragment,
    /// A fragment without bytes.
    EmptyFragment,
    /// The peer's Close frame, with its code if it had one.
    Close(Option<u16>),
}

/// Where the bytes of a message are.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// In the buffer that was parsed, unmasked.
    Buffer(Range<usize>),
    /// Assembled from fragments.
    Assembled(Vec<u8>),
}

impl FrameReader {
    /// How much memory it holds for a message whose last fragment has not arrived.
    pub fn unfinished_bytes(&self) -> usize {
        self.fragments.as_ref().map_or(0, |fragments| fragments.1.capacity())
    }

    /// Parses the next frame of `buffer`, which starts at `at`, and unmasks it in place. Returns
    /// the frame and the start of the next one; none: the frame is incomplete. A message over
    /// `message_bytes_max` is detected before its bytes arrive.
    ///
    /// # Errors
    ///
    /// The connection must be closed with this reason.
    pub fn next(
        &mut self,
        buffer: &mut [u8],
        at: usize,
        message_bytes_max: usize,
    ) -> Result<Option<(Incoming, usize)>, CloseReason> {
        let mut cursor = Cursor::new(buffer.get(at..).unwrap_or_default());
        let Some((header, length)) =
            FrameHeader::parse(&mut cursor).map_err(|_| violation("reserved opcode"))?
        else {
            return Ok(None);
        };
        let header_length = cursor.position() as usize;
        self.check(&header, length, header_length, message_bytes_max)?;
        let start = at + header_length;
        let end = start + length as usize;
        let Some(body) = buffer.get_mut(start..end) else { return Ok(None) };
        if let Some(mask) = header.mask {
            unmask(body, mask);
        }
        let incoming = match header.opcode {
            OpCode::Control(Control::Ping) => Incoming::Ping(start..end),
            OpCode::Control(Control::Pong) => Incoming::Pong,
            OpCode::Control(_) => Incoming::Close(close_code(body)?),
            OpCode::Data(data) => self.data(data, header.is_final, body, start..end)?,
        };
        Ok(Some((incoming, end)))
    }

    /// The rules of RFC 6455, section 5.2, that concern the header.
    fn check(
        &self,
        header: &FrameHeader,
        length: u64,
        header_length: usize,
        message_bytes_max: usize,
    ) -> Result<(), CloseReason> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(violation("reserved bit set without an extension"));
        }
        if header.mask.is_none() {
            return Err(violation("frame without a mask"));
        }
        if header.len(length) != header_length || length > i64::MAX as u64 {
            return Err(violation("length not in its shortest form"));
        }
        match header.opcode {
            OpCode::Control(_) if !header.is_final => {
                return Err(violation("control frame in fragments"));
            }
            OpCode::Control(_) if length > 125 => {
                return Err(violation("control frame over 125 bytes"));
            }
            OpCode::Control(_) => return Ok(()),
            OpCode::Data(Data::Continue) if self.fragments.is_none() => {
                return Err(violation("continuation without a start"));
            }
            OpCode::Data(Data::Text | Data::Binary) if self.fragments.is_some() => {
                return Err(violation("new message within a fragmented one"));
            }
            OpCode::Data(_) => {}
        }
        let assembled = self.fragments.as_ref().map_or(0, |fragments| fragments.1.len());
        if length.saturating_add(assembled as u64) > message_bytes_max as u64 {
            return Err(CloseReason::Violation(ProtocolViolation::TooBig));
        }
        Ok(())
    }

    fn data(
        &mut self,
        data: Data,
        is_final: bool,
        body: &[u8],
        range: Range<usize>,
    ) -> Result<Incoming, CloseReason> {
        let kind = if data == Data::Text { MessageKind::Text } else { MessageKind::Binary };
        let fragment = if body.is_empty() { Incoming::EmptyFragment } else { Incoming::Fragment };
        let Some(mut fragments) = self.fragments.take() else {
            if is_final {
                check_text(kind, body)?;
                return Ok(Incoming::Message(kind, Body::Buffer(range)));
            }
            self.fragments = Some(Box::new((kind, body.to_vec())));
            return Ok(fragment);
        };
        fragments.1.extend_from_slice(body);
        if !is_final {
            self.fragments = Some(fragments);
            return Ok(fragment);
        }
        check_text(fragments.0, &fragments.1)?;
        Ok(Incoming::Message(fragments.0, Body::Assembled(fragments.1)))
    }
}

fn check_text(kind: MessageKind, body: &[u8]) -> Result<(), CloseReason> {
    if kind == MessageKind::Text && std::str::from_utf8(body).is_err() {
        return Err(CloseReason::Violation(ProtocolViolation::NotUtf8));
    }
    Ok(())
}

/// Parses the body of a Close frame: nothing, or a valid code and a reason in UTF-8 (RFC 6455,
/// sections 5.5.1 and 7.4).
fn close_code(body: &[u8]) -> Result<Option<u16>, CloseReason> {
    let Some((code, reason)) = body.split_first_chunk::<2>() else {
        return if body.is_empty() { Ok(None) } else { Err(violation("close code cut short")) };
    };
    let code = u16::from_be_bytes(*code);
    // RFC 6455, section 7.4, and the codes that IANA has registered since.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(violation("close code that must not be sent"));
    }
    check_text(MessageKind::Text, reason)?;
    Ok(Some(code))
}

fn violation(rule: &'static str) -> CloseReason {
    CloseReason::Violation(ProtocolViolation::Frame(rule))
}

fn unmask(body: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let (words, rest) = body.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// A ping without a body.
pub const PING: Bytes = Bytes::from_static(&[0x89, 0]);

/// The reply to a ping.
pub fn pong(body: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(2 + body.len());
    write_header(OpCode::Control(Control::Pong), body.len(), &mut frame);
    frame.extend_from_slice(body);
    frame.into()
}

/// The Close frame for this reason.
pub fn close(reason: &CloseReason) -> Bytes {
    let mut frame = Vec::new();
    match reason.code() {
        None => write_header(OpCode::Control(Control::Close), 0, &mut frame),
        Some(code) => {
            let text = reason.text();
            write_header(OpCode::Control(Control::Close), 2 + text.len(), &mut frame);
            frame.extend_from_slice(&code.to_be_bytes());
            frame.extend_from_slice(text.as_bytes());
        }
    }
    frame.into()
}

/// These bytes in one binary frame.
pub fn binary_frame(body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES_MAX + body.len());
    write_header(OpCode::Data(Data::Binary), body.len(), &mut frame);
    frame.extend_from_slice(body);
    frame
}

/// The longest header of a frame from server to client: two bytes, and eight for
/// the length.
const HEADER_BYTES_MAX: usize = 10;

/// Appends a data frame whose body `write_body` writes. The body's length need not be known: space
/// for the longest header is reserved, and the rest of it removed.
pub fn write_message(
    kind: MessageKind,
    output: &mut Vec<u8>,
    write_body: impl FnOnce(&mut Vec<u8>),
) {
    let start = output.len();
    output.resize(start + HEADER_BYTES_MAX, 0);
    write_body(output);
    let length = output.len() - start - HEADER_BYTES_MAX;
    let opcode = match kind {
        MessageKind::Text => OpCode::Data(Data::Text),
        MessageKind::Binary => OpCode::Data(Data::Binary),
    };
    let mut header = Vec::with_capacity(HEADER_BYTES_MAX);
    write_header(opcode, length, &mut header);
    output.splice(start..start + HEADER_BYTES_MAX, header);
}

fn write_header(opcode: OpCode, length: usize, output: &mut Vec<u8>) {
    FrameHeader { opcode, ..FrameHeader::default() }
        .format(length as u64, output)
        .expect("a Vec takes what is written");
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1000;

    fn masked(first: u8, body: &[u8]) -> Vec<u8> {
        let mask = [7, 99, 1, 200];
        let mut frame = vec![first];
        match body.len() {
            0..126 => frame.push(0x80 | body.len() as u8),
            126..65536 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(body.len() as u16).to_be_bytes());
            }
            _ => unreachable!("tests are shorter"),
        }
        frame.extend_from_slice(&mask);
        frame.extend(body.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn read_all(reader: &mut FrameReader, bytes: &[u8]) -> Result<Vec<Incoming>, CloseReason> {
        let mut buffer = bytes.to_vec();
        let (mut all, mut at) = (Vec::new(), 0);
        while let Some((incoming, next)) = reader.next(&mut buffer, at, LIMIT)? {
            all.push(match incoming {
                Incoming::Message(kind, Body::Buffer(range)) => {
                    Incoming::Message(kind, Body::Assembled(buffer[range].to_vec()))
                }
                Incoming::Ping(range) => Incoming::Ping(0..range.len()),
                other => other,
            });
            at = next;
        }
        Ok(all)
    }

    #[test]
    fn every_cut_gives_the_same_messages() {
        let text = "héllo, wörld. ".repeat(20);
        let bytes = [
            masked(0x81, text.as_bytes()),
            masked(0x01, b"ab"),
            masked(0x89, b"ping"),
            masked(0x80, b"cd"),
            masked(0x82, &[0xff; 130]),
        ]
        .concat();
        let whole = read_all(&mut FrameReader::default(), &bytes).expect("valid");
        assert_eq!(whole.len(), 5);
        for cut in 0..bytes.len() {
            let mut reader = FrameReader::default();
            let mut buffer = bytes[..cut].to_vec();
            let mut at = 0;
            let mut count = 0;
            while let Some((_, next)) = reader.next(&mut buffer, at, LIMIT).expect("valid") {
                (at, count) = (next, count + 1);
            }
            let rest = read_all(&mut reader, &bytes[at..]).expect("valid");
            // A payload that was unmasked in place is not unmasked twice.
            assert_eq!(rest, whole[count..], "cut at {cut}");
        }
    }

    #[test]
    fn lengths_must_be_in_their_shortest_form() {
        let long = [&[0x81, 0x80 | 126, 0, 5, 0, 0, 0, 0][..], b"hello"].concat();
        assert!(read_all(&mut FrameReader::default(), &long).is_err());
        let top_bit = [0x82, 0x80 | 127, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            read_all(&mut FrameReader::default(), &top_bit),
            Err(violation("length not in its shortest form"))
        );
    }

    #[test]
    fn a_message_over_the_limit_is_found_out_by_its_header() {
        let header = [0x82, 0x80 | 126, 0x04, 0, 0, 0, 0, 0];
        assert_eq!(
            read_all(&mut FrameReader::default(), &header),
            Err(CloseReason::Violation(ProtocolViolation::TooBig))
        );
        let fragments = [masked(0x02, &[0; 600]), masked(0x80, &[0; 600])].concat();
        assert_eq!(
            read_all(&mut FrameReader::default(), &fragments),
            Err(CloseReason::Violation(ProtocolViolation::TooBig))
        );
    }

    #[test]
    fn written_frames_have_the_shortest_header() {
        for length in [0, 125, 126, 65535, 65536] {
            let mut frame = b"before".to_vec();
            write_message(MessageKind::Text, &mut frame, |body| {
                body.resize(body.len() + length, b'x')
            });
            let mut cursor = Cursor::new(&frame[6..]);
            let (header, parsed) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            assert_eq!((header.is_final, parsed as usize), (true, length));
            assert_eq!(frame.len() - 6, header.len(parsed) + length);
        }
    }
}
