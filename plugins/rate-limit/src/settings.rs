//! From what the operator wrote to what holds; the only place that says no to
//! it, and says where and what would be right.

use std::collections::BTreeSet;

use plugin_kit::address::{network_of_forwarded, network_of_peer};
use plugin_kit::user_selector::UserSelector;
use plugin_kit::{glob, settings};
use serde::Deserialize;
use serde_json::Value;

use crate::limits::{Limit, Of, Per, WhenFull};

/// How many limits there may be: one action may concern them all, and the host
/// takes from so many buckets at once.
const LIMITS_MAX: usize = 32;

/// How long the name of a limit may be.
const NAME_BYTES_MAX: usize = 32;

/// A day.
const EVERY_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// The most tokens: as many bytes are a terabyte.
const TOKENS_MAX: u64 = 1_000_000_000_000;

/// How long filling a bucket may take: a year, for which the host counts.
const FILL_MS_MAX: u64 = 365 * EVERY_MS_MAX;

/// The settings, ready for use.
#[derive(Debug)]
pub struct Settings {
    /// The limits, in order.
    pub limits: Vec<Limit>,
    /// What becomes of what cannot be counted.
    pub when_full: WhenFull,
    /// What must be known of a connection.
    pub needs: Needs,
    address_header: Option<String>,
}

/// What the limits ask about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The user that it belongs to.
    pub user: bool,
    /// The user's roles.
    pub roles: bool,
    /// Where it came from.
    pub address: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSettings {
    limits: Vec<Value>,
    when_full: WhenFull,
    address_header: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimit {
    name: String,
    of: Of,
    per: Per,
    rate: u64,
    #[serde(default = "a_second")]
    every_ms: u64,
    burst: Option<u64>,
    channels: Option<Vec<String>>,
    users: Option<Vec<String>>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    except_users: Vec<String>,
    #[serde(default)]
    except_roles: Vec<String>,
}

fn a_second() -> u64 {
    1000
}

impl Settings {
    /// What stands for the address that a client came from: the one that the server knows, or, if
    /// that is the address of a proxy, the one in `address_header`. `is_known`: whether the server
    /// has the client's address from a proxy.
    pub fn address_of(
        &self,
        remote: &str,
        headers: &[(String, Vec<u8>)],
        is_known: impl FnOnce() -> bool,
    ) -> Option<String> {
        let forwarded = self.address_header.as_ref().filter(|_| !is_known()).and_then(|header| {
            // The last one is the nearest proxy's.
            let (_, list) = headers.iter().rev().find(|(name, _)| name == header)?;
            network_of_forwarded(list)
        });
        forwarded.or_else(|| network_of_peer(remote))
    }
}

/// Reads the settings, a JSON object. An error is one line for the operator.
pub fn read(settings: &str) -> Result<Settings, String> {
    let raw: RawSettings = settings::read(settings)?;
    if raw.limits.is_empty() {
        return Err("there are no limits, so nothing would be limited; for example: \
                    [[settings.limits]] name = \"messages\" of = \"publishes\" per = \"user\" rate = 10"
            .to_owned());
    }
    if raw.limits.len() > LIMITS_MAX {
        return Err(format!("there are {} limits; {LIMITS_MAX} are the most", raw.limits.len()));
    }
    let limits = settings::read_each("limit", raw.limits, |raw, _| read_limit(raw))?;
    let mut names = BTreeSet::new();
    if let Some(twice) = limits.iter().find(|limit| !names.insert(limit.name.as_str())) {
        return Err(format!("two limits are called `{}`", twice.name));
    }
    let address_header = raw.address_header.map(|name| name.to_ascii_lowercase());
    if address_header.as_deref() == Some("") {
        return Err(
            "`address_header` is empty; it takes a name such as \"x-forwarded-for\"".to_owned()
        );
    }
    let any = |needs: fn(&Limit) -> bool| limits.iter().any(needs);
    let needs = Needs {
        user: any(|limit| {
            limit.per == Per::User
                || limit.users != [UserSelector::Any]
                || !limit.except_users.is_empty()
        }),
        roles: any(|limit| !limit.roles.is_empty() || !limit.except_roles.is_empty()),
        address: any(|limit| limit.per == Per::Address),
    };
    Ok(Settings { limits, when_full: raw.when_full, needs, address_header })
}

fn read_limit(raw: RawLimit) -> Result<Limit, String> {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let length = raw.name.len();
    if !(1..=NAME_BYTES_MAX).contains(&length) || !raw.name.bytes().all(is_word) {
        return Err(format!(
            "`name` is `{}`; it takes small letters, digits and `-`, {NAME_BYTES_MAX} at most",
            raw.name
        ));
    }
    if (raw.of, raw.per) == (Of::Connects, Per::Connection) {
        return Err("a connection connects once; count \"connects\" per user or address".to_owned());
    }
    if raw.channels.is_some() && !matches!(raw.of, Of::Publishes | Of::Bytes) {
        return Err("`channels` goes with \"publishes\" and \"bytes\" only".to_owned());
    }
    if raw.channels.as_ref().is_some_and(Vec::is_empty) {
        return Err("`channels` is empty; leave it out to count all".to_owned());
    }
    raw.channels.iter().flatten().try_for_each(|pattern| glob::check(pattern))?;
    let roles = raw.roles.iter().chain(&raw.except_roles);
    if roles.clone().any(|role| matches!(role.as_str(), "" | "*")) {
        return Err("a role is empty or `*`; leave `roles` out to speak of everyone".to_owned());
    }
    if raw.users.as_ref().is_some_and(Vec::is_empty) {
        return Err("`users` is empty; leave it out to speak of everyone".to_owned());
    }
    let selectors =
        |texts: Vec<String>| texts.iter().map(|text| UserSelector::read(text)).collect();
    let rate = settings::within("rate", raw.rate, 1, TOKENS_MAX)?;
    let every_ms = settings::within("every_ms", raw.every_ms, 1, EVERY_MS_MAX)?;
    let burst = settings::within("burst", raw.burst.unwrap_or(rate), 1, TOKENS_MAX)?;
    if u128::from(burst) * u128::from(every_ms) > u128::from(rate) * u128::from(FILL_MS_MAX) {
        return Err(format!("`burst` is {burst}; at that `rate` it takes more than a year"));
    }
    Ok(Limit {
        name: raw.name,
        of: raw.of,
        per: raw.per,
        rate,
        every_ms,
        burst,
        channels: raw.channels,
        users: raw.users.map_or(Ok(vec![UserSelector::Any]), selectors)?,
        roles: raw.roles,
        except_users: selectors(raw.except_users)?,
        except_roles: raw.except_roles,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_say_where_and_what_would_be_right() {
        let check = |settings: &str, expected: &str| match read(settings) {
            Ok(_) => panic!("accepted {settings}"),
            Err(error) => assert_eq!(error, expected, "{settings}"),
        };
        let good = r#"{"name": "a", "of": "publishes", "per": "user", "rate": 1}"#;
        let check_limit = |limit: &str, expected: &str| {
            check(&format!(r#"{{"limits": [{good}, {limit}]}}"#), &format!("limit 2: {expected}"));
        };
        let check_more = |more: &str, expected: &str| {
            let limit = format!(r#"{{"name": "b", "of": "publishes", "per": "user", {more}}}"#);
            check_limit(&limit, expected);
        };
        check(
            r#"{"limit": []}"#,
            "unknown field `limit`, expected one of `limits`, `when_full`, `address_header`",
        );
        check(
            "{}",
            "there are no limits, so nothing would be limited; for example: [[settings.limits]] \
             name = \"messages\" of = \"publishes\" per = \"user\" rate = 10",
        );
        check_more(
            r#""rate": 1, "channels": ["a["]"#,
            "the pattern `a[` has a `[` without its `]`",
        );
        check(r#"{"when_full": "x"}"#, "unknown variant `x`, expected `refuse` or `allow`");
        check(
            &format!(r#"{{"address_header": "", "limits": [{good}]}}"#),
            "`address_header` is empty; it takes a name such as \"x-forwarded-for\"",
        );
        check(&format!(r#"{{"limits": [{good}, {good}]}}"#), "two limits are called `a`");
        let many = vec![good; 33].join(",");
        check(&format!(r#"{{"limits": [{many}]}}"#), "there are 33 limits; 32 are the most");
        check_limit("{}", "missing field `name`");
        check_limit(
            r#"{"name": "B", "of": "publishes", "per": "user", "rate": 1}"#,
            "`name` is `B`; it takes small letters, digits and `-`, 32 at most",
        );
        check_limit(
            r#"{"name": "b", "of": "logins", "per": "user", "rate": 1}"#,
            "unknown variant `logins`, expected one of `connects`, `subscribes`, `publishes`, \
             `bytes`",
        );
        check_limit(
            r#"{"name": "b", "of": "connects", "per": "connection", "rate": 1}"#,
            "a connection connects once; count \"connects\" per user or address",
        );
        check_limit(
            r#"{"name": "b", "of": "subscribes", "per": "user", "rate": 1, "channels": ["a"]}"#,
            "`channels` goes with \"publishes\" and \"bytes\" only",
        );
        check_more(r#""rate": 0"#, "`rate` is 0; it goes from 1 to 1000000000000");
        check_more(
            r#""rate": 1, "every_ms": 86400001"#,
            "`every_ms` is 86400001; it goes from 1 to 86400000",
        );
        check_more(r#""rate": 1, "burst": 0"#, "`burst` is 0; it goes from 1 to 1000000000000");
        check_more(
            r#""rate": 1, "burst": 366, "every_ms": 86400000"#,
            "`burst` is 366; at that `rate` it takes more than a year",
        );
        check_more(
            r#""rate": 1, "channels": []"#,
            "`channels` is empty; leave it out to count all",
        );
        check_more(
            r#""rate": 1, "users": []"#,
            "`users` is empty; leave it out to speak of everyone",
        );
        check_more(
            r#""rate": 1, "except_users": ["@admins"]"#,
            "`@admins` is no user; known words are \"*\", \"@authenticated\" and \"@anonymous\"",
        );
        check_more(
            r#""rate": 1, "except_roles": [""]"#,
            "a role is empty or `*`; leave `roles` out to speak of everyone",
        );
    }

    #[test]
    fn only_what_the_limits_ask_about_is_looked_up() {
        let check = |limit: &str, user, roles, address| {
            let limit = format!(r#"{{"limits": [{{"name": "a", "rate": 1, {limit}}}]}}"#);
            let needs = read(&limit).map(|settings| settings.needs);
            assert_eq!(needs, Ok(Needs { user, roles, address }), "{limit}");
        };
        check(r#""of": "bytes", "per": "connection""#, false, false, false);
        check(r#""of": "bytes", "per": "user""#, true, false, false);
        check(r#""of": "bytes", "per": "address", "except_roles": ["a"]"#, false, true, true);
        check(r#""of": "bytes", "per": "connection", "except_users": ["a"]"#, true, false, false);
    }

    #[test]
    fn a_proxy_is_believed_when_the_settings_say_so() {
        let headers = [
            ("x-forwarded-for".to_owned(), b"192.0.2.1".to_vec()),
            ("x-forwarded-for".to_owned(), b"192.0.2.2, 192.0.2.3".to_vec()),
        ];
        let check = |settings: &str, headers: &[(String, Vec<u8>)], is_known, expected: &str| {
            let settings = match read(settings) {
                Ok(settings) => settings,
                Err(error) => panic!("{settings}: {error}"),
            };
            let found = settings.address_of("10.0.0.1:80", headers, || is_known);
            assert_eq!(found.as_deref(), Some(expected));
        };
        let limit = r#""limits": [{"name": "a", "of": "connects", "per": "address", "rate": 1}]"#;
        let check = |more: &str, headers: &[(String, Vec<u8>)], is_known, expected: &str| {
            check(&format!("{{{limit}{more}}}"), headers, is_known, expected);
        };
        check("", &headers, false, "10.0.0.1");
        let behind = r#", "address_header": "X-Forwarded-For""#;
        check(behind, &headers, false, "192.0.2.3");
        check(behind, &[], false, "10.0.0.1");
        // The server knows the address of the client itself.
        check(behind, &headers, true, "10.0.0.1");
    }
}
