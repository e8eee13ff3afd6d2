//! Splits an inline request into its arguments, as a shell would.
//!
//! Inline requests are for manual use, with `nc` for instance. Words are separated by white space.
//! Double quotes support the escapes `\n`, `\r`, `\t`, `\b`, `\a` and `\xHH`, and drop the
//! backslash before any other byte; single quotes support `\'` only. A closing quote ends the word.

use super::arguments::Span;
use super::protocol_error::ProtocolError;

/// Appends the arguments of `line` to `unescaped`, and their positions, relative to its old end, to
/// `spans`. A blank line has none. On an error both may contain arguments of the invalid line.
pub(super) fn split(
    line: &[u8],
    unescaped: &mut Vec<u8>,
    spans: &mut Vec<Span>,
) -> Result<(), ProtocolError> {
    let origin = unescaped.len();
    let mut rest = skip_blanks(line);
    while !rest.is_empty() {
        let start = unescaped.len();
        let after = word(rest, unescaped).ok_or(ProtocolError::UnbalancedQuotes)?;
        spans.push(Span { start: start - origin, length: unescaped.len() - start });
        rest = skip_blanks(after);
    }
    Ok(())
}

/// Reads a word and returns the rest; `None` if a quote is wrong.
fn word<'a>(mut rest: &'a [u8], unescaped: &mut Vec<u8>) -> Option<&'a [u8]> {
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => return Some(after),
            b'"' => return double_quoted(after, unescaped),
            b'\'' => return single_quoted(after, unescaped),
            _ => unescaped.push(byte),
        }
        rest = after;
    }
    Some(rest)
}

fn double_quoted<'a>(mut rest: &'a [u8], unescaped: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let (byte, after) = match rest {
            [b'\\', b'x', high, low, after @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                (hex_digit(*high) << 4 | hex_digit(*low), after)
            }
            [b'\\', escaped, after @ ..] => (escape(*escaped), after),
            [b'"', after @ ..] => return closed(after),
            [byte, after @ ..] => (*byte, after),
            [] => return None,
        };
        unescaped.push(byte);
        rest = after;
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], unescaped: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let (byte, after) = match rest {
            [b'\\', b'\'', after @ ..] => (b'\'', after),
            [b'\'', after @ ..] => return closed(after),
            [byte, after @ ..] => (*byte, after),
            [] => return None,
        };
        unescaped.push(byte);
        rest = after;
    }
}

/// The bytes after a closing quote, which must be white space or nothing.
fn closed(after: &[u8]) -> Option<&[u8]> {
    after.first().is_none_or(|byte| is_blank(*byte)).then_some(after)
}

fn skip_blanks(line: &[u8]) -> &[u8] {
    let blanks = line.iter().take_while(|byte| is_blank(**byte)).count();
    line.get(blanks..).unwrap_or_default()
}

/// White space as in C's `isspace`. Within a word, the vertical tab and the form feed are ordinary
/// bytes; Redis has both definitions.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn escape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

fn hex_digit(byte: u8) -> u8 {
    char::from(byte).to_digit(16).map_or(0, |digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_line(line: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
        let mut unescaped = b"before".to_vec();
        let mut spans = Vec::new();
        split(line, &mut unescaped, &mut spans)?;
        let words = unescaped.get(6..).unwrap();
        let word = |span: &Span| words[span.start..span.start + span.length].to_vec();
        Ok(spans.iter().map(word).collect())
    }

    #[track_caller]
    fn check(line: &[u8], expected: &[&[u8]]) {
        assert_eq!(split_line(line).unwrap(), expected, "{}", line.escape_ascii());
    }

    #[test]
    fn splits_like_a_shell() {
        check(b"", &[]);
        check(b" \t ", &[]);
        check(b"PING", &[b"PING"]);
        check(b"  publish\tnews  hello ", &[b"publish", b"news", b"hello"]);
        check(b"a\rb", &[b"a", b"b"]);
        check(b"\xff\xfe", &[b"\xff\xfe"]);
    }

    #[test]
    fn understands_quotes() {
        check(br#""""#, &[b""]);
        check(br#""a b" 'c d'"#, &[b"a b", b"c d"]);
        check(br#"a"b"c'"#.get(..4).unwrap(), &[b"ab"]);
        check(br#""\n\r\t\b\a\"\\\q""#, &[b"\n\r\t\x08\x07\"\\q"]);
        check(br#""\x4E\xff\xfg\x4""#, &[b"N\xffxfgx4"]);
        check(br#"'\n\''"#, &[b"\\n'"]);
        check(b"\"a\"\x0bb", &[b"a", b"b"]);
        check(b"a\x0bb \x0cc", &[b"a\x0bb", b"c"]);
    }

    #[test]
    fn refuses_unbalanced_quotes() {
        for line in [br#"""#.as_slice(), b"'", br#""a"b"#, b"'a'b", br#""a\"#, br#""a\""#, br"'a\'"]
        {
            let refusal = split_line(line);
            assert_eq!(refusal, Err(ProtocolError::UnbalancedQuotes), "{}", line.escape_ascii());
        }
    }
}
