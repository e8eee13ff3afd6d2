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
    ("streams_newest", (7, 4), "`+` in XREAD came with 7.4"),
];

/// Texts that were reworded: until which version, the old one and the new one.
const REWORDED: &[(Version, &[u8], &[u8])] = &[
    // The last line of all HELP sub-commands.
    ((7, 2), b"    Prints this help.", b"    Print this help."),
    // `+` came with 7.4.
    (
        (7, 4),
        b"ERR Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified.",
        b"ERR Unbalanced 'xread' list of streams: for each stream key an ID, '+', or '$' must be \
          specified.",
    ),
];

/// What a newer Redis would have said.
pub fn modernise(version: Version, value: Value) -> Value {
    let reword = |text: Vec<u8>| {
        let reworded = REWORDED.iter().find(|(until, old, _)| version < *until && text == *old);
        reworded.map_or(text, |(_, _, new)| new.to_vec())
    };
    match value {
        Value::Simple(text) => Value::Simple(reword(text)),
        Value::Error(text) => Value::Error(reword(text)),
        Value::Aggregate(shape, items) => {
            let items = items.into_iter().map(|item| modernise(version, item));
            Value::Aggregate(shape, items.collect())
        }
        other => other,
    }
}

/// Whether this Redis may answer a command otherwise than Switchyard does. From 7.2 on it looks at
/// a client's name up to a NUL; until then it looked at all of it and refused a NUL, as Switchyard
/// does.
pub fn is_answered_otherwise(version: Version, command: &[Vec<u8>]) -> bool {
    let is_setname = matches!(command, [client, setname, _]
        if client.eq_ignore_ascii_case(b"CLIENT") && setname.eq_ignore_ascii_case(b"SETNAME"));
    version >= (7, 2) && is_setname && command.iter().any(|word| word.contains(&0))
}

/// Commands that COMMAND INFO of 7.0 describes otherwise, and why.
pub const DESCRIBED_OTHERWISE: &[(&str, &str)] = &[
    ("client|setname", "7.2 added tips"),
    ("config|resetstat", "7.2 added tips"),
    ("config|rewrite", "7.2 added tips"),
    ("command|getkeys", "7.4 accepts a command without arguments"),
    ("command|getkeysandflags", "7.4 accepts a command without arguments"),
    ("eval", "Redis adds a note about the keys of scripts"),
    ("latency|reset", "7.4 has another tip"),
    ("wait", "7.4 has another flag"),
];

/// Whether a client that publishes to itself in RESP3 is sent the message before
/// the reply. From 7.2 on it comes after it.
pub fn message_precedes_reply(version: Version, value: &Value) -> bool {
    let is_message = || value.payload().is_ok();
    version < (7, 2) && matches!(value, Value::Aggregate(Shape::Push, _)) && is_message()
}
