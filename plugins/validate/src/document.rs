//! From bytes to a JSON document.
//!
//! A key that occurs twice in an object is refused: one parser takes the first
//! value and another the last, so what is checked here need not be what a
//! subscriber reads.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Reads a document.
///
/// # Errors
///
/// It is none, is more than 127 levels deep, or has a key twice: says where.
pub fn read(bytes: &[u8]) -> Result<Value, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let document = Document.deserialize(&mut deserializer);
    let document = document.and_then(|document| deserializer.end().map(|()| document));
    document.map_err(|error| error.to_string())
}

struct Document;

impl<'de> DeserializeSeed<'de> for Document {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut array = vec![];
        while let Some(member) = members.next_element_seed(Self)? {
            array.push(member);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let value = members.next_value_seed(Self)?;
            if object.insert(key, value).is_some() {
                // Without the key itself: it may be long.
                return Err(A::Error::custom("a key occurs twice in an object"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_as_serde_json_reads_it() {
        for text in [
            "null",
            "true",
            "7",
            "-7",
            "18446744073709551615",
            "1.5",
            "1e3",
            r#""\u0034é""#,
            "[]",
            r#"[1,["a"],{}]"#,
            r#" {"a": {"a": null}, "b": []} "#,
        ] {
            let expected = serde_json::from_str::<Value>(text).map_err(|error| error.to_string());
            assert_eq!(read(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn what_parsers_may_read_in_two_ways_is_refused() {
        let check = |bytes: &[u8], says: &str| match read(bytes) {
            Ok(document) => panic!("read {document}"),
            Err(error) => assert!(error.contains(says), "{}: {error}", bytes.escape_ascii()),
        };
        check(br#"{"a":1,"b":{"c":1,"\u0063":2}}"#, "a key occurs twice");
        check(br#"{"a":1,"a":1}"#, "a key occurs twice");
        check(b"\xef\xbb\xbf{}", "expected value");
        check(b"{} {}", "trailing characters");
        check(br#""\ud800""#, "hex escape");
        check(b"\"\xff\"", "unicode");
        check(b"1e400", "out of range");
        check("[".repeat(1_000).as_bytes(), "recursion limit");
        check(b"", "EOF");
    }
}
