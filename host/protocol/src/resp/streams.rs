//! The arguments of the commands of a Redis stream, and the errors of Redis about them.
//!
//! IDs are read as Redis reads them, by the C library: up to a NUL, with leading spaces, zeros and a
//! plus sign.

use std::borrow::Cow;
use std::ops::Bound;

use switchyard_types::command::{Bytestring, Command, Publication, Space};
use switchyard_types::history::PublishOptions;
use switchyard_types::position::Position;
use switchyard_types::stream::{InfoDetail, RangeOptions, ReadFrom, ReadStreams, StreamCommand};

use super::arguments::Arguments;
use super::commands::CommandId;
use super::errors::{self, c_string};
use super::integer::parse_integer;

/// The only field of an entry.
pub const FIELD: &[u8] = b"payload";

/// How many entries XINFO STREAM … FULL shows, unless it says otherwise.
const INFO_ENTRIES: usize = 10;

/// The longest time to wait, in milliseconds. Redis computes its end as 64 bits with a sign, in
/// milliseconds since 1970.
const TIMEOUT_MS_MAX: u64 = i64::MAX as u64 - (1 << 42);

/// The longest ID, in bytes, that Redis reads.
const ID_BYTES_MAX: usize = 127;

/// The command of a request.
///
/// # Errors
///
/// The text of the error reply.
pub fn parse<'a>(
    id: CommandId,
    arguments: Arguments<'a>,
) -> Result<Command<'a>, Cow<'static, [u8]>> {
    let channel = Cow::Borrowed(arguments.get(1).unwrap_or_default());
    Ok(Command::Stream(match id {
        CommandId::Xadd => return parse_append(arguments),
        CommandId::Xrange | CommandId::Xrevrange => {
            StreamCommand::Range(channel, parse_range(id == CommandId::Xrevrange, arguments)?)
        }
        CommandId::Xlen => StreamCommand::Length(channel),
        CommandId::Xread => StreamCommand::Read(parse_read(arguments)?),
        _ => {
            let channel = Cow::Borrowed(arguments.get(2).unwrap_or_default());
            StreamCommand::Info(channel, parse_detail(arguments))
        }
    }))
}

/// The command of an XADD with a form that is served: `XADD channel * payload BYTES`.
pub fn append<'a>(channel: &'a [u8], payload: &'a [u8]) -> Command<'a> {
    let options = PublishOptions { wants_position: true, is_append: true, ..Default::default() };
    let (channel, payload) = (Cow::Borrowed(channel), Cow::Borrowed(payload));
    let publication = Publication::new(Space::Channels, channel, payload);
    Command::Publish(Publication { options: Some(Box::new(options)), ..publication })
}

/// The channel and the payload of an XADD with a form that is served.
pub fn appended(arguments: Arguments<'_>) -> Option<(&[u8], &[u8])> {
    let [Some(channel), Some(b"*"), Some(FIELD), Some(payload), None] =
        [1, 2, 3, 4, 5].map(|place| arguments.get(place))
    else {
        return None;
    };
    Some((channel, payload))
}

fn parse_append<'a>(arguments: Arguments<'a>) -> Result<Command<'a>, Cow<'static, [u8]>> {
    if let Some((channel, payload)) = appended(arguments) {
        return Ok(append(channel, payload));
    }
    const OPTIONS: [&[u8]; 4] = [b"NOMKSTREAM", b"MAXLEN", b"MINID", b"LIMIT"];
    let id = c_string(arguments.get(2).unwrap_or_default());
    if OPTIONS.iter().any(|option| option.eq_ignore_ascii_case(id)) {
        return Err(Cow::Borrowed(errors::APPEND_FORM));
    }
    // Redis completes an ID such as `5-*`, too.
    let is_id = id == b"*" || parse_id(id.strip_suffix(b"-*").unwrap_or(id), 0).is_some();
    Err(match (is_id, arguments.len() % 2) {
        (false, _) => Cow::Borrowed(errors::STREAM_ID_INVALID),
        (true, 0) => Cow::Owned(errors::wrong_arity("xadd")),
        (true, _) => Cow::Borrowed(errors::APPEND_FORM),
    })
}

fn parse_range(
    is_reverse: bool,
    arguments: Arguments<'_>,
) -> Result<RangeOptions, Cow<'static, [u8]>> {
    let [start, end] = if is_reverse { [3, 2] } else { [2, 3] };
    let end_of_range = |place, missing| {
        let text = c_string_of_id(arguments.get(place).unwrap_or_default());
        let id = text.and_then(|text| match text.strip_prefix(b"(") {
            Some(rest) if !rest.is_empty() => parse_id(rest, missing).map(Bound::Excluded),
            _ => match text {
                b"-" => Some(Bound::Included(LOWEST)),
                b"+" => Some(Bound::Included(HIGHEST)),
                _ => parse_id(text, missing).map(Bound::Included),
            },
        });
        id.ok_or(Cow::Borrowed(errors::STREAM_ID_INVALID))
    };
    let start = end_of_range(start, 0)?;
    if start == Bound::Excluded(HIGHEST) {
        return Err(Cow::Borrowed(errors::INTERVAL_START_INVALID));
    }
    let end = end_of_range(end, u64::MAX)?;
    if end == Bound::Excluded(LOWEST) {
        return Err(Cow::Borrowed(errors::INTERVAL_END_INVALID));
    }
    let mut count = None;
    let mut options = arguments.skip(4).iter();
    while let Some(option) = options.next() {
        match options.next().filter(|_| is_word(option, b"COUNT")) {
            Some(number) => count = Some(parse_count(number)?),
            None => return Err(Cow::Borrowed(errors::SYNTAX)),
        }
    }
    Ok(RangeOptions { start, end, count, is_reverse })
}

/// A count of Redis, in which a negative number is zero.
fn parse_count(text: &[u8]) -> Result<usize, Cow<'static, [u8]>> {
    match parse_integer(text) {
        Some(number) => Ok(usize::try_from(number).unwrap_or(0)),
        None => Err(Cow::Borrowed(errors::NOT_AN_INTEGER)),
    }
}

fn parse_read<'a>(arguments: Arguments<'a>) -> Result<ReadStreams<'a>, Cow<'static, [u8]>> {
    let (mut count, mut block_ms) = (None, None);
    let mut place = 1;
    let streams = loop {
        let Some(option) = arguments.get(place) else {
            return Err(Cow::Borrowed(errors::SYNTAX));
        };
        let value = arguments.get(place + 1);
        match value {
            Some(value) if is_word(option, b"BLOCK") => block_ms = Some(parse_timeout(value)?),
            Some(value) if is_word(option, b"COUNT") => {
                count = Some(parse_count(value)?).filter(|count| *count > 0);
            }
            Some(_) if is_word(option, b"STREAMS") => break arguments.skip(place + 1),
            Some(_) if is_word(option, b"GROUP") && arguments.get(place + 2).is_some() => {
                return Err(Cow::Borrowed(errors::GROUP_WITHOUT_READGROUP));
            }
            _ if is_word(option, b"NOACK") => {
                return Err(Cow::Borrowed(errors::NOACK_WITHOUT_READGROUP));
            }
            _ => return Err(Cow::Borrowed(errors::SYNTAX)),
        }
        place += 2;
    };
    if streams.len() % 2 != 0 {
        return Err(Cow::Borrowed(errors::UNBALANCED_STREAMS));
    }
    let count_of_streams = streams.len() / 2;
    let from = streams.skip(count_of_streams).iter().map(|text| match c_string(text) {
        b"$" => Ok(ReadFrom::End),
        b"+" => Ok(ReadFrom::Last),
        b">" => Err(Cow::Borrowed(errors::GROUP_ID_WITHOUT_READGROUP)),
        _ => match c_string_of_id(text).and_then(|text| parse_id(text, 0)) {
            Some(id) => Ok(ReadFrom::After(id)),
            None => Err(Cow::Borrowed(errors::STREAM_ID_INVALID)),
        },
    });
    let from = from.collect::<Result<Vec<_>, _>>()?;
    let channels: Vec<Bytestring<'a>> =
        streams.iter().take(count_of_streams).map(Cow::Borrowed).collect();
    Ok(ReadStreams { channels, from, count, block_ms })
}

/// A number of milliseconds.
fn parse_timeout(text: &[u8]) -> Result<u64, Cow<'static, [u8]>> {
    let number = parse_integer(text).ok_or(Cow::Borrowed(errors::TIMEOUT_INVALID))?;
    let number = u64::try_from(number).map_err(|_| Cow::Borrowed(errors::TIMEOUT_NEGATIVE))?;
    match number > TIMEOUT_MS_MAX {
        true => Err(Cow::Borrowed(errors::TIMEOUT_OUT_OF_RANGE)),
        false => Ok(number),
    }
}

/// `XINFO STREAM channel [FULL [COUNT n]]`
fn parse_detail(arguments: Arguments<'_>) -> Result<InfoDetail, Cow<'static, str>> {
    let options = arguments.skip(3);
    let is = |place, word: &[u8]| is_word(options.get(place).unwrap_or_default(), word);
    match options.len() {
        0 => Ok(InfoDetail::Ends),
        1 if is(0, b"FULL") => Ok(InfoDetail::Full(Some(INFO_ENTRIES))),
        3 if is(0, b"FULL") && is(1, b"COUNT") => match options.get(2).and_then(parse_integer) {
            None => Err(message(errors::NOT_AN_INTEGER)),
            Some(0) => Ok(InfoDetail::Full(None)),
            Some(count) => {
                let count = usize::try_from(count).unwrap_or(INFO_ENTRIES);
                Ok(InfoDetail::Full(Some(count)))
            }
        },
        _ => {
            let word = |place| arguments.get(place).unwrap_or_default();
            Err(message(&errors::wrong_subcommand_arity(word(0), word(1))))
        }
    }
}

/// The text of an error of Redis, without its code.
fn message(text: &[u8]) -> Cow<'static, str> {
    let message = text.strip_prefix(b"ERR ").unwrap_or(text);
    Cow::Owned(String::from_utf8_lossy(message).into_owned())
}

fn is_word(text: &[u8], word: &[u8]) -> bool {
    c_string(text).eq_ignore_ascii_case(word)
}

const LOWEST: Position = Position { epoch: 0, offset: 0 };
const HIGHEST: Position = Position { epoch: u64::MAX, offset: u64::MAX };

/// The bytes of an ID; none: there are more than Redis reads.
fn c_string_of_id(text: &[u8]) -> Option<&[u8]> {
    (text.len() <= ID_BYTES_MAX).then(|| c_string(text))
}

/// An ID: two numbers with `-` between them, or only the first; `missing` is the second then.
fn parse_id(text: &[u8], missing: u64) -> Option<Position> {
    let mut parts = text.splitn(2, |byte| *byte == b'-');
    let epoch = parse_number(parts.next()?)?;
    let offset = parts.next().map_or(Some(missing), parse_number)?;
    Some(Position { epoch, offset })
}

/// A number as `strtoull` reads it, but none that is negative.
fn parse_number(text: &[u8]) -> Option<u64> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = text.iter().position(|byte| !is_space(byte))?;
    let (_spaces, text) = text.split_at(start);
    let digits = text.strip_prefix(b"+").unwrap_or(text);
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Option<(u64, u64)> {
        let text = c_string_of_id(text.as_bytes())?;
        parse_id(text, 7).map(|Position { epoch, offset }| (epoch, offset))
    }

    /// As Redis 7.0 was seen to read them.
    #[test]
    fn ids_are_read_as_by_the_c_library() {
        assert_eq!(id("5-1"), Some((5, 1)));
        assert_eq!(id("5"), Some((5, 7)));
        assert_eq!(id("05-001"), Some((5, 1)));
        assert_eq!(id(" \t+5-\n+1"), Some((5, 1)));
        assert_eq!(id("5-1\0x"), Some((5, 1)));
        assert_eq!(id("18446744073709551615-18446744073709551615"), Some((u64::MAX, u64::MAX)));
        for wrong in [
            "",
            "-",
            "+",
            "$",
            "*",
            "-1",
            "1-",
            "1--1",
            " -1",
            "1-1-1",
            "1 -1",
            "1- ",
            "+",
            "++1",
            "x",
            "1-x",
            "0x1",
            "18446744073709551616",
            "1-18446744073709551616",
            "\x001",
        ] {
            assert_eq!(id(wrong), None, "{wrong:?}");
        }
        assert_eq!(id(&"0".repeat(ID_BYTES_MAX)), Some((0, 7)));
        assert_eq!(id(&"0".repeat(ID_BYTES_MAX + 1)), None);
    }
}
