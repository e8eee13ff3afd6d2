//! From what the operator wrote to what holds; the only place that says no to
//! it, and says where and what would be right.

use plugin_kit::{glob, settings};
use serde::Deserialize;
use serde_json::Value;

use crate::json::Pointer;
use crate::rules::{Action, NotJson, Rule, Rules, Target, Text};
use crate::search::Search;

/// What stands in place of what is masked when the settings do not say.
const MASK: &str = "***";

/// How many rules there may be: each takes its time with every payload.
const RULES_MAX: usize = 1000;

/// What all rules together may remember of their expressions. A quarter of what the
/// server lets a plugin have by default.
const CACHES_BYTES_MAX: usize = 16 << 20;

/// The bounds of what one of the two DFAs of a rule remembers.
const CACHE_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 20;

/// How many steps a millisecond has. A step is a byte that is looked at.
const STEPS_PER_MS: u64 = 200_000;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSettings {
    rules: Vec<Value>,
    payload_bytes_max: u64,
    call_ms_max: u64,
    not_json: NotJson,
}

impl Default for RawSettings {
    fn default() -> Self {
        Self {
            rules: vec![],
            payload_bytes_max: 256 << 10,
            // Half of the server's default budget for a call.
            call_ms_max: 5,
            not_json: NotJson::default(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    channels: Vec<String>,
    regex: Option<String>,
    pointer: Option<String>,
    raw: Option<bool>,
    no_digit_beside: Option<bool>,
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
pub fn read(settings: &str) -> Result<Rules, String> {
    let raw: RawSettings = settings::read(settings)?;
    if raw.rules.is_empty() {
        return Err("there are no rules, so nothing would be looked at; for example: \
                    [[settings.rules]] channels = [\"chat.*\"] regex = 'secret' action = \"mask\""
            .to_owned());
    }
    if raw.rules.len() > RULES_MAX {
        return Err(format!("there are {} rules; {RULES_MAX} are the most", raw.rules.len()));
    }
    let bytes = settings::within("payload_bytes_max", raw.payload_bytes_max, 1, 512 << 20)?;
    let call_ms = settings::within("call_ms_max", raw.call_ms_max, 1, 10_000)?;
    let cache_bytes =
        (CACHES_BYTES_MAX / (2 * raw.rules.len())).clamp(*CACHE_BYTES.start(), *CACHE_BYTES.end());
    let read = |rule, number| read_rule(rule, number, cache_bytes);
    Ok(Rules {
        rules: settings::read_each("rule", raw.rules, read)?,
        // Both are below what a `usize` of 32 bits holds.
        payload_bytes_max: bytes as usize,
        call_steps_max: (call_ms * STEPS_PER_MS) as usize,
        not_json: raw.not_json,
    })
}

fn read_rule(raw: RawRule, number: usize, cache_bytes: usize) -> Result<Rule, String> {
    if raw.channels.is_empty() {
        return Err("`channels` is empty; write \"*\" for all".to_owned());
    }
    raw.channels.iter().try_for_each(|pattern| glob::check(pattern))?;
    if raw.with.is_some() && raw.action != RawAction::Mask {
        return Err("`with` goes with the action \"mask\" only".to_owned());
    }
    if raw.message.is_some() && raw.action != RawAction::Reject {
        return Err("`message` goes with the action \"reject\" only".to_owned());
    }
    let (is_raw, no_digit_beside) = (raw.raw, raw.no_digit_beside);
    if raw.pointer.is_some() && (is_raw.is_some() || no_digit_beside.is_some()) {
        return Err("`raw` and `no_digit_beside` go with a `regex` only".to_owned());
    }
    let target = match (raw.regex, raw.pointer) {
        (Some(regex), None) => Target::Text(Box::new(Text {
            search: Search::new(&regex, cache_bytes)
                .map_err(|reason| format!("the regex `{regex}` cannot be read: {reason}"))?,
            is_raw: is_raw.unwrap_or(false),
            no_digit_beside: no_digit_beside.unwrap_or(false),
        })),
        (None, Some(pointer)) => Target::Value(Pointer::parse(&pointer)?),
        _ => return Err("give it either a `regex` or a `pointer`".to_owned()),
    };
    let mask = raw.with.unwrap_or_else(|| MASK.to_owned());
    let action = match (raw.action, &target) {
        (RawAction::Mask, Target::Text(text)) if text.matches_empty() => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_hold() {
        for rule in [
            r#"{"channels": ["a", "b*"], "regex": "x", "action": "mask", "with": ""}"#,
            r#"{"channels": ["*"], "regex": "^$", "action": "reject", "message": "empty"}"#,
            r#"{"channels": ["*"], "regex": "x", "raw": true, "no_digit_beside": true, "action": "drop"}"#,
            r#"{"channels": ["*"], "pointer": "/a", "action": "remove"}"#,
            r#"{"channels": ["*"], "pointer": "", "action": "drop"}"#,
            r#"{"channels": ["*"], "pointer": "", "action": "mask"}"#,
        ] {
            if let Err(error) = read(&format!(r#"{{"rules": [{rule}]}}"#)) {
                panic!("{rule}: {error}");
            }
        }
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
        check(
            r#"{"rule": []}"#,
            "unknown field `rule`, expected one of `rules`, `payload_bytes_max`, `call_ms_max`, \
             `not_json`",
        );
        for nothing in ["{}", r#"{"rules": []}"#] {
            check(
                nothing,
                "there are no rules, so nothing would be looked at; for example: \
                 [[settings.rules]] channels = [\"chat.*\"] regex = 'secret' action = \"mask\"",
            );
        }
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
            "unknown field `regexp`, expected one of `channels`, `regex`, `pointer`, `raw`, \
             `no_digit_beside`, `action`, `with`, `message`",
        );
        check_rule(
            r#""regex": "x", "action": "hide""#,
            "unknown variant `hide`, expected one of `mask`, `remove`, `reject`, `drop`",
        );
        check_rule(
            r#""pointer": "/a", "raw": true, "action": "mask""#,
            "`raw` and `no_digit_beside` go with a `regex` only",
        );
        check(
            r#"{"rules": [{"channels": ["[a-"], "regex": "x", "action": "mask"}]}"#,
            "rule 1: the pattern `[a-` has a `[` without its `]`",
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
