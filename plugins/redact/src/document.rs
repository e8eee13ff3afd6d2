//! The strings, keys and numbers of a JSON document (RFC 8259), and whether a
//! payload is one.
//!
//! Nothing is recursive, so a document may be as deep as it is long. Strings need
//! not be UTF-8: what a subscriber makes of such bytes is unknown, and the rest is
//! read all the same.

use std::ops::Range;

use plugin_kit::budget::{Budget, TooCostly};

/// What a bracket, a comma, a key or a value costs, in steps, beside its bytes.
const PART_STEPS: usize = 3;

/// What a string or a number costs beside that.
const TOKEN_STEPS: usize = 8;

/// What a document is made of, but for its structure and its literals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Where it stands, a string's quotes included.
    pub span: Range<usize>,
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string, be it a key or a value.
    String {
        /// Whether it is spelt with escapes.
        has_escapes: bool,
    },
    /// A number.
    Number,
}

/// Whether the payload is a JSON document.
pub fn is_document(payload: &[u8]) -> bool {
    visit(payload, &mut Budget::of(usize::MAX), |_, _| Ok(())) == Ok(true)
}

/// What may come next.
#[derive(Clone, Copy, PartialEq)]
enum Expected {
    Value,
    /// A value, or the end of an array that has none.
    ValueOrEnd,
    Key,
    /// A key, or the end of an object that has none.
    KeyOrEnd,
    /// A comma, or the end of what is open.
    CommaOrEnd,
}

/// Visits the tokens of a document in the order in which they stand, and answers
/// whether the payload is one. If not, some tokens may have been visited.
///
/// # Errors
///
/// The budget does not suffice, or what visits the tokens says so.
pub fn visit(
    payload: &[u8],
    budget: &mut Budget,
    mut take: impl FnMut(Token, &mut Budget) -> Result<(), TooCostly>,
) -> Result<bool, TooCostly> {
    /// So many parts may be read before they are paid for.
    const UNPAID_MAX: usize = 1024;
    budget.spend(payload.len())?;
    let mut outcome = Ok(());
    let mut unpaid = 0;
    let visited = visit_parts(payload, |token| {
        let Some(token) = token else {
            unpaid += 1;
            if unpaid > UNPAID_MAX {
                outcome = budget.spend(std::mem::take(&mut unpaid) * PART_STEPS);
            }
            return outcome.is_ok();
        };
        let steps = std::mem::take(&mut unpaid) * PART_STEPS + TOKEN_STEPS;
        outcome = budget.spend(steps).and_then(|()| take(token, budget));
        outcome.is_ok()
    });
    outcome?;
    budget.spend(unpaid * PART_STEPS)?;
    Ok(visited.is_some())
}

/// Takes each part; a token comes after the part that it is. None when the payload is
/// no document, or when `take` wants no more.
fn visit_parts(payload: &[u8], mut take: impl FnMut(Option<Token>) -> bool) -> Option<()> {
    // The brackets that are open.
    let mut open: Vec<u8> = vec![];
    let mut expected = Expected::Value;
    let mut at = after_space(payload, 0);
    loop {
        if expected == Expected::CommaOrEnd && open.is_empty() {
            return (at == payload.len()).then_some(());
        }
        let byte = *payload.get(at)?;
        let start = at;
        at += 1;
        take(None).then_some(())?;
        match (expected, byte) {
            (Expected::KeyOrEnd, b'}') | (Expected::ValueOrEnd, b']') => {
                open.pop();
                expected = Expected::CommaOrEnd;
            }
            (Expected::CommaOrEnd, b'}' | b']') => {
                let opening = if byte == b'}' { b'{' } else { b'[' };
                if open.pop() != Some(opening) {
                    return None;
                }
            }
            (Expected::CommaOrEnd, b',') => {
                expected = match open.last() {
                    Some(b'{') => Expected::Key,
                    _ => Expected::Value,
                };
            }
            (Expected::Key | Expected::KeyOrEnd, b'"') => {
                let has_escapes = string(payload, &mut at)?;
                take(Some(Token { kind: Kind::String { has_escapes }, span: start..at }))
                    .then_some(())?;
                at = after_space(payload, at);
                if payload.get(at) != Some(&b':') {
                    return None;
                }
                at += 1;
                expected = Expected::Value;
            }
            (Expected::Value | Expected::ValueOrEnd, _) => {
                expected = Expected::CommaOrEnd;
                match byte {
                    b'{' | b'[' => {
                        open.push(byte);
                        expected = match byte {
                            b'{' => Expected::KeyOrEnd,
                            _ => Expected::ValueOrEnd,
                        };
                    }
                    b'"' => {
                        let has_escapes = string(payload, &mut at)?;
                        take(Some(Token { kind: Kind::String { has_escapes }, span: start..at }))
                            .then_some(())?;
                    }
                    b'-' | b'0'..=b'9' => {
                        at = number(payload, start)?;
                        take(Some(Token { kind: Kind::Number, span: start..at })).then_some(())?;
                    }
                    _ => {
                        let literals: [&[u8]; 3] = [b"true", b"false", b"null"];
                        let rest = payload.get(start..)?;
                        at = start + literals.iter().find(|it| rest.starts_with(it))?.len();
                    }
                }
            }
            _ => return None,
        }
        at = after_space(payload, at);
    }
}

fn after_space(payload: &[u8], at: usize) -> usize {
    let rest = payload.get(at..).unwrap_or_default();
    let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    at + rest.iter().take_while(is_space).count()
}

/// Goes from behind the first quote to behind the last, and answers whether there
/// are escapes.
fn string(payload: &[u8], at: &mut usize) -> Option<bool> {
    let mut has_escapes = false;
    loop {
        let rest = payload.get(*at..)?;
        let plain = plain_bytes(rest);
        let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
        let length = plain + rest.get(plain..)?.iter().position(is_special)?;
        *at += length + 1;
        match rest.get(length..)? {
            [b'"', ..] => return Some(has_escapes),
            [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => *at += 1,
            [b'\\', b'u', digits @ ..] => {
                let digits = digits.get(..4)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                *at += 5;
            }
            _ => return None,
        }
        has_escapes = true;
    }
}

/// How many bytes in front are neither quotes nor backslashes nor control characters;
/// some more may follow. Eight at a time.
fn plain_bytes(rest: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES * 0x80;
    let is_plain = |chunk: &&[u8; 8]| {
        let bytes = u64::from_le_bytes(**chunk);
        // The high bit of a byte is set where it is below the bound, and perhaps elsewhere.
        let below = |bytes: u64, bound: u64| bytes.wrapping_sub(ONES * bound) & !bytes;
        let quotes = bytes ^ (ONES * u64::from(b'"'));
        let backslashes = bytes ^ (ONES * u64::from(b'\\'));
        (below(bytes, 0x20) | below(quotes, 1) | below(backslashes, 1)) & HIGH == 0
    };
    rest.as_chunks::<8>().0.iter().take_while(is_plain).count() * 8
}

/// Where the number ends that begins here.
fn number(payload: &[u8], start: usize) -> Option<usize> {
    let digits = |at: usize| {
        let rest = payload.get(at..).unwrap_or_default();
        at + rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let some_digits = |at: usize| Some(digits(at)).filter(|end| *end > at);
    let begin = start + usize::from(payload.get(start) == Some(&b'-'));
    let mut at = match payload.get(begin)? {
        b'0' => begin + 1,
        _ => some_digits(begin)?,
    };
    if payload.get(at) == Some(&b'.') {
        at = some_digits(at + 1)?;
    }
    if let Some(b'e' | b'E') = payload.get(at) {
        let sign = usize::from(matches!(payload.get(at + 1), Some(b'+' | b'-')));
        at = some_digits(at + 1 + sign)?;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;

    use super::*;

    fn tokens(payload: &[u8]) -> Option<Vec<Token>> {
        let mut tokens = vec![];
        let mut budget = Budget::of(usize::MAX);
        let visited = visit(payload, &mut budget, |token, _| {
            tokens.push(token);
            Ok(())
        });
        (visited == Ok(true)).then_some(tokens)
    }

    fn is_json(payload: &[u8]) -> bool {
        serde_json::from_slice::<IgnoredAny>(payload).is_ok()
    }

    #[test]
    fn all_strings_and_numbers_are_found() {
        let check = |payload: &str, expected: &[&str]| {
            let found = tokens(payload.as_bytes()).unwrap_or_else(|| panic!("not JSON: {payload}"));
            let found: Vec<_> = found.into_iter().map(|token| &payload[token.span]).collect();
            assert_eq!(found, expected, "{payload}");
        };
        check(
            r#" {"a" : "b\"}", "c":[1, -2.5e+3,"", {"é":null}] , "d":{}} "#,
            &[r#""a""#, r#""b\"}""#, r#""c""#, "1", "-2.5e+3", r#""""#, r#""é""#, r#""d""#],
        );
        check("7", &["7"]);
        check("[[],[[]],{}]", &[]);
        let escaped = tokens(br#"["\u0034","4"]"#).map(|found| {
            found.iter().map(|token| token.kind == Kind::String { has_escapes: true }).collect()
        });
        assert_eq!(escaped, Some(vec![true, false]));
    }

    #[test]
    fn a_document_is_what_serde_json_takes_for_one() {
        let fixed: &[&[u8]] = &[
            b"",
            b" ",
            b"1 2",
            b"[1,]",
            b"{,}",
            b"{\"a\":1,}",
            b"{\"a\"}",
            b"{\"a\":}",
            b"{1:2}",
            b"[1}",
            b"{]",
            b"01",
            b"-",
            b"1.",
            b".5",
            b"1e",
            b"1e+",
            b"+1",
            b"nul",
            b"nulll",
            b"true",
            b"\"\\x\"",
            b"\"\\u12g4\"",
            b"\"\\ud800\"",
            b"\"\n\"",
            b"\"\xff\"",
            b"\"",
            b"\xef\xbb\xbf{}",
            b"{}x",
            b"[1] ",
            b"'a'",
            b"{a:1}",
            b"[,1]",
            b"[1 2]",
            b"{\"a\" 1}",
            b"\x00",
            b"1e999",
            b"//\n1",
            b"NaN",
        ];
        for payload in fixed {
            assert_eq!(is_document(payload), is_json(payload), "{}", payload.escape_ascii());
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(is_document(&deep) && !is_document(&deep[1..]));
    }

    /// Every text of a few pieces, and there are more of them that are no documents.
    #[test]
    fn made_up_documents_are_judged_alike() {
        let pieces = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"a\"",
            "1",
            "-0",
            " ",
            "null",
            "\"\\u00e9\"",
            ".5",
            "e1",
        ];
        let mut seed = 7_u64;
        let mut random = |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let mut documents = 0;
        for _ in 0..200_000 {
            let length = 1 + random(7);
            let payload: String = (0..length).map(|_| pieces[random(pieces.len())]).collect();
            let expected = is_json(payload.as_bytes());
            assert_eq!(is_document(payload.as_bytes()), expected, "{payload}");
            documents += usize::from(expected);
        }
        assert!(documents > 1_000, "{documents}");
    }
}
