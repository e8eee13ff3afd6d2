//! Rules, as they are written in settings, applied to payloads.

use super::*;
use crate::settings;

fn apply_settings(settings: &str, channel: &str, payload: &[u8]) -> Outcome {
    match settings::read(settings) {
        Ok(rules) => rules.apply(channel, payload),
        Err(error) => panic!("{settings}: {error}"),
    }
}

fn check(settings: &str, channel: &str, payload: &str, expected: &str) {
    let expected = match expected == payload {
        true => Outcome::Unchanged,
        false => Outcome::Changed(expected.as_bytes().to_vec()),
    };
    let found = apply_settings(settings, channel, payload.as_bytes());
    assert_eq!(found, expected, "{channel} {payload}");
}

fn check_rejected(settings: &str, payload: &str, expected: &str) {
    let expected = Outcome::Rejected { code: "REJECTED", message: expected.to_owned() };
    let found = apply_settings(settings, "chat.a", payload.as_bytes());
    assert_eq!(found, expected, "{payload}");
}

#[test]
fn text_is_masked_on_matching_channels() {
    let settings = r#"{"rules": [
        {"channels": ["chat.*", "room.?"], "regex": "\\b\\d{16}\\b", "action": "mask", "with": "$0"}
    ]}"#;
    let card = "pay 1234567812345678 or 8765432187654321!";
    check(settings, "chat.a", card, "pay $0 or $0!");
    check(settings, "room.1", card, "pay $0 or $0!");
    check(settings, "news", card, card);
    check(settings, "chat.a", "", "");
    check(settings, "chat.a", "12345678123456789", "12345678123456789");
}

#[test]
fn text_is_found_in_bytes_that_are_not_utf_8() {
    let settings = r#"{"rules": [
        {"channels": ["*"], "regex": "(?i)secret é", "action": "mask"}
    ]}"#;
    let found = apply_settings(settings, "a", b"\xff SECRET \xc3\x89 \xfe");
    assert_eq!(found, Outcome::Changed(b"\xff *** \xfe".to_vec()));
}

#[test]
fn values_are_masked_and_removed_where_they_stand() {
    let settings = r#"{"rules": [
        {"channels": ["*"], "pointer": "/card/number", "action": "mask"},
        {"channels": ["*"], "pointer": "/card/cvc", "action": "remove"},
        {"channels": ["*"], "pointer": "/name", "action": "mask", "with": "\"é"}
    ]}"#;
    check(
        settings,
        "pay",
        r#"{"z": 1.0e+2, "card": {"cvc": 123, "number":42 }, "a": 12345678901234567890.5}"#,
        r#"{"z": 1.0e+2, "card": {"number":"***" }, "a": 12345678901234567890.5}"#,
    );
    check(settings, "pay", r#"{"name": null}"#, r#"{"name": "\"é"}"#);
    for untouched in [r#"{"z":  1.0}"#, "card number", "[1]", ""] {
        check(settings, "pay", untouched, untouched);
    }
}

/// A lenient parser finds in it what a pointer does not.
#[test]
fn what_only_a_lenient_parser_reads_is_refused_where_a_pointer_looks() {
    let settings = |not_json: &str| {
        format!(
            r#"{{"rules": [{{"channels": ["pay"], "pointer": "/card", "action": "mask"}}],
                "not_json": "{not_json}"}}"#
        )
    };
    for payload in [
        "\u{feff}{\"card\": 42}",
        r#"{"card": 42} "#.repeat(2).as_str(),
        r#"{"card": 42}x"#,
        "{'card': 42}",
        r#"{"card": 42,}"#,
        "{card: 42}",
        r#"/**/{"card": 42}"#,
        r#")]}',{"card": 42}"#,
        "[NaN]",
    ] {
        let check = |not_json: &str, expected: Option<&str>| {
            let found = apply_settings(&settings(not_json), "pay", payload.as_bytes());
            match (&found, expected) {
                (Outcome::Unchanged, None) => {}
                (Outcome::Rejected { code, .. }, Some(expected)) if *code == expected => {}
                _ => panic!("{payload}: {found:?}"),
            }
        };
        check("reject", Some("REJECTED"));
        check("pass", None);
        assert_eq!(
            apply_settings(&settings("reject"), "news", payload.as_bytes()),
            Outcome::Unchanged
        );
    }
}

const CARD: &str = r#"{"channels": ["*"], "regex": "\\d{16}", "no_digit_beside": true,
    "action": "mask", "with": "[\"card\"]"}"#;

fn check_card(payload: &str, expected: &str) {
    check(&format!(r#"{{"rules": [{CARD}]}}"#), "a", payload, expected);
}

#[test]
fn text_is_found_however_json_spells_it() {
    let four_units = r"\u0034\u0031\u0031\u0031";
    let all_units = four_units.repeat(4);
    for spelt in [
        "4111411141114111",
        r"\u0034111411141114111",
        r"411141114111411\u0031",
        &all_units,
        "\u{ff14}\u{661}11411141114111",
        r"\uff14\u066111411141114111",
    ] {
        check_card(&format!(r#"{{"t": "{spelt}"}}"#), r#"{"t": "[\"card\"]"}"#);
        check_card(&format!(r#"{{"{spelt}":1}}"#), r#"{"[\"card\"]":1}"#);
        check_card(
            &format!(r#"["\u0061\/_{spelt}_\ud83d\ude00\ud83d \n", 1.50]"#),
            r#"["\u0061\/_[\"card\"]_\ud83d\ude00\ud83d \n", 1.50]"#,
        );
    }
    // A surrogate in two escapes, and the twice-encoded.
    let bold = r"\ud835\udfd2".repeat(16);
    check_card(&format!(r#"["{bold}"]"#), r#"["[\"card\"]"]"#);
    check_card(
        r#"{"data": "{\"t\": \"\\u0034111411141114111\"}"}"#,
        r#"{"data": "{\"t\": \"[\\\"card\\\"]\"}"}"#,
    );
    check_card(r#"["\u005cu0034111411141114111"]"#, r#"["[\\\"card\\\"]"]"#);
}

#[test]
fn numbers_are_looked_at_however_they_are_written() {
    let masked = r#"{"n":"[\"card\"]"}"#;
    check_card(r#"{"n":4111411141114111}"#, masked);
    check_card(r#"{"n":4.111411141114111e15}"#, masked);
    check_card(r#"{"n":4111411141114111000e-3}"#, masked);
    check_card(r#"{"n":4111411141114111.0}"#, r#"{"n":"[\"card\"].0"}"#);
    check_card("-4111411141114111", r#""-[\"card\"]""#);
    for other in ["41114111411141110", "411141114111411", "[1e999,1]"] {
        check_card(other, other);
    }
}

#[test]
fn what_is_no_json_is_looked_at_as_it_is_and_decoded() {
    check_card("pay 4111411141114111!", "pay [\"card\"]!");
    check_card("_4111411141114111_", "_[\"card\"]_");
    for (before, after) in
        [("\u{feff}{\"t\":\"", "\"}"), ("{t:'", "'}"), ("", " \"{}"), ("{\"t\":\"", "\"}{}")]
    {
        for spelt in [r"\u0034111411141114111", r"\x34111411141114111", r"\u{34}111411141114111"] {
            check_card(
                &format!("{before}{spelt}{after}"),
                &format!(r#"{before}[\"card\"]{after}"#),
            );
        }
    }
    let deep = format!("{}\"4111411141114111\"{}", "[".repeat(50_000), "]".repeat(50_000));
    check_card(&deep, &deep.replace("4111411141114111", r#"[\"card\"]"#));
}

#[test]
fn a_number_with_more_digits_is_another() {
    for other in ["41114111411141112", "1 41114111411141112", "x041114111411141112"] {
        check_card(other, other);
    }
    check_card("41114111411141112 4111411141114111", "41114111411141112 [\"card\"]");
    check_card("4111411141114111x4111411141114111", "[\"card\"]x[\"card\"]");
    let digits = "1".repeat(100_000);
    check_card(&digits, &digits);
}

#[test]
fn raw_text_is_looked_at_on_request() {
    let settings = r#"{"rules": [
        {"channels": ["*"], "regex": "\"pin\":\\s*\\d+", "raw": true, "action": "mask", "with": "\"pin\":0"}
    ]}"#;
    check(settings, "a", r#"{"pin": 1234}"#, r#"{"pin":0}"#);
    let cooked = settings.replace(r#""raw": true, "#, "");
    check(&cooked, "a", r#"{"pin": 1234}"#, r#"{"pin": 1234}"#);
}

fn check_code(found: &Outcome, expected: &str) {
    assert!(
        matches!(found, Outcome::Rejected { code, .. } if *code == expected),
        "{expected}: {found:?}"
    );
}

#[test]
fn what_cannot_be_looked_at_in_time_is_refused() {
    let settings = format!(r#"{{"rules": [{CARD}], "payload_bytes_max": 100}}"#);
    let large = format!("4111411141114111{:100}", "");
    check_code(&apply_settings(&settings, "a", large.as_bytes()), "TOOLARGE");
    // Nothing looks at it there.
    let elsewhere = settings.replace("[\"*\"]", "[\"b\"]");
    assert_eq!(apply_settings(&elsewhere, "a", large.as_bytes()), Outcome::Unchanged);

    // Each match is tried to the end of the payload.
    let laborious =
        r#"{"rules": [{"channels": ["*"], "regex": "a.*x|a|b", "action": "mask", "with": "c"}]}"#;
    let long = "b4111411141114111".repeat(10) + &"a".repeat(20_000);
    check_code(&apply_settings(laborious, "a", long.as_bytes()), "TOOLARGE");
    // What is small passes beside it.
    let rules = settings::read(laborious).unwrap();
    let payloads: Vec<(&str, &[u8])> = vec![("a", long.as_bytes()), ("a", b"ok"), ("a", b"b")];
    let found = rules.apply_all(&payloads);
    check_code(&found[0], "UNAVAILABLE");
    assert_eq!(found[1..], [Outcome::Unchanged, Outcome::Changed(b"c".to_vec())]);
    // Levels of quoting, each as long as the one before.
    let quoted = "\\u005c".to_owned() + &"u005c".repeat(20_000);
    check_code(
        &apply_settings(&format!(r#"{{"rules": [{CARD}]}}"#), "a", quoted.as_bytes()),
        "TOOLARGE",
    );
}

#[test]
fn rules_are_applied_in_order() {
    let settings = r#"{"rules": [
        {"channels": ["chat.*"], "regex": "one", "action": "mask", "with": "two"},
        {"channels": ["chat.*"], "regex": "two", "action": "mask", "with": "three"},
        {"channels": ["chat.*"], "regex": "one", "action": "reject", "message": "never"},
        {"channels": ["chat.*"], "regex": "secret", "action": "reject"},
        {"channels": ["chat.*"], "pointer": "/password", "action": "reject", "message": "no"},
        {"channels": ["chat.*"], "regex": "secret", "action": "reject", "message": "late"}
    ]}"#;
    check(settings, "chat.a", "one two", "three three");
    check(settings, "other", "secret", "secret");
    check_rejected(settings, "one secret", "payload matches rule 4");
    check_rejected(settings, r#"{"password": "secret"}"#, "payload matches rule 4");
    check_rejected(settings, r#"{"password": null}"#, "no");
}

#[test]
fn what_is_dropped_is_not_looked_at_again() {
    let settings = r#"{"rules": [
        {"channels": ["chat.*"], "regex": "one", "action": "mask", "with": "spam"},
        {"channels": ["chat.*"], "regex": "spam", "action": "drop"},
        {"channels": ["chat.*"], "regex": "spam", "action": "reject"},
        {"channels": ["*"], "pointer": "/draft", "action": "drop"}
    ]}"#;
    let check = |channel, payload: &str, expected| {
        assert_eq!(apply_settings(settings, channel, payload.as_bytes()), expected, "{payload}");
    };
    check("chat.a", "spam", Outcome::Dropped);
    check("chat.a", "one", Outcome::Dropped);
    check("news", "spam", Outcome::Unchanged);
    check("news", r#"{"draft": null}"#, Outcome::Dropped);
    check("news", "draft", Outcome::Unchanged);
}

#[test]
fn what_comes_out_as_it_went_in_is_unchanged() {
    let settings = r#"{"rules": [
        {"channels": ["*"], "regex": "\\*+", "action": "mask"},
        {"channels": ["*"], "pointer": "/a", "action": "mask"}
    ]}"#;
    check(settings, "a", "a***b", "a***b");
    check(settings, "a", r#"{"a": "***"}"#, r#"{"a": "***"}"#);
}

#[test]
fn a_mask_does_not_grow_without_end() {
    let settings = r#"{"rules": [
        {"channels": ["*"], "regex": "a", "action": "mask", "with": "----------"}
    ]}"#;
    let check = |payload: &str, fits: bool| {
        let found = apply_settings(settings, "a", payload.as_bytes());
        let expected = payload.replace('a', "----------").into_bytes();
        match &found {
            Outcome::Changed(changed) => assert!(fits && *changed == expected),
            Outcome::Rejected { code, .. } => assert!(!fits && *code == "TOOLARGE"),
            Outcome::Unchanged | Outcome::Dropped => panic!("{found:?}"),
        }
    };
    check(&"a".repeat(400), true);
    check(&"a".repeat(1000), false);
    check(&"abbbbbbb".repeat(1000), true);
}

/// `411111111111111.11e1` and the like are this number to a reader that knows
/// doubles only.
#[test]
fn numbers_are_looked_at_as_a_browser_reads_them() {
    let zeros = "0".repeat(400);
    let card = r#"[\"card\"]"#;
    for (spelt, rest) in [
        ("411111111111111.11e1", ".1"),
        ("4.11111111111111101e15", ".01"),
        ("41111111111111111e-1", ".1"),
        (&format!("0.{zeros}4111111111111111e416"), ""),
        (&format!("4111111111111111{zeros}e-400"), ""),
        ("4.111111111111111e0000000000000000000000000000015", ""),
    ] {
        check_card(&format!(r#"{{"n":{spelt}}}"#), &format!(r#"{{"n":"{card}{rest}"}}"#));
    }
    for other in ["41111111111111111e0", "411111111111111e-9", "1e99999999999999999999", "0e9"] {
        check_card(other, other);
    }
    // Digits that only the nearest double has.
    let rounded = r#"{"rules": [{"channels": ["*"], "regex": "41111111111111110",
        "action": "mask"}]}"#;
    check(rounded, "a", "[41111111111111111]", r#"["***"]"#);
    check(rounded, "a", "[4111111111111111123e-2]", r#"["***"]"#);
    check(rounded, "a", "[4.1111111111111111000000001e16]", r#"["***"]"#);
    let one = r#"{"rules": [{"channels": ["*"], "regex": "^4111111111111111$",
        "action": "mask"}]}"#;
    check(one, "a", "[411111111111111.11e1]", r#"["***"]"#);
    check(one, "a", "[4111111111111110.9]", r#"["***"]"#);
}

#[test]
fn numbers_in_a_text_are_looked_at_in_plain_digits() {
    for spelt in [
        "4.111111111111111e15",
        "411111111111111.1e1",
        "4.111111111111111E+15",
        ".4111111111111111e16",
        "41111111111111111e-1",
        "0000411111111111111100e-2",
    ] {
        for (before, after) in [
            (r#"{"t":"{\"n\":"#, r#"}"}"#),
            (r#"{"t":""#, r#""}"#),
            (r#"{"t":"\"\\\"{\\\\\\\"n\\\\\\\":"#, r#"}"}"#),
        ] {
            let masked = format!("{before}MASK{after}");
            let found = apply_settings(
                r#"{"rules": [{"channels": ["*"], "regex": "\\d{16}", "no_digit_beside": true,
                    "action": "mask", "with": "MASK"}]}"#,
                "a",
                format!("{before}{spelt}{after}").as_bytes(),
            );
            assert_eq!(found, Outcome::Changed(masked.into_bytes()), "{spelt}");
        }
        for (before, after) in [
            ("\u{feff}{\"n\":", "}"),
            ("{\"n\":1}\n{\"n\":", "}"),
            ("{\"n\":", ",}"),
            ("[-", "] 1.5"),
            ("1.5e3 and 5e ", "e ."),
        ] {
            check_card(&format!("{before}{spelt}{after}"), &format!(r#"{before}["card"]{after}"#));
        }
    }
    let raw =
        r#"{"rules": [{"channels": ["*"], "regex": "\\d{16}", "raw": true, "action": "drop"}]}"#;
    check(raw, "a", "4.111111111111111e15", "4.111111111111111e15");
}

#[test]
fn escapes_of_javascript_are_decoded_in_what_is_no_json() {
    for spelt in [
        r"\64111411141114111",
        r"\064111411141114111",
        "41\\\n11411141114111",
        "41\\\r\n11411141114111",
        "41\\\u{2028}11411141114111",
        r"\u{0000000000000000034}111411141114111",
        r"\u{d835}\u{dfd2}111411141114111",
        r"\064\61\u0031\x31\u{34}\u{0000000000031}1141114111",
    ] {
        check_card(&format!("{{t:'{spelt}'}}"), r#"{t:'[\"card\"]'}"#);
    }
    let eight =
        r#"{"rules": [{"channels": ["*"], "regex": "4118411141114111", "action": "mask"}]}"#;
    check(eight, "a", r"'411\8411141114111'", "'***'");
    // A reader that leaves them as they are reads this.
    let kept = r#"{"rules": [{"channels": ["*"], "regex": "\\\\q4", "action": "mask"}]}"#;
    check(kept, "a", r"'\q\u0034'", "'***'");
    check(kept, "a", r"'\q\x34'", "'***'");
}

/// The expression that is shown to operators.
fn recommended() -> String {
    let example = include_str!("../../../../examples/plugins/20-redact.toml");
    let line = example.lines().find(|line| line.starts_with("regex = '")).unwrap();
    assert!(include_str!("../../README.md").contains(line), "{line}");
    line.trim_start_matches("regex = '").trim_end_matches('\'').to_owned()
}

fn recommended_settings(call_ms_max: u64) -> String {
    let rule = serde_json::json!({"channels": ["*"], "regex": recommended(),
        "no_digit_beside": true, "action": "mask"});
    serde_json::json!({"rules": [rule], "call_ms_max": call_ms_max}).to_string()
}

#[test]
fn the_recommended_expression_finds_a_number_whatever_stands_between_its_digits() {
    let settings = recommended_settings(100);
    for between in [
        "\u{fe0f}",
        "\u{34f}",
        "\u{3164}",
        "\0",
        "\u{1}",
        "\u{7f}",
        "\u{200b}",
        "\u{fe0f}\u{20e3}",
        "\u{115f}",
        "\u{301}\u{302}\u{200d}",
        "",
    ] {
        let number = ["4"; 16].join(between);
        check(&settings, "a", &format!("x{number}y"), "x***y");
        let short = ["4"; 15].join(between);
        check(&settings, "a", &short, &short);
    }
    for between in [" ", "  ", " - ", "-", " \u{2013} ", "\u{a0}", "\n", "\u{200b} \u{200b}"] {
        let number = ["4111"; 4].join(between);
        check(&settings, "a", &format!("x{number}y"), "x***y");
    }
    for other in ["1\n2\n3\n4\n5\n6\n7\n8\n9\n1\n2\n3\n4\n5\n6\n7", "41111111111111111"] {
        check(&settings, "a", other, other);
    }
}

/// The fewest steps with which it is not refused.
fn steps_needed(rules: &mut Rules, payload: &[u8]) -> usize {
    let (mut few, mut enough) = (0_usize, 1 << 30);
    while few + 1 < enough {
        rules.call_steps_max = few.midpoint(enough);
        match rules.apply("a", payload) {
            Outcome::Rejected { .. } => few = rules.call_steps_max,
            _ => enough = rules.call_steps_max,
        }
    }
    enough
}

#[test]
fn each_text_is_paid_for() {
    let settings = format!(r#"{{"rules": [{CARD}]}}"#);
    let mut rules = settings::read(&settings).unwrap();
    for (item, steps) in [
        ("1", 32),
        ("\"\"", 32),
        (r#""\n""#, 64),
        ("1e308", 32 + 309),
        ("2e300", 32 + 301),
        ("1.5", 64),
        ("{\"\":\"\"}", 64),
    ] {
        let payload = format!("[{}]", vec![item; 1000].join(","));
        let needed = steps_needed(&mut rules, payload.as_bytes());
        assert!(needed > 1000 * steps, "{item}: {needed}");
    }
    // What was seen to outlast a call of the default is refused.
    for item in ["1", "1e308", r#""\n""#] {
        let many = vec![item; (255 << 10) / (item.len() + 1)].join(",");
        check_code(&apply_settings(&settings, "a", format!("[{many}]").as_bytes()), "TOOLARGE");
    }
}
