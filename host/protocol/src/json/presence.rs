//! What ENTER, LEAVE, PRESENCE and WATCH say, and the events of rooms.

use serde_json::value::RawValue;

use super::history::{bad, members, unknown};
use super::{
    Arguments, Item, MessageKind, arity, bytestring, write_bytes, write_json, write_message,
};
use switchyard_types::command::{BADVALUE, Bytestring, Command, Refusal, Request};
use switchyard_types::ids::ConnectionId;
use switchyard_types::presence::{MemberView, PAGE_MEMBERS_MAX, PresenceOptions, PresencePage};

/// ENTER: a channel and any JSON value. The value is read by `fill_data`, as it is written.
pub(super) fn enter<'a>(verb: &str, mut arguments: Arguments<'a>) -> Result<Command<'a>, Refusal> {
    let (Some(channel), _data, None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(arity(verb, "a channel and, optionally, any JSON value"));
    };
    Ok(Command::Enter(bytestring("the channel", channel)?, "null".into()))
}

/// LEAVE, UNWATCH: a channel.
pub(super) fn channel<'a>(
    verb: &str,
    mut arguments: Arguments<'a>,
) -> Result<Bytestring<'a>, Refusal> {
    match (arguments.next(), arguments.next()) {
        (Some(channel), None) => bytestring("the channel", channel),
        _ => Err(arity(verb, "a channel")),
    }
}

/// PRESENCE, WATCH: a channel and options.
pub(super) fn look<'a>(
    verb: &str,
    mut arguments: Arguments<'a>,
) -> Result<(Bytestring<'a>, PresenceOptions), Refusal> {
    let (Some(channel), given, None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(arity(verb, "a channel and, optionally, an object of options"));
    };
    let channel = bytestring("the channel", channel)?;
    let is_watch = verb.eq_ignore_ascii_case("WATCH");
    let mut options = PresenceOptions::default();
    for (key, value) in given.map(members).transpose()?.into_iter().flatten() {
        match (&*key, value) {
            ("limit", Item::Integer(limit @ 1..=PAGE_MEMBERS_MAX)) => options.limit = Some(limit),
            ("limit", _) => {
                return Err(bad(format!("limit is an integer from 1 to {PAGE_MEMBERS_MAX}")));
            }
            ("after", Item::String(id)) if !is_watch && connection_id(&id).is_some() => {
                options.after = connection_id(&id);
            }
            ("after", Item::Null) if !is_watch => options.after = None,
            ("after", _) if !is_watch => {
                return Err(bad("after is the connection of a member, such as \"7\""));
            }
            ("count", Item::Bool(is_count)) if !is_watch => options.is_count = is_count,
            ("count", _) if !is_watch => return Err(bad("count is true or false")),
            (other, _) if is_watch => return Err(unknown(other, "limit")),
            (other, _) => return Err(unknown(other, "after, limit and count")),
        }
    }
    Ok((channel, options))
}

fn connection_id(text: &str) -> Option<ConnectionId> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

/// Sets the data of the ENTERs among the requests of a frame, as it is written there.
pub(super) fn fill_data<'a>(frame: &'a str, requests: &mut [Request<'a>]) {
    if !requests.iter().any(|request| matches!(request.command, Ok(Command::Enter(..)))) {
        return;
    }
    let Ok(items) = serde_json::from_str::<Vec<&'a RawValue>>(frame) else { return };
    match items.first() {
        Some(first) if first.get().starts_with('[') => {
            for (request, item) in requests.iter_mut().zip(items) {
                if let Ok(items) = serde_json::from_str::<Vec<&'a RawValue>>(item.get()) {
                    set_data(request, &items);
                }
            }
        }
        _ => requests.iter_mut().for_each(|request| set_data(request, &items)),
    }
}

fn set_data<'a>(request: &mut Request<'a>, items: &[&'a RawValue]) {
    let Ok(Command::Enter(_, data)) = &mut request.command else { return };
    // The id, if there is one, the verb and the channel come before it.
    let has_id = items.first().is_some_and(|first| !first.get().starts_with('"'));
    let Some(written) = items.get(2 + usize::from(has_id)) else { return };
    // It is sent to others as it is written, and they must be able to read it.
    match serde_json::from_str::<serde_json::Value>(written.get()) {
        Ok(_) => *data = written.get().into(),
        Err(problem) => {
            let message = format!("the data cannot be read: {problem}");
            request.command = Err(Refusal::new(BADVALUE, message));
        }
    }
}

/// The reply to PRESENCE and WATCH.
pub(super) fn write_page(page: &PresencePage<'_>, output: &mut Vec<u8>) {
    let PresencePage { count, users, members, next } = page;
    output.extend_from_slice(format!("{{\"count\":{count},\"users\":{users}").as_bytes());
    if let Some(members) = members {
        output.extend_from_slice(b",\"members\":");
        write_members(members, output);
    }
    if let Some(next) = next {
        output.extend_from_slice(format!(",\"next\":\"{next}\"").as_bytes());
    }
    output.push(b'}');
}

/// Appends the frame with further members of a room that is watched; whether more follow.
pub fn write_more_members(
    channel: &[u8],
    members: &[MemberView<'_>],
    has_more: bool,
    output: &mut Vec<u8>,
) {
    write_message(MessageKind::Text, output, |output| {
        begin_event("members", channel, output);
        output.extend_from_slice(b",{\"members\":");
        write_members(members, output);
        output.extend_from_slice(b",\"more\":");
        write_json(&has_more, output);
        output.extend_from_slice(b"}]");
    });
}

/// Appends the frame of one event of a room: `enter`, `update` or `leave`.
pub fn write_member_event(
    event: &str,
    channel: &[u8],
    member: &MemberView<'_>,
    output: &mut Vec<u8>,
) {
    write_message(MessageKind::Text, output, |output| {
        begin_event(event, channel, output);
        output.push(b',');
        write_member(member, output);
        output.push(b']');
    });
}

/// Appends the frame of many changes of a room: those who entered, were updated and left.
pub fn write_presence_event(channel: &[u8], changes: [&[MemberView<'_>]; 3], output: &mut Vec<u8>) {
    write_message(MessageKind::Text, output, |output| {
        begin_event("presence", channel, output);
        for (name, members) in [",{\"enter\":", ",\"update\":", ",\"leave\":"].iter().zip(changes) {
            output.extend_from_slice(name.as_bytes());
            write_members(members, output);
        }
        output.extend_from_slice(b"}]");
    });
}

/// Appends the frame that says that a channel has no presence any more.
pub fn write_unwatched(channel: &[u8], output: &mut Vec<u8>) {
    write_message(MessageKind::Text, output, |output| {
        begin_event("unwatched", channel, output);
        output.push(b']');
    });
}

fn begin_event(event: &str, channel: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(b"[\"");
    output.extend_from_slice(event.as_bytes());
    output.extend_from_slice(b"\",");
    write_bytes(channel, output);
}

fn write_members(members: &[MemberView<'_>], output: &mut Vec<u8>) {
    output.push(b'[');
    for (number, member) in members.iter().enumerate() {
        if number > 0 {
            output.push(b',');
        }
        write_member(member, output);
    }
    output.push(b']');
}

fn write_member(member: &MemberView<'_>, output: &mut Vec<u8>) {
    let MemberView { connection, user, data, was } = member;
    output.extend_from_slice(format!("{{\"connection\":\"{connection}\",\"user\":").as_bytes());
    write_json(user, output);
    output.extend_from_slice(b",\"data\":");
    output.extend_from_slice(data.as_bytes());
    if let Some(was) = was {
        output.extend_from_slice(format!(",\"was\":\"{was}\"").as_bytes());
    }
    output.push(b'}');
}
