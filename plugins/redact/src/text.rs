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
    /// Whether it was decoded from escapes that only a script has.
    is_script: bool,
}

/// Which escapes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// Those of JSON. What is read is known to have no others.
    Json,
    /// Those of JSON, and of JavaScript's hexadecimal ones; what is none stays as it is.
    Any,
    /// All those of JavaScript: octal ones too, an end of a line that is left out, and
    /// any other character, which stands for itself.
    Script,
}

/// What an escape stands for.
enum Escaped {
    Character(char),
    /// This byte, the first of a character perhaps.
    Byte(u8),
    Nothing,
}

/// An escape: what it stands for, how many bytes it takes behind the backslash, and
/// whether only a script has it.
struct Escape {
    stands_for: Escaped,
    length: usize,
    is_script: bool,
}

impl<'a> Reading<'a> {
    /// A text that is spelt as it is, at this offset in its source.
    pub fn plain(text: &'a [u8], offset: usize) -> Self {
        Self { text: Cow::Borrowed(text), spelt_at: None, offset, is_script: false }
    }

    /// With its escapes decoded; the same when there are none.
    pub fn decoded(self, escapes: Escapes) -> Self {
        self.next(escapes).unwrap_or(self)
    }

    /// Whether it was decoded from escapes that `Escapes::Any` does not have.
    pub fn is_script(&self) -> bool {
        self.is_script
    }

    /// Whether there may be a further level.
    pub fn has_backslash(&self) -> bool {
        self.text.contains(&b'\\')
    }

    /// One level further; none when this is the last.
    pub fn next(&self, escapes: Escapes) -> Option<Reading<'a>> {
        let text = self.text.as_ref();
        let first = text.iter().position(|byte| *byte == b'\\')?;
        let mut decoded = Vec::with_capacity(text.len());
        let mut spelt_at: Vec<u32> = Vec::with_capacity(text.len() + 1);
        let (mut is_changed, mut is_script) = (false, false);
        let mut at = 0;
        while let Some((byte, rest)) = text.get(at..).and_then(<[u8]>::split_first) {
            let escape = match byte {
                b'\\' if at >= first => escape(rest, escapes),
                _ => None,
            };
            let Some(escape) = escape else {
                spelt_at.push(self.source_of(at));
                decoded.push(*byte);
                at += 1;
                continue;
            };
            is_changed = true;
            is_script |= escape.is_script;
            let mut utf8 = [0; 4];
            let bytes: &[u8] = match escape.stands_for {
                Escaped::Character(character) => character.encode_utf8(&mut utf8).as_bytes(),
                Escaped::Byte(byte) => &[byte],
                Escaped::Nothing => &[],
            };
            spelt_at.extend(bytes.iter().map(|_| self.source_of(at)));
            decoded.extend_from_slice(bytes);
            at += 1 + escape.length;
        }
        spelt_at.push(self.source_of(text.len()));
        is_changed.then_some(Reading {
            text: Cow::Owned(decoded),
            spelt_at: Some(spelt_at),
            offset: self.offset,
            is_script,
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

/// The escape that stands here, behind the backslash.
fn escape(rest: &[u8], escapes: Escapes) -> Option<Escape> {
    if let Some((character, length)) = character(rest, escapes) {
        let stands_for = Escaped::Character(character);
        return Some(Escape { stands_for, length, is_script: false });
    }
    if escapes != Escapes::Script {
        return None;
    }
    let (stands_for, length) = script_escape(rest)?;
    Some(Escape { stands_for, length, is_script: true })
}

/// A character that is escaped here, and how many bytes it takes.
fn character(rest: &[u8], escapes: Escapes) -> Option<(char, usize)> {
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
        b'x' if escapes != Escapes::Json => {
            return Some((char::from_u32(hexadecimal(rest.get(1..3)?)?)?, 3));
        }
        b'\'' if escapes != Escapes::Json => '\'',
        _ => return None,
    };
    Some((character, 1))
}

/// What only a script escapes, and how many bytes it takes.
fn script_escape(rest: &[u8]) -> Option<(Escaped, usize)> {
    let escaped = match rest {
        [b'u', b'{', ..] => {
            let (first, length) = braced(rest)?;
            let pair = || {
                let [b'\\', second @ ..] = rest.get(length..)? else { return None };
                let (second, second_length) = match second {
                    [b'u', b'{', ..] => braced(second)?,
                    [b'u', digits @ ..] => (hexadecimal(digits.get(..4)?)?, 5),
                    _ => return None,
                };
                let units = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
                let is_first_half = (0xd800..0xdc00).contains(&first);
                let character = char::decode_utf16(units).next()?.ok().filter(|_| is_first_half)?;
                Some((character, length + 1 + second_length))
            };
            let alone = || (char::from_u32(first).unwrap_or('\u{fffd}'), length);
            let (character, length) = pair().unwrap_or_else(alone);
            (Escaped::Character(character), length)
        }
        // Without its digits it is an error to all readers.
        [b'u' | b'x', ..] | [] => return None,
        [b'v', ..] => (Escaped::Character('\u{b}'), 1),
        [first @ b'0'..=b'7', ..] => {
            let length_max = if *first < b'4' { 3 } else { 2 };
            let is_octal = |digit: &&u8| matches!(digit, b'0'..=b'7');
            let digits = rest.iter().take(length_max).take_while(is_octal);
            let length = digits.clone().count();
            let code = digits.fold(0, |code, digit| code * 8 + u32::from(digit & 7));
            (Escaped::Character(char::from_u32(code)?), length)
        }
        [b'\r', b'\n', ..] => (Escaped::Nothing, 2),
        [b'\r' | b'\n', ..] => (Escaped::Nothing, 1),
        // The line separator and the paragraph separator.
        [0xe2, 0x80, 0xa8 | 0xa9, ..] => (Escaped::Nothing, 3),
        [byte, ..] => (Escaped::Byte(*byte), 1),
    };
    Some(escaped)
}

/// `u{X}`, with as many zeros in front as there are.
fn braced(rest: &[u8]) -> Option<(u32, usize)> {
    let digits = rest.get(2..)?;
    let length = digits.iter().take_while(|digit| digit.is_ascii_hexdigit()).count();
    let zeros = digits.iter().take(length).take_while(|digit| **digit == b'0').count();
    if digits.get(length) != Some(&b'}') || length == 0 {
        return None;
    }
    let code = hexadecimal(digits.get(zeros.min(length - 1)..length)?).unwrap_or(u32::MAX);
    Some((code, length + 3))
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
        check(r"\64\064\0\18\377\400\477", Escapes::Script, "44\0\u{1}8\u{ff} 0'7");
        check(r"\8\9\q\é\v\'\x34\x3\u00\", Escapes::Script, "89qé\u{b}'4\\x3\\u00\\");
        check("4\\\n4\\\r\n4\\\r4\\\u{2028}4\\\u{2029}4", Escapes::Script, "444444");
        check(r"\u{0000000000000034}\u{0}\u{}\u{34", Escapes::Script, "4\0\\u{}\\u{34");
        check(r"\u{d835}\u{dfd2}\u{d835}\udfd2\u{d835}", Escapes::Script, "𝟒𝟒\u{fffd}");
        check(r"\u{34}\u{FFFFFFFFFFFF}", Escapes::Script, "4\u{fffd}");
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
    fn a_text_becomes_a_json_string() {
        let text = "a\"\\\n\u{1}é";
        let json = format!("\"{}\"", String::from_utf8_lossy(&with_escapes(text.as_bytes())));
        assert_eq!(serde_json::from_str::<String>(&json).ok().as_deref(), Some(text));
    }
}
