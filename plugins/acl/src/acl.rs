//! What the hooks decide, without the hooks: which user a connection belongs to, and
//! how a denial is worded.

use std::fmt;

use plugin_kit::budget::Budget;
use plugin_kit::credentials;
use plugin_kit::refused::Refused;

use crate::rules::{Denial, Operation, Rule, SubjectRules};
use crate::subject::Subject;
use crate::tokens::Tokens;

/// What one call may spend on patterns. In a component that took four
/// milliseconds at worst; it is enough for a thousand ordinary patterns at once
/// and ten patterns in rules.
const CALL_STEPS_MAX: usize = 3 << 19;

/// The settings, ready for use.
#[derive(Clone, Debug)]
pub struct Acl {
    /// Which users may subscribe and publish, and to which channels.
    pub rules: Vec<Rule>,
    /// The user of each token.
    pub tokens: Tokens,
    /// Whether a connection without a user may do nothing.
    pub require_token: bool,
    /// The notes that patterns have places for.
    pub attributes: Vec<String>,
}

/// Where a connection may show its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door<'a> {
    /// In this URL.
    Url(&'a str),
    /// In a command that it can only send once it is let in.
    Command,
}

impl Acl {
    /// Whether a connection may come in, and the user to note for it, if it
    /// brings one. `user` is the user that a plugin before this one has set;
    /// a token that it brings is then not ours to judge.
    pub fn admit(&self, user: Option<&str>, door: Door<'_>) -> Result<Option<&str>, Refused> {
        let Door::Url(url) = door else {
            return Ok(None);
        };
        if user.is_some() {
            return Ok(None);
        }
        let token = credentials::in_query(url, "token").filter(|_| !self.tokens.is_empty());
        match token.map(|token| self.tokens.user_of(&token)) {
            Some(Some(user)) => Ok(Some(user)),
            Some(None) => Err(Refused::unknown("no user holds this token")),
            None if self.require_token => {
                Err(Refused::unknown("connect with a token, as in /ws?token=..."))
            }
            None => Ok(None),
        }
    }

    /// Whose secret it is; none when it is not ours to judge. A secret that
    /// comes with a name is a password, and those are never ours.
    pub fn authenticate(&self, name: Option<&str>, secret: &str) -> Option<&str> {
        match name {
            Some(_) => None,
            None => self.tokens.user_of(secret),
        }
    }

    /// Whether it must be known what roles a connection has.
    pub fn needs_roles(&self) -> bool {
        self.rules.iter().any(|rule| !rule.roles.is_empty())
    }

    /// What a connection may do, for the length of one call.
    pub fn access_of<'a>(&'a self, subject: &'a Subject) -> Access<'a> {
        Access {
            origin: match subject.user.as_deref() {
                Some(user) => Origin::User(user),
                None if self.require_token => Origin::Unidentified,
                None => Origin::Anonymous,
            },
            rules: SubjectRules::new(&self.rules, subject),
            budget: Budget::of(CALL_STEPS_MAX),
        }
    }

    /// What an origin that is no connection may do, for the length of one call. It has no user,
    /// and cannot authenticate: it may do what rules allow to everyone, and nothing where a
    /// connection without a user may do nothing. `kind` and `name` are for the refusal.
    pub fn access_of_other<'a>(&'a self, kind: &'a str, name: &'a str) -> Access<'a> {
        let rules: &[Rule] = if self.require_token { &[] } else { &self.rules };
        Access {
            origin: Origin::Other { kind, name },
            rules: SubjectRules::of_other(rules),
            budget: Budget::of(CALL_STEPS_MAX),
        }
    }
}

/// What one origin may do. Made for one call.
#[derive(Debug)]
pub struct Access<'a> {
    origin: Origin<'a>,
    rules: SubjectRules<'a>,
    budget: Budget,
}

/// Where an action comes from, as a refusal names it.
#[derive(Clone, Copy, Debug)]
enum Origin<'a> {
    /// A connection of this user.
    User(&'a str),
    /// A connection without a user.
    Anonymous,
    /// A connection that must authenticate before it may do anything.
    Unidentified,
    /// An origin that is no connection.
    Other { kind: &'a str, name: &'a str },
}

impl Access<'_> {
    /// Whether it may do this.
    pub fn decide(&mut self, operation: Operation<'_>) -> Result<(), Refused> {
        if let Origin::Unidentified = self.origin {
            return Err(Refused::unknown("say who you are first: AUTH and your token"));
        }
        let decision = self.rules.decide(operation, &mut self.budget);
        decision.map_err(|denial| Refused {
            code: "NOPERM",
            message: reason(denial, self.origin, operation),
        })
    }
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::User(user) => write!(f, "user {user}"),
            Origin::Anonymous | Origin::Unidentified => f.write_str("an anonymous connection"),
            Origin::Other { kind, name } => write!(f, "the {kind} {name}"),
        }
    }
}

fn reason(denial: Denial, subject: Origin<'_>, operation: Operation<'_>) -> String {
    let what = match operation {
        Operation::Subscribe(channel) => format!("subscribe to {channel}"),
        Operation::Psubscribe(pattern) => format!("psubscribe to {pattern}"),
        Operation::Publish(channel) => format!("publish on {channel}"),
        Operation::Inspect => "look at the server".to_owned(),
    };
    match denial {
        Denial::NoRule => format!("no rule lets {subject} {what}"),
        Denial::Rule(number) => format!("rule {number} forbids {subject} to {what}"),
        Denial::TooCostly => {
            format!("{subject} may not {what}: it takes too long to compare with the rules")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    fn acl(settings: &str) -> Acl {
        match settings::read(settings) {
            Ok(acl) => acl,
            Err(error) => panic!("{settings}: {error}"),
        }
    }

    const RULES: &str = r#"
        "rules": [
            {"users": ["alice"], "publish": ["news.*"]},
            {"users": ["*"], "effect": "deny", "publish": ["secret"]}
        ]"#;

    #[test]
    fn a_connection_is_known_by_its_token() {
        let check = |settings: &str, user, door, expected: Result<Option<&str>, &str>| {
            let acl = acl(settings);
            let found = acl.admit(user, door);
            let found = found.as_ref().map_err(|refused| refused.code);
            assert_eq!(found.copied(), expected, "{settings} {user:?} {door:?}");
        };
        let open = &format!(r#"{{"tokens": {{"s3cret": "alice"}}, {RULES}}}"#);
        let closed = r#"{"tokens": {"s3cret": "alice"}, "require_token": true}"#;
        let tokenless = r#"{"require_token": true}"#;
        let url = Door::Url;
        for settings in [open, closed] {
            check(settings, None, url("/ws?token=s3cret"), Ok(Some("alice")));
            check(settings, None, url("/ws?token=wrong"), Err("NOAUTH"));
            check(settings, None, url("/ws?token="), Err("NOAUTH"));
            check(settings, None, Door::Command, Ok(None));
            check(settings, Some("bob"), url("/ws?token=wrong"), Ok(None));
            check(settings, Some("bob"), url("/ws?token=s3cret"), Ok(None));
            check(settings, Some("bob"), url("/ws"), Ok(None));
        }
        check(open, None, url("/ws"), Ok(None));
        check(closed, None, url("/ws"), Err("NOAUTH"));
        let without_tokens = format!("{{{RULES}}}");
        check(&without_tokens, None, url("/ws?token=anything"), Ok(None));
        check(tokenless, None, url("/ws?token=anything"), Err("NOAUTH"));
    }

    #[test]
    fn a_lone_secret_is_a_token() {
        let acl = acl(r#"{"tokens": {"s3cret": "alice"}, "require_token": true}"#);
        assert_eq!(acl.authenticate(None, "s3cret"), Some("alice"));
        assert_eq!(acl.authenticate(None, "wrong"), None);
        assert_eq!(acl.authenticate(Some("alice"), "s3cret"), None);
    }

    #[test]
    fn a_refusal_names_the_user_and_the_operation() {
        let check = |settings: &str, user, operation, code, message| {
            let refused = acl(settings).access_of(&Subject::user(user)).decide(operation);
            let message = String::from(message);
            assert_eq!(refused, Err(Refused { code, message }));
        };
        let open = format!("{{{RULES}}}");
        let closed = format!(r#"{{"require_token": true, {RULES}}}"#);
        let (alice, sport) = (Some("alice"), "sport");
        let noperm = "NOPERM";
        let message = "no rule lets user alice publish on sport";
        check(&open, alice, Operation::Publish(sport), noperm, message);
        let message = "no rule lets user alice subscribe to sport";
        check(&open, alice, Operation::Subscribe(sport), noperm, message);
        let message = "no rule lets user alice psubscribe to s*";
        check(&open, alice, Operation::Psubscribe("s*"), noperm, message);
        let message = "no rule lets an anonymous connection publish on sport";
        check(&open, None, Operation::Publish(sport), noperm, message);
        let message = "rule 2 forbids user alice to publish on secret";
        check(&open, alice, Operation::Publish("secret"), noperm, message);
        let message = "say who you are first: AUTH and your token";
        check(&closed, None, Operation::Publish("news.a"), "NOAUTH", message);
        let acl = acl(&closed);
        let access = acl.access_of(&Subject::user(alice)).decide(Operation::Publish("news.a"));
        assert_eq!(access, Ok(()));
    }

    #[test]
    fn an_origin_that_is_no_connection_has_no_user() {
        let check = |settings: &str, channel, expected: Result<(), &str>| {
            let acl = acl(settings);
            let found = acl.access_of_other("token", "shop").decide(Operation::Publish(channel));
            let words = found.map_err(|refused| format!("{} {}", refused.code, refused.message));
            assert_eq!(words, expected.map_err(str::to_owned), "{settings} {channel}");
        };
        let rules = r#""rules": [
            {"users": ["@anonymous"], "publish": ["lobby"]},
            {"users": ["*"], "publish": ["public"]}
        ]"#;
        let open = format!("{{{rules}}}");
        let closed = format!(r#"{{"require_token": true, {rules}}}"#);
        check(&open, "public", Ok(()));
        check(&open, "lobby", Err("NOPERM no rule lets the token shop publish on lobby"));
        // There is no AUTH for it, so the code is not NOAUTH.
        check(&closed, "public", Err("NOPERM no rule lets the token shop publish on public"));
    }

    #[test]
    fn no_rule_lets_anyone_look_at_the_server() {
        let words = |settings: &str, user| {
            let refused = acl(settings).access_of(&Subject::user(user)).decide(Operation::Inspect);
            refused.map_err(|refused| format!("{} {}", refused.code, refused.message))
        };
        let all = r#""rules": [{"users": ["*"], "subscribe": ["*"], "publish": ["*"]}]"#;
        let (open, closed) = (format!("{{{all}}}"), format!(r#"{{"require_token": true, {all}}}"#));
        let refused = "NOPERM no rule lets user alice look at the server";
        assert_eq!(words(&open, Some("alice")), Err(refused.to_owned()));
        let refused = "NOAUTH say who you are first: AUTH and your token";
        assert_eq!(words(&closed, None), Err(refused.to_owned()));
    }
}
