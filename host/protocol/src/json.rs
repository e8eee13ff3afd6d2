//! The sub-protocol `switchyard.v1.json`: one JSON array per text frame.
//!
//! A frame is a command or an array of commands. Each is parsed on its own, so that an invalid one
//! gets an error reply and the others are executed. Strings without escapes are borrowed from the
//! frame. Bytes that are not UTF-8 are encoded as `{"base64": "…"}`.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use guest_core::Names;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::websocket::{MessageKind, write_message};
use switchyard_types::command::{
    ARITY, BADFRAME, BADVALUE, Bytestring, Command, Credentials, Kind, LIMIT, Publication, Refusal,
    Reply, Request, Space, Tag, UNKNOWN,
};
use switchyard_types::position::Position;

pub mod fuzzing;
mod history;
mod lenient;
mod presence;

pub use presence::{write_member_event, write_more_members, write_presence_event, write_unwatched};

/// The sub-protocol's name in `Sec-WebSocket-Protocol`.
pub const SUBPROTOCOL: &str = "switchyard.v1.json";

/// The largest id: what JavaScript's numbers hold exactly.
const ID_MAX: u64 = (1 << 53) - 1;

/// How many commands a frame may have. Each takes many times the memory of its text: a frame of
/// 1 MiB has room for 350,000.
const COMMANDS_MAX: usize = 10_000;

/// Parses one frame, appending a request for each command in it, good or bad.
pub fn parse<'a>(frame: &'a str, requests: &mut Vec<Request<'a>>) {
    let before = requests.len();
    parse_items(frame, requests);
    presence::fill_data(frame, requests.get_mut(before..).unwrap_or_default());
}

fn parse_items<'a>(frame: &'a str, requests: &mut Vec<Request<'a>>) {
    match serde_json::from_str::<Item<'a>>(frame) {
        Ok(Item::Array(items)) if matches!(items.first(), Some(Item::Array(_))) => {
            match items.len() {
                0..=COMMANDS_MAX => requests.extend(items.into_iter().map(request)),
                count => requests.push(too_many(count)),
            }
        }
        Ok(item) => requests.push(request(item)),
        Err(error) => parse_members(frame, &error, requests),
    }
}

/// Reads a frame that could not be read as a whole, item by item: half of a surrogate pair, a number
/// that is too large or deep nesting must not affect other commands, nor lose the id of its own.
fn parse_members<'a>(frame: &'a str, error: &serde_json::Error, requests: &mut Vec<Request<'a>>) {
    match serde_json::from_str::<Vec<&'a RawValue>>(frame) {
        Ok(members) if members.first().is_some_and(|first| first.get().starts_with('[')) => {
            match members.len() {
                0..=COMMANDS_MAX => {
                    let items = members.into_iter().map(|member| lenient::item(member.get()));
                    requests.extend(items.map(request));
                }
                count => requests.push(too_many(count)),
            }
        }
        Ok(members) => {
            let items = members.into_iter().map(|member| lenient::argument(member.get()));
            requests.push(request(Item::Array(items.collect())));
        }
        Err(_) => requests.push(Request {
            tag: Tag::None,
            command: Err(Refusal::new(BADFRAME, format!("not JSON: {error}"))),
        }),
    }
}

fn too_many(count: usize) -> Request<'static> {
    let message = format!("{count} commands in one frame; there may be {COMMANDS_MAX}");
    Request { tag: Tag::None, command: Err(Refusal::new(LIMIT, message)) }
}

/// The error for a kind of frame that this sub-protocol does not use.
pub fn binary_frame() -> Request<'static> {
    Request {
        tag: Tag::None,
        command: Err(Refusal::new(
            BADFRAME,
            "a binary frame: commands are JSON arrays in text frames",
        )),
    }
}

/// A JSON value, as far as commands need it.
enum Item<'a> {
    Null,
    Bool(bool),
    String(Cow<'a, str>),
    Integer(u64),
    Array(Vec<Item<'a>>),
    Object(Vec<(Cow<'a, str>, Item<'a>)>),
    /// `{"base64": "…"}` and nothing else in it.
    Base64(Cow<'a, str>),
    /// All other values.
    Other,
}

impl<'de> Deserialize<'de> for Item<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Item<'de>, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Item<'de>, E> {
        Ok(Item::String(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Item<'de>, E> {
        Ok(Item::String(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Item<'de>, E> {
        Ok(Item::Integer(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Item<'de>, E> {
        Ok(Item::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Item<'de>, E> {
        Ok(Item::Other)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Item<'de>, E> {
        Ok(Item::Bool(value))
    }

    fn visit_unit<E>(self) -> Result<Item<'de>, E> {
        Ok(Item::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Item<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Item::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry::<Cow<'de, str>, Item<'de>>()? {
            members.push(member);
        }
        Ok(match &mut members[..] {
            [(key, Item::String(text))] if key == "base64" => Item::Base64(std::mem::take(text)),
            _ => Item::Object(members),
        })
    }
}

fn request(item: Item<'_>) -> Request<'_> {
    let bad_frame = |message: &'static str| Request {
        tag: Tag::None,
        command: Err(Refusal::new(BADFRAME, message)),
    };
    let Item::Array(items) = item else {
        return bad_frame("a command is an array such as [1,\"SUBSCRIBE\",\"news\"]");
    };
    let mut items = items.into_iter();
    let (tag, verb) = match items.next() {
        Some(Item::Integer(id)) if id <= ID_MAX => (Tag::Id(id), items.next()),
        Some(verb @ Item::String(_)) => (Tag::None, Some(verb)),
        Some(_) => {
            return bad_frame(
                "a command begins with its verb, or with an id: an integer from 0 to 2^53 - 1",
            );
        }
        None => return bad_frame("an empty array is not a command"),
    };
    let Some(Item::String(verb)) = verb else {
        return bad_frame("after the id stands the verb, a string");
    };
    Request { tag, command: command(&verb, items) }
}

type Arguments<'a> = std::vec::IntoIter<Item<'a>>;

fn command<'a>(verb: &str, arguments: Arguments<'a>) -> Result<Command<'a>, Refusal> {
    /// Longer than any verb.
    const VERB_BYTES_MAX: usize = 16;
    let mut upper = [0; VERB_BYTES_MAX];
    let upper = match upper.get_mut(..verb.len()) {
        Some(upper) => {
            upper.copy_from_slice(verb.as_bytes());
            upper.make_ascii_uppercase();
            &*upper
        }
        None => &[],
    };
    Ok(match upper {
        b"PUBLISH" => publish(verb, arguments)?,
        b"RESUME" => history::resume(verb, arguments)?,
        b"HISTORY" => history::history(verb, arguments)?,
        b"ENTER" => presence::enter(verb, arguments)?,
        b"LEAVE" => Command::Leave(presence::channel(verb, arguments)?),
        b"PRESENCE" => {
            let (channel, options) = presence::look(verb, arguments)?;
            Command::Presence(channel, options)
        }
        b"WATCH" => {
            let (channel, options) = presence::look(verb, arguments)?;
            Command::WatchRoom(channel, options)
        }
        b"UNWATCH" => Command::UnwatchRoom(presence::channel(verb, arguments)?),
        b"SUBSCRIBE" => Command::Subscribe(Kind::Channel, at_least_one(verb, arguments)?),
        b"PSUBSCRIBE" => Command::Subscribe(Kind::Pattern, at_least_one(verb, arguments)?),
        b"UNSUBSCRIBE" => Command::Unsubscribe(Kind::Channel, names(arguments)?),
        b"PUNSUBSCRIBE" => Command::Unsubscribe(Kind::Pattern, names(arguments)?),
        b"PUBSUB" => pubsub(arguments)?,
        b"PING" => {
            let [text] = at_most(verb, arguments)?;
            Command::Ping(text.map(|text| bytestring("the text", text)).transpose()?)
        }
        b"AUTH" => authenticate(verb, arguments)?,
        b"HELLO" => {
            let [] = exactly(verb, arguments)?;
            Command::Hello
        }
        b"QUIT" => {
            let [] = exactly(verb, arguments)?;
            Command::Quit
        }
        _ => {
            let verb = switchyard_types::close::clip(verb, 64);
            return Err(Refusal::new(
                UNKNOWN,
                format!(
                    "unknown verb {verb:?}; there are SUBSCRIBE, UNSUBSCRIBE, PSUBSCRIBE, \
                     PUNSUBSCRIBE, PUBLISH, RESUME, HISTORY, ENTER, LEAVE, PRESENCE, WATCH, UNWATCH, \
                     PUBSUB, PING, AUTH, HELLO and QUIT"
                ),
            ));
        }
    })
}

fn publish<'a>(verb: &str, mut arguments: Arguments<'a>) -> Result<Command<'a>, Refusal> {
    const TAKES: &str = "a channel, a payload and, optionally, an object of options";
    let (Some(channel), Some(payload), options, None) =
        (arguments.next(), arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(arity(verb, TAKES));
    };
    let channel = bytestring("the channel", channel)?;
    let payload = bytestring("the payload", payload)?;
    let options = match options {
        Some(options @ (Item::Object(_) | Item::Base64(_))) => history::publish_options(options)?,
        Some(_) => return Err(arity(verb, TAKES)),
        None => None,
    };
    Ok(Command::Publish(Publication { space: Space::Channels, channel, payload, options }))
}

fn pubsub(mut arguments: Arguments<'_>) -> Result<Command<'_>, Refusal> {
    const SUBCOMMANDS: &str = "PUBSUB takes CHANNELS, NUMSUB or NUMPAT";
    let Some(subcommand) = arguments.next() else { return Err(Refusal::new(ARITY, SUBCOMMANDS)) };
    let Item::String(subcommand) = subcommand else {
        return Err(Refusal::new(BADVALUE, SUBCOMMANDS));
    };
    match subcommand.to_ascii_uppercase().as_str() {
        "CHANNELS" => {
            let [matching] = at_most("PUBSUB CHANNELS", arguments)?;
            let matching = matching.map(|name| bytestring("the pattern", name)).transpose()?;
            Ok(Command::Channels(Space::Channels, matching))
        }
        "NUMSUB" => Ok(Command::SubscriberCounts(Space::Channels, names(arguments)?)),
        "NUMPAT" => {
            let [] = exactly("PUBSUB NUMPAT", arguments)?;
            Ok(Command::PatternCount)
        }
        _ => Err(Refusal::new(UNKNOWN, SUBCOMMANDS)),
    }
}

fn authenticate<'a>(verb: &str, arguments: Arguments<'a>) -> Result<Command<'a>, Refusal> {
    let mut words = arguments.map(|argument| match argument {
        Item::String(word) => Ok(word.into_owned()),
        _ => Err(Refusal::new(BADVALUE, "credentials are strings")),
    });
    let credentials = match (words.next(), words.next(), words.next()) {
        (Some(secret), None, _) => Credentials { user: None, secret: secret? },
        (Some(user), Some(secret), None) => Credentials { user: Some(user?), secret: secret? },
        _ => return Err(arity(verb, "a token, or a user and a password")),
    };
    Ok(Command::Authenticate(credentials))
}

fn exactly<'a, const N: usize>(
    verb: &str,
    arguments: Arguments<'a>,
) -> Result<[Item<'a>; N], Refusal> {
    <[Item<'a>; N]>::try_from(arguments.collect::<Vec<_>>()).map_err(|_| {
        arity(verb, &if N == 1 { "1 argument".into() } else { format!("{N} arguments") })
    })
}

fn at_most<'a>(verb: &str, mut arguments: Arguments<'a>) -> Result<[Option<Item<'a>>; 1], Refusal> {
    let first = arguments.next();
    match arguments.next() {
        None => Ok([first]),
        Some(_) => Err(arity(verb, "at most 1 argument")),
    }
}

fn at_least_one<'a>(verb: &str, arguments: Arguments<'a>) -> Result<Vec<Bytestring<'a>>, Refusal> {
    let names = names(arguments)?;
    if names.is_empty() { Err(arity(verb, "at least 1 name")) } else { Ok(names) }
}

fn names(arguments: Arguments<'_>) -> Result<Vec<Bytestring<'_>>, Refusal> {
    arguments.map(|argument| bytestring("a name", argument)).collect()
}

fn arity(verb: &str, takes: &str) -> Refusal {
    Refusal::new(ARITY, format!("{} takes {takes}", verb.to_ascii_uppercase()))
}

fn bytestring<'a>(what: &str, item: Item<'a>) -> Result<Bytestring<'a>, Refusal> {
    match item {
        Item::String(Cow::Borrowed(text)) => Ok(Cow::Borrowed(text.as_bytes())),
        Item::String(Cow::Owned(text)) => Ok(Cow::Owned(text.into_bytes())),
        Item::Base64(text) => match BASE64.decode(text.as_bytes()) {
            Ok(bytes) => Ok(Cow::Owned(bytes)),
            Err(error) => Err(Refusal::new(
                BADVALUE,
                format!("{what} is not base64 in the standard alphabet, padded: {error}"),
            )),
        },
        _ => Err(Refusal::new(
            BADVALUE,
            format!(
                "{what} must be a string, for instance the text of a JSON document, or \
                 {{\"base64\": \"…\"}}"
            ),
        )),
    }
}

/// Appends the reply to a request; nothing for a success without an id.
pub fn write_reply(tag: Tag, reply: &Reply<'_>, output: &mut Vec<u8>) {
    let id = match (tag, reply) {
        (Tag::Id(id), _) => Some(id),
        (_, Reply::Refused(_)) => None,
        _ => return,
    };
    write_message(MessageKind::Text, output, |output| {
        output.push(b'[');
        match id {
            Some(id) => output.extend_from_slice(id.to_string().as_bytes()),
            None => output.extend_from_slice(b"null"),
        }
        let is_error = matches!(reply, Reply::Refused(_));
        output.extend_from_slice(if is_error { b",\"ERR\"," } else { b",\"OK\"," });
        write_value(reply, output);
        output.push(b']');
    });
}

fn write_value(reply: &Reply<'_>, output: &mut Vec<u8>) {
    match reply {
        Reply::Listening { held: number, .. }
        | Reply::Published(number)
        | Reply::Number(number) => {
            output.extend_from_slice(number.to_string().as_bytes());
        }
        Reply::PublishedWith(published) => history::write_published(published, output),
        Reply::Resumed(resumed) => history::write_resumed(resumed, output),
        Reply::History(page) => history::write_page(page, output),
        Reply::Presence(page) => presence::write_page(page, output),
        Reply::Stream(_) => unreachable!("no command in JSON has this reply"),
        Reply::True => output.extend_from_slice(b"true"),
        Reply::Names(names) => {
            output.push(b'[');
            for (position, name) in names.iter().enumerate() {
                if position > 0 {
                    output.push(b',');
                }
                write_bytes(name, output);
            }
            output.push(b']');
        }
        Reply::Counts(names, counts) => write_counts(names, counts, output),
        Reply::Pong(None) => output.extend_from_slice(b"\"PONG\""),
        Reply::Pong(Some(text)) => write_bytes(text, output),
        Reply::Ok => output.extend_from_slice(b"\"OK\""),
        Reply::Hello(greeting) => write_json(
            &json!({
                "server": "switchyard",
                "version": env!("CARGO_PKG_VERSION"),
                "protocol": SUBPROTOCOL,
                "connection": greeting.connection.to_string(),
                "limits": greeting.limits.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()))
                    .collect::<serde_json::Map<String, Value>>(),
                "features": greeting.features,
                "user": greeting.user,
                "expires_in_ms": greeting.expires_in_ms,
                "now_ms": greeting.now_ms,
            }),
            output,
        ),
        Reply::Refused(refusal) => {
            let mut error = json!({ "code": refusal.code, "message": refusal.message });
            if let (Some(by), Some(members)) = (&refusal.by, error.as_object_mut()) {
                members.insert("by".to_owned(), Value::from(&**by));
            }
            write_json(&error, output);
        }
    }
}

/// An object of names and numbers. A name that is not UTF-8 cannot be a JSON key, so the key is the
/// text of its `{"base64": "…"}`.
fn write_counts(names: &Names, counts: &[u64], output: &mut Vec<u8>) {
    output.push(b'{');
    for (position, (name, count)) in names.iter().zip(counts).enumerate() {
        if position > 0 {
            output.push(b',');
        }
        match std::str::from_utf8(name) {
            Ok(name) => write_json(name, output),
            Err(_) => {
                let mut key = Vec::new();
                write_bytes(name, &mut key);
                write_json(&*String::from_utf8_lossy(&key), output);
            }
        }
        output.push(b':');
        output.extend_from_slice(count.to_string().as_bytes());
    }
    output.push(b'}');
}

/// Appends the frame of a message, for subscribers of its channel or of a pattern. One that is
/// retained has a fourth element with its position, and its tags, which are JSON.
pub fn write_push(
    pattern: Option<&[u8]>,
    channel: &[u8],
    payload: &[u8],
    position: Option<Position>,
    tags: Option<&[u8]>,
    output: &mut Vec<u8>,
) {
    write_message(MessageKind::Text, output, |output| {
        match pattern {
            None => output.extend_from_slice(b"[\"message\","),
            Some(pattern) => {
                output.extend_from_slice(b"[\"pmessage\",");
                write_bytes(pattern, output);
                output.push(b',');
            }
        }
        write_bytes(channel, output);
        output.push(b',');
        write_bytes(payload, output);
        if let Some(position) = position {
            output.extend_from_slice(b",{\"position\":\"");
            position.write(output);
            output.push(b'"');
            if let Some(tags) = tags {
                output.extend_from_slice(b",\"tags\":");
                output.extend_from_slice(tags);
            }
            output.push(b'}');
        }
        output.push(b']');
    });
}

/// Appends the frame that says the server will soon close the connection.
/// `closes_in_ms`: not before this many milliseconds.
pub fn write_goaway(
    reason: &str,
    reconnect_within_ms: [u64; 2],
    closes_in_ms: u64,
    output: &mut Vec<u8>,
) {
    write_message(MessageKind::Text, output, |output| {
        let why = json!({
            "reason": reason,
            "reconnect_within_ms": reconnect_within_ms,
            "closes_in_ms": closes_in_ms,
        });
        write_json(&json!(["goaway", why]), output);
    });
}

/// Appends the frame that says that the client's credentials expire soon.
pub fn write_expiring(in_ms: u64, output: &mut Vec<u8>) {
    write_message(MessageKind::Text, output, |output| {
        write_json(&json!(["expiring", { "in_ms": in_ms }]), output);
    });
}

/// Appends the frame that notifies the client of subscriptions that the server has ended: the
/// names of a kind, and the reason.
pub fn write_unsubscribed<'a>(
    kind: Kind,
    names: impl Iterator<Item = &'a [u8]>,
    listening: u64,
    refusal: &Refusal,
    output: &mut Vec<u8>,
) {
    let mut list = Vec::from(*b"[");
    for (position, name) in names.enumerate() {
        if position > 0 {
            list.push(b',');
        }
        write_bytes(name, &mut list);
    }
    list.push(b']');
    let (channels, patterns): (&[u8], &[u8]) = match kind {
        Kind::Pattern => (b"[]", &list),
        Kind::Channel | Kind::Shard => (&list, b"[]"),
    };
    write_message(MessageKind::Text, output, |output| {
        output.extend_from_slice(b"[\"unsubscribed\",{\"channels\":");
        output.extend_from_slice(channels);
        output.extend_from_slice(b",\"patterns\":");
        output.extend_from_slice(patterns);
        output.extend_from_slice(b",\"listening\":");
        output.extend_from_slice(listening.to_string().as_bytes());
        output.extend_from_slice(b",\"code\":");
        write_json(&*refusal.code, output);
        output.extend_from_slice(b",\"message\":");
        write_json(&*refusal.message, output);
        if let Some(by) = &refusal.by {
            output.extend_from_slice(b",\"by\":");
            write_json(&**by, output);
        }
        output.extend_from_slice(b"}]");
    });
}

fn write_bytes(bytes: &[u8], output: &mut Vec<u8>) {
    match std::str::from_utf8(bytes) {
        // serde_json checks each byte separately, for two fifths of the time to encode a message of
        // 128 bytes; this checks many at once.
        Ok(text) if !needs_escapes(text.as_bytes()) => {
            output.push(b'"');
            output.extend_from_slice(text.as_bytes());
            output.push(b'"');
        }
        Ok(text) => write_json(text, output),
        Err(_) => write_json(&json!({ "base64": BASE64.encode(bytes) }), output),
    }
}

/// Whether JSON must escape one of these bytes: RFC 8259, section 7.
fn needs_escapes(text: &[u8]) -> bool {
    // Without an early exit, so that it can be vectorised.
    text.iter().fold(false, |needs, &byte| needs | (byte < 0x20) | (byte == b'"') | (byte == b'\\'))
}

fn write_json<T: serde::Serialize + ?Sized>(value: &T, output: &mut Vec<u8>) {
    serde_json::to_writer(output, value).expect("a Vec takes what is written");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_all(frame: &str) -> Vec<Request<'_>> {
        let mut requests = Vec::new();
        parse(frame, &mut requests);
        requests
    }

    fn code(frame: &str) -> (Tag, String) {
        let requests = parse_all(frame);
        assert_eq!(requests.len(), 1, "{frame}");
        match &requests[0].command {
            Ok(command) => (requests[0].tag, format!("{command:?}")),
            Err(refusal) => (requests[0].tag, refusal.code.to_string()),
        }
    }

    #[test]
    fn ids_are_integers_that_javascript_holds() {
        for bad in ["1.0", "1e2", "-1", "null", "true", "9007199254740992", "1e400", "{}"] {
            assert_eq!(
                code(&format!("[{bad},\"PING\"]")),
                (Tag::None, BADFRAME.to_owned()),
                "{bad}"
            );
        }
        assert_eq!(code("[9007199254740991,\"PING\"]").0, Tag::Id(9007199254740991));
        assert_eq!(code("[0,\"ping\"]"), (Tag::Id(0), "Ping(None)".to_owned()));
        assert_eq!(code("[\"pInG\"]"), (Tag::None, "Ping(None)".to_owned()));
    }

    #[test]
    fn what_is_not_a_command_is_a_bad_frame() {
        for bad in [
            "",
            "{}",
            "[]",
            "7",
            "\"PING\"",
            "[1]",
            "[1,2]",
            "[1,null]",
            "[1,\"PING\"",
            "[[1,\"PING\"]]x",
        ] {
            assert_eq!(code(bad), (Tag::None, BADFRAME.to_owned()), "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(code(&deep), (Tag::None, BADFRAME.to_owned()));
    }

    #[test]
    fn commands_of_one_frame_stand_alone() {
        let requests = parse_all("[[1,\"PING\"],[],[2,\"NO\"],7,[[3]],[3,\"PING\"]]");
        let seen: Vec<_> = requests
            .iter()
            .map(|request| {
                (request.tag, request.command.as_ref().err().map(|e| e.code.to_string()))
            })
            .collect();
        let bad = |tag, code: &str| (tag, Some(code.to_owned()));
        assert_eq!(
            seen,
            [
                (Tag::Id(1), None),
                bad(Tag::None, BADFRAME),
                bad(Tag::Id(2), UNKNOWN),
                bad(Tag::None, BADFRAME),
                bad(Tag::None, BADFRAME),
                (Tag::Id(3), None),
            ]
        );
    }

    #[test]
    fn half_a_surrogate_pair_is_a_replacement_character() {
        for (text, expected) in [
            (r"\ud83d", "\u{fffd}"),
            (r"a\ud83d", "a\u{fffd}"),
            (r"\ude00b", "\u{fffd}b"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}"),
            (r"\ud83d\u0041ü\n", "\u{fffd}Aü\n"),
            (r"\uD800\uDFFF\uDFFF", "\u{103ff}\u{fffd}"),
        ] {
            for frame in [
                format!(r#"[12,"PUBLISH","chat","{text}"]"#),
                format!(r#"[[12,"PUBLISH","chat","{text}"],[13,"PING"]]"#),
            ] {
                let requests = parse_all(&frame);
                assert_eq!(requests[0].tag, Tag::Id(12), "{frame}");
                let Ok(Command::Publish(publication)) = &requests[0].command else { panic!() };
                assert_eq!(&*publication.payload, expected.as_bytes(), "{frame}");
                assert!(requests.get(1).is_none_or(|next| next.tag == Tag::Id(13)), "{frame}");
            }
        }
    }

    #[test]
    fn an_argument_that_cannot_be_read_is_refused_with_the_id() {
        let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
        let deep_object = format!("{}1{}", r#"{"a":"#.repeat(1_000), "}".repeat(1_000));
        for bad in
            ["1e999", "-1e999", &deep, &deep_object, r#"{"base64":"\ud83d"}"#, r#"["\ud83d"]"#]
        {
            for frame in [
                format!(r#"[12,"PUBLISH","chat",{bad}]"#),
                format!(r#"[12,"PUBLISH",{bad},"x"]"#),
                format!(r#"[12,"SUBSCRIBE","a",{bad}]"#),
                format!(r#"[12,"AUTH",{bad}]"#),
            ] {
                assert_eq!(code(&frame), (Tag::Id(12), BADVALUE.to_owned()), "{frame}");
                let several = format!(r#"[{frame},[13,"PING"]]"#);
                let requests = parse_all(&several);
                let tags: Vec<_> = requests.iter().map(|request| request.tag).collect();
                assert_eq!(tags, [Tag::Id(12), Tag::Id(13)], "{several}");
                let code = requests[0].command.as_ref().err().map(|refusal| &*refusal.code);
                assert_eq!(code, Some(BADVALUE), "{several}");
            }
        }
        assert_eq!(code(r#"[1,"DANCE",1e999]"#), (Tag::Id(1), UNKNOWN.to_owned()));
        assert_eq!(code(r#"[1,"PING",1e999,1]"#), (Tag::Id(1), ARITY.to_owned()));
        assert_eq!(code(r#"[1,"P\ud83d"]"#), (Tag::Id(1), UNKNOWN.to_owned()));
        let several = format!("[{deep},1]");
        for request in parse_all(&several) {
            let code = request.command.as_ref().err().map(|refusal| &*refusal.code);
            assert_eq!((request.tag, code), (Tag::None, Some(BADFRAME)));
        }
    }

    #[test]
    fn strings_are_spelled_as_serde_json_spells_them() {
        for byte in 0..=0x7f {
            for text in [vec![byte], [b"a line of text ", &[byte][..], b" and more"].concat()] {
                let text = String::from_utf8(text).unwrap();
                let mut spelled = Vec::new();
                write_bytes(text.as_bytes(), &mut spelled);
                assert_eq!(spelled, serde_json::to_vec(&text).unwrap());
            }
        }
    }

    #[test]
    fn strings_without_escapes_are_not_copied() {
        let requests = parse_all(r#"["PUBLISH","news","plain"]"#);
        let Ok(Command::Publish(publication)) = &requests[0].command else { panic!() };
        assert!(matches!(publication.payload, Cow::Borrowed(_)));
        let requests = parse_all(r#"["PUBLISH",{"base64":"/w=="},"a\n"]"#);
        let Ok(Command::Publish(publication)) = &requests[0].command else { panic!() };
        assert_eq!((&*publication.channel, &*publication.payload), (&[0xff][..], &b"a\n"[..]));
    }

    #[test]
    fn only_strings_and_base64_are_bytes() {
        for bad in [
            "1",
            "null",
            "[]",
            "{}",
            r#"{"base64":1}"#,
            r#"{"base64":"/w"}"#,
            r#"{"base64":"_w=="}"#,
            r#"{"base64":"","x":1}"#,
        ] {
            assert_eq!(
                code(&format!("[1,\"PUBLISH\",\"c\",{bad}]")),
                (Tag::Id(1), BADVALUE.to_owned()),
                "{bad}"
            );
        }
    }

    #[test]
    fn arity_is_checked() {
        for bad in [
            "\"SUBSCRIBE\"",
            "\"PUBLISH\",\"a\"",
            "\"PUBLISH\",\"a\",\"b\",\"c\"",
            "\"PING\",\"a\",\"b\"",
            "\"AUTH\"",
            "\"HELLO\",\"3\"",
            "\"PUBSUB\"",
            "\"PUBSUB\",\"NUMPAT\",\"x\"",
        ] {
            assert_eq!(code(&format!("[1,{bad}]")), (Tag::Id(1), ARITY.to_owned()), "{bad}");
        }
    }
}
