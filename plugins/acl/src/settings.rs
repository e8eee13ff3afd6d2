//! From what the operator wrote to what holds; the only place that says no to
//! it, and says where and what would be right.

use std::collections::BTreeMap;

use plugin_kit::user_selector::{self, UserSelector};
use plugin_kit::{glob, settings};
use serde::Deserialize;
use serde_json::Value;

use crate::acl::Acl;
use crate::pattern::RulePattern;
use crate::rules::{Effect, Rule};
use crate::tokens::Tokens;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSettings {
    tokens: BTreeMap<String, String>,
    require_token: bool,
    attributes: Vec<String>,
    rules: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    users: Option<Vec<String>>,
    roles: Option<Vec<String>>,
    #[serde(default)]
    effect: Effect,
    #[serde(default)]
    subscribe: Vec<String>,
    #[serde(default)]
    publish: Vec<String>,
}

/// Reads the settings, a JSON object. An error is one line for the operator.
pub fn read(settings: &str) -> Result<Acl, String> {
    let raw: RawSettings = settings::read(settings)?;
    if raw.rules.is_empty() && !raw.require_token {
        return Err("there are no rules, so everything would be refused; for example: \
                    [[settings.rules]] users = [\"@authenticated\"] subscribe = [\"news.*\"] (or \
                    require_token = true, to refuse everyone)"
            .to_owned());
    }
    if raw.attributes.iter().any(|name| matches!(name.as_str(), "" | "user" | "sub")) {
        return Err(
            "attributes: `user` and `sub` are known anyway, and no name is empty".to_owned()
        );
    }
    for (token, user) in &raw.tokens {
        if token.is_empty() {
            return Err(format!("tokens: the token of `{user}` is empty"));
        }
        user_selector::read_user_name(user).map_err(|error| format!("tokens: {error}"))?;
    }
    let read = |rule, _| read_rule(rule, &raw.attributes);
    Ok(Acl {
        rules: settings::read_each("rule", raw.rules, read)?,
        tokens: Tokens::from_iter(raw.tokens),
        require_token: raw.require_token,
        attributes: raw.attributes,
    })
}

fn read_rule(raw: RawRule, attributes: &[String]) -> Result<Rule, String> {
    let users = match (raw.users, &raw.roles) {
        (None, None) => {
            return Err("names no user and no role; give it `users`, `roles` or both".to_owned());
        }
        (None, Some(_)) => vec!["*".to_owned()],
        (Some(users), _) => users,
    };
    let roles = raw.roles.unwrap_or_default();
    if users.is_empty() {
        return Err("`users` is empty; write \"*\" for everyone".to_owned());
    }
    if roles.iter().any(|role| matches!(role.as_str(), "" | "*")) {
        return Err("a role is empty or `*`; leave `roles` out to speak of everyone".to_owned());
    }
    if raw.subscribe.is_empty() && raw.publish.is_empty() {
        return Err("names no channels; give it `subscribe`, `publish` or both".to_owned());
    }
    raw.subscribe.iter().chain(&raw.publish).try_for_each(|pattern| glob::check(pattern))?;
    let users = users.iter().map(|text| UserSelector::read(text));
    let patterns = |texts: Vec<String>| {
        texts.iter().map(|text| RulePattern::parse(text, attributes)).collect()
    };
    Ok(Rule {
        users: users.collect::<Result<_, _>>()?,
        roles,
        effect: raw.effect,
        subscribe: patterns(raw.subscribe),
        publish: patterns(raw.publish),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_hold() {
        for settings in [
            r#"{"require_token": true}"#,
            r#"{"tokens": {"s3cret": "alice"}, "require_token": true}"#,
            r#"{"rules": [{"users": ["*", "alice", "@anonymous"], "subscribe": ["a*"]}]}"#,
            r#"{"rules": [{"users": ["@authenticated"], "effect": "deny", "publish": ["a"]}]}"#,
            r#"{"attributes": ["tenant"], "rules": [{"roles": ["a"], "publish": ["{tenant}"]}]}"#,
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
            "unknown field `rulez`, expected one of `tokens`, `require_token`, `attributes`, `rules`",
        );
        let nothing = "there are no rules, so everything would be refused; for example: \
                       [[settings.rules]] users = [\"@authenticated\"] subscribe = [\"news.*\"] (or \
                       require_token = true, to refuse everyone)";
        check("{}", nothing);
        check(r#"{"tokens": {"s3cret": "alice"}}"#, nothing);
        check(r#"{"require_token": "yes"}"#, "invalid type: string \"yes\", expected a boolean");
        check(
            r#"{"require_token": true, "tokens": {"": "alice"}}"#,
            "tokens: the token of `alice` is empty",
        );
        check(
            r#"{"require_token": true, "tokens": {"s3cret": ""}}"#,
            "tokens: the name of a user is empty",
        );
        check(
            r#"{"require_token": true, "tokens": {"s3cret": "*"}}"#,
            "tokens: `*` is no user; known words are \"*\", \"@authenticated\" and \"@anonymous\"",
        );
        check(
            r#"{"rules": [{"users": ["*"], "publish": ["a"]}, {"users": ["*"], "publsh": ["a"]}]}"#,
            "rule 2: unknown field `publsh`, expected one of `users`, `roles`, `effect`, \
             `subscribe`, `publish`",
        );
        check(
            r#"{"rules": [{"publish": ["a"]}]}"#,
            "rule 1: names no user and no role; give it `users`, `roles` or both",
        );
        check(
            r#"{"rules": [{"roles": ["*"], "publish": ["a"]}]}"#,
            "rule 1: a role is empty or `*`; leave `roles` out to speak of everyone",
        );
        check(
            r#"{"require_token": true, "attributes": ["sub"]}"#,
            "attributes: `user` and `sub` are known anyway, and no name is empty",
        );
        check(
            r#"{"rules": [{"users": [], "publish": ["a"]}]}"#,
            "rule 1: `users` is empty; write \"*\" for everyone",
        );
        check(
            r#"{"rules": [{"users": ["alice"]}]}"#,
            "rule 1: names no channels; give it `subscribe`, `publish` or both",
        );
        check(
            r#"{"rules": [{"users": ["*"], "publish": ["a"], "subscribe": ["b", "[a-"]}]}"#,
            "rule 1: the pattern `[a-` has a `[` without its `]`",
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
