//! What PUBLISH, RESUME and HISTORY say of the history of a channel.
//!
//! Their options are an object, in which a key that is not known is refused: a client that misspells
//! one would otherwise lose what it asked for. Whether a number is within the limits of this server is
//! checked by the session.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Arguments, Item, arity, bytestring, write_bytes, write_json};
use switchyard_types::command::{BADVALUE, Command, Published, Refusal, TOOLARGE};
use switchyard_types::history::{
    HistoryOptions, HistoryPage, KEY_BYTES_MAX, PublishOptions, ResumeOptions, Resumed,
    TAGS_BYTES_MAX, VERSION_MAX,
};
use switchyard_types::position::Position;

/// The options of PUBLISH.
pub(super) fn publish_options(item: Item<'_>) -> Result<Option<Box<PublishOptions>>, Refusal> {
    let mut options = PublishOptions::default();
    for (key, value) in members(item)? {
        match (&*key, value) {
            ("key", Item::String(text)) if (1..=KEY_BYTES_MAX).contains(&text.len()) => {
                options.key = Some(text.into());
            }
            ("key", _) => return Err(bad(format!("key is a text of 1 to {KEY_BYTES_MAX} bytes"))),
            ("position", Item::Bool(wanted)) => options.wants_position = wanted,
            ("position", _) => return Err(bad("position is true or false")),
            ("version", Item::Integer(version @ 1..=VERSION_MAX)) => {
                options.version = Some(version);
            }
            ("version", _) => return Err(bad("version is an integer from 1 to 2^53 - 1")),
            ("tags", tags) => options.tags = Some(read_tags(tags)?),
            (other, _) => return Err(unknown(other, "key, position, version and tags")),
        }
    }
    Ok((options != PublishOptions::default()).then(|| Box::new(options)))
}

/// RESUME: a channel, a position or null, and options.
pub(super) fn resume<'a>(verb: &str, mut arguments: Arguments<'a>) -> Result<Command<'a>, Refusal> {
    let (Some(channel), position, given, None) =
        (arguments.next(), arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(arity(verb, "a channel and, optionally, a position and an object of options"));
    };
    let channel = bytestring("the channel", channel)?;
    let position = position.map(|position| read_position("the position", position)).transpose()?;
    let mut options = ResumeOptions { position: position.flatten(), ..ResumeOptions::default() };
    for (key, value) in given.map(members).transpose()?.into_iter().flatten() {
        match (&*key, value) {
            ("last", Item::Integer(last @ 1..)) => options.last = Some(last),
            ("last", _) => return Err(bad("last is an integer, at least 1")),
            ("since_ms", Item::Integer(since_ms)) => options.since_ms = Some(since_ms),
            ("since_ms", _) => {
                return Err(bad("since_ms is an integer: milliseconds since 1970"));
            }
            (other, _) => return Err(unknown(other, "last and since_ms")),
        }
    }
    Ok(Command::Resume(channel, options))
}

/// HISTORY: a channel and options.
pub(super) fn history<'a>(
    verb: &str,
    mut arguments: Arguments<'a>,
) -> Result<Command<'a>, Refusal> {
    let (Some(channel), given, None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(arity(verb, "a channel and, optionally, an object of options"));
    };
    let channel = bytestring("the channel", channel)?;
    let mut options = HistoryOptions::default();
    for (key, value) in given.map(members).transpose()?.into_iter().flatten() {
        match (&*key, value) {
            ("after", value) => options.after = read_position("after", value)?,
            ("before", value) => options.before = read_position("before", value)?,
            ("until", value) => options.until = read_position("until", value)?,
            ("limit", Item::Integer(limit @ 1..)) => options.limit = Some(limit),
            ("limit", _) => return Err(bad("limit is an integer, at least 1")),
            ("reverse", Item::Bool(is_reverse)) => options.is_reverse = is_reverse,
            ("reverse", _) => return Err(bad("reverse is true or false")),
            ("times", Item::Bool(has_times)) => options.has_times = has_times,
            ("times", _) => return Err(bad("times is true or false")),
            (other, _) => {
                return Err(unknown(other, "after, before, until, limit, reverse and times"));
            }
        }
    }
    Ok(Command::History(channel, options))
}

pub(super) fn members<'a>(item: Item<'a>) -> Result<Vec<(Cow<'a, str>, Item<'a>)>, Refusal> {
    match item {
        Item::Object(members) => Ok(members),
        Item::Base64(_) => Err(unknown("base64", "those of the command")),
        _ => Err(bad("options are an object")),
    }
}

/// A position; none: null.
fn read_position(what: &str, item: Item<'_>) -> Result<Option<Position>, Refusal> {
    match item {
        Item::Null => return Ok(None),
        Item::String(text) => {
            if let Some(position) = Position::parse(text.as_bytes()) {
                return Ok(Some(position));
            }
        }
        _ => {}
    }
    Err(bad(format!(
        "{what} is not a position that this server gave, such as \"1764340000000000-7\""
    )))
}

/// An object of texts, as JSON.
fn read_tags(item: Item<'_>) -> Result<Box<[u8]>, Refusal> {
    const FORM: &str = "tags are an object of texts";
    let members = match item {
        Item::Object(members) => members,
        Item::Base64(text) => vec![("base64".into(), Item::String(text))],
        _ => return Err(bad(FORM)),
    };
    let mut bytes = 0;
    // A name that repeats has its last value.
    let mut tags = BTreeMap::new();
    for (name, value) in members {
        let Item::String(value) = value else { return Err(bad(FORM)) };
        bytes += name.len() + value.len();
        tags.insert(name, value);
    }
    if bytes > TAGS_BYTES_MAX {
        let message = format!("tags of {bytes} bytes are over the limit of {TAGS_BYTES_MAX}");
        return Err(Refusal::new(TOOLARGE, message));
    }
    let mut json = Vec::new();
    write_json(&tags, &mut json);
    Ok(json.into())
}

pub(super) fn bad(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(BADVALUE, message)
}

pub(super) fn unknown(key: &str, known: &str) -> Refusal {
    let key = switchyard_types::close::clip(key, 64);
    bad(format!("there is no option {key:?}; there are {known}"))
}

/// What became of a publication that wanted more than the number of receivers.
pub(super) fn write_published(published: &Published, output: &mut Vec<u8>) {
    let Published { deliveries, position, is_stale } = published;
    output.extend_from_slice(b"{\"deliveries\":");
    output.extend_from_slice(deliveries.to_string().as_bytes());
    match is_stale {
        true => output.extend_from_slice(b",\"stale\":true"),
        false => {
            output.extend_from_slice(b",\"position\":");
            write_position(*position, output);
        }
    }
    output.push(b'}');
}

/// The reply to RESUME.
pub(super) fn write_resumed(resumed: &Resumed, output: &mut Vec<u8>) {
    let Resumed { listening, position, is_recovered, missed, reason } = resumed;
    output.extend_from_slice(b"{\"listening\":");
    output.extend_from_slice(listening.to_string().as_bytes());
    output.extend_from_slice(b",\"position\":");
    write_position(Some(*position), output);
    output.extend_from_slice(b",\"recovered\":");
    write_json(is_recovered, output);
    output.extend_from_slice(b",\"missed\":");
    output.extend_from_slice(missed.to_string().as_bytes());
    if let Some(reason) = reason {
        output.extend_from_slice(b",\"reason\":");
        write_json(reason, output);
    }
    output.push(b'}');
}

/// The reply to HISTORY.
pub(super) fn write_page(page: &HistoryPage<'_>, output: &mut Vec<u8>) {
    let HistoryPage { position, messages, next, has_gap, has_times } = page;
    output.extend_from_slice(b"{\"position\":");
    write_position(Some(*position), output);
    output.extend_from_slice(b",\"messages\":[");
    for (number, message) in messages.iter().enumerate() {
        if number > 0 {
            output.push(b',');
        }
        output.push(b'[');
        write_position(Some(message.position), output);
        output.push(b',');
        write_bytes(&message.payload, output);
        if *has_times {
            output.push(b',');
            output.extend_from_slice(message.unix_ms.to_string().as_bytes());
        }
        if let Some(tags) = message.tags {
            output.extend_from_slice(b",{\"tags\":");
            output.extend_from_slice(tags);
            output.push(b'}');
        }
        output.push(b']');
    }
    output.extend_from_slice(b"],\"next\":");
    write_position(*next, output);
    output.extend_from_slice(b",\"gap\":");
    write_json(has_gap, output);
    output.push(b'}');
}

fn write_position(position: Option<Position>, output: &mut Vec<u8>) {
    match position {
        None => output.extend_from_slice(b"null"),
        Some(position) => {
            output.push(b'"');
            position.write(output);
            output.push(b'"');
        }
    }
}
