//! What a number says, however it is written: its digits without an exponent, and
//! those that a reader with doubles only sees.

use std::iter;
use std::ops::Range;

/// How many digits may stand before the point: a double has no more.
const WHOLE_DIGITS_MAX: i64 = 309;

/// How many digits say exactly which double is the nearest, but for the two neighbours
/// of what was cut off.
const COMPARED_DIGITS: usize = 19;

/// So many digits come out of a double as they went in.
const SAFE_DIGITS: usize = 15;

/// A number as it is written, in its parts.
#[derive(Clone, Copy, Debug)]
pub struct Number<'a> {
    is_negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    /// How many zeros come first.
    zeros: usize,
    /// How many digits there are between the first and the last that are not zero.
    digits: usize,
    /// How many digits stand before the point, from the first that is not zero on.
    point: i64,
    has_exponent: bool,
}

impl<'a> Number<'a> {
    /// Digits with a point or without, and an exponent or none. None for what is zero
    /// or infinite to all readers.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let (is_negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            _ => (false, text),
        };
        let (mantissa, exponent) = split_at_any(text, b"eE");
        let (whole, fraction) = split_at_any(mantissa, b".");
        let has_exponent = !exponent.is_empty();
        let exponent: i64 = match has_exponent {
            true => std::str::from_utf8(exponent).ok()?.parse().ok()?,
            false => 0,
        };
        let is_some = |digit: &u8| *digit != b'0';
        let zeros = whole.iter().chain(fraction).position(is_some)?;
        let behind = whole.iter().chain(fraction).rev().position(is_some)?;
        let point = i64::try_from(whole.len()).ok()?.checked_add(exponent)?;
        let point = point.checked_sub(i64::try_from(zeros).ok()?)?;
        let digits = whole.len() + fraction.len() - behind - zeros;
        Some(Self { is_negative, whole, fraction, zeros, digits, point, has_exponent })
    }

    /// Whether it is written with an exponent.
    pub fn has_exponent(&self) -> bool {
        self.has_exponent
    }

    fn significant(&self) -> impl Iterator<Item = u8> {
        self.whole.iter().chain(self.fraction).skip(self.zeros).take(self.digits).copied()
    }

    /// How many bytes `plain` has; none when there is nothing that the spelling does not
    /// say: it has no exponent and no point that could go.
    pub fn plain_length(&self) -> Option<usize> {
        let is_in_reach = (0..=WHOLE_DIGITS_MAX).contains(&self.point);
        let point = usize::try_from(self.point).ok().filter(|_| is_in_reach)?;
        let is_whole = self.digits <= point;
        let is_said = !self.has_exponent && (!is_whole || self.fraction.is_empty());
        (!is_said).then_some(if is_whole { point } else { self.digits + 2 })
    }

    /// All its digits, without an exponent and without needless zeros.
    pub fn plain(&self) -> Option<Vec<u8>> {
        let length = self.plain_length()?;
        let point = usize::try_from(self.point).ok()?;
        let mut plain = Vec::with_capacity(length);
        plain.extend(self.significant().take(point));
        plain.resize(point, b'0');
        if self.digits > point {
            plain.extend_from_slice(if point == 0 { b"0." } else { b"." });
            plain.extend(self.significant().skip(point));
        }
        Some(plain)
    }

    /// Whether a double may have other digits than `plain` and the spelling.
    pub fn is_rounded(&self) -> bool {
        self.digits > SAFE_DIGITS || (self.has_exponent && !(0..=21).contains(&self.point))
    }

    /// How many doubles there may be: both neighbours of what has more digits than are
    /// compared.
    pub fn doubles_max(&self) -> usize {
        1 + usize::from(self.digits > COMPARED_DIGITS)
    }

    /// The nearest double as JavaScript writes it. Where that takes more digits to say
    /// than are compared, both neighbours.
    pub fn doubles(&self) -> impl Iterator<Item = Vec<u8>> {
        // Beyond this it is zero or infinite.
        let is_in_reach = self.is_rounded() && (-330..=310).contains(&self.point);
        let compared = self.digits.min(COMPARED_DIGITS);
        let mantissa = self
            .significant()
            .take(compared)
            .fold(0_u64, |mantissa, digit| mantissa * 10 + u64::from(digit & 15));
        let exponent = self.point - i64::try_from(compared).unwrap_or(0);
        let nearest = move |mantissa: u64| {
            let nearest: f64 = format!("{mantissa}e{exponent}").parse().ok()?;
            (nearest > 0.0 && nearest.is_finite()).then_some(nearest)
        };
        let low = is_in_reach.then(|| nearest(mantissa)).flatten();
        let high = match self.digits > compared {
            true => low.and_then(|low| nearest(mantissa + 1).filter(|high| *high != low)),
            false => None,
        };
        let is_negative = self.is_negative;
        iter::chain(low, high).map(move |value| {
            let mut written = as_javascript(value);
            if is_negative {
                written.insert(0, '-');
            }
            written.into_bytes()
        })
    }
}

/// As `Number.prototype.toString` does, for what is greater than zero.
fn as_javascript(value: f64) -> String {
    if (1e-6..1e21).contains(&value) {
        return value.to_string();
    }
    let written = format!("{value:e}");
    match written.contains("e-") {
        true => written,
        false => written.replace('e', "e+"),
    }
}

/// What stands before the first of these bytes, and behind it.
fn split_at_any<'a>(text: &'a [u8], marks: &[u8]) -> (&'a [u8], &'a [u8]) {
    let at = text.iter().position(|byte| marks.contains(byte)).unwrap_or(text.len());
    let (before, rest) = text.split_at(at);
    (before, rest.get(1..).unwrap_or_default())
}

/// The next run of digits at or behind `from`, with its fraction and its exponent, and
/// whether it has one of these. A sign before it is not part of it.
pub fn next_number(text: &[u8], from: usize) -> Option<(Range<usize>, bool)> {
    let byte = |at: usize| text.get(at).copied();
    let after_digits = |at: usize| {
        let rest = text.get(at..).unwrap_or_default();
        at + rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let first = from + first_digit(text.get(from..)?)?;
    let before = first.checked_sub(1).filter(|before| *before >= from);
    let begins_with_point = before.and_then(byte) == Some(b'.');
    let start = if begins_with_point { first - 1 } else { first };
    let whole_end = after_digits(first);
    let mut end = whole_end;
    if !begins_with_point && byte(whole_end) == Some(b'.') {
        end = after_digits(whole_end + 1);
    }
    let mantissa_end = end;
    if let Some(b'e' | b'E') = byte(mantissa_end) {
        let sign = usize::from(matches!(byte(mantissa_end + 1), Some(b'+' | b'-')));
        let exponent = mantissa_end + 1 + sign;
        let exponent_end = after_digits(exponent);
        if exponent_end > exponent {
            return Some((start..exponent_end, true));
        }
    }
    // A point with nothing behind it ends a sentence.
    let end = if end == whole_end + 1 { whole_end } else { end };
    Some((start..end, begins_with_point || end > whole_end))
}

/// Eight bytes at a time: most texts have few digits.
fn first_digit(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let (chunks, _) = text.as_chunks::<8>();
    let has_digit = |chunk: &[u8; 8]| {
        // A byte is below ten then, if it is a digit. A wrong yes is possible, a wrong no is not.
        let digits = u64::from_le_bytes(*chunk) ^ (ONES * u64::from(b'0'));
        digits.wrapping_sub(ONES * 10) & !digits & (ONES * 0x80) != 0
    };
    let mut from = 0;
    loop {
        let skipped = chunks.iter().skip(from / 8).take_while(|chunk| !has_digit(chunk)).count();
        from += skipped * 8;
        let rest = text.get(from..)?;
        let near = rest.iter().take(8).position(u8::is_ascii_digit);
        if near.is_some() || rest.len() <= 8 {
            return near.map(|near| from + near);
        }
        from += 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> (Option<String>, Vec<String>) {
        let as_text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let Some(number) = Number::parse(text.as_bytes()) else { return (None, vec![]) };
        let plain = number.plain().map(as_text);
        if let Some(plain) = &plain {
            assert!(number.plain_length().unwrap() >= plain.len(), "{text}");
        }
        (plain, number.doubles().map(as_text).collect())
    }

    #[test]
    fn a_number_has_plain_digits_however_it_is_written() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(says(text).0.as_deref(), expected, "{text}");
        };
        check("42", None);
        check("4.2", None);
        check("4.2e1", Some("42"));
        check("-4.20E+1", Some("42"));
        check("0.0042e4", Some("42"));
        check(".42e2", Some("42"));
        check("4.e1", Some("40"));
        check("420e-1", Some("42"));
        check("42e-1", Some("4.2"));
        check("42e-2", Some("0.42"));
        check("42e-3", None);
        check("42.0", Some("42"));
        check("0e5", None);
        check("4e3", Some("4000"));
        check("1e400", None);
        check("1e99999999999999999999", None);
        check("1e-400", None);
        check(&format!("0.{}42e402", "0".repeat(400)), Some("42"));
        check(&format!("42{}e-400", "0".repeat(400)), Some("42"));
    }

    #[test]
    fn a_double_is_written_as_javascript_does() {
        let check = |text: &str, expected: &[&str]| assert_eq!(says(text).1, expected, "{text}");
        check("4111111111111111", &["4111111111111111"]);
        check("-411111111111111.11e1", &["-4111111111111111"]);
        check("4.11111111111111101e15", &["4111111111111111"]);
        check("41111111111111111", &["41111111111111110"]);
        check("1e21", &["1e+21"]);
        check("123456789012345678901", &["123456789012345680000"]);
        check("4.1e-6", &["0.0000041"]);
        check("4.1e-7", &["4.1e-7"]);
        check("0.30000000000000004", &["0.30000000000000004"]);
        // Half way between two doubles, and more digits than are compared.
        check("9007199254740993.0000000001", &["9007199254740992", "9007199254740994"]);
        for text in ["42", "4.2", "4.2e1", "1e400", "1e-400", "123456789012345"] {
            check(text, &[]);
        }
    }

    #[test]
    fn doubles_are_those_that_the_standard_library_reads() {
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..20_000 {
            let digits: String = (0..20 + random(40)).map(|_| random(10).to_string()).collect();
            let text = format!("1{digits}.{}e{}", random(1_000_000), random(600) as i64 - 330);
            let expected: f64 = text.parse().unwrap();
            let (_, found) = says(&text);
            let is_found = |written: &String| written.parse() == Ok(expected);
            let is_none = expected == 0.0 || expected.is_infinite();
            assert!(is_none || found.iter().any(is_found), "{text}: {found:?}");
        }
    }

    #[test]
    fn numbers_are_found_in_a_text() {
        let check = |text: &str, expected: &[(&str, bool)]| {
            let mut found = vec![];
            let mut from = 0;
            while let Some((span, is_special)) = next_number(text.as_bytes(), from) {
                from = span.end;
                found.push((&text[span], is_special));
            }
            assert_eq!(found, expected, "{text}");
        };
        check("", &[]);
        check("no digits, and that for more than eight bytes", &[]);
        check("twelve and so 12", &[("12", false)]);
        check("-4.2e+1,", &[("4.2e+1", true)]);
        check("{\"n\":.5E3}", &[(".5E3", true)]);
        check(
            "5.e3 5. 5.5 5e 5e- 5e5.",
            &[
                ("5.e3", true),
                ("5", false),
                ("5.5", true),
                ("5", false),
                ("5", false),
                ("5e5", true),
            ],
        );
        check("1.2.3.4", &[("1.2", true), (".3", true), (".4", true)]);
        check("x1e1e1", &[("1e1", true), ("1", false)]);
        for length in 0..40 {
            for before in ["x", ":", "/", "\u{e9}", "\0"] {
                check(
                    &format!("{}7{}", before.repeat(length), "y".repeat(length)),
                    &[("7", false)],
                );
            }
        }
    }
}
