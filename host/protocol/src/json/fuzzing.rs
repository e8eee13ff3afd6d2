//! Fuzzing of the JSON codec, including frames.
//!
//! The checks need no second parser: the result must not depend on how the bytes were split into
//! reads, on how the text is encoded, or on whether commands arrived alone or together; and what is
//! written must be readable again.

use std::borrow::Cow;

use serde_json::Value;
use serde_json::value::RawValue;
use tungstenite::protocol::frame::FrameHeader;

use super::{Command, Publication, Refusal, Reply, Request, Tag, parse, write_push, write_reply};
use crate::fuzzing::{Random, Syntax, Target, cuts_of, fingerprint};
use crate::websocket::{Body, FrameReader, Incoming, MessageKind};
use switchyard_types::close::CloseReason;
use switchyard_types::command::BADFRAME;

/// The reader of frames and the parser of commands.
pub const JSON: Target = Target {
    name: "json",
    corpus,
    syntax: Syntax { tokens: TOKENS, several: [b"[", b",", b"]"] },
    check: fuzz_commands,
    serve,
    // Every third byte may be a command, `[]`, each with the error that it gets.
    heap_per_byte_max: 128,
    heap_kept_max: 16 * 1024,
};

/// The caller's view of a connection.
#[derive(Debug, PartialEq, Eq)]
struct Transcript {
    /// Text; all other frames by their kind.
    messages: Vec<Result<String, &'static str>>,
    /// The close reason, or how many bytes are left in the buffer.
    end: Result<usize, CloseReason>,
}

/// Reads frames whole and in pieces, compares the results, and checks the commands in them. The
/// first byte says whether the input is frames or text to be framed, and selects the limit.
fn fuzz_commands(input: &[u8]) -> u64 {
    let (stream, message_bytes_max) = stream_of(input);
    let whole = transcript(&stream, &[], message_bytes_max);
    cuts_of(&stream, |cuts| {
        let came = transcript(&stream, cuts, message_bytes_max);
        assert_eq!(came, whole, "cut at {cuts:?}: {}", stream.escape_ascii());
    });
    let mut kinds = Vec::new();
    for text in whole.messages.iter().filter_map(|message| message.as_ref().ok()) {
        let requests = commands_of(text);
        check_spelling(text, &requests);
        for request in &requests {
            check_request(request);
        }
        kinds.extend(requests.iter().take(3).map(kind_of));
    }
    let end = whole.end.err().map(|reason| format!("{reason:?}"));
    fingerprint((kinds, end, whole.messages.len().min(3)))
}

/// Reads it in pieces of several sizes and keeps nothing.
fn serve(input: &[u8]) {
    let (stream, message_bytes_max) = stream_of(input);
    for size in [1, 7, 100, usize::MAX] {
        let mut reader = FrameReader::default();
        let mut buffer = Vec::new();
        for piece in stream.chunks(size.min(stream.len().max(1))) {
            buffer.extend_from_slice(piece);
            let mut at = 0;
            while let Ok(Some((incoming, next))) = reader.next(&mut buffer, at, message_bytes_max) {
                at = next;
                if let Incoming::Message(MessageKind::Text, body) = incoming {
                    let text = match &body {
                        Body::Buffer(range) => buffer.get(range.clone()).unwrap_or_default(),
                        Body::Assembled(bytes) => bytes,
                    };
                    parse(std::str::from_utf8(text).unwrap_or_default(), &mut Vec::new());
                }
            }
            buffer.drain(..at);
        }
    }
}

/// The bytes on the socket.
fn stream_of(input: &[u8]) -> (Cow<'_, [u8]>, usize) {
    let Some((choice, input)) = input.split_first() else {
        return (Cow::Borrowed(input), 0);
    };
    let message_bytes_max = if choice & 1 == 0 { 1 << 20 } else { 200 };
    // In a quarter of the cases it is frames already.
    if choice & 6 == 6 {
        return (Cow::Borrowed(input), message_bytes_max);
    }
    let mut random = Random::new(u64::from(*choice));
    let text = String::from_utf8_lossy(input);
    let mut rest = text.as_bytes();
    let mut stream = Vec::new();
    let fragments = 1 + random.index(3);
    for fragment in 1..=fragments {
        let is_last = fragment == fragments;
        let length = if is_last { rest.len() } else { random.index(rest.len() + 1) };
        let (body, after) = rest.split_at(length);
        let opcode = if fragment == 1 { 1 } else { 0 };
        write_frame(opcode | u8::from(is_last) << 7, body, random.number() as u32, &mut stream);
        if !is_last && random.index(4) == 0 {
            write_frame(0x89, b"ping", random.number() as u32, &mut stream);
        }
        rest = after;
    }
    (Cow::Owned(stream), message_bytes_max)
}

/// A frame as a client writes it.
fn write_frame(first: u8, body: &[u8], mask: u32, stream: &mut Vec<u8>) {
    stream.push(first);
    match body.len() {
        length @ 0..126 => stream.push(0x80 | length as u8),
        length @ 126..65_536 => {
            stream.push(0x80 | 126);
            stream.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            stream.push(0x80 | 127);
            stream.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask = mask.to_be_bytes();
    stream.extend_from_slice(&mask);
    stream.extend(body.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Reads as a server would: reads up to the next cut, removes all complete frames, and continues.
fn transcript(stream: &[u8], cuts: &[usize], message_bytes_max: usize) -> Transcript {
    let mut reader = FrameReader::default();
    let mut buffer = Vec::new();
    let mut messages = Vec::new();
    let mut read = 0;
    for cut in cuts.iter().copied().chain([stream.len()]) {
        buffer.extend_from_slice(stream.get(read..cut).unwrap_or_default());
        read = read.max(cut);
        let mut at = 0;
        loop {
            let (incoming, next) = match reader.next(&mut buffer, at, message_bytes_max) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(reason) => {
                    // After an error the rest does not count: how much of it was read depends on
                    // the cuts.
                    return Transcript { messages, end: Err(reason) };
                }
            };
            at = next;
            messages.push(match incoming {
                Incoming::Message(kind, body) => {
                    let body = match &body {
                        Body::Buffer(range) => buffer.get(range.clone()).unwrap_or_default(),
                        Body::Assembled(bytes) => bytes,
                    };
                    assert!(body.len() <= message_bytes_max, "a message over the limit");
                    match kind {
                        MessageKind::Text => {
                            Ok(String::from_utf8(body.to_vec()).expect("text is checked"))
                        }
                        MessageKind::Binary => Err("binary"),
                    }
                }
                Incoming::Ping(_) => Err("ping"),
                Incoming::Pong => Err("pong"),
                Incoming::Fragment | Incoming::EmptyFragment => Err("fragment"),
                Incoming::Close(_) => Err("close"),
            });
        }
        buffer.drain(..at);
    }
    Transcript { messages, end: Ok(buffer.len()) }
}

fn commands_of(text: &str) -> Vec<Request<'_>> {
    let mut requests = Vec::new();
    parse(text, &mut requests);
    assert!(!requests.is_empty(), "a frame without a request: {text}");
    requests
}

/// The requests with the data of members in one notation: it is kept as written.
fn in_one_notation(mut requests: Vec<Request<'_>>) -> Vec<Request<'_>> {
    for request in &mut requests {
        if let Ok(Command::Enter(_, data)) = &mut request.command
            && let Ok(value) = serde_json::from_str::<Value>(data)
        {
            *data = Cow::Owned(value.to_string());
        }
    }
    requests
}

/// White space, escapes and the notation of numbers make no difference, and commands in one frame
/// are the same as alone.
fn check_spelling(text: &str, requests: &[Request<'_>]) {
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        assert!(
            requests.iter().any(|request| request.command.is_err()) || is_ignored_rest(text),
            "no JSON, and all of it is carried out: {text}"
        );
        return;
    };
    let plain = value.to_string();
    // A duplicate key is in a `Value` once, but is in the text twice.
    if plain.matches(':').count() == text.matches(':').count() {
        assert_eq!(
            in_one_notation(commands_of(&plain)),
            in_one_notation(requests.to_vec()),
            "{text} is {plain}"
        );
    }
    let Some(members) =
        value.as_array().filter(|members| members.first().is_some_and(Value::is_array))
    else {
        assert_eq!(requests.len(), 1, "{text}");
        return;
    };
    let members: Vec<_> = members.iter().map(Value::to_string).collect();
    let together = format!("[{}]", members.join(","));
    let requests = commands_of(&together);
    assert_eq!(requests.len(), members.len(), "{together}");
    for (member, request) in members.iter().zip(&requests) {
        // An array of arrays is only a list of commands at the top level.
        if member.starts_with("[[") {
            assert_eq!(code_of(request), Some(BADFRAME), "{member}");
        } else {
            assert_eq!(commands_of(member), std::slice::from_ref(request), "{member}");
        }
    }
}

/// Whether only parts of the text are invalid that no command reads: the value of an unknown key
/// may be half of a surrogate pair, or a number out of range.
fn is_ignored_rest(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

/// What is written for a request can be read again.
fn check_request(request: &Request<'_>) {
    assert_eq!(request.clone().into_owned(), *request);
    let Request { tag, command } = request;
    match command {
        Ok(Command::Publish(Publication { channel, payload, .. })) => {
            for pattern in [None, Some(payload)] {
                let mut output = Vec::new();
                write_push(
                    pattern.map(|pattern| &**pattern),
                    channel,
                    payload,
                    None,
                    None,
                    &mut output,
                );
                let written = body_of(&output);
                let mut items = written.as_array().expect("an array").iter();
                let kind = items.next().and_then(Value::as_str);
                assert_eq!(kind, Some(if pattern.is_some() { "pmessage" } else { "message" }));
                let bytes: Vec<_> = items.map(bytes_of).collect();
                let expected: Vec<_> = pattern.into_iter().chain([channel, payload]).collect();
                assert!(bytes.iter().eq(expected.iter().map(|bytes| bytes.as_ref())), "{written}");
            }
        }
        Ok(Command::SubscriberCounts(_, names) | Command::Subscribe(_, names)) => {
            let counts: Vec<_> = (0..).take(names.len()).collect();
            let mut output = Vec::new();
            let names = names.iter().collect();
            write_reply(Tag::Id(7), &Reply::Counts(&names, &counts), &mut output);
            let written = body_of(&output);
            assert!(written.get(2).is_some_and(Value::is_object), "{written}");
        }
        Ok(_) => {}
        Err(refusal) => {
            let mut output = Vec::new();
            write_reply(*tag, &Reply::Refused(refusal), &mut output);
            let written = body_of(&output);
            let id = match tag {
                Tag::Id(id) => Value::from(*id),
                _ => Value::Null,
            };
            assert_eq!(written.get(0), Some(&id));
            let code = written.get(2).and_then(|error| error.get("code"));
            assert_eq!(code, Some(&Value::from(&*refusal.code)));
        }
    }
}

/// The body of the single frame that was written.
fn body_of(output: &[u8]) -> Value {
    let mut cursor = std::io::Cursor::new(output);
    let (header, length) =
        FrameHeader::parse(&mut cursor).expect("a header").expect("a whole header");
    let body = output.get(cursor.position() as usize..).unwrap_or_default();
    assert!(header.is_final && header.mask.is_none() && body.len() as u64 == length);
    serde_json::from_slice(body).expect("what is written is JSON")
}

/// The bytes of a name or payload, as a client decodes them.
fn bytes_of(value: &Value) -> Vec<u8> {
    use base64::Engine as _;
    match value {
        Value::String(text) => text.clone().into_bytes(),
        other => {
            let text = other.get("base64").and_then(Value::as_str).expect("base64");
            let bytes = super::BASE64.decode(text).expect("base64");
            assert!(std::str::from_utf8(&bytes).is_err(), "base64 of what is text");
            bytes
        }
    }
}

fn code_of<'a>(request: &'a Request<'_>) -> Option<&'a str> {
    request.command.as_ref().err().map(|refusal| &*refusal.code)
}

/// The trait of a request. Positions in error texts are removed.
fn kind_of(request: &Request<'_>) -> String {
    let shape = |names: &[Cow<'_, [u8]>]| {
        let is_copied = names.iter().any(|name| matches!(name, Cow::Owned(_)));
        let is_text = names.iter().all(|name| std::str::from_utf8(name).is_ok());
        format!("{} {is_copied} {is_text}", names.len().min(3))
    };
    let tagged = request.tag != Tag::None;
    match &request.command {
        Ok(Command::Publish(Publication { channel, payload, .. })) => {
            format!("{tagged} publish {}", shape(&[channel.clone(), payload.clone()]))
        }
        Ok(
            Command::Subscribe(_, names)
            | Command::Unsubscribe(_, names)
            | Command::SubscriberCounts(_, names),
        ) => format!("{tagged} names {}", shape(names)),
        Ok(command) => {
            let shown = format!("{command:?}");
            format!("{tagged} {}", shown.split(['(', ' ']).next().unwrap_or_default())
        }
        Err(Refusal { code, message, .. }) => {
            let words = message.split('"').next().unwrap_or_default();
            let words = words.replace(|c: char| c.is_ascii_digit(), "");
            format!("{tagged} {code} {words}")
        }
    }
}

/// Initial inputs, without the first byte, which selects the kind.
fn corpus() -> Vec<Vec<u8>> {
    let texts = [
        r#"[1,"PING"]"#,
        r#"["PUBLISH","news",{"base64":"/wA="}]"#,
        r#"[[1,"SUBSCRIBE","a","b"],[2,"PUBLISH","a","\u00e9\ud83e\udd80"],["QUIT"]]"#,
        r#"[9007199254740991,"PUBSUB","NUMSUB","a",""]"#,
        r#"[1,"AUTH","user","password"]"#,
        r#"[[1,"PING"],["PUBLISH","c","\ud800"],[2,"PING"]]"#,
        r#"[1,"PUBLISH","c",{"base64":"","x":[1e400,"\ud800"]}]"#,
        r#"[[],[],{},7,null,true,[[1]],[1,2],[1.0,"PING"],[-1,"PING"]]"#,
        "[[[[[[[[[[[[[[[[[[[[",
        "\u{feff}[1,\"PING\"]",
    ];
    let mut corpus: Vec<_> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    corpus.push([b"[".to_vec(), b"[],".repeat(100), b"[]]".to_vec()].concat());
    corpus.push(b"[".repeat(300));
    // Frames, for inputs that are parsed as frames.
    for first in [0x81, 0x01, 0x80, 0x82, 0x89, 0x8a, 0x88] {
        let mut frame = Vec::new();
        write_frame(first, br#"[1,"PING"]"#, 0x0763_01c8, &mut frame);
        corpus.push(frame);
    }
    corpus
}

/// The tokens of the protocol.
const TOKENS: &[&[u8]] = &[
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud83e",
    b"\\udd80",
    b"\xc3\xa9",
    b"\xff",
    b"null",
    b"true",
    b"0",
    b"-",
    b"1e2",
    b"9007199254740992",
    b"18446744073709551616",
    b"{\"base64\":\"",
    b"/w==\"}",
    b"\"base64\"",
    b"\"SUBSCRIBE\",",
    b"\"PUBLISH\",\"a\",",
    b"\"PUBSUB\",\"CHANNELS\"",
    b"[[1,\"PING\"],",
    b"\x81\x8a\0\0\0\0",
    b"\x01\x83\0\0\0\0[1,",
    b"\x80\x80\0\0\0\0",
    b"\x81\xfe\x01\0",
    b"\x81\xff\0\0\0\0\0\x0f\0\0",
    b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::iterations;
    use switchyard_types::command::{Kind, Space};

    #[test]
    fn the_corpus_passes_for_each_first_byte() {
        for input in corpus() {
            for choice in 0..8 {
                fuzz_commands(&[&[choice], &*input].concat());
            }
        }
    }

    /// A name or payload, as a client encodes it.
    fn some_bytes(random: &mut Random) -> (Cow<'static, [u8]>, Value) {
        use base64::Engine as _;
        let letters: &[&[u8]] = &[b"a", b"\"", b"\\", b"\n", "é".as_bytes(), b"\0", b"\xff"];
        let bytes = (0..random.index(6)).flat_map(|_| random.pick(letters).to_vec());
        let bytes: Vec<u8> = bytes.collect();
        let base64 = || serde_json::json!({ "base64": super::super::BASE64.encode(&bytes) });
        let written = match std::str::from_utf8(&bytes) {
            Ok(text) if random.index(3) > 0 => Value::from(text),
            _ => base64(),
        };
        (Cow::Owned(bytes), written)
    }

    #[test]
    fn what_clients_write_is_what_is_read() {
        let mut random = Random::from_environment();
        for _ in 0..iterations() {
            let mut frame = Vec::new();
            let mut expected = Vec::new();
            for _ in 0..=random.index(4) {
                let some: Vec<_> =
                    (0..1 + random.index(4)).map(|_| some_bytes(&mut random)).collect();
                let (names, written): (Vec<_>, Vec<_>) = some.into_iter().unzip();
                let (verb, command) = match random.index(4) {
                    0 => ("subscribe", Command::Subscribe(Kind::Channel, names)),
                    1 => ("PUNSUBSCRIBE", Command::Unsubscribe(Kind::Pattern, names)),
                    2 if names.len() == 2 => {
                        let [channel, payload] = <[_; 2]>::try_from(names).expect("there are two");
                        let space = Space::Channels;
                        ("Publish", Command::Publish(Publication::new(space, channel, payload)))
                    }
                    _ if names.len() == 1 => ("PING", Command::Ping(names.into_iter().next())),
                    _ => ("PSUBSCRIBE", Command::Subscribe(Kind::Pattern, names)),
                };
                let id = random.number() >> 11;
                let mut words = vec![Value::from(verb)];
                let tag = match random.index(3) {
                    0 => Tag::None,
                    _ => {
                        words.insert(0, Value::from(id));
                        Tag::Id(id)
                    }
                };
                words.extend(written);
                frame.push(Value::Array(words));
                expected.push(Request { tag, command: Ok(command) });
            }
            let text = match frame.len() {
                1 if random.index(2) == 0 => frame.remove(0).to_string(),
                _ => Value::Array(frame).to_string(),
            };
            assert_eq!(commands_of(&text), expected, "{text}");
        }
    }
}
