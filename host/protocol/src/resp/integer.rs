//! Integers, parsed and formatted as Redis does.

/// Parses a number as strictly as Redis does: decimal digits with at most a minus sign before them;
/// no plus sign, no spaces, no leading zeros, no `-0`, no overflow.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'0'] => return Some(0),
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if !matches!(digits.first(), Some(b'1'..=b'9')) {
        return None;
    }
    let mut magnitude: u64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        magnitude = magnitude.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    if negative { 0_i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
}

/// A line that consists of a marker and a number, such as `$128` or `:-1`, with its CRLF. It is
/// written backwards into an array, so that it is copied once.
pub(super) struct NumberLine {
    bytes: [u8; NumberLine::BYTES_MAX],
    start: usize,
}

impl NumberLine {
    /// The marker, a sign, nineteen digits, CR and LF.
    const BYTES_MAX: usize = 23;

    pub(super) fn new(marker: u8, number: i64) -> NumberLine {
        let mut bytes = [0; NumberLine::BYTES_MAX];
        let mut start = bytes.len();
        let mut magnitude = number.unsigned_abs();
        let mut slots = bytes.iter_mut().rev();
        let mut put = |byte: u8| {
            if let Some(slot) = slots.next() {
                *slot = byte;
                start -= 1;
            }
        };
        put(b'\n');
        put(b'\r');
        loop {
            put(b'0' + (magnitude % 10) as u8);
            magnitude /= 10;
            if magnitude == 0 {
                break;
            }
        }
        if number < 0 {
            put(b'-');
        }
        put(marker);
        NumberLine { bytes, start }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_redis_reads() {
        let check =
            |text: &str, expected| assert_eq!(parse_integer(text.as_bytes()), expected, "{text:?}");
        check("0", Some(0));
        check("-1", Some(-1));
        check("10", Some(10));
        check("9223372036854775807", Some(i64::MAX));
        check("-9223372036854775808", Some(i64::MIN));
        for wrong in [
            "",
            "-",
            "-0",
            "00",
            "01",
            "+1",
            " 1",
            "1 ",
            "1x",
            "--1",
            "0x1",
            "9223372036854775808",
            "-9223372036854775809",
            "18446744073709551616",
            "100000000000000000000000",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for number in [0, 1, 9, 10, 99, 100, 12_345, -1, -10, i64::MAX, i64::MIN] {
            let line = NumberLine::new(b':', number);
            assert_eq!(line.as_bytes(), format!(":{number}\r\n").as_bytes());
        }
    }
}
