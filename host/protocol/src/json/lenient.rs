//! Reads an item of a frame that the JSON parser refuses although its syntax is valid: half of a
//! surrogate pair, a number out of range, deep nesting.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, Error, Visitor};
use serde_json::value::RawValue;

use super::Item;

/// An item of a frame: an array is a command, and is read item by item.
pub(super) fn item(text: &str) -> Item<'_> {
    if let Ok(item) = serde_json::from_str(text) {
        return item;
    }
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(members) => {
            Item::Array(members.into_iter().map(|member| argument(member.get())).collect())
        }
        Err(_) => argument(text),
    }
}

/// An argument of a command. Half of a surrogate pair becomes U+FFFD; what else cannot be read is no
/// valid argument.
pub(super) fn argument(text: &str) -> Item<'_> {
    if let Ok(item) = serde_json::from_str(text) {
        return item;
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    match deserializer.deserialize_bytes(TextVisitor) {
        Ok(text) => Item::String(Cow::Owned(text)),
        Err(_) => Item::Other,
    }
}

/// Receives the bytes of a string, in which serde_json encodes half of a surrogate pair as WTF-8
/// does: in three bytes, as UTF-8 would if it were a character.
struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<String, E> {
        Ok(replace_surrogates(bytes))
    }
}

/// WTF-8 as UTF-8, with U+FFFD for each surrogate.
fn replace_surrogates(bytes: &[u8]) -> String {
    const SURROGATE_BYTES: usize = 3;
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(chunk) = rest.utf8_chunks().next() {
        text.push_str(chunk.valid());
        if chunk.invalid().is_empty() {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        rest = rest.get(chunk.valid().len() + SURROGATE_BYTES..).unwrap_or_default();
    }
    text
}
