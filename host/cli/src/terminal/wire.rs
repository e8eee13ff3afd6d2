//! `switchyard.v1.json` for a client: encodes commands, and decodes what the server sends.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// A name or payload as the protocol encodes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Spelled {
    /// Bytes that are UTF-8.
    Text(String),
    /// Bytes that are not.
    Bytes {
        /// In the standard alphabet, padded.
        base64: String,
    },
}

impl From<&[u8]> for Spelled {
    fn from(bytes: &[u8]) -> Spelled {
        match std::str::from_utf8(bytes) {
            Ok(text) => Spelled::Text(text.to_owned()),
            Err(_) => Spelled::Bytes { base64: BASE64.encode(bytes) },
        }
    }
}

impl From<&OsStr> for Spelled {
    fn from(argument: &OsStr) -> Spelled {
        argument.as_bytes().into()
    }
}

impl Spelled {
    /// As text: bytes that are not UTF-8 are replaced by hexadecimal escapes.
    pub fn for_people(&self) -> Cow<'_, str> {
        match self {
            Spelled::Text(text) => text.into(),
            Spelled::Bytes { base64 } => match BASE64.decode(base64) {
                Ok(bytes) => bytes.escape_ascii().to_string().into(),
                Err(_) => base64.into(),
            },
        }
    }
}

/// A frame from the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// A message.
    Message(Message),
    /// The server will close the connection soon.
    Goaway(Goaway),
    /// The server has ended subscriptions, because new rules refuse them.
    Unsubscribed(Unsubscribed),
    /// The reply to the command with this id; without an id, the refusal of a command that had
    /// none.
    Answer(Option<u64>, Result<Value, Refusal>),
}

/// A message on a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// The pattern that matched; none: the subscription is to the channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Spelled>,
    /// Its channel.
    pub channel: Spelled,
    /// The payload.
    pub payload: Spelled,
    /// Where it is in the history of its channel; none: it is not retained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Its tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Value>,
}

/// What a message has besides its payload.
#[derive(Default, Deserialize)]
struct More {
    position: Option<String>,
    tags: Option<Value>,
}

impl Message {
    fn read(
        pattern: Option<&str>,
        [channel, payload]: [&str; 2],
        more: &[&str],
    ) -> Result<Message, serde_json::Error> {
        let more = more.first().map(|more| serde_json::from_str::<More>(more)).transpose()?;
        let More { position, tags } = more.unwrap_or_default();
        Ok(Message {
            pattern: pattern.map(serde_json::from_str).transpose()?,
            channel: serde_json::from_str(channel)?,
            payload: serde_json::from_str(payload)?,
            position,
            tags,
        })
    }
}

/// Why the server will close the connection, and when to reconnect.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Goaway {
    /// The reason as text.
    pub reason: String,
    /// The earliest and the latest time.
    pub reconnect_within_ms: (u64, u64),
}

impl Goaway {
    /// The same notice, with times that count from this time after its receipt.
    pub fn after(self, time: Duration) -> Goaway {
        let passed = time.as_millis() as u64;
        let (from, to) = self.reconnect_within_ms;
        let reconnect_within_ms = (from.saturating_sub(passed), to.saturating_sub(passed));
        Goaway { reconnect_within_ms, ..self }
    }
}

/// The subscriptions that the server has ended, and why.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Unsubscribed {
    /// Channels.
    #[serde(default)]
    pub channels: Vec<Spelled>,
    /// Patterns.
    #[serde(default)]
    pub patterns: Vec<Spelled>,
    /// How many channels and patterns are still subscribed.
    pub listening: u64,
    /// The reason.
    #[serde(flatten)]
    pub refusal: Refusal,
}

/// Why the server refused a command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
pub struct Refusal {
    /// A stable label.
    pub code: String,
    /// The reason as text.
    pub message: String,
    /// The plugin that decided.
    pub by: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.code, self.message)?;
        match &self.by {
            Some(plugin) => write!(formatter, " [{plugin}]"),
            None => Ok(()),
        }
    }
}

/// A command with an id.
pub fn command<A: Serialize>(id: u64, verb: &str, arguments: &[A]) -> String {
    let mut parts = vec![Value::from(id), Value::from(verb)];
    parts.extend(arguments.iter().map(|argument| {
        serde_json::to_value(argument).expect("names and payloads have a spelling in JSON")
    }));
    Value::Array(parts).to_string()
}

/// Decodes a frame; none: this client does not know it, because the server is newer.
///
/// # Errors
///
/// The frame violates the protocol.
pub fn parse(frame: &str) -> Result<Option<Said>, serde_json::Error> {
    let parts: Vec<&RawValue> = serde_json::from_str(frame)?;
    let texts: Vec<&str> = parts.into_iter().map(RawValue::get).collect();
    Ok(Some(match texts[..] {
        [r#""message""#, channel, payload, ref more @ ..] => {
            Said::Message(Message::read(None, [channel, payload], more)?)
        }
        [r#""pmessage""#, pattern, channel, payload, ref more @ ..] => {
            Said::Message(Message::read(Some(pattern), [channel, payload], more)?)
        }
        [r#""goaway""#, goaway, ..] => Said::Goaway(serde_json::from_str(goaway)?),
        [r#""unsubscribed""#, unsubscribed] => {
            Said::Unsubscribed(serde_json::from_str(unsubscribed)?)
        }
        [id, r#""OK""#, value] => {
            Said::Answer(serde_json::from_str(id)?, Ok(serde_json::from_str(value)?))
        }
        [id, r#""ERR""#, refusal] => {
            Said::Answer(serde_json::from_str(id)?, Err(serde_json::from_str(refusal)?))
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_server_says_is_understood() {
        let check = |frame: &str, expected: Option<Said>| {
            assert_eq!(parse(frame).unwrap(), expected, "{frame}");
        };
        let text = |text: &str| Spelled::Text(text.to_owned());
        let not_utf8 = || Spelled::from(&b"\xff"[..]);
        check(
            r#"["message","a\n",{"base64":"/w=="}]"#,
            Some(Said::Message(Message {
                pattern: None,
                channel: text("a\n"),
                payload: not_utf8(),
                position: None,
                tags: None,
            })),
        );
        check(
            r#"["message","a","x",{"position":"7-1","tags":{"k":"v"},"new":1}]"#,
            Some(Said::Message(Message {
                pattern: None,
                channel: text("a"),
                payload: text("x"),
                position: Some("7-1".to_owned()),
                tags: Some(json!({"k": "v"})),
            })),
        );
        check(
            r#"["pmessage","a*","ab","x"]"#,
            Some(Said::Message(Message {
                pattern: Some(text("a*")),
                channel: text("ab"),
                payload: text("x"),
                position: None,
                tags: None,
            })),
        );
        check(
            r#"["goaway",{"reason":"r","reconnect_within_ms":[1,2]}]"#,
            Some(Said::Goaway(Goaway { reason: "r".to_owned(), reconnect_within_ms: (1, 2) })),
        );
        let refusal =
            Refusal { code: "X".to_owned(), message: "m".to_owned(), by: Some("p@1".to_owned()) };
        check(
            r#"["unsubscribed",{"channels":["a"],"patterns":[],"listening":1,"code":"X","message":"m","by":"p@1"}]"#,
            Some(Said::Unsubscribed(Unsubscribed {
                channels: vec![text("a")],
                patterns: Vec::new(),
                listening: 1,
                refusal,
            })),
        );
        check(r#"[7,"OK",2]"#, Some(Said::Answer(Some(7), Ok(Value::from(2)))));
        let refusal = Refusal { code: "X".to_owned(), message: "m".to_owned(), by: None };
        check(r#"[null,"ERR",{"code":"X","message":"m"}]"#, Some(Said::Answer(None, Err(refusal))));
        check(r#"["news",{}]"#, None);
        check("[]", None);
        assert!(parse("{}").is_err());
        assert!(parse("[1,").is_err());
    }

    #[test]
    fn commands_are_spelled() {
        let names = [Spelled::from(&b"a\""[..]), Spelled::from(&b"\xff"[..])];
        let said = command(1, "SUBSCRIBE", &names);
        assert_eq!(said, r#"[1,"SUBSCRIBE","a\"",{"base64":"/w=="}]"#);
    }

    #[test]
    fn bytes_are_shown_to_people() {
        assert_eq!(Spelled::from(&b"\xffa"[..]).for_people(), r"\xffa");
        assert_eq!(Spelled::from("ü".as_bytes()).for_people(), "ü");
    }
}
