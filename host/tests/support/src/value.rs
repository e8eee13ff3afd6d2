//! Redis' protocol as a client sees it: values, and commands as bytes.
//!
//! The parser takes the one spelling that a server may use for a value and fails
//! at any other, so two values are equal only if their bytes were. It knows what
//! Pub/Sub needs of RESP3; anything else is a failure as well.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// `+OK`
    Simple(Vec<u8>),
    /// `-ERR …`
    Error(Vec<u8>),
    /// `:1`
    Integer(i64),
    /// `$3 abc`
    Bulk(Vec<u8>),
    /// `=7 txt:abc`, with its `txt:`
    Verbatim(Vec<u8>),
    /// `$-1`, RESP2's null.
    NullBulk,
    /// `*-1`, RESP2's null where an array would be.
    NullArray,
    /// `_`, RESP3's null.
    Null,
    /// Several values. A map is the list of alternating keys and values.
    Aggregate(Shape, Vec<Value>),
}

/// What kind of several values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// `*`
    Array,
    /// `>`
    Push,
    /// `~`
    Set,
    /// `%`
    Map,
}

impl Value {
    /// A bulk string.
    pub fn bulk(bytes: impl AsRef<[u8]>) -> Value {
        Value::Bulk(bytes.as_ref().to_vec())
    }

    /// What a subscriber is sent, in RESP3 or, as a plain array, in RESP2.
    pub fn is_pubsub(&self) -> bool {
        const KINDS: [&[u8]; 9] = [
            b"message",
            b"pmessage",
            b"smessage",
            b"subscribe",
            b"unsubscribe",
            b"psubscribe",
            b"punsubscribe",
            b"ssubscribe",
            b"sunsubscribe",
        ];
        match self {
            Value::Aggregate(Shape::Push, _) => true,
            Value::Aggregate(Shape::Array, items) => match items.first() {
                Some(Value::Bulk(kind)) => items.len() > 2 && KINDS.contains(&kind.as_slice()),
                _ => false,
            },
            _ => false,
        }
    }

    /// The payload of a message of any kind.
    pub fn payload(&self) -> Result<&[u8]> {
        match self {
            Value::Aggregate(_, items) if self.is_pubsub() => match items.last() {
                Some(Value::Bulk(payload)) => Ok(payload),
                _ => bail!("{self} has no payload"),
            },
            _ => bail!("{self} is no message"),
        }
    }

    /// The channel of a message of any kind.
    pub fn channel(&self) -> Result<&[u8]> {
        match self {
            Value::Aggregate(_, items) if self.is_pubsub() => match items.iter().rev().nth(1) {
                Some(Value::Bulk(channel)) => Ok(channel),
                _ => bail!("{self} has no channel"),
            },
            _ => bail!("{self} is no message"),
        }
    }
}

/// A message, as RESP2 writes it.
pub fn message(kind: &str, names_and_payload: &[&[u8]]) -> Value {
    let names_and_payload = names_and_payload.iter().map(Value::bulk);
    Value::Aggregate(
        Shape::Array,
        [Value::bulk(kind)].into_iter().chain(names_and_payload).collect(),
    )
}

/// An acknowledgement, as RESP2 writes it.
pub fn ack(kind: &str, name: impl AsRef<[u8]>, count: i64) -> Value {
    let items = vec![Value::bulk(kind), Value::bulk(name), Value::Integer(count)];
    Value::Aggregate(Shape::Array, items)
}

/// A command, as a client writes it.
pub fn command(words: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend(word);
        bytes.extend(b"\r\n");
    }
    bytes
}

/// The value that `bytes` begin with and how long it is; none if it is not all
/// there.
pub fn parse(bytes: &[u8]) -> Result<Option<(Value, usize)>> {
    let mut at = 0;
    let value = parse_at(bytes, &mut at)?;
    Ok(value.map(|value| (value, at)))
}

fn parse_at(bytes: &[u8], at: &mut usize) -> Result<Option<Value>> {
    let rest = bytes.get(*at..).unwrap_or_default();
    let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
        ensure!(rest.len() < 100_000, "a line has no end: {}", rest.escape_ascii());
        return Ok(None);
    };
    let line = rest.get(..end).unwrap_or_default();
    let (marker, text) = line.split_first().context("a line is empty")?;
    ensure!(!text.contains(&b'\n') && !text.contains(&b'\r'), "a line break within a line");
    *at += end + 2;
    let shape = match marker {
        b'+' => return Ok(Some(Value::Simple(text.to_vec()))),
        b'-' => return Ok(Some(Value::Error(text.to_vec()))),
        b':' => return Ok(Some(Value::Integer(number(text)?))),
        b'_' if text.is_empty() => return Ok(Some(Value::Null)),
        b'$' if text == b"-1" => return Ok(Some(Value::NullBulk)),
        b'*' if text == b"-1" => return Ok(Some(Value::NullArray)),
        b'$' | b'=' => {
            let length = usize::try_from(number(text)?)?;
            let Some(body) = bytes.get(*at..*at + length + 2) else { return Ok(None) };
            let body = body.strip_suffix(b"\r\n").context("a bulk string goes on for too long")?;
            *at += length + 2;
            return Ok(Some(match marker {
                b'$' => Value::bulk(body),
                _ => Value::Verbatim(body.to_vec()),
            }));
        }
        b'*' => Shape::Array,
        b'>' => Shape::Push,
        b'~' => Shape::Set,
        b'%' => Shape::Map,
        _ => bail!("no value starts like this: {}", line.escape_ascii()),
    };
    let count = usize::try_from(number(text)?)? * if shape == Shape::Map { 2 } else { 1 };
    let mut items = Vec::new();
    while items.len() < count {
        match parse_at(bytes, at)? {
            Some(item) => items.push(item),
            None => return Ok(None),
        }
    }
    Ok(Some(Value::Aggregate(shape, items)))
}

fn number(text: &[u8]) -> Result<i64> {
    let text = std::str::from_utf8(text)?;
    let number: i64 = text.parse().with_context(|| format!("not a number: {text}"))?;
    ensure!(number.to_string() == text, "not how a number is written: {text}");
    Ok(number)
}

/// As conversations write it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Simple(text) => write!(f, "+{}", Word(text)),
            Value::Error(text) => write!(f, "-{}", Quoted(text)),
            Value::Integer(number) => write!(f, ":{number}"),
            Value::Bulk(bytes) => write!(f, "{}", Word(bytes)),
            Value::Verbatim(bytes) => write!(f, "={}", Quoted(bytes)),
            Value::NullBulk => f.write_str("$-1"),
            Value::NullArray => f.write_str("(nil array)"),
            Value::Null => f.write_str("(nil)"),
            Value::Aggregate(shape, items) => {
                let (start, end) = shape.brackets();
                f.write_str(start)?;
                for (place, item) in items.iter().enumerate() {
                    if place > 0 {
                        f.write_str(" ")?;
                    }
                    write!(f, "{item}")?;
                }
                f.write_str(end)
            }
        }
    }
}

impl Shape {
    /// What its items stand between.
    pub fn brackets(self) -> (&'static str, &'static str) {
        match self {
            Shape::Array => ("[", "]"),
            Shape::Push => (">[", "]"),
            Shape::Set => ("~[", "]"),
            Shape::Map => ("{", "}"),
        }
    }
}

/// Bytes without quotes, where none are needed.
struct Word<'a>(&'a [u8]);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if crate::notation::is_word(text) => f.write_str(text),
            _ => write!(f, "{}", Quoted(self.0)),
        }
    }
}

struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for byte in self.0.iter().take(4096) {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                b'\r' => f.write_str("\\r")?,
                b'\n' => f.write_str("\\n")?,
                b' '..=b'~' => write!(f, "{}", char::from(*byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        f.write_str("\"")?;
        if self.0.len() > 4096 { write!(f, "… ({} bytes)", self.0.len()) } else { Ok(()) }
    }
}

#[test]
fn values_have_one_spelling() -> Result<()> {
    let whole = b"%1\r\n+a\r\n*5\r\n$2\r\n\r\n\r\n:-1\r\n_\r\n$-1\r\n*-1\r\n";
    let (value, length) = parse(whole)?.context("it is all there")?;
    assert_eq!(
        (value.to_string().as_str(), length),
        (r#"{+a ["\r\n" :-1 (nil) $-1 (nil array)]}"#, whole.len())
    );
    for end in 0..whole.len() {
        assert!(parse(&whole[..end])?.is_none(), "{end}");
    }
    for wrong in
        ["\r\n", ":01\r\n", ":+1\r\n", "$1\r\nabc", "*-2\r\n", "#t\r\n", "+a\nb\r\n", "_x\r\n"]
    {
        assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
    }
    Ok(())
}
