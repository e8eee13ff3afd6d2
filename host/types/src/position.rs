//! The position of a publication in the stream of its channel.
//!
//! Its text is `EPOCH-OFFSET`, two decimal numbers below 2^64 without leading zeros, as the ID of an
//! entry in a Redis stream. Positions are ordered by epoch, then by offset. To clients the text is
//! opaque: they return what they received.

use std::fmt;
use std::str::FromStr;

/// The length of the longest text.
pub const TEXT_BYTES_MAX: usize = 2 * DIGITS_MAX + 1;

/// How many digits a number below 2^64 has at most.
const DIGITS_MAX: usize = 20;

/// A place in a stream: after the publication with this offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// The time at which the stream began, in microseconds since 1970.
    pub epoch: u64,
    /// The number of the publication; 0 is the beginning of the stream.
    pub offset: u64,
}

/// A text that is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAPosition;

impl Position {
    /// Reads the text. None: it is anything else than two decimal numbers below 2^64 without leading
    /// zeros, and `-` between them.
    pub fn parse(text: &[u8]) -> Option<Position> {
        let dash = text.iter().position(|&byte| byte == b'-')?;
        let (epoch, offset) = text.split_at_checked(dash)?;
        let (_dash, offset) = offset.split_first()?;
        Some(Position { epoch: number(epoch)?, offset: number(offset)? })
    }

    /// Appends the text.
    pub fn write(self, to: &mut Vec<u8>) {
        write_number(self.epoch, to);
        to.push(b'-');
        write_number(self.offset, to);
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.epoch, self.offset)
    }
}

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Position, NotAPosition> {
        Position::parse(text.as_bytes()).ok_or(NotAPosition)
    }
}

impl fmt::Display for NotAPosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a position is two decimal numbers with - between them")
    }
}

impl std::error::Error for NotAPosition {}

fn number(digits: &[u8]) -> Option<u64> {
    match digits {
        [] | [b'0', _, ..] => None,
        _ if digits.len() > DIGITS_MAX => None,
        _ => digits.iter().try_fold(0_u64, |number, digit| {
            let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
            number.checked_mul(10)?.checked_add(digit)
        }),
    }
}

fn write_number(mut number: u64, to: &mut Vec<u8>) {
    let mut digits = [b'0'; DIGITS_MAX];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    to.extend_from_slice(digits.get(DIGITS_MAX - used..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let numbers = [0, 1, 9, 10, 99, 1_764_340_000_000_000, u64::MAX - 1, u64::MAX];
        for epoch in numbers {
            for offset in numbers {
                let position = Position { epoch, offset };
                let text = position.to_string();
                let mut written = b"before ".to_vec();
                position.write(&mut written);
                assert_eq!(written, format!("before {text}").into_bytes());
                assert!(text.len() <= TEXT_BYTES_MAX);
                assert_eq!(text.parse(), Ok(position));
            }
        }
    }

    #[test]
    fn any_other_text_is_no_position() {
        let others = [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "01-1",
            "1-01",
            "00-1",
            "1-00",
            "+1-1",
            "1-+1",
            " 1-1",
            "1-1 ",
            "1-1-1",
            "1--1",
            "1_1",
            "a-1",
            "1-a",
            "0x1-1",
            "1.0-1",
            "1-*",
            "$",
            "+",
            "18446744073709551616-1",
            "1-18446744073709551616",
            "100000000000000000000-1",
            "1-999999999999999999999999999999",
            "1-1\0",
            "١-1",
            "(1-1",
            "1\u{2013}1",
        ];
        for other in others {
            assert_eq!(other.parse::<Position>(), Err(NotAPosition), "{other:?}");
        }
    }

    #[test]
    fn positions_are_ordered_by_epoch_and_then_by_offset() {
        let texts = ["0-0", "0-1", "9-9", "9-10", "10-0", "10-2", "11-1"];
        let positions: Vec<Position> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        assert_eq!(positions.len(), texts.len());
        assert!(positions.is_sorted_by(|one, other| one < other));
    }
}
