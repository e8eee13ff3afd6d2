//! From what the operator wrote to what holds; the only place that says no to
//! it, and says where and what would be right.

use plugin_kit::settings;
use regex::bytes::Regex;
use serde::Deserialize;
use serde_json::Value;

use crate::json::Pointer;
use crate::rules::{Action, Rule, Target};

/// What stands in place of what is masked when the settings do not say.
const MASK: &str = "***";

/// How many rules there may be: each takes its time with every payload.
const RULES_MAX: usize = 1000;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSettings {
    rules: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    channels: Vec<String>,
    regex: Option<String>,
    pointer: Option<String>,
    action: RawAction,
    with: Option<String>,
    message: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum RawAction {
    Mask,
    Remove,
    Reject,
    Drop,
}

/// Reads the settings, a JSON object. An error is one line for the operator.
pub fn read(settings: &str) -> Result<Vec<Rule>, String> {
    let raw: RawSettings = settings::read(settings)?;
    if raw.rules.len() > RULES_MAX {
        return Err(format!("there are {} rules; {RULES_MAX} are the most", raw.rules.len()));
    }
    settings::read_each("rule", raw.rules, read_rule)
}

fn read_rule(raw: RawRule, number: usize) -> Result<Rule, String> {
    if raw.channels.is_empty() {
        return Err("`channels` is empty; write \"*\" for all".to_owned());
    }
    if raw.with.is_some() && raw.action != RawAction::Mask {
        return Err("`with` goes with the action \"mask\" only".to_owned());
    }
    if raw.message.is_some() && raw.action != RawAction::Reject {
        return Err("`message` goes with the action \"reject\" only".to_owned());
    }
    let target = match (raw.regex, raw.pointer) {
        (Some(regex), None) => Target::Text(read_regex(&regex)?),
        (None, Some(pointer)) => Target::Value(Pointer::parse(&pointer)?),
        _ => return Err("give it either a `regex` or a `pointer`".to_owned()),
    };
    let mask = raw.with.unwrap_or_else(|| MASK.to_owned());
    let action = match (raw.action, &target) {
        (RawAction::Mask, Target::Text(regex)) if regex.is_match(b"") => {
            return Err("the regex matches the empty text, so every gap would be masked".to_owned());
        }
        (RawAction::Mask, Target::Text(_)) => Action::Mask(mask.into_bytes()),
        (RawAction::Mask, Target::Value(_)) => {
            Action::Mask(Value::from(mask).to_string().into_bytes())
        }
        (RawAction::Remove, Target::Text(_)) => {
            return Err("\"remove\" takes a `pointer`; mask the text with \"\"".to_owned());
        }
        (RawAction::Remove, Target::Value(pointer)) if pointer.is_whole() => {
            return Err("the pointer leads to all of the payload; \"reject\" it".to_owned());
        }
        (RawAction::Remove, Target::Value(_)) => Action::Remove,
        (RawAction::Drop, _) => Action::Drop,
        (RawAction::Reject, _) => {
            let message = raw.message;
            Action::Reject(message.unwrap_or_else(|| format!("payload matches rule {number}")))
        }
    };
    Ok(Rule { channels: raw.channels, target, action })
}

fn read_regex(regex: &str) -> Result<Regex, String> {
    Regex::new(regex).map_err(|error| {
        // Several lines with an arrow into the expression, the reason last.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default();
        let reason = reason.strip_prefix("error: ").unwrap_or(reason);
        format!("the regex `{regex}` cannot be read: {reason}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_hold() {
        for rule in [
            r#"{"channels": ["a", "b*"], "regex": "x", "action": "mask", "with": ""}"#,
            r#"{"channels": ["*"], "regex": "^$", "action": "reject", "message": "empty"}"#,
            r#"{"channels": ["*"], "pointer": "/a", "action": "remove"}"#,
            r#"{"channels": ["*"], "pointer": "", "action": "drop"}"#,
            r#"{"channels": ["*"], "pointer": "", "action": "mask"}"#,
        ] {
            if let Err(error) = read(&format!(r#"{{"rules": [{rule}]}}"#)) {
                panic!("{rule}: {error}");
            }
        }
        assert!(read("{}").is_ok_and(|rules| rules.is_empty()));
    }

    #[test]
    fn settings_that_do_not_say_where_and_what_would_be_right() {
        let check = |settings: &str, expected: &str| match read(settings) {
            Ok(_) => panic!("accepted {settings}"),
            Err(error) => assert_eq!(error, expected, "{settings}"),
        };
        let check_rule = |rule: &str, expected: &str| {
            let good = r#"{"channels": ["*"], "regex": "x", "action": "mask"}"#;
            let settings = format!(r#"{{"rules": [{good}, {{"channels": ["*"], {rule}}}]}}"#);
            check(&settings, &format!("rule 2: {expected}"));
        };
        check(r#"{"rule": []}"#, "unknown field `rule`, expected `rules`");
        check(
            r#"{"rules": [{"regex": "x", "action": "mask"}]}"#,
            "rule 1: missing field `channels`",
        );
        check(
            r#"{"rules": [{"channels": [], "regex": "x", "action": "mask"}]}"#,
            "rule 1: `channels` is empty; write \"*\" for all",
        );
        check_rule(
            r#""regexp": "x", "action": "mask""#,
            "unknown field `regexp`, expected one of `channels`, `regex`, `pointer`, `action`, \
             `with`, `message`",
        );
        check_rule(
            r#""regex": "x", "action": "hide""#,
            "unknown variant `hide`, expected one of `mask`, `remove`, `reject`, `drop`",
        );
        let either = "give it either a `regex` or a `pointer`";
        check_rule(r#""action": "mask""#, either);
        check_rule(r#""regex": "x", "pointer": "/a", "action": "mask""#, either);
        check_rule(
            r#""regex": "x", "action": "reject", "with": "y""#,
            "`with` goes with the action \"mask\" only",
        );
        check_rule(
            r#""regex": "x", "action": "mask", "message": "y""#,
            "`message` goes with the action \"reject\" only",
        );
        check_rule(
            r#""regex": "x", "action": "drop", "message": "y""#,
            "`message` goes with the action \"reject\" only",
        );
        let many = vec![r#"{"channels": ["*"], "regex": "x", "action": "drop"}"#; 1001].join(",");
        let many = format!(r#"{{"rules": [{many}]}}"#);
        check(&many, "there are 1001 rules; 1000 are the most");
        check_rule(
            r#""regex": "x", "action": "remove""#,
            "\"remove\" takes a `pointer`; mask the text with \"\"",
        );
        check_rule(
            r#""pointer": "", "action": "remove""#,
            "the pointer leads to all of the payload; \"reject\" it",
        );
        check_rule(
            r#""pointer": "a", "action": "remove""#,
            "the pointer `a` does not begin with `/`",
        );
        check_rule(
            r#""regex": "x*", "action": "mask""#,
            "the regex matches the empty text, so every gap would be masked",
        );
        check_rule(
            r#""regex": "a(b", "action": "mask""#,
            "the regex `a(b` cannot be read: unclosed group",
        );
    }
}
