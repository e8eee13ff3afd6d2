use std::fmt::Write;

use guest_core::model::{Random, ReferenceGlob};

use super::{ChannelRule, ChannelRules, HistoryRule, PresenceRule};
use crate::tests::check;

const DAY_MS: u64 = 86_400_000;

/// The rules of this text.
fn rules(text: &str) -> Result<ChannelRules, String> {
    check(text).map(|config| config.channels)
}

/// Rules that have nothing but these patterns.
fn of_patterns(rules: &[&[&str]]) -> ChannelRules {
    let rule = |patterns: &&[&str]| ChannelRule {
        match_: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
        history: None,
        presence: None,
    };
    ChannelRules::new(rules.iter().map(rule).collect())
}

#[test]
fn rules_are_read_as_the_protocol_shows_them() {
    let text = "[[channels]]\nmatch = ['log.*', 'audit']\n\n[[channels]]\nmatch = \"chat.*\"\n\
                history_messages = 100\nhistory_ms = '5m'\nhistory_idle_ms = '1d'\n\
                presence = true\npresence_members_max = 50";
    let rules = rules(text).expect("valid");
    let none = ChannelRule {
        match_: vec!["log.*".to_owned(), "audit".to_owned()],
        history: None,
        presence: None,
    };
    let history = HistoryRule { messages: 100, age_ms: 300_000, idle_ms: DAY_MS };
    let both = ChannelRule {
        match_: vec!["chat.*".to_owned()],
        history: Some(history),
        presence: Some(PresenceRule { members_max: 50 }),
    };
    assert_eq!(rules.rules(), [none.clone(), both.clone()]);
    assert_eq!(rules.find(b"log.1"), Some((1, &none)));
    assert_eq!(rules.find_pattern(b"audit"), Some((1, &none, "audit")));
    assert_eq!(rules.find_pattern(b"chat.\xff"), Some((2, &both, "chat.*")));
    assert_eq!(rules.find(b"chat"), None);
    assert_eq!(rules.find(b""), None);
    assert!(!rules.is_empty());
}

#[test]
fn without_rules_nothing_is_found() {
    let rules = rules("").expect("valid");
    assert!(rules.is_empty() && rules.rules().is_empty() && rules.shadowed().is_empty());
    assert_eq!(rules.find(b"chat.1"), None);
    assert_eq!(rules, ChannelRules::new(Vec::new()));
}

#[test]
fn what_is_left_out_has_a_default() {
    let rule = |text: &str| {
        let rules = rules(&format!("[[channels]]\nmatch = 'a'\n{text}")).expect("valid");
        let [rule] = rules.rules() else { panic!("one rule: {rules:?}") };
        (rule.history, rule.presence)
    };
    let history = |messages, age_ms, idle_ms| Some(HistoryRule { messages, age_ms, idle_ms });
    assert_eq!(rule(""), (None, None));
    assert_eq!(rule("presence = false"), (None, None));
    assert_eq!(rule("history_messages = 1\nhistory_ms = 1"), (history(1, 1, DAY_MS), None));
    assert_eq!(
        rule("history_messages = 100000\nhistory_ms = '30d'"),
        (history(100_000, 30 * DAY_MS, 30 * DAY_MS), None)
    );
    assert_eq!(
        rule("history_messages = 1\nhistory_ms = 5\nhistory_idle_ms = 5"),
        (history(1, 5, 5), None)
    );
    assert_eq!(rule("presence = true"), (None, Some(PresenceRule { members_max: 1_000 })));
    assert_eq!(
        rule("presence = true\n[presence]\nmembers_max = 7"),
        (None, Some(PresenceRule { members_max: 7 }))
    );
}

#[test]
fn a_rule_that_cannot_be_is_named_with_what_would_be_right() {
    let history = "history_messages = 10\nhistory_ms = 1000";
    for (rule, says) in [
        ("".to_owned(), "match is missing, but must be a pattern such as \"chat.*\", or a list"),
        ("match = []".to_owned(), "match is an empty list, but must be a pattern such as"),
        ("match = ''".to_owned(), "match is \"\", but must be from 1 to 1024 bytes"),
        ("match = ['a', '']".to_owned(), "match is \"\", but must be from 1 to 1024 bytes"),
        (
            format!("match = '{}'", "a".repeat(1_025)),
            "match is a pattern of 1025 bytes, but must be from 1 to 1024 bytes",
        ),
        (
            "match = 'a'\nhistory_messages = 10".to_owned(),
            "history_ms is missing, but must be set, as history_messages is: both are, or neither",
        ),
        (
            "match = 'a'\nhistory_ms = 10".to_owned(),
            "history_messages is missing, but must be set, as history_ms is: both are, or neither",
        ),
        (
            "match = 'a'\nhistory_idle_ms = 10".to_owned(),
            "history_idle_ms is 10, but must be left out where history_messages and history_ms are",
        ),
        (
            "match = 'a'\nhistory_messages = 0\nhistory_ms = 1".to_owned(),
            "history_messages is 0, but must be from 1 to 100000",
        ),
        (
            "match = 'a'\nhistory_messages = 100001\nhistory_ms = 1".to_owned(),
            "history_messages is 100001, but must be from 1 to 100000",
        ),
        (
            "match = 'a'\nhistory_messages = 1\nhistory_ms = 0".to_owned(),
            "history_ms is 0, but must be from 1 to 2592000000",
        ),
        (
            "match = 'a'\nhistory_messages = 1\nhistory_ms = '31d'".to_owned(),
            "history_ms is 2678400000, but must be from 1 to 2592000000",
        ),
        (
            format!("match = 'a'\n{history}\nhistory_idle_ms = 999"),
            "history_idle_ms is 999, but must be from 1000, which is history_ms, to 2592000000",
        ),
        (
            format!("match = 'a'\n{history}\nhistory_idle_ms = '31d'"),
            "history_idle_ms is 2678400000, but must be from 1000",
        ),
        (
            "match = 'a'\npresence_members_max = 7".to_owned(),
            "presence_members_max is 7, but must be left out where presence is not set to true",
        ),
        (
            "match = 'a'\npresence = true\npresence_members_max = 0".to_owned(),
            "presence_members_max is 0, but must be from 1 to 100000, which is presence.members_max",
        ),
        (
            "match = 'a'\npresence = true\npresence_members_max = 9\n[presence]\nmembers_max = 8"
                .to_owned(),
            "presence_members_max is 9, but must be from 1 to 8, which is presence.members_max",
        ),
    ] {
        let text = format!("[[channels]]\nmatch = 'first'\n[[channels]]\n{rule}");
        let problem = rules(&text).expect_err(&rule);
        let says = format!("rule 2 of [[channels]]: {says}");
        assert!(problem.starts_with(&says), "{rule}: {problem}");
    }
    // These are errors of TOML, which have the line.
    for (rule, says) in [
        ("match = 5", "a pattern such as \"chat.*\", or a list of them"),
        ("match = [1]", "a pattern such as \"chat.*\", or a list of them"),
        ("match = 'a'\nhistory_ms = '1MB'", "\"25s\""),
        ("match = 'a'\npresence = 1", "boolean"),
        ("match = 'a'\npresense = true", "presence"),
    ] {
        let problem = rules(&format!("[[channels]]\n{rule}")).expect_err(rule);
        assert!(problem.contains("line ") && problem.contains(says), "{rule}: {problem}");
    }
}

#[test]
fn there_are_at_most_a_thousand_patterns() {
    let text = |rules: usize, patterns: usize| {
        (0..rules).fold(String::new(), |mut text, rule| {
            let list: Vec<String> = (0..patterns).map(|n| format!("'r{rule}.{n}.*'")).collect();
            writeln!(text, "[[channels]]\nmatch = [{}]", list.join(", ")).expect("a String grows");
            text
        })
    };
    let check = |rules_count, patterns| rules(&text(rules_count, patterns));
    assert!(check(1_000, 1).is_ok() && check(10, 100).is_ok());
    for (rules, patterns, sum) in [(1_001, 1, 1_001), (7, 143, 1_001)] {
        assert_eq!(
            check(rules, patterns).unwrap_err(),
            format!(
                "channels is a list of rules with {sum} patterns, but must be one with at most \
                 1000 patterns in all rules together"
            )
        );
    }
}

#[test]
fn a_rule_that_never_applies_is_reported() {
    #[track_caller]
    fn check(rules: &[&[&str]], expected: &[(usize, usize)]) {
        assert_eq!(of_patterns(rules).shadowed(), expected, "{rules:?}");
    }
    check(&[&["a.*"], &["a.*"]], &[(2, 1)]);
    check(&[&["a?[bc]"], &["a?[bc]"]], &[(2, 1)]);
    check(&[&["*"], &["a"], &["?"]], &[(2, 1), (3, 1)]);
    check(&[&["**"], &["a*b*c"]], &[(2, 1)]);
    check(&[&["a?c[de]"], &["abcd"]], &[(2, 1)]);
    check(&[&["a*"], &["abc.*"]], &[(2, 1)]);
    check(&[&["a*"], &["a?"], &["a[bc]*d"]], &[(2, 1), (3, 1)]);
    check(&[&["*.log"], &["app.*.log"]], &[(2, 1)]);
    check(&[&["a*z"], &["ab?yz"]], &[(2, 1)]);
    // Written in another way.
    check(&[&["\\a*"], &["ab*"]], &[(2, 1)]);
    check(&[&["\\a"], &["a"]], &[(2, 1)]);
    // All patterns of a rule, by one rule or several.
    check(&[&["x", "a*"], &["ab*", "x"]], &[(2, 1)]);
    check(&[&["a*"], &["b*"], &["bc", "ac*"]], &[(3, 1), (3, 2)]);
    check(&[&["a*"], &["a*", "b"]], &[]);
    // The first that covers it.
    check(&[&["a*"], &["ab*"], &["abc*"]], &[(2, 1), (3, 1)]);
    // A rule does not shadow itself, and not an earlier one.
    check(&[&["a*", "a*", "ab"]], &[]);
    check(&[&["ab*"], &["a*"]], &[]);
    // Not the same channels.
    check(&[&["a*"], &["*"]], &[]);
    check(&[&["a*b"], &["a*"], &["*b"]], &[]);
    check(&[&["a.*"], &["a*"], &["a"]], &[(3, 2)]);
    check(&[&["ab*bc"], &["abc"]], &[]);
    check(&[&["a\\*"], &["ab"]], &[]);
    check(&[&["?*"], &["a*"]], &[]);
}

#[test]
fn what_never_applies_is_said_in_a_sentence() {
    let rules = of_patterns(&[&["a*"], &["b*"], &["ab"], &["ac", "bc"]]);
    assert_eq!(
        rules.warnings(),
        [
            "rule 3 of [[channels]] never applies, because the first match wins: rule 1 matches \
             all of its channels",
            "rule 4 of [[channels]] never applies, because the first match wins: rules 1, 2 \
             together match all of its channels"
        ]
    );
}

/// A pattern of few kinds of elements, so that patterns often have names in common.
fn random_pattern(random: &mut Random) -> String {
    let count = 1 + random.below(5);
    let elements = ["a", "b", "ab", "*", "*", "?", "[ab]", "[^a]", "\\a", "\\*"];
    (0..count).map(|_| *random.pick(&elements)).collect()
}

fn random_name(random: &mut Random) -> Vec<u8> {
    (0..random.below(8)).map(|_| *random.pick(b"ab*")).collect()
}

/// The first rule, found by trying all, and the number of patterns that match in each rule.
fn model_find(rules: &ChannelRules, name: &[u8]) -> Option<usize> {
    let matches = |pattern: &String| ReferenceGlob::new(pattern.as_bytes()).matches(name);
    rules.rules().iter().position(|rule| rule.match_.iter().any(matches)).map(|place| place + 1)
}

/// A rule that is reported never is the first that matches, and the pairs say why. The seed is
/// printed.
#[test]
fn rules_are_found_as_a_search_finds_them_and_no_report_is_wrong() {
    let mut random = Random::from_environment();
    let (mut reports, mut found, mut not_found) = (0, 0, 0);
    for _ in 0..2_000 {
        let patterns: Vec<Vec<String>> = (0..1 + random.below(6))
            .map(|_| (0..1 + random.below(2)).map(|_| random_pattern(&mut random)).collect())
            .collect();
        let rules = ChannelRules::new(
            patterns
                .iter()
                .map(|match_| ChannelRule { match_: match_.clone(), history: None, presence: None })
                .collect(),
        );
        let shadowed = rules.shadowed();
        reports += shadowed.len();
        for _ in 0..40 {
            let name = random_name(&mut random);
            let text = || format!("{patterns:?} on {}", name.escape_ascii());
            let first = rules.find(&name).map(|(number, _)| number);
            assert_eq!(first, model_find(&rules, &name), "{}", text());
            if let Some((number, rule, pattern)) = rules.find_pattern(&name) {
                let matches = ReferenceGlob::new(pattern.as_bytes()).matches(&name);
                assert!(matches && rule.match_.iter().any(|p| p == pattern), "{}", text());
                assert_eq!(Some(number), first);
                found += 1;
            } else {
                not_found += 1;
            }
            assert!(!shadowed.iter().any(|(later, _)| Some(*later) == first), "{}", text());
            // What a shadowed rule matches, one of those that shadow it matches.
            for (later, rule) in (1..).zip(rules.rules()) {
                let by: Vec<usize> =
                    shadowed.iter().filter(|(of, _)| *of == later).map(|(_, by)| *by).collect();
                let alone = ChannelRules::new(vec![rule.clone()]);
                if !by.is_empty() && model_find(&alone, &name).is_some() {
                    let covering: Vec<ChannelRule> =
                        by.iter().filter_map(|by| rules.rules().get(by - 1)).cloned().collect();
                    let covering = ChannelRules::new(covering);
                    assert!(model_find(&covering, &name).is_some(), "{later}: {}", text());
                }
            }
        }
    }
    assert!(reports > 500, "few reports: {reports}");
    assert!(found > 1_000 && not_found > 1_000, "one-sided: {found} {not_found}");
}
