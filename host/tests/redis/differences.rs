//! All that Switchyard is allowed to do otherwise than the Redis at hand.
//!
//! Switchyard says it is 7.4, and Debian 12 ships 7.0.15. What a version of Redis
//! changed, or leaves open, is listed here, each with its reason; everything else
//! must be the same, byte for byte.

use crate::value::{Shape, Value};

/// Major and minor.
type Version = (u32, u32);

/// Conversations about what an older Redis does not have: from which version on
/// they are held with it, and why.
pub const NEED: &[(&str, Version, &str)] = &[
    ("client_setinfo", (7, 2), "CLIENT SETINFO came with 7.2"),
    ("client_no_touch", (7, 2), "CLIENT NO-TOUCH came with 7.2"),
    ("hello_without_effect", (7, 2), "until then HELLO named the client before it refused"),
];

/// Texts that were reworded: until which version, the old one and the new one.
const REWORDED: &[(Version, &[u8], &[u8])] = &[
    // The last line of all HELP sub-commands.
    ((7, 2), b"    Prints this help.", b"    Print this help."),
];

/// What a newer Redis would have said.
pub fn modernise(version: Version, value: Value) -> Value {
    match value {
        Value::Simple(text) => {
            let reworded = REWORDED.iter().find(|(until, old, _)| version < *until && text == *old);
            Value::Simple(reworded.map_or(text, |(_, _, new)| new.to_vec()))
        }
        Value::Aggregate(shape, items) => {
            let items = items.into_iter().map(|item| modernise(version, item));
            Value::Aggregate(shape, items.collect())
        }
        other => other,
    }
}

/// Whether this Redis may answer a command otherwise than a newer one. Until 7.2 it
/// looked at all of a client's name, and from then on up to a NUL.
pub fn is_answered_otherwise(version: Version, command: &[Vec<u8>]) -> bool {
    let is_setname = matches!(command, [client, setname, _]
        if client.eq_ignore_ascii_case(b"CLIENT") && setname.eq_ignore_ascii_case(b"SETNAME"));
    version < (7, 2) && is_setname && command.iter().any(|word| word.contains(&0))
}

/// Whether a client that publishes to itself in RESP3 is sent the message before
/// the reply. From 7.2 on it comes after it.
pub fn message_precedes_reply(version: Version, value: &Value) -> bool {
    let is_message = || value.payload().is_ok();
    version < (7, 2) && matches!(value, Value::Aggregate(Shape::Push, _)) && is_message()
}
