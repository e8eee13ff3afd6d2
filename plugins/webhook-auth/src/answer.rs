//! What the service answers, and what is made of it.

use std::collections::BTreeMap;

use plugin_kit::notes::{AUTH_REQUIRED, ROLES, USER};
use plugin_kit::refused::Refused;
use serde::Deserialize;
use serde_json::Value;

/// The identity of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// The user. None: the connection is admitted without a user.
    pub user: Option<String>,
    /// The user's roles.
    pub roles: Vec<String>,
    /// What else is noted.
    pub attributes: BTreeMap<String, String>,
}

/// The service could not be queried, or what it said makes no sense.
pub fn unavailable(problem: &str) -> Refused {
    let message = format!("the service that knows the users: {problem}");
    Refused { code: "UNAVAILABLE", message }
}

#[derive(Deserialize)]
struct RawGranted {
    user: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    attributes: BTreeMap<String, Value>,
}

/// Makes sense of an answer.
///
/// # Errors
///
/// 401 and 403 refuse, and so does all that is not 200 with what belongs to it.
pub fn read(status: u16, body: &[u8]) -> Result<Granted, Refused> {
    match status {
        200 => read_granted(body).map_err(|problem| unavailable(&problem)),
        401 if is_expired(body) => Err(Refused::expired(message(body, "log in again"))),
        401 => Err(Refused { code: "NOAUTH", message: message(body, "you are not known") }),
        403 => Err(Refused { code: "NOPERM", message: message(body, "you are not wanted") }),
        other => Err(unavailable(&format!("it answered {other}"))),
    }
}

fn read_granted(body: &[u8]) -> Result<Granted, String> {
    let raw: RawGranted =
        object(body).map_err(|error| format!("its answer is not what it should be: {error}"))?;
    let attributes = raw.attributes.into_iter().map(|(key, value)| {
        // What others say of the connection is not the service's.
        if matches!(key.as_str(), "" | USER | ROLES | AUTH_REQUIRED | "webhook-auth")
            || key.starts_with("tls.")
            || key == "proxy.address"
        {
            return Err(format!("its answer has an attribute {key:?}, which is not its to set"));
        }
        let value = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Ok((key, value))
    });
    Ok(Granted {
        user: raw.user.filter(|user| !user.is_empty()),
        roles: raw.roles,
        attributes: attributes.collect::<Result<_, _>>()?,
    })
}

/// Reads an object. Serde also reads a structure from an array of its members, in their order.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> serde_json::Result<T> {
    match body.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(body),
        _ => Err(serde::de::Error::custom("it is no object")),
    }
}

/// Whether the service says that the credentials were good once.
fn is_expired(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct RawRefused {
        code: String,
    }
    object(body).is_ok_and(|RawRefused { code }| code == "EXPIRED")
}

/// The message of the service for the client.
fn message(body: &[u8], otherwise: &str) -> String {
    #[derive(Deserialize)]
    struct RawRefused {
        message: String,
    }
    let said = object(body).map(|RawRefused { message }| message);
    said.ok().filter(|message| !message.is_empty()).unwrap_or_else(|| otherwise.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_the_user_of_a_connection() {
        let granted = |body: &str| read(200, body.as_bytes()).expect(body);
        assert_eq!(granted("{}"), Granted::default());
        assert_eq!(granted(r#"{"user": ""}"#).user, None);
        let ann = granted(
            r#"{"user": "ann", "roles": ["a"], "attributes": {"tenant": "x", "age": 7}, "more": 1}"#,
        );
        assert_eq!((ann.user.as_deref(), ann.roles.len()), (Some("ann"), 1));
        let attributes: Vec<_> =
            ann.attributes.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(attributes, [("age", "7"), ("tenant", "x")]);
    }

    #[test]
    fn all_else_refuses() {
        let check = |status, body: &str, code: &str, says: &str| {
            let refused = read(status, body.as_bytes()).expect_err(body);
            assert!(refused.code == code && refused.message.contains(says), "{refused:?}");
        };
        check(401, "", "NOAUTH", "you are not known");
        check(401, r#"{"message": "expired"}"#, "NOAUTH", "expired");
        check(401, r#"{"code": "EXPIRED"}"#, "EXPIRED", "log in again");
        check(401, r#"{"code": "EXPIRED", "message": "too old"}"#, "EXPIRED", "too old");
        check(403, r#"{"message": ""}"#, "NOPERM", "you are not wanted");
        check(403, "<html>", "NOPERM", "you are not wanted");
        check(401, r#"["EXPIRED"]"#, "NOAUTH", "you are not known");
        for status in [201, 204, 302, 404, 500] {
            check(status, "{}", "UNAVAILABLE", &format!("it answered {status}"));
        }
        check(200, "", "UNAVAILABLE", "not what it should be");
        for body in [
            "[]",
            "[\"ann\"]",
            "[\"ann\", [], {}]",
            "null",
            "7",
            "\u{feff}{}",
            "{}{}",
            "{\"user\": \"a\", \"user\": \"b\"}",
            "<html>",
        ] {
            check(200, body, "UNAVAILABLE", "not what it should be");
        }
        check(200, r#"{"user": ["ann"]}"#, "UNAVAILABLE", "not what it should be");
        check(200, r#"{"roles": [1]}"#, "UNAVAILABLE", "not what it should be");
        check(200, r#"{"attributes": []}"#, "UNAVAILABLE", "not what it should be");
        check(200, r#"{"user": 7}"#, "UNAVAILABLE", "not what it should be");
        check(200, r#"{"roles": "admin"}"#, "UNAVAILABLE", "not what it should be");
        for key in
            ["user", "roles", "tls.subject", "proxy.address", "auth-required", "webhook-auth", ""]
        {
            let body = format!(r#"{{"attributes": {{"{key}": "x"}}}}"#);
            check(200, &body, "UNAVAILABLE", "not its to set");
        }
    }
}
