//! How conversations write commands and replies.
//!
//! A command is written as for redis-cli: words, and in double quotes anything,
//! with the escapes `\n \r \t \" \\ \xHH`. `"ab"*3"c"` is `abababc`.
//!
//! A reply is written by its type, as RESP3 has it:
//!
//! ```text
//! +OK   -ERR syntax error   :1   hello   "two words"   (nil)   (nil array)   ="txt:role:master"
//! [a b]   >[subscribe news :1]   ~[a b]   {server redis proto :3}
//! ```
//!
//! an array, a push, a set, and a map with alternating keys and values. At the
//! start of a line `+` and `-` take all of it. `$-1` is the null of RESP2 even
//! where `(nil)` is not. What is not known beforehand:
//!
//! ```text
//! (any)   (integer)   (containing "words")   (unordered) [b a]   [a ...]
//! ```
//!
//! A conversation that is held in both versions is written once: in RESP2 a push
//! and a set are arrays, a map is an array of keys and values, `(nil)` is `$-1`,
//! `(nil array)` is `*-1` (and `_` in RESP3), and a verbatim string is a bulk string without its `txt:`.

use anyhow::{Context, Result, bail, ensure};

use crate::value::{Shape, Value};

/// How what is written is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Exactly.
    AsWritten,
    /// As the same in RESP2.
    InResp2,
}

/// A reply, with holes.
#[derive(Debug)]
pub enum Pattern {
    Any,
    AnyInteger,
    Containing(Vec<u8>),
    Exactly(Value),
    Aggregate { shape: Shape, items: Vec<Pattern>, may_go_on: bool, is_ordered: bool },
}

impl Pattern {
    /// Parses the rest of a line.
    pub fn parse(line: &str) -> Result<Pattern> {
        if let Some(text) = line.strip_prefix('-').filter(|text| !is_quoted(text) && *text != "1") {
            return Ok(Pattern::Exactly(Value::Error(text.into())));
        }
        if let Some(text) = line.strip_prefix('+').filter(|text| !is_quoted(text)) {
            return Ok(Pattern::Exactly(Value::Simple(text.into())));
        }
        let mut rest = line;
        let pattern = Pattern::parse_start(&mut rest)?;
        ensure!(rest.trim().is_empty(), "more than one reply: {rest}");
        Ok(pattern)
    }

    fn parse_start(rest: &mut &str) -> Result<Pattern> {
        *rest = rest.trim_start();
        for shape in [Shape::Array, Shape::Push, Shape::Set, Shape::Map] {
            let (start, end) = shape.brackets();
            if skip(rest, start) {
                let (items, may_go_on) = parse_items(rest, end)?;
                return Ok(Pattern::Aggregate { shape, items, may_go_on, is_ordered: true });
            }
        }
        if skip(rest, "(any)") {
            return Ok(Pattern::Any);
        }
        if skip(rest, "(integer)") {
            return Ok(Pattern::AnyInteger);
        }
        if skip(rest, "(containing ") {
            let words = bytes(rest)?;
            ensure!(skip(rest, ")"), "a bracket is missing before {rest}");
            return Ok(Pattern::Containing(words));
        }
        if skip(rest, "(unordered)") {
            return match Pattern::parse_start(rest)? {
                Pattern::Aggregate { shape, items, may_go_on: false, .. }
                    if shape != Shape::Map =>
                {
                    Ok(Pattern::Aggregate { shape, items, may_go_on: false, is_ordered: false })
                }
                _ => bail!("only an array with an end can be unordered"),
            };
        }
        Ok(Pattern::Exactly(if skip(rest, "(nil array)") {
            Value::NullArray
        } else if skip(rest, "(nil)") {
            Value::Null
        } else if skip(rest, "$-1") {
            Value::NullBulk
        } else if skip(rest, ":") {
            Value::Integer(String::from_utf8(bytes(rest)?)?.parse()?)
        } else if skip(rest, "+") {
            Value::Simple(bytes(rest)?)
        } else if skip(rest, "-") {
            Value::Error(bytes(rest)?)
        } else if skip(rest, "=") {
            Value::Verbatim(bytes(rest)?)
        } else {
            Value::Bulk(bytes(rest)?)
        }))
    }

    /// Whether this is that reply.
    pub fn matches(&self, value: &Value, reading: Reading) -> bool {
        match (self, value) {
            (Pattern::Any, _) => true,
            (Pattern::AnyInteger, value) => matches!(value, Value::Integer(_)),
            (
                Pattern::Containing(words),
                Value::Simple(text)
                | Value::Error(text)
                | Value::Bulk(text)
                | Value::Verbatim(text),
            ) => text.windows(words.len()).any(|window| window == words),
            (Pattern::Exactly(expected), value) => match (reading, expected) {
                (Reading::InResp2, Value::Null) => *value == Value::NullBulk,
                (Reading::AsWritten, Value::NullArray) => {
                    matches!(value, Value::NullArray | Value::Null)
                }
                (Reading::InResp2, Value::Verbatim(text)) => {
                    *value == Value::bulk(text.strip_prefix(b"txt:").unwrap_or(text))
                }
                _ => expected == value,
            },
            (
                Pattern::Aggregate { shape, items, may_go_on, is_ordered },
                Value::Aggregate(seen, values),
            ) => {
                let shape = match reading {
                    Reading::AsWritten => *shape,
                    Reading::InResp2 => Shape::Array,
                };
                let is_long_enough =
                    items.len() == values.len() || *may_go_on && items.len() < values.len();
                let mut left: Vec<_> = values.iter().collect();
                shape == *seen
                    && is_long_enough
                    && items.iter().all(|item| {
                        let looked_at = if *is_ordered { 1 } else { left.len() };
                        let looked_at = left.iter().take(looked_at);
                        let at = looked_at.enumerate().find(|(_, v)| item.matches(v, reading));
                        at.map(|(at, _)| at).map(|at| left.remove(at)).is_some()
                    })
            }
            _ => false,
        }
    }

    /// Whether this can only be a message or an acknowledgement.
    pub fn is_push(&self) -> bool {
        matches!(self, Pattern::Aggregate { shape: Shape::Push, .. })
    }
}

/// The words of a command.
pub fn words(line: &str) -> Result<Vec<Vec<u8>>> {
    let mut rest = line.trim();
    let mut words = Vec::new();
    while !rest.is_empty() {
        words.push(if is_quoted(rest) {
            bytes(&mut rest)?
        } else {
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = after;
            word.into()
        });
        rest = rest.trim_start();
    }
    Ok(words)
}

/// Whether a reply may show these bytes without quotes.
pub fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['+', '-', ':', '=', '>', '~', '$', '.'])
        && !text.contains(|c: char| !c.is_alphanumeric() && !"*?^!#%&/;<>@_-+.:|,=\\'".contains(c))
}

fn is_quoted(text: &str) -> bool {
    text.starts_with('"')
}

fn parse_items(rest: &mut &str, end: &str) -> Result<(Vec<Pattern>, bool)> {
    let mut items = Vec::new();
    while !skip(rest, end) {
        if skip(rest, "...") {
            ensure!(skip(rest, end), "`...` stands at the end");
            return Ok((items, true));
        }
        ensure!(!rest.trim().is_empty(), "`{end}` is missing");
        items.push(Pattern::parse_start(rest)?);
    }
    Ok((items, false))
}

/// The word or the quoted bytes that `rest` starts with.
fn bytes(rest: &mut &str) -> Result<Vec<u8>> {
    if !is_quoted(rest) {
        let end = rest.find([' ', '[', ']', '{', '}', '(', ')', '"']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        ensure!(!word.is_empty(), "a word is missing before {rest}");
        *rest = after;
        return Ok(word.into());
    }
    let mut bytes = Vec::new();
    while is_quoted(rest) {
        let mut part = quoted(rest)?;
        if let Some(after) = rest.strip_prefix('*') {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let (times, after) = after.split_at(end);
            part = part.repeat(times.parse()?);
            *rest = after;
        }
        bytes.extend(part);
    }
    Ok(bytes)
}

/// What stands between the quotes that `rest` starts with.
fn quoted(rest: &mut &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chars = rest.chars();
    chars.next();
    loop {
        match chars.next().context("a quote is not closed")? {
            '"' => break,
            '\\' => bytes.push(match chars.next().context("a quote is not closed")? {
                'n' => b'\n',
                'r' => b'\r',
                't' => b'\t',
                'x' => {
                    let digits = chars.as_str().get(..2).context("\\x has two digits")?;
                    chars = chars.as_str().get(2..).unwrap_or_default().chars();
                    u8::from_str_radix(digits, 16)?
                }
                other if "\"\\".contains(other) => other as u8,
                other => bail!("no such escape: \\{other}"),
            }),
            other => bytes.extend(other.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    *rest = chars.as_str();
    Ok(bytes)
}

fn skip(rest: &mut &str, word: &str) -> bool {
    match rest.trim_start().strip_prefix(word) {
        Some(after) => {
            *rest = after;
            true
        }
        None => false,
    }
}

#[test]
fn commands_are_words() -> Result<()> {
    assert_eq!(
        words(r#"PUBLISH a  "b c\x00\"" "é"*2 d'"#)?,
        [b"PUBLISH".as_slice(), b"a", b"b c\0\"", "éé".as_bytes(), b"d'"]
    );
    assert!(words(r#""a"#).is_err());
    Ok(())
}

#[test]
fn patterns_match_what_they_say() -> Result<()> {
    let check = |pattern: &str, bytes: &str, reading, expected: bool| -> Result<()> {
        let (value, _) = crate::value::parse(bytes.as_bytes())?.context("it is a whole value")?;
        let matches = Pattern::parse(pattern)?.matches(&value, reading);
        assert_eq!(matches, expected, "{pattern} and {value}, {reading:?}");
        Ok(())
    };
    let (exactly, resp2) = (Reading::AsWritten, Reading::InResp2);
    let (push, array) = (">3\r\n+a\r\n:1\r\n_\r\n", "*3\r\n+a\r\n:1\r\n$-1\r\n");
    check(">[+a :1 (nil)]", push, exactly, true)?;
    check(">[+a :1 (nil)]", array, exactly, false)?;
    check(">[+a :1 (nil)]", array, resp2, true)?;
    check(">[+a :1 (nil)]", push, resp2, false)?;
    check("[+a (integer) ...]", array, exactly, true)?;
    check("[+a +b ...]", "*1\r\n+a\r\n", exactly, false)?;
    check("[a]", "*1\r\n+a\r\n", exactly, false)?;
    check("(unordered) [:2 :1]", "*2\r\n:1\r\n:2\r\n", exactly, true)?;
    check("(unordered) [:2 :1]", "*2\r\n:1\r\n:1\r\n", exactly, false)?;
    check("{a :1}", "%1\r\n$1\r\na\r\n:1\r\n", exactly, true)?;
    check("{a :1}", "*2\r\n$1\r\na\r\n:1\r\n", resp2, true)?;
    check("=\"txt:a\"", "=5\r\ntxt:a\r\n", exactly, true)?;
    check("=\"txt:a\"", "$1\r\na\r\n", resp2, true)?;
    check("-ERR a [b]  c ", "-ERR a [b]  c \r\n", exactly, true)?;
    check("-\"ERR a \"", "-ERR a \r\n", exactly, true)?;
    check("(containing \"or\")", "-ERR word\r\n", exactly, true)?;
    check("(containing \"x\")", "-ERR word\r\n", exactly, false)?;
    check("\"\\r\\n\\xff\"", "$2\r\n\r\n\r\n", exactly, false)?;
    for wrong in ["", "[a", "a b", ">[... a]", "\"\\q\"", "(unordered) a"] {
        assert!(Pattern::parse(wrong).is_err(), "{wrong}");
    }
    Ok(())
}
