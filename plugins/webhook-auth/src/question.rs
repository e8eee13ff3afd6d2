//! The requests to the service.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

/// What is noted on a connection of what this plugin must know of it later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Noted {
    /// What the client speaks.
    pub protocol: String,
    /// The peer as `address:port`.
    pub address: String,
    /// What the service's last answer had noted, by name.
    pub attributes: Vec<String>,
}

impl Noted {
    /// What a note says; nothing, if it cannot be read.
    pub fn read(note: &str) -> Noted {
        serde_json::from_str(note).unwrap_or_default()
    }

    /// The note.
    pub fn write(&self) -> String {
        json!(self).to_string()
    }
}

/// One question.
#[derive(Debug)]
pub enum Question<'a> {
    /// May this client connect?
    #[allow(missing_docs, reason = "README.md says what they are")]
    Connect {
        connection: u64,
        client: &'a Noted,
        path: &'a str,
        headers: &'a BTreeMap<String, String>,
    },
    /// Are these credentials good?
    #[allow(missing_docs, reason = "README.md says what they are")]
    Authenticate { connection: u64, client: &'a Noted, user: Option<&'a str>, secret: &'a str },
}

impl Question<'_> {
    /// As it is sent.
    pub fn body(&self) -> String {
        match self {
            Question::Connect { connection, client, path, headers } => json!({
                "event": "connect",
                "connection": connection,
                "protocol": client.protocol,
                "address": client.address,
                "path": path,
                "headers": headers,
            }),
            Question::Authenticate { connection, client, user, secret } => json!({
                "event": "authenticate",
                "connection": connection,
                "protocol": client.protocol,
                "address": client.address,
                "user": user,
                "secret": secret,
            }),
        }
        .to_string()
    }

    /// What tells it from questions that may be answered otherwise: all but the
    /// connection's number and its port.
    pub fn key(&self) -> [u8; 32] {
        let ip = |client: &Noted| {
            let end = client.address.rfind(':').unwrap_or(client.address.len());
            client.address.get(..end).unwrap_or_default().to_owned()
        };
        let key = match self {
            Question::Connect { client, path, headers, .. } => {
                json!(["connect", client.protocol, ip(client), path, headers])
            }
            Question::Authenticate { client, user, secret, .. } => {
                json!(["authenticate", client.protocol, ip(client), user, secret])
            }
        };
        Sha256::digest(key.to_string()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Noted {
        Noted { protocol: "resp".to_owned(), address: address.to_owned(), attributes: Vec::new() }
    }

    #[test]
    fn a_question_is_json() {
        let headers = BTreeMap::from([("cookie".to_owned(), "a=\"b\"".to_owned())]);
        let client = client("[::1]:7");
        let question =
            Question::Connect { connection: 1, client: &client, path: "/ws?a", headers: &headers };
        assert_eq!(
            question.body(),
            r#"{"address":"[::1]:7","connection":1,"event":"connect","headers":{"cookie":"a=\"b\""},"path":"/ws?a","protocol":"resp"}"#
        );
        let question =
            Question::Authenticate { connection: 1, client: &client, user: None, secret: "s" };
        assert_eq!(
            question.body(),
            r#"{"address":"[::1]:7","connection":1,"event":"authenticate","protocol":"resp","secret":"s","user":null}"#
        );
    }

    #[test]
    fn two_questions_are_one_when_only_the_connection_differs() {
        let key = |connection, address: &str, user, secret| {
            let client = client(address);
            Question::Authenticate { connection, client: &client, user, secret }.key()
        };
        let one = key(1, "1.2.3.4:5", None, "s");
        assert_eq!(one, key(2, "1.2.3.4:6", None, "s"));
        for other in [
            key(1, "1.2.3.5:5", None, "s"),
            key(1, "1.2.3.4:5", Some("s"), "s"),
            key(1, "1.2.3.4:5", None, "t"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn a_note_comes_back_as_it_went() {
        let noted = Noted { attributes: vec!["tenant".to_owned()], ..client("a:1") };
        assert_eq!(Noted::read(&noted.write()), noted);
        assert_eq!(Noted::read("nonsense"), Noted::default());
    }
}
