//! From what the operator wrote to what holds; the only place that says no to
//! it, and says where and what would be right.

use std::collections::BTreeSet;

use jsonschema::{PatternOptions, Validator};
use plugin_kit::{glob, settings};
use serde::Deserialize;
use serde_json::Value;

use crate::rules::{Rule, Rules, Unmatched};
use crate::{unique, work};

/// How many rules there may be.
const RULES_MAX: usize = 256;

/// How long the name of a rule may be.
const NAME_BYTES_MAX: usize = 64;

/// How large one schema may be, as JSON.
const SCHEMA_BYTES_MAX: usize = 256 << 10;

/// How large one regex may become when it is compiled, ...
pub const REGEX_BYTES_MAX: usize = 1 << 20;

/// ... and what it may remember while it searches.
const REGEX_CACHE_BYTES_MAX: usize = 1 << 20;

/// The deepest that JSON is parsed.
const DEPTH_MAX: u64 = 127;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSettings {
    rules: Vec<Value>,
    unmatched: Unmatched,
    payload_bytes_max: u64,
    depth_max: u64,
    checks_max: u64,
    check_formats: bool,
}

impl Default for RawSettings {
    fn default() -> Self {
        Self {
            rules: vec![],
            unmatched: Unmatched::default(),
            payload_bytes_max: 64 << 10,
            depth_max: 32,
            // About half of the server's default budget for a call.
            checks_max: 50_000,
            check_formats: true,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: String,
    channels: Vec<String>,
    schema: Value,
}

/// Reads the settings, a JSON object. An error is one line for the operator.
pub fn read(settings: &str) -> Result<Rules, String> {
    let raw: RawSettings = settings::read(settings)?;
    if raw.rules.is_empty() && raw.unmatched == Unmatched::Allow {
        return Err("there are no rules, so nothing would be checked; for example: \
                    [[settings.rules]] name = \"order\" channels = [\"orders\"] \
                    schema = { type = \"object\" }"
            .to_owned());
    }
    if raw.rules.len() > RULES_MAX {
        return Err(format!("there are {} rules; {RULES_MAX} are the most", raw.rules.len()));
    }
    let bytes = settings::within("payload_bytes_max", raw.payload_bytes_max, 1, 512 << 20)?;
    let depth = settings::within("depth_max", raw.depth_max, 1, DEPTH_MAX)?;
    let checks = settings::within("checks_max", raw.checks_max, 1_000, 1_000_000_000)?;
    let read = |rule, _| read_rule(rule, raw.check_formats, depth as usize, checks as f64);
    let rules = settings::read_each("rule", raw.rules, read)?;
    let mut names = BTreeSet::new();
    if let Some(twice) = rules.iter().find(|rule| !names.insert(rule.name.as_str())) {
        return Err(format!("two rules are called `{}`", twice.name));
    }
    Ok(Rules {
        rules,
        unmatched: raw.unmatched,
        // Both are far below what a `usize` of 32 bits holds.
        payload_bytes_max: bytes as usize,
        depth_max: depth as usize,
        checks_max: checks as f64,
    })
}

fn read_rule(
    raw: RawRule,
    check_formats: bool,
    depth_max: usize,
    checks_max: f64,
) -> Result<Rule, String> {
    let length = raw.name.len();
    if !(1..=NAME_BYTES_MAX).contains(&length) || raw.name.chars().any(char::is_control) {
        return Err(format!(
            "`name` has {length} bytes; it takes 1 to {NAME_BYTES_MAX}, in a line"
        ));
    }
    if raw.channels.is_empty() {
        return Err("`channels` is empty; write \"*\" for all".to_owned());
    }
    raw.channels.iter().try_for_each(|pattern| glob::check(pattern))?;
    let schema = match raw.schema {
        // What TOML cannot say, `null` for one.
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| format!("schema {}: not JSON: {error}", raw.name))?,
        schema => schema,
    };
    let within = |error: String| format!("schema {}: {error}", raw.name);
    let validator = compile(&schema, check_formats).map_err(within)?;
    let work = work::of(&schema, depth_max).map_err(within)?;
    let least = work.least();
    if least > checks_max {
        return Err(within(format!(
            "it takes {least:.0} checks for each place of a payload, and `checks_max` is \
             {checks_max:.0}; let subschemas refer to others less often"
        )));
    }
    Ok(Rule { name: raw.name, channels: raw.channels, schema: validator, work })
}

fn compile(schema: &Value, check_formats: bool) -> Result<Validator, String> {
    let bytes = schema.to_string().len();
    if bytes > SCHEMA_BYTES_MAX {
        return Err(format!("it has {bytes} bytes; {SCHEMA_BYTES_MAX} are the most"));
    }
    // The engine that is linear in what it searches, whatever the payload says; it
    // knows no look-around and no back-references.
    let patterns =
        PatternOptions::regex().size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_CACHE_BYTES_MAX);
    let options = jsonschema::options()
        .offline()
        .should_validate_formats(check_formats)
        .should_ignore_unknown_formats(!check_formats)
        .with_pattern_options(patterns)
        .with_keyword("uniqueItems", unique::keyword);
    options.build(schema).map_err(|error| {
        let at = error.instance_path().to_string();
        let at = if at.is_empty() { "the schema" } else { &at };
        // Whatever it has to say, in one line.
        let words = error.to_string();
        format!("{at}: {}", words.split_whitespace().collect::<Vec<_>>().join(" "))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_that_do_not_say_where_and_what_would_be_right() {
        let check = |settings: Value, expected: &str| match read(&settings.to_string()) {
            Ok(_) => panic!("accepted {settings}"),
            Err(error) => assert_eq!(error, expected, "{settings}"),
        };
        let good = json!({"name": "a", "channels": ["*"], "schema": {"type": "object"}});
        let check_rule = |rule: Value, expected: &str| {
            check(json!({"rules": [good, rule]}), &format!("rule 2: {expected}"));
        };
        let check_schema = |schema: Value, expected: &str| {
            let rule = json!({"name": "b", "channels": ["*"], "schema": schema});
            check_rule(rule, &format!("schema b: {expected}"));
        };
        check(
            json!({"rule": []}),
            "unknown field `rule`, expected one of `rules`, `unmatched`, `payload_bytes_max`, \
             `depth_max`, `checks_max`, `check_formats`",
        );
        check(json!({"rules": [good, good]}), "two rules are called `a`");
        for nothing in [json!({}), json!({"rules": [], "unmatched": "allow"})] {
            check(
                nothing,
                "there are no rules, so nothing would be checked; for example: \
                 [[settings.rules]] name = \"order\" channels = [\"orders\"] schema = { type = \
                 \"object\" }",
            );
        }
        check(
            json!({"rules": [good], "depth_max": 128}),
            "`depth_max` is 128; it goes from 1 to 127",
        );
        check(json!({"rules": vec![&good; 257]}), "there are 257 rules; 256 are the most");
        check_rule(json!({"name": "b", "channels": ["*"]}), "missing field `schema`");
        check_rule(
            json!({"name": "", "channels": ["*"], "schema": true}),
            "`name` has 0 bytes; it takes 1 to 64, in a line",
        );
        check_rule(
            json!({"name": "b", "channels": [], "schema": true}),
            "`channels` is empty; write \"*\" for all",
        );
        check_rule(
            json!({"name": "b", "channels": ["a["], "schema": true}),
            "the pattern `a[` has a `[` without its `]`",
        );
        check_schema(
            json!({"anyOf": [{"$ref": "#"}, {"type": "string"}]}),
            "/anyOf/0 leads back to the schema on the same level of a payload, so it would take \
             everything for valid; refer to it from `properties` or `items`",
        );
        check_schema(json!("{"), "not JSON: EOF while parsing an object at line 1 column 1");
        check_schema(json!(7), "the schema: 7 is not of types \"boolean\", \"object\"");
        check_schema(
            json!({"const": "x".repeat(SCHEMA_BYTES_MAX)}),
            "it has 262156 bytes; 262144 are the most",
        );
    }
    /// Of schemas, the words are the crate's own; the place and the reason must be
    /// among them.
    #[test]
    fn a_schema_that_is_none_says_where_and_why() {
        let mut wrong = vec![];
        let mut check = |schema: Value, place: &str, reason: &str| {
            let rule = json!({"name": "b", "channels": ["*"], "schema": schema});
            let found = read(&json!({"rules": [rule]}).to_string()).err();
            let found = found.unwrap_or_else(|| "it is accepted".to_owned());
            let start = format!("rule 1: schema b: {place}: ");
            if !found.starts_with(&start) || !found.contains(reason) || found.contains('\n') {
                wrong.push(format!("{schema}: {found}"));
            }
        };
        let of_a = |keyword: &str, value: &str| json!({"properties": {"a": {keyword: value}}});
        check(of_a("type", "text"), "/properties/a/type", "\"text\"");
        check(of_a("pattern", "a(b"), "/properties/a/pattern", "a(b");
        check(of_a("pattern", "(?=a)b"), "/properties/a/pattern", "(?=a)b");
        check(of_a("pattern", "(a{100}){100}{100}"), "/properties/a/pattern", "a{100}");
        check(of_a("format", "phone"), "/properties/a/format", "phone");
        let leads_to = |reference: &str| json!({"items": {"$ref": reference}});
        check(leads_to("https://example.com/a.json"), "the schema", "https://example.com/a.json");
        check(leads_to("file:///etc/passwd"), "the schema", "file:///etc/passwd");
        check(leads_to("#/$defs/item"), "the schema", "/$defs/item");
        check(json!({"$schema": "https://example.com/mine"}), "the schema", "example.com/mine");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
