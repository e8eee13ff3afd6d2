//! Times and sizes as a settings file has them: an integer, or a text with a unit.
//!
//! The unit of a bare integer is that of the key: milliseconds for `*_ms`, bytes for `*_bytes_*`.
//! Settings are serialised as integers, whichever way they were written.

use std::fmt;

use bytesize::ByteSize;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::values::OFF;

/// The forms of a time, for error messages.
const TIME_FORMS: &str = "milliseconds as an integer, or a text with a unit, such as \"100ms\", \"25s\", \"5m\" or \"1h\"";
/// The forms of a size, for error messages.
const SIZE_FORMS: &str = "bytes as an integer, or a text with a unit, such as \"64KiB\", \"1MB\" (10^6) or \"1MiB\" (2^20)";

/// A time in milliseconds: an integer, or a text such as `25s`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Millis(pub u64);

/// A size in bytes: an integer, or a text such as `1MiB`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bytes(pub u64);

/// A time, or `"off"`, which is none: zero never means "unlimited".
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MillisOrOff(pub(crate) Option<Millis>);

impl From<Millis> for u64 {
    fn from(Millis(millis): Millis) -> u64 {
        millis
    }
}

impl From<Bytes> for u64 {
    fn from(Bytes(bytes): Bytes) -> u64 {
        bytes
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
        deserializer.deserialize_any(Quantity { forms: TIME_FORMS, parse: parse_time }).map(Millis)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_any(Quantity { forms: SIZE_FORMS, parse: parse_size }).map(Bytes)
    }
}

impl<'de> Deserialize<'de> for MillisOrOff {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MillisOrOff, D::Error> {
        /// No time that is written has this value: it is above the limit of all times.
        const NONE: u64 = u64::MAX;
        let parse = |text: &str| if text == OFF { Some(NONE) } else { parse_time(text) };
        let forms = format!("{TIME_FORMS}, or \"{OFF}\"");
        let time = deserializer.deserialize_any(Quantity { forms: &forms, parse })?;
        Ok(MillisOrOff((time != NONE).then_some(Millis(time))))
    }
}

impl Serialize for MillisOrOff {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(time) => time.serialize(serializer),
            None => serializer.serialize_str(OFF),
        }
    }
}

/// Reads an integer, or a text by a function that returns none if the text has no valid form.
struct Quantity<'a, P> {
    forms: &'a str,
    parse: P,
}

impl<P: Fn(&str) -> Option<u64>> Visitor<'_> for Quantity<'_, P> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.forms)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number)
            .map_err(|_| E::custom(format!("{number} is negative, but must be {}", self.forms)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        (self.parse)(text).ok_or_else(|| E::custom(format!("{text:?} must be {}", self.forms)))
    }
}

/// A whole number of milliseconds, with a unit or without.
fn parse_time(text: &str) -> Option<u64> {
    if is_number(text) {
        return text.parse().ok();
    }
    let time = humantime::parse_duration(text).ok()?;
    let is_whole = time.subsec_nanos().is_multiple_of(1_000_000);
    u64::try_from(time.as_millis()).ok().filter(|_| is_whole)
}

/// A number of bytes, with a unit or without.
fn parse_size(text: &str) -> Option<u64> {
    let ByteSize(bytes) = text.parse().ok()?;
    // Larger ones are rounded or cut off by the crate.
    (bytes < u64::MAX).then_some(bytes)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    struct Settings {
        time: Millis,
        size: Bytes,
        pause: MillisOrOff,
    }

    fn read(time: &str, size: &str, pause: &str) -> Result<Settings, String> {
        let text = format!("time = {time}\nsize = {size}\npause = {pause}");
        toml::from_str(&text).map_err(|problem| problem.message().to_owned())
    }

    #[test]
    fn a_time_has_a_unit_or_is_in_milliseconds() {
        for (text, millis) in [
            ("25", 25),
            ("'25'", 25),
            ("'100ms'", 100),
            ("'25s'", 25_000),
            ("'1.5s'", 1_500),
            ("'1 min'", 60_000),
            ("'5m'", 300_000),
            ("'1h 30m'", 5_400_000),
            ("'1d'", 86_400_000),
            ("'0s'", 0),
        ] {
            assert_eq!(read(text, "1", "1").map(|all| all.time), Ok(Millis(millis)), "{text}");
            let pause = MillisOrOff(Some(Millis(millis)));
            assert_eq!(read("1", "1", text).map(|all| all.pause), Ok(pause), "{text}");
        }
        assert_eq!(read("1", "1", "'off'").map(|all| all.pause), Ok(MillisOrOff(None)));
    }

    #[test]
    fn a_size_has_a_unit_or_is_in_bytes() {
        for (text, bytes) in [
            ("16384", 16384),
            ("'16384'", 16384),
            ("'7B'", 7),
            ("'1KB'", 1_000),
            ("'1MB'", 1_000_000),
            ("'1.5 GB'", 1_500_000_000),
            ("'64KiB'", 64 << 10),
            ("'1MiB'", 1 << 20),
            ("'4 GiB'", 4 << 30),
        ] {
            assert_eq!(read("1", text, "1").map(|all| all.size), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_what_would_be_right() {
        for bad in ["'25x'", "'s'", "''", "'-1s'", "-1", "1.5", "true", "'1500us'", "'1MB'", "[1]"]
        {
            let problem = read(bad, "1", "1").expect_err(bad);
            assert!(problem.contains("\"25s\"") && !problem.contains("\"off\""), "{problem}");
            let problem = read("1", "1", bad).expect_err(bad);
            assert!(problem.contains("\"25s\"") && problem.contains("\"off\""), "{problem}");
        }
        for bad in
            ["'1XB'", "'MB'", "''", "'-1MB'", "-1", "0.5", "true", "'99999999999PiB'", "'1s'"]
        {
            let problem = read("1", bad, "1").expect_err(bad);
            assert!(problem.contains("\"1MiB\" (2^20)"), "{problem}");
        }
        assert!(read("'off'", "1", "1").is_err(), "this time cannot be off");
    }

    #[test]
    fn settings_are_written_as_integers() {
        let settings = read("'2s'", "'1KiB'", "'1s'").expect("valid");
        assert_eq!(
            toml::to_string(&settings).as_deref(),
            Ok("time = 2000\nsize = 1024\npause = 1000\n")
        );
        let settings = read("1", "1", "'off'").expect("valid");
        assert!(toml::to_string(&settings).is_ok_and(|text| text.contains("pause = \"off\"")));
    }
}
