//! Settings as text: the example file, with the values in use.
//!
//! The explanations are those of `switchyard.example.toml`, the keys and values those of the tables.
//! A test compares the two, so that no key is missing.

use serde_json::Value;

use super::file::key_of;

/// The file that explains every setting.
const EXAMPLE: &str = include_str!("../../../switchyard.example.toml");

/// How a setting without a value is written there.
const UNSET: &str = "#= ";

/// The line with which the example of a channel rule begins.
const RULE: &str = "#= [[channels]]";

/// What is shown instead of a secret.
const REDACTED: &str = "redacted";

/// These settings as a commented config file: `written` is every key with its value, by table.
pub(super) fn show(written: &Value) -> String {
    let mut text = String::with_capacity(EXAMPLE.len());
    let mut table = Vec::new();
    let mut lines = EXAMPLE.lines().peekable();
    while let Some(line) = lines.next() {
        if line == RULE {
            let settings = std::iter::from_fn(|| lines.next_if(|line| line.starts_with(UNSET)));
            text.push_str(&rules(&settings.collect::<Vec<_>>(), written));
            continue;
        }
        if let Some(name) = table_of(line) {
            table = name.split('.').collect();
        }
        match setting_of(line) {
            Some(key) => text.push_str(&setting(line, &table, key, written)),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// The channel rules, each with what it sets; the example, if there are no rules. `settings` are
/// the lines of the example.
fn rules(settings: &[&str], written: &Value) -> String {
    let rules = written.get("channels").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if rules.is_empty() {
        return std::iter::once(&RULE).chain(settings).map(|line| format!("{line}\n")).collect();
    }
    let is_set = |line: &str| !line.starts_with(UNSET);
    let rule = |rule: &Value| -> String {
        let lines = settings.iter().filter_map(|line| Some((*line, setting_of(line)?)));
        let lines = lines.map(|(line, key)| setting(line, &[], key, rule));
        let lines = lines.filter(|line| is_set(line)).map(|line| format!("{line}\n"));
        std::iter::once("[[channels]]\n".to_owned()).chain(lines).collect()
    };
    rules.iter().map(rule).collect::<Vec<_>>().join("\n")
}

/// The name of the table that begins with this line.
fn table_of(line: &str) -> Option<&str> {
    line.strip_prefix('[')?.strip_suffix(']')
}

/// The key of a line that has a setting, with a value or without.
fn setting_of(line: &str) -> Option<&str> {
    key_of(line.strip_prefix(UNSET).unwrap_or(line))
}

/// The line of a setting, with its value; the line of the example, if there is none.
fn setting(line: &str, table: &[&str], key: &str, written: &Value) -> String {
    let path = table.iter().copied().chain(key.split('.'));
    let value = path.into_iter().try_fold(written, |value, part| value.get(part));
    match value {
        None | Some(Value::Null) => line.to_owned(),
        Some(_) if is_secret(key) => format!("{key} = \"{REDACTED}\""),
        Some(value) => match toml::Value::try_from(value) {
            Ok(value) => format!("{key} = {value}"),
            Err(_) => line.to_owned(),
        },
    }
}

/// Whether a setting is a secret, and not the name of a file with one.
fn is_secret(key: &str) -> bool {
    let names_file = key.ends_with("_file");
    !names_file && ["secret", "password", "token"].iter().any(|word| key.contains(word))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::{check, every_setting};
    use super::*;
    use crate::Config;
    use crate::raw::RawChannelRule;

    fn keys(at: &str, value: &Value, keys: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => members.iter().for_each(|(key, value)| {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                self::keys(&at, value, keys);
            }),
            _ => assert!(keys.insert(at.to_owned()), "{at} is there twice"),
        }
    }

    #[test]
    fn every_setting_is_explained_once() {
        let mut explained = BTreeSet::new();
        let mut table = "";
        for line in EXAMPLE.lines() {
            table = table_of(line).unwrap_or(if line == RULE { "channels" } else { table });
            if let Some(key) = setting_of(line) {
                assert!(explained.insert(format!("{table}.{key}")), "{table}.{key} is there twice");
            }
        }
        let mut existing = BTreeSet::new();
        let mut written = Config::default().written;
        let rule = serde_json::to_value(RawChannelRule::default()).expect("JSON's types");
        written["channels"] = rule;
        keys("", &written, &mut existing);
        assert_eq!(explained, existing);
    }

    #[test]
    fn what_is_shown_has_the_same_settings() {
        let default = Config::default();
        let again = check(&show(&default.written)).expect("the defaults are valid");
        assert_eq!(again.written, default.written);

        let (text, _tokens) = every_setting();
        let every = check(&text).expect("the settings without a default are valid");
        let shown = show(&every.written);
        // A cluster refuses the directory of histories.
        let unset: Vec<&str> = shown.lines().filter(|line| line.starts_with(UNSET)).collect();
        assert_eq!(unset, ["#= directory = \"history\""], "each has a value: {shown}");
        assert_eq!(check(&shown).expect("they are valid").written, every.written);
    }

    #[test]
    fn each_rule_is_shown_with_what_it_sets() {
        let text = "[[channels]]\nmatch = ['a.*', 'b']\nhistory_messages = 1\nhistory_ms = '1s'\n\
                    [[channels]]\nmatch = 'c'\npresence = true";
        let written = check(text).expect("valid").written;
        let shown = show(&written);
        let rules = "\n[[channels]]\nmatch = [\"a.*\", \"b\"]\nhistory_messages = 1\n\
                     history_ms = 1000\npresence = false\n\n[[channels]]\nmatch = \"c\"\n\
                     presence = true\n\n# The bounds";
        assert!(shown.contains(rules) && !shown.contains(RULE), "{shown}");
        assert_eq!(check(&shown).expect("valid").written, written);
    }

    #[test]
    fn secrets_are_not_shown() {
        let line = |key: &str| {
            let written = serde_json::json!({ "table": { key: "hunter2" } });
            setting("", &["table"], key, &written)
        };
        assert_eq!(line("password"), "password = \"redacted\"");
        assert_eq!(line("app_secret"), "app_secret = \"redacted\"");
        assert_eq!(line("password_file"), "password_file = \"hunter2\"");
        assert_eq!(line("tls.key"), "", "no such key");
        assert_eq!(line("prefix"), "prefix = \"hunter2\"");
    }
}
