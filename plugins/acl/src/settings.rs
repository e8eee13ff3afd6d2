//! From what the operator wrote to what holds; the only place that says no to
//! it, and says where and what would be right.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::acl::Acl;
use crate::pattern::RulePattern;
use crate::rules::{Effect, Rule, Who};
use crate::tokens::Tokens;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSettings {
    tokens: BTreeMap<String, String>,
    require_token: bool,
    rules: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    users: Vec<String>,
    #[serde(default)]
    effect: Effect,
    #[serde(default)]
    subscribe: Vec<String>,
    #[serde(default)]
    publish: Vec<String>,
}

/// Reads the settings, a JSON object. An error is one line for the operator.
pub fn read(settings: &str) -> Result<Acl, String> {
    // By way of a value: what reads text directly ends its words with a line
    // and column of a document that the operator never sees.
    let settings: Value = serde_json::from_str(settings).map_err(|error| error.to_string())?;
    let raw = RawSettings::deserialize(settings).map_err(|error| error.to_string())?;
    for (token, user) in &raw.tokens {
        if token.is_empty() {
            return Err(format!("tokens: the token of `{user}` is empty"));
        }
        read_user_name(user).map_err(|error| format!("tokens: {error}"))?;
    }
    let rules = (1..).zip(raw.rules).map(|(number, rule)| {
        let at_rule = |error: String| format!("rule {number}: {error}");
        let raw = RawRule::deserialize(rule).map_err(|error| at_rule(error.to_string()))?;
        read_rule(raw).map_err(at_rule)
    });
    Ok(Acl {
        rules: rules.collect::<Result<_, _>>()?,
        tokens: Tokens::from_iter(raw.tokens),
        require_token: raw.require_token,
    })
}

fn read_rule(raw: RawRule) -> Result<Rule, String> {
    if raw.users.is_empty() {
        return Err("`users` is empty; write \"*\" for everyone".to_owned());
    }
    if raw.subscribe.is_empty() && raw.publish.is_empty() {
        return Err("names no channels; give it `subscribe`, `publish` or both".to_owned());
    }
    let users = raw.users.iter().map(|text| read_who(text));
    let patterns = |texts: Vec<String>| texts.iter().map(|text| RulePattern::parse(text)).collect();
    Ok(Rule {
        users: users.collect::<Result<_, _>>()?,
        effect: raw.effect,
        subscribe: patterns(raw.subscribe),
        publish: patterns(raw.publish),
    })
}

fn read_who(text: &str) -> Result<Who, String> {
    match text {
        "*" => Ok(Who::Anyone),
        "@authenticated" => Ok(Who::Authenticated),
        "@anonymous" => Ok(Who::Anonymous),
        name => read_user_name(name).map(Who::User),
    }
}

fn read_user_name(name: &str) -> Result<String, String> {
    match name {
        "" => Err("the name of a user is empty".to_owned()),
        "anonymous" | "authenticated" => Err(format!(
            "`{name}` would be a user of that name; the word for connections is \"@{name}\"",
        )),
        _ if name == "*" || name.starts_with('@') => Err(format!(
            "`{name}` is no user; known words are \"*\", \"@authenticated\" and \"@anonymous\"",
        )),
        name => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_hold() {
        for settings in [
            "{}",
            r#"{"tokens": {"s3cret": "alice"}, "require_token": true}"#,
            r#"{"rules": [{"users": ["*", "alice", "@anonymous"], "subscribe": ["a*"]}]}"#,
            r#"{"rules": [{"users": ["@authenticated"], "effect": "deny", "publish": ["a"]}]}"#,
        ] {
            if let Err(error) = read(settings) {
                panic!("{settings}: {error}");
            }
        }
    }

    #[test]
    fn settings_that_do_not_say_where_and_what_would_be_right() {
        let check = |settings, expected: &str| match read(settings) {
            Ok(_) => panic!("accepted {settings}"),
            Err(error) => assert_eq!(error, expected, "{settings}"),
        };
        check(
            r#"{"rulez": []}"#,
            "unknown field `rulez`, expected one of `tokens`, `require_token`, `rules`",
        );
        check(r#"{"require_token": "yes"}"#, "invalid type: string \"yes\", expected a boolean");
        check(r#"{"tokens": {"": "alice"}}"#, "tokens: the token of `alice` is empty");
        check(r#"{"tokens": {"s3cret": ""}}"#, "tokens: the name of a user is empty");
        check(
            r#"{"tokens": {"s3cret": "*"}}"#,
            "tokens: `*` is no user; known words are \"*\", \"@authenticated\" and \"@anonymous\"",
        );
        check(
            r#"{"rules": [{"users": ["*"], "publish": ["a"]}, {"users": ["*"], "publsh": ["a"]}]}"#,
            "rule 2: unknown field `publsh`, expected one of `users`, `effect`, `subscribe`, \
             `publish`",
        );
        check(r#"{"rules": [{"publish": ["a"]}]}"#, "rule 1: missing field `users`");
        check(
            r#"{"rules": [{"users": [], "publish": ["a"]}]}"#,
            "rule 1: `users` is empty; write \"*\" for everyone",
        );
        check(
            r#"{"rules": [{"users": ["alice"]}]}"#,
            "rule 1: names no channels; give it `subscribe`, `publish` or both",
        );
        check(
            r#"{"rules": [{"users": ["anonymous"], "publish": ["a"]}]}"#,
            "rule 1: `anonymous` would be a user of that name; the word for connections is \
             \"@anonymous\"",
        );
        check(
            r#"{"rules": [{"users": ["@admin"], "publish": ["a"]}]}"#,
            "rule 1: `@admin` is no user; known words are \"*\", \"@authenticated\" and \
             \"@anonymous\"",
        );
        check(
            r#"{"rules": [{"users": ["*"], "effect": "block", "publish": ["a"]}]}"#,
            "rule 1: unknown variant `block`, expected `allow` or `deny`",
        );
    }
}
