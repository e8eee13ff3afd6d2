//! Which buckets of tokens an action draws from, and what is said when one holds
//! too few.
//!
//! One call may have many operations of one connection. What they want of each
//! bucket is summed and withdrawn at once, which nearly always succeeds; when
//! it does not, each is tried by itself in its order, so that the first ones pass
//! as far as the tokens go.

use std::fmt::Write;

use plugin_kit::refused::Refused;
use plugin_kit::user_selector::UserSelector;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// How long a name may be that stands in a key as it is.
const NAME_BYTES_MAX: usize = 128;

/// One limit: a token bucket for each connection, user or address (`per`).
#[derive(Clone, Debug)]
pub struct Limit {
    /// What it is called.
    pub name: String,
    /// What costs tokens.
    pub of: Of,
    /// What has a bucket of its own.
    pub per: Per,
    /// How many tokens flow into a bucket ...
    pub rate: u64,
    /// ... in each of so many milliseconds.
    pub every_ms: u64,
    /// How many it holds when it is full.
    pub burst: u64,
    /// Globs: only what is published there. None: everything.
    pub channels: Option<Vec<String>>,
    /// Which users it holds for.
    pub users: Vec<UserSelector>,
    /// Only users that have one of these roles. Empty: all users.
    pub roles: Vec<String>,
    /// For which of those it does not hold.
    pub except_users: Vec<UserSelector>,
    /// For which roles it does not hold.
    pub except_roles: Vec<String>,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// Connections that are made.
    Connects,
    /// Channels and patterns that are begun to be listened to.
    Subscribes,
    /// Messages.
    Publishes,
    /// The bytes of their payloads.
    Bytes,
}

/// What a limit has a bucket for.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// Each connection.
    Connection,
    /// Each user, over all connections.
    User,
    /// Each address, over all connections.
    Address,
}

/// What becomes of what cannot be counted because there is no room.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// It is refused.
    #[default]
    Refuse,
    /// It passes.
    Allow,
}

/// What performs operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Which connection, or what else.
    pub source: Source,
    /// The user that it belongs to.
    pub user: Option<String>,
    /// The user's roles.
    pub roles: Vec<String>,
    /// What stands for the address that it came from.
    pub address: Option<String>,
}

/// What operations come from. Each has a bucket of its own where connections have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A connection.
    Connection(u64),
    /// Requests that are authorised by the token with this name.
    Token(String),
    /// The app with this id.
    App(String),
    /// The plugin with this name.
    Plugin(String),
}

/// One operation that a connection requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Connect.
    Connect,
    /// Subscribe to a channel or a pattern.
    Subscribe,
    /// Publish.
    Publish {
        /// On this channel.
        channel: &'a str,
        /// So many bytes.
        bytes: u64,
    },
    /// Look at the server itself. No client may: there is no limit for it.
    InspectServer,
}

/// The bucket of a limit for one subject.
#[derive(Clone, Debug)]
pub struct Bucket<'a> {
    /// The limit.
    pub limit: &'a Limit,
    /// What it is known by.
    pub key: String,
}

/// Tokens wanted out of one bucket.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// Which.
    pub bucket: &'a Bucket<'a>,
    /// How many.
    pub tokens: u64,
}

/// One bucket holds too few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Its place in the list.
    pub position: usize,
    /// In how many milliseconds it holds enough; none: never.
    pub retry_ms: Option<u64>,
}

/// There is no room for one more bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Whether each of these may be done. `take` takes tokens out of all buckets of a
/// list, or out of none.
pub fn decide(
    limits: &[Limit],
    when_full: WhenFull,
    subject: &Subject,
    operations: &[Operation<'_>],
    mut take: impl FnMut(&[Draw<'_>]) -> Result<Result<(), Shortage>, Full>,
) -> Vec<Result<(), Refused>> {
    let buckets: Vec<_> = limits.iter().filter_map(|limit| limit.bucket_of(subject)).collect();
    let mut take = |draws: &[Draw<'_>]| match draws {
        [] => Ok(()),
        draws => match take(draws) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(shortage)) => Err(short(draws, shortage)),
            Err(Full) if when_full == WhenFull::Allow => Ok(()),
            Err(Full) => Err(Refused {
                code: "UNAVAILABLE",
                message: "too many clients are being counted; try again later".to_owned(),
            }),
        },
    };
    let may_be_limited = |operation: &Operation<'_>| match operation {
        Operation::InspectServer => {
            Err(Refused { code: "NOPERM", message: "no client may look at the server".to_owned() })
        }
        _ => Ok(()),
    };
    if operations.len() > 1 && take(&draws(&buckets, operations)).is_ok() {
        return operations.iter().map(may_be_limited).collect();
    }
    let decide = |one| {
        may_be_limited(one)?;
        take(&draws(&buckets, std::slice::from_ref(one)))
    };
    operations.iter().map(decide).collect()
}

/// What these want of the buckets together.
fn draws<'a>(buckets: &'a [Bucket<'a>], operations: &[Operation<'_>]) -> Vec<Draw<'a>> {
    let draw = |bucket: &'a Bucket<'a>| {
        let tokens = operations.iter().map(|operation| bucket.limit.tokens_for(operation));
        Draw { bucket, tokens: tokens.fold(0, u64::saturating_add) }
    };
    buckets.iter().map(draw).filter(|draw| draw.tokens > 0).collect()
}

impl Limit {
    /// The bucket that this subject draws from; none when the limit does not
    /// concern it.
    fn bucket_of(&self, subject: &Subject) -> Option<Bucket<'_>> {
        let user = subject.user.as_deref();
        let has_one = |roles: &[String]| roles.iter().any(|role| subject.roles.contains(role));
        let is_concerned = self.users.iter().any(|selector| selector.matches(user))
            && (self.roles.is_empty() || has_one(&self.roles))
            && !self.except_users.iter().any(|selector| selector.matches(user))
            && !has_one(&self.except_roles);
        if !is_concerned {
            return None;
        }
        let name = &self.name;
        let key = match self.per {
            Per::Connection => match &subject.source {
                Source::Connection(connection) => format!("{name}/connection/{connection}"),
                Source::Token(token) => key_of(name, "token", "token-sha256", token),
                Source::App(app) => key_of(name, "app", "app-sha256", app),
                Source::Plugin(plugin) => key_of(name, "plugin", "plugin-sha256", plugin),
            },
            Per::User => key_of(name, "user", "sha256", user?),
            Per::Address => format!("{name}/address/{}", subject.address.as_deref()?),
        };
        Some(Bucket { limit: self, key })
    }

    fn tokens_for(&self, operation: &Operation<'_>) -> u64 {
        match (self.of, *operation) {
            (Of::Connects, Operation::Connect) | (Of::Subscribes, Operation::Subscribe) => 1,
            (Of::Publishes, Operation::Publish { channel, .. }) if self.looks_at(channel) => 1,
            (Of::Bytes, Operation::Publish { channel, bytes }) if self.looks_at(channel) => bytes,
            _ => 0,
        }
    }

    fn looks_at(&self, channel: &str) -> bool {
        let matches =
            |glob: &String| guest_core::glob::matches(glob.as_bytes(), channel.as_bytes());
        self.channels.as_ref().is_none_or(|channels| channels.iter().any(matches))
    }
}

fn short(draws: &[Draw<'_>], Shortage { position, retry_ms }: Shortage) -> Refused {
    // The list is that of the buckets that were drawn from.
    let Some(Draw { bucket: Bucket { limit, .. }, tokens }) = draws.get(position) else {
        return Refused { code: "LIMIT", message: "over a limit".to_owned() };
    };
    let Limit { name, rate, every_ms, burst, .. } = limit;
    let what = match limit.of {
        Of::Connects => "connections",
        Of::Subscribes => "subscriptions",
        Of::Publishes => "messages",
        Of::Bytes => "bytes",
    };
    let per = match limit.per {
        Per::Connection => "a connection",
        Per::User => "a user",
        Per::Address => "an address",
    };
    match retry_ms {
        Some(retry_ms) => Refused {
            code: "LIMIT",
            // A Close frame has room for its first hundred bytes or so.
            message: format!(
                "over limit {name}; come back in {retry_ms} ms ({rate} {what} in {every_ms} ms \
                 for {per})"
            ),
        },
        None => Refused {
            code: "TOOLARGE",
            message: format!(
                "over limit {name}: {tokens} {what} at once, and {burst} are the most for {per}"
            ),
        },
    }
}

/// The key of a bucket for something with a name, however long that is.
fn key_of(limit: &str, kind: &str, kind_of_long: &str, name: &str) -> String {
    match name.len() > NAME_BYTES_MAX {
        true => format!("{limit}/{kind_of_long}/{}", hash(name)),
        false => format!("{limit}/{kind}/{name}"),
    }
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::settings;

    /// Buckets into which nothing flows.
    #[derive(Default)]
    struct Buckets {
        withdrawn: BTreeMap<String, u64>,
        takes: usize,
    }

    impl Buckets {
        fn take(&mut self, draws: &[Draw<'_>]) -> Result<Result<(), Shortage>, Full> {
            self.takes += 1;
            let left = |draw: &Draw<'_>| {
                draw.bucket.limit.burst - self.withdrawn.get(&draw.bucket.key).unwrap_or(&0)
            };
            if let Some(position) = draws.iter().position(|draw| left(draw) < draw.tokens) {
                let may_come =
                    draws.get(position).map(|draw| draw.bucket.limit.burst >= draw.tokens);
                let retry_ms = (may_come == Some(true)).then_some(7);
                return Ok(Err(Shortage { position, retry_ms }));
            }
            for draw in draws {
                *self.withdrawn.entry(draw.bucket.key.clone()).or_default() += draw.tokens;
            }
            Ok(Ok(()))
        }

        fn decide(
            &mut self,
            settings: &str,
            subject: &Subject,
            operations: &[Operation<'_>],
        ) -> Vec<Result<(), String>> {
            let limits = match settings::read(settings) {
                Ok(settings) => settings.limits,
                Err(error) => panic!("{settings}: {error}"),
            };
            let decisions =
                decide(&limits, WhenFull::Refuse, subject, operations, |draws| self.take(draws));
            let words = |refused: Refused| format!("{} {}", refused.code, refused.message);
            decisions.into_iter().map(|decision| decision.map_err(words)).collect()
        }
    }

    fn subject(connection: u64, user: Option<&str>, roles: &[&str]) -> Subject {
        Subject {
            source: Source::Connection(connection),
            user: user.map(str::to_owned),
            roles: roles.iter().map(|role| role.to_string()).collect(),
            address: Some("192.0.2.1".to_owned()),
        }
    }

    const MESSAGE: Operation<'_> = Operation::Publish { channel: "chat.a", bytes: 1 };

    #[test]
    fn the_first_pass_as_far_as_the_tokens_go() {
        let settings = r#"{"limits": [
            {"name": "few", "of": "publishes", "per": "connection", "rate": 3}
        ]}"#;
        let mut buckets = Buckets::default();
        let refused = "LIMIT over limit few; come back in 7 ms (3 messages in 1000 ms for a \
                       connection)";
        let alice = subject(1, Some("alice"), &[]);
        let found = buckets.decide(settings, &alice, &[MESSAGE, MESSAGE]);
        assert_eq!((found, buckets.takes), (vec![Ok(()), Ok(())], 1));
        let found = buckets.decide(settings, &alice, &[Operation::Subscribe, MESSAGE, MESSAGE]);
        assert_eq!(found, [Ok(()), Ok(()), Err(refused.to_owned())]);
        let found =
            buckets.decide(settings, &alice, &[Operation::Subscribe, Operation::InspectServer]);
        assert_eq!(found, [Ok(()), Err("NOPERM no client may look at the server".to_owned())]);
        let found = buckets.decide(settings, &subject(2, Some("alice"), &[]), &[MESSAGE]);
        assert_eq!(found, [Ok(())]);
    }

    #[test]
    fn a_refused_action_costs_no_other_limit() {
        let settings = r#"{"limits": [
            {"name": "messages", "of": "publishes", "per": "connection", "rate": 3},
            {"name": "bytes", "of": "bytes", "per": "address", "rate": 10, "burst": 100}
        ]}"#;
        let mut buckets = Buckets::default();
        let publish = |bytes| Operation::Publish { channel: "a", bytes };
        let too_large = "TOOLARGE over limit bytes: 101 bytes at once, and 100 are the most for an \
                         address";
        let over = "LIMIT over limit bytes; come back in 7 ms (10 bytes in 1000 ms for an address)";
        let anonymous = subject(1, None, &[]);
        let operations = [publish(101), publish(60), publish(60), publish(40), publish(0)];
        let found = buckets.decide(settings, &anonymous, &operations);
        let expected = [Err(too_large.to_owned()), Ok(()), Err(over.to_owned()), Ok(()), Ok(())];
        assert_eq!(found, expected);
        let withdrawn: Vec<_> = buckets.withdrawn.into_iter().collect();
        let expected = [("bytes/address/192.0.2.1", 100), ("messages/connection/1", 3)];
        assert_eq!(withdrawn, expected.map(|(key, tokens)| (key.to_owned(), tokens)));
    }

    #[test]
    fn a_limit_applies_to_the_users_and_roles_that_it_names() {
        let key = |limit: &str, subject: &Subject| {
            let settings = format!(
                r#"{{"limits": [{{"name": "n", "of": "publishes", "rate": 1, {limit}}}]}}"#
            );
            let mut buckets = Buckets::default();
            buckets.decide(&settings, subject, &[MESSAGE]);
            buckets.withdrawn.into_keys().next()
        };
        let check = |limit: &str, subject: &Subject, expected: Option<&str>| {
            assert_eq!(key(limit, subject).as_deref(), expected, "{limit} {subject:?}");
        };
        let anonymous = subject(1, None, &[]);
        let alice = subject(2, Some("alice"), &["editor"]);
        let (of_1, of_2) = (Some("n/connection/1"), Some("n/connection/2"));
        check(r#""per": "user""#, &anonymous, None);
        check(r#""per": "user""#, &alice, Some("n/user/alice"));
        check(r#""per": "connection", "users": ["@anonymous"]"#, &anonymous, of_1);
        check(r#""per": "connection", "users": ["@anonymous"]"#, &alice, None);
        check(r#""per": "connection", "except_users": ["alice"]"#, &alice, None);
        check(r#""per": "connection", "except_users": ["alice"]"#, &anonymous, of_1);
        check(r#""per": "connection", "except_roles": ["admin", "editor"]"#, &alice, None);
        check(r#""per": "connection", "roles": ["editor"]"#, &alice, of_2);
        check(r#""per": "connection", "roles": ["editor"]"#, &anonymous, None);
        check(r#""per": "connection", "channels": ["chat.*"]"#, &alice, of_2);
        check(r#""per": "connection", "channels": ["news"]"#, &alice, None);
        // What is no connection has a bucket by its name, and neither a user nor an address.
        let other = |source| Subject { source, address: None, ..anonymous.clone() };
        let per_connection = r#""per": "connection""#;
        let token = other(Source::Token("shop".to_owned()));
        check(per_connection, &token, Some("n/token/shop"));
        check(per_connection, &other(Source::App("7".to_owned())), Some("n/app/7"));
        check(per_connection, &other(Source::Plugin("acl".to_owned())), Some("n/plugin/acl"));
        check(r#""per": "user""#, &token, None);
        check(r#""per": "address""#, &token, None);
        let unplaced = Subject { address: None, ..alice.clone() };
        check(r#""per": "address""#, &alice, Some("n/address/192.0.2.1"));
        check(r#""per": "address""#, &unplaced, None);
        // A key is never too long for the host.
        let long = "é".repeat(100);
        let long = key(r#""per": "user""#, &subject(1, Some(&long), &[]));
        assert!(long.is_some_and(|key| key.starts_with("n/sha256/") && key.len() == 73));
        let long = key(per_connection, &other(Source::App("é".repeat(100))));
        assert!(long.is_some_and(|key| key.starts_with("n/app-sha256/") && key.len() == 77));
    }

    #[test]
    fn what_cannot_be_counted_is_refused_or_not() {
        let settings = r#"{"limits": [
            {"name": "few", "of": "connects", "per": "address", "rate": 3}
        ]}"#;
        let limits = settings::read(settings).map(|settings| settings.limits).unwrap_or_default();
        let decide = |when_full| {
            let operations = &[Operation::Connect];
            let found =
                decide(&limits, when_full, &subject(1, None, &[]), operations, |_| Err(Full));
            found.into_iter().next().and_then(|decision| decision.err()).map(|refused| refused.code)
        };
        assert_eq!(decide(WhenFull::Refuse), Some("UNAVAILABLE"));
        assert_eq!(decide(WhenFull::Allow), None);
    }
}
