//! What a text says, apart from how it is spelt: escapes decoded, with the way
//! back to where each byte of it stands.
//!
//! A JSON string may be spelt in many ways, and may hold a JSON document that
//! spells its own strings in many ways. `Reading` is one level of that; the next
//! level is the reading of it. Each is shorter than the one it was made from, so
//! there is a last one.

use std::borrow::Cow;
use std::ops::Range;

/// A text, and where its bytes stand in what it was decoded from.
#[derive(Clone, Debug)]
pub struct Reading<'a> {
    /// What it says.
    pub text: Cow<'a, [u8]>,
    /// For each byte of the text, where in the source its spelling begins, and the
    /// end of the source. None: each byte stands for itself, from `offset` on.
    spelt_at: Option<Vec<u32>>,
    offset: usize,
}

/// Which escapes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// Those of JSON. What is read is known to have no others.
    Json,
    /// Those of JSON and of JavaScript, and what is none stays as it is.
    Any,
}

impl<'a> Reading<'a> {
    /// A text that is spelt as it is, at this offset in its source.
    pub fn plain(text: &'a [u8], offset: usize) -> Self {
        Self { text: Cow::Borrowed(text), spelt_at: None, offset }
    }

    /// With its escapes decoded; the same when there are none.
    pub fn decoded(self, escapes: Escapes) -> Self {
        self.next(escapes).unwrap_or(self)
    }

    /// One level further; none when this is the last.
    pub fn next(&self, escapes: Escapes) -> Option<Reading<'a>> {
        let text = self.text.as_ref();
        let first = text.iter().position(|byte| *byte == b'\\')?;
        let mut decoded = Vec::with_capacity(text.len());
        let mut spelt_at: Vec<u32> = Vec::with_capacity(text.len() + 1);
        let mut is_changed = false;
        let mut at = 0;
        while let Some((byte, rest)) = text.get(at..).and_then(<[u8]>::split_first) {
            let escape = match byte {
                b'\\' if at >= first => escape(rest, escapes),
                _ => None,
            };
            let Some((character, length)) = escape else {
                spelt_at.push(self.source_of(at));
                decoded.push(*byte);
                at += 1;
                continue;
            };
            is_changed = true;
            let mut utf8 = [0; 4];
            let utf8 = character.encode_utf8(&mut utf8).as_bytes();
            spelt_at.extend(utf8.iter().map(|_| self.source_of(at)));
            decoded.extend_from_slice(utf8);
            at += 1 + length;
        }
        spelt_at.push(self.source_of(text.len()));
        is_changed.then_some(Reading {
            text: Cow::Owned(decoded),
            spelt_at: Some(spelt_at),
            offset: self.offset,
        })
    }

    /// Where in the source the spelling of these bytes stands.
    pub fn span_of(&self, bytes: &Range<usize>) -> Range<usize> {
        let start = self.source_of(bytes.start) as usize;
        // A character that was cut in two goes as a whole.
        let last = self.source_of(bytes.end.saturating_sub(1).max(bytes.start));
        let mut end = bytes.end;
        while end < self.text.len() && end > bytes.start && self.source_of(end) == last {
            end += 1;
        }
        start..self.source_of(end) as usize
    }

    /// Payloads are far below what 32 bits hold.
    fn source_of(&self, at: usize) -> u32 {
        match &self.spelt_at {
            Some(spelt_at) => spelt_at.get(at).or(spelt_at.last()).copied().unwrap_or_default(),
            None => u32::try_from(self.offset + at).unwrap_or(u32::MAX),
        }
    }
}

/// The character that is escaped here, behind the backslash, and how many bytes it
/// takes.
fn escape(rest: &[u8], escapes: Escapes) -> Option<(char, usize)> {
    let character = match rest.first()? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            if let (Escapes::Any, Some(b'{')) = (escapes, rest.get(1)) {
                let length = rest.iter().take(10).position(|byte| *byte == b'}')?;
                let code = hexadecimal(rest.get(2..length)?)?;
                return Some((char::from_u32(code).unwrap_or('\u{fffd}'), length + 1));
            }
            return unit(rest);
        }
        b'x' if escapes == Escapes::Any => {
            return Some((char::from_u32(hexadecimal(rest.get(1..3)?)?)?, 3));
        }
        b'\'' if escapes == Escapes::Any => '\'',
        _ => return None,
    };
    Some((character, 1))
}

/// `uXXXX`, and the half of a pair behind it. Half a pair alone says nothing.
fn unit(rest: &[u8]) -> Option<(char, usize)> {
    let first = hexadecimal(rest.get(1..5)?)?;
    if let Some(character) = char::from_u32(first) {
        return Some((character, 5));
    }
    let pair = || {
        let second = match rest.get(5..7)? {
            b"\\u" => hexadecimal(rest.get(7..11)?)?,
            _ => return None,
        };
        let units = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
        Some((char::decode_utf16(units).next()?.ok()?, 11))
    };
    Some(pair().unwrap_or(('\u{fffd}', 5)))
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(digits).ok()?;
    let is_all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    (is_all && !digits.is_empty()).then(|| u32::from_str_radix(digits, 16).ok())?
}

/// The text as a JSON string, without its quotes.
pub fn with_escapes(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len() + 2);
    for byte in text {
        match byte {
            b'"' | b'\\' => escaped.extend([b'\\', *byte]),
            b'\n' => escaped.extend(b"\\n"),
            b'\r' => escaped.extend(b"\\r"),
            b'\t' => escaped.extend(b"\\t"),
            0..0x20 => escaped.extend(format!("\\u{byte:04x}").bytes()),
            _ => escaped.push(*byte),
        }
    }
    escaped
}

/// The digits of a whole number that is written with a point or an exponent, such
/// as `4.2e1`; none for any other. Beyond what a double can hold it is no number
/// that anyone reads.
pub fn whole_number(text: &str) -> Option<String> {
    const DIGITS_MAX: usize = 309;
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if fraction.is_empty() && exponent == "0" {
        return None;
    }
    let exponent: i64 = exponent.parse().ok()?;
    let digits = [whole, fraction].concat();
    let point = i64::try_from(whole.len()).ok()?.checked_add(exponent)?;
    let point = usize::try_from(point).ok().filter(|point| *point <= DIGITS_MAX)?;
    let mut number = match digits.get(point..) {
        Some(behind) if behind.bytes().all(|digit| digit == b'0') => {
            digits.get(..point)?.to_owned()
        }
        Some(_) => return None,
        None => format!("{digits:0<point$}"),
    };
    let zeros = number.len() - number.trim_start_matches('0').len();
    number.drain(..zeros);
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_however_it_is_spelt() {
        let check = |spelt: &str, escapes, expected: &str| {
            let reading = Reading::plain(spelt.as_bytes(), 0).decoded(escapes);
            assert_eq!(String::from_utf8_lossy(&reading.text), expected, "{spelt}");
        };
        for escapes in [Escapes::Json, Escapes::Any] {
            check("plain", escapes, "plain");
            check(r#"\"\\\/\b\f\n\r\t"#, escapes, "\"\\/\u{8}\u{c}\n\r\t");
            check(r"\u0034\u00e9\u00E9", escapes, "4éé");
            check(r"\ud83d\ude00", escapes, "😀");
            check(r"\ud83d", escapes, "\u{fffd}");
            check(r"\ud83d\u0034", escapes, "\u{fffd}4");
            check(r"\ude00\ud83d\ude00", escapes, "\u{fffd}😀");
            check(r"\u00", escapes, r"\u00");
            check(r"\", escapes, r"\");
        }
        check(r"\x34\u{34}\u{1F600}\'\q", Escapes::Any, r"44😀'\q");
        check(r"\u{110000}\u{}", Escapes::Any, "\u{fffd}\\u{}");
    }

    #[test]
    fn what_is_found_leads_back_to_its_spelling() {
        let source = r"..a\u0034\ud83d\ude00b";
        let reading = Reading::plain(&source.as_bytes()[2..], 2).decoded(Escapes::Json);
        let check = |bytes: Range<usize>, expected: &str| {
            assert_eq!(&source[reading.span_of(&bytes)], expected, "{bytes:?}");
        };
        check(0..1, "a");
        check(1..2, r"\u0034");
        check(2..6, r"\ud83d\ude00");
        // Half a character is all of it.
        check(2..3, r"\ud83d\ude00");
        check(4..7, r"\ud83d\ude00b");
        check(0..7, &source[2..]);
        check(1..1, "");
    }

    #[test]
    fn a_reading_may_be_read_again() {
        // What a JSON string says in a JSON string in a JSON string.
        let source = br"\\\\u0034\u005cu005cu0034";
        let mut reading = Reading::plain(source, 0).decoded(Escapes::Json);
        let mut readings = vec![reading.text.to_vec()];
        while let Some(next) = reading.next(Escapes::Any) {
            readings.push(next.text.to_vec());
            reading = next;
        }
        assert_eq!(readings, [&br"\\u0034\u005cu0034"[..], br"\u0034\u0034", b"44"]);
        assert_eq!(reading.span_of(&(0..1)), 0..9);
        assert_eq!(reading.span_of(&(1..2)), 9..source.len());
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let check = |text, expected: Option<&str>| {
            assert_eq!(whole_number(text).as_deref(), expected, "{text}");
        };
        check("42", None);
        check("4.2", None);
        check("4.2e1", Some("42"));
        check("-4.20E+1", Some("42"));
        check("0.0042e4", Some("42"));
        check("420e-1", Some("42"));
        check("42e-1", None);
        check("42.0", Some("42"));
        check("0e5", Some(""));
        check("4e3", Some("4000"));
        check("1e400", None);
        check("1e99999999999999999999", None);
        check("1e-400", None);
    }

    #[test]
    fn a_text_becomes_a_json_string() {
        let text = "a\"\\\n\u{1}é";
        let json = format!("\"{}\"", String::from_utf8_lossy(&with_escapes(text.as_bytes())));
        assert_eq!(serde_json::from_str::<String>(&json).ok().as_deref(), Some(text));
    }
}
