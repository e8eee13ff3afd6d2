//! From what the operator wrote to what holds; the only place that says no to it,
//! and says where and what would be right.

use std::collections::BTreeMap;
use std::time::Duration;

use plugin_ask::Url;
use plugin_kit::settings;
use serde::Deserialize;

use crate::cache::Cache;

/// The settings, ready for use.
#[derive(Debug)]
pub struct Settings {
    /// The service.
    pub url: Url,
    /// What is sent with every question.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Whether AUTH is a question for the service.
    pub takes_auth: bool,
    /// Whether nothing is allowed but AUTH until the user is known.
    pub requires_user: bool,
    at_connect: AtConnect,
    pass_headers: Vec<String>,
    cache_time: Duration,
    cache_entries_max: usize,
}

/// The clients for which the service is queried when they connect.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum AtConnect {
    /// WebSocket clients, and others with an HTTP request, which may have credentials.
    Websocket,
    Always,
    Never,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSettings {
    url: String,
    headers: BTreeMap<String, String>,
    pass_headers: Vec<String>,
    at_connect: AtConnect,
    auth: bool,
    require_user: bool,
    cache_s: u64,
    cache_entries_max: u64,
}

impl Default for RawSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            headers: BTreeMap::new(),
            pass_headers: ["authorization", "cookie", "origin"].map(str::to_owned).to_vec(),
            at_connect: AtConnect::Websocket,
            auth: true,
            require_user: true,
            cache_s: 0,
            cache_entries_max: 1_000,
        }
    }
}

impl Settings {
    /// Whether the service is queried for a client that connects, with an HTTP request or without.
    pub fn asks_at_connect(&self, has_request: bool) -> bool {
        match self.at_connect {
            AtConnect::Websocket => has_request,
            AtConnect::Always => true,
            AtConnect::Never => false,
        }
    }

    /// The headers of the client that are sent to the service. Several of one name are joined
    /// with commas, and bytes that are not UTF-8 are replaced.
    pub fn passed(&self, headers: &[(String, Vec<u8>)]) -> BTreeMap<String, String> {
        let mut passed = BTreeMap::<String, String>::new();
        for (name, value) in headers.iter().filter(|(name, _)| self.pass_headers.contains(name)) {
            let value = String::from_utf8_lossy(value);
            let joined = passed.entry(name.clone()).or_default();
            if !joined.is_empty() {
                joined.push_str(", ");
            }
            joined.push_str(&value);
        }
        passed
    }

    /// Where answers are remembered, if they are.
    pub fn cache(&self) -> Option<Cache> {
        (!self.cache_time.is_zero()).then(|| Cache::new(self.cache_time, self.cache_entries_max))
    }
}

/// Reads the settings, a JSON object. An error is one line for the operator.
pub fn read(settings: &str) -> Result<Settings, String> {
    let raw: RawSettings = settings::read(settings)?;
    let example = "\"https://id.example.com/switchyard\"";
    let url = Url::parse(&raw.url).ok_or_else(|| match raw.url.as_str() {
        "" => {
            format!("there is no `url`, so no service can be asked; for example: url = {example}")
        }
        url => format!("`url` is {url:?}; it is the service's, such as {example}"),
    })?;
    let mut headers = vec![("content-type".to_owned(), b"application/json".to_vec())];
    for (name, value) in raw.headers {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) || value.chars().any(char::is_control) {
            return Err(format!("headers: `{name}` cannot be sent"));
        }
        let name = name.to_ascii_lowercase();
        if matches!(name.as_str(), "content-type" | "content-length" | "host") {
            return Err(format!("headers: `{name}` is set otherwise"));
        }
        headers.push((name, value.into_bytes()));
    }
    let pass_headers = raw.pass_headers.iter().map(|name| name.to_ascii_lowercase()).collect();
    if raw.at_connect == AtConnect::Never && !raw.auth {
        return Err(
            "`at_connect` is \"never\" and `auth` is false: it would ask nothing".to_owned()
        );
    }
    Ok(Settings {
        url,
        headers,
        takes_auth: raw.auth,
        requires_user: raw.require_user,
        at_connect: raw.at_connect,
        pass_headers,
        cache_time: Duration::from_secs(settings::within("cache_s", raw.cache_s, 0, 3_600)?),
        cache_entries_max: settings::within("cache_entries_max", raw.cache_entries_max, 1, 100_000)?
            as usize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_right_is_said() {
        let check = |settings: &str, says: &str| {
            let error = read(settings).map(|_| ()).expect_err(settings);
            assert!(error.contains(says), "{settings}: {error}");
        };
        check("{}", "there is no `url`, so no service can be asked; for example: url = \"https://");
        check(
            r#"{"url": "https://id.example.com:99999/"}"#,
            "`url` is \"https://id.example.com:99999/\"",
        );
        check(r#"{"url": "id.example.com"}"#, "https://id.example.com/switchyard");
        check(r#"{"url": "http://a/", "curl": 1}"#, "curl");
        check(r#"{"url": "http://a/", "headers": {"a b": "c"}}"#, "`a b` cannot be sent");
        check(r#"{"url": "http://a/", "headers": {"a": "b\nc"}}"#, "`a` cannot be sent");
        check(r#"{"url": "http://a/", "headers": {"Host": "b"}}"#, "`host` is set otherwise");
        check(r#"{"url": "http://a/", "cache_s": 3601}"#, "from 0 to 3600");
        check(r#"{"url": "http://a/", "cache_entries_max": 0}"#, "from 1 to 100000");
        check(r#"{"url": "http://a/", "at_connect": "never", "auth": false}"#, "ask nothing");
        check(r#"{"url": "http://a/", "at_connect": "maybe"}"#, "maybe");
    }

    #[test]
    fn a_client_that_connects_over_resp_has_nothing_to_show() {
        let asks = |at: &str| {
            let settings = format!(r#"{{"url": "http://a/", "at_connect": "{at}"}}"#);
            let settings = read(&settings).expect("they are right");
            [true, false].map(|has_request| settings.asks_at_connect(has_request))
        };
        assert_eq!(asks("websocket"), [true, false]);
        assert_eq!(asks("always"), [true, true]);
        assert_eq!(asks("never"), [false, false]);
    }

    #[test]
    fn only_named_headers_are_passed_on() {
        let settings = read(r#"{"url": "http://a/", "pass_headers": ["Cookie", "x-b"]}"#);
        let own = |name: &str, value: &[u8]| (name.to_owned(), value.to_vec());
        let headers = [
            own("cookie", b"a=1"),
            own("authorization", b"secret"),
            own("cookie", b"b=2"),
            own("x-b", b"\xff"),
        ];
        let passed = settings.expect("they are right").passed(&headers);
        let expected = [("cookie", "a=1, b=2"), ("x-b", "\u{fffd}")];
        let passed: Vec<_> = passed.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(passed, expected);
    }
}
