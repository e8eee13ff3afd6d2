//! The bundled plugins are guards: they declare how they fail, do not start without rules, and
//! refuse in advance what they could not check in time.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::components;
use crate::support::server::{Launch, Server};

/// Each plugin, and a word of its message when its settings have no rules.
const SHIPPED: [(&str, &str); 6] = [
    ("acl", "there are no rules"),
    ("jwt-auth", "names no key"),
    ("rate-limit", "there are no limits"),
    ("redact", "there are no rules"),
    ("validate", "there are no rules"),
    ("webhook-auth", "there is no `url`"),
];

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn each_declares_that_it_fails_closed() -> Result<()> {
    for (name, _) in SHIPPED {
        let declared = format!(
            r#"switchyard:plugin{{"name":"{name}","version":"0.1.0","on_failure":"closed"}}"#
        );
        ensure!(contains(&components::built(name)?, &declared), "{name} has no {declared}");
    }
    Ok(())
}

#[tokio::test]
async fn none_starts_without_rules() -> Result<()> {
    for (name, says) in SHIPPED {
        let directory = components::directory()?;
        let http_allow = json!(["https://id.example.com"]);
        let beside = match name {
            "webhook-auth" => json!({"http_allow": http_allow, "settings": {}}),
            _ => json!({"settings": {}}),
        };
        components::configure(directory.path(), name, &beside)?;
        let file = components::path(directory.path(), name);
        components::write_atomically(&file, &components::built(name)?)?;
        let path = directory.path().to_string_lossy().into_owned();
        let words = ["--plugins", &path];
        let mut server = Server::run_alone(&words)?;
        let (status, _) = server.exit().await?;
        let log = server.log();
        ensure!(status.code() == Some(1) && log.contains(says), "{name}: {status} {log}");
        ensure!(log.contains("for example"), "{name} gives no example: {log}");
    }
    Ok(())
}

async fn with_plugin(name: &str, settings: &Value) -> Result<(Server, tempfile::TempDir)> {
    let directory = components::directory()?;
    components::install(directory.path(), name, &components::built(name)?, settings)?;
    let plugins = Some(directory.path().to_owned());
    Ok((Launch { plugins, ..Launch::default() }.start().await?, directory))
}

fn code(answer: &Value) -> Option<&str> {
    answer.pointer("/1/code").and_then(Value::as_str)
}

const CARD: &str = "4111111111111111";

fn masking() -> Value {
    json!({"rules": [{"channels": ["*"], "regex": r"\d{16}", "action": "mask"}]})
}

#[tokio::test]
async fn padding_does_not_carry_a_card_number_past_redact() -> Result<()> {
    let (server, _directory) = with_plugin("redact", &masking()).await?;
    let mut listener = server.client().await?;
    listener.call(json!(["SUBSCRIBE", "a"])).await?;
    let mut client = server.client().await?;
    let paddings = [
        "x".repeat(1_000_000),
        "1".repeat(200_000),
        "\u{e9}".repeat(100_000),
        r"\u005c".to_owned() + &"u005c".repeat(40_000),
        "[".repeat(200_000),
        r#"{"a":"#.repeat(40_000),
    ];
    for padding in &paddings {
        for payload in [format!("{CARD} {padding}"), json!([CARD, padding]).to_string()] {
            let answer = client.call(json!(["PUBLISH", "a", payload])).await?;
            match code(&answer) {
                Some("TOOLARGE") => {}
                None => {
                    let came = listener.next_json().await?;
                    ensure!(!came.to_string().contains(CARD), "it passed: {answer}");
                }
                Some(other) => anyhow::bail!("{other}: {answer}"),
            }
        }
    }
    // Other payloads are masked all the while, and the plugin never failed.
    let other = format!("card {CARD}");
    ensure!(client.call(json!(["PUBLISH", "a", other])).await? == json!(["OK", 1]));
    let came = listener.next_json().await?;
    ensure!(came == json!(["message", "a", "card ***"]), "{came}");
    ensure!(!server.log().contains("a plugin failed"), "{}", server.log());
    server.stop().await
}

/// For each kind of schema that takes a validator exponential or quadratic time: a schema, and a
/// payload within the default limits.
fn laborious() -> Vec<(Value, String)> {
    let nested = |levels: usize| format!("{}0{}", "[".repeat(levels), "]".repeat(levels));
    let two = |keyword: &str| {
        let tree = json!({"items": {"$ref": "#/$defs/tree"}});
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", keyword: [tree, tree]}}})
    };
    let shapes = (0..3_000).map(|n: u32| {
        // As many arrays of the same numbers, split in different ways.
        let cut = |bit: u32| if n >> bit & 1 == 0 { ["", ""] } else { ["[", "]"] };
        let part = |bit: u32| format!("{}1{}", cut(bit)[0], cut(bit)[1]);
        format!("[{}]", (0..12).map(part).collect::<Vec<_>>().join(","))
    });
    let shapes: Vec<_> = shapes.take(1_600).collect();
    let close = (0..2_000).map(|n: u64| (18_446_744_073_709_549_600 + n).to_string());
    let close: Vec<_> = close.collect();
    let fractions = vec!["1.7976931348623157e308"; 2_500].join(",");
    vec![
        (two("anyOf"), nested(31)),
        (two("oneOf"), nested(31)),
        (two("allOf"), nested(31)),
        (json!({"uniqueItems": true}), format!("[{}]", shapes.join(","))),
        (json!({"uniqueItems": true}), format!("[{}]", close.join(","))),
        (json!({"items": {"multipleOf": 1e-300}}), format!("[{fractions}]")),
        (
            json!({"items": {"format": "regex"}}),
            json!(vec!["((a{1000}){1000}){1000}"; 2_500]).to_string(),
        ),
        (json!({"pattern": "^(a+)+$"}), json!("a".repeat(60_000) + "!").to_string()),
    ]
}

#[tokio::test]
async fn no_payload_makes_validate_overrun_its_budget() -> Result<()> {
    for (schema, payload) in laborious() {
        ensure!(payload.len() <= 64 << 10, "{schema}: {} bytes", payload.len());
        let rule = json!({"name": "it", "channels": ["it"], "schema": schema});
        let other = json!({"name": "other", "channels": ["other"], "schema": {"type": "object"}});
        let (server, _directory) =
            with_plugin("validate", &json!({"rules": [rule, other]})).await?;
        let mut client = server.client().await?;
        for _ in 0..3 {
            let answer = client.call(json!(["PUBLISH", "it", payload])).await?;
            let is_decided = matches!(code(&answer), None | Some("REJECTED" | "TOOLARGE"));
            ensure!(is_decided, "{schema}: {answer}");
            ensure!(client.call(json!(["PUBLISH", "other", "{}"])).await? == json!(["OK", 0]));
        }
        ensure!(!server.log().contains("a plugin failed"), "{schema}: {}", server.log());
        server.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_schema_that_takes_everything_is_refused_with_its_place() -> Result<()> {
    let directory = components::directory()?;
    let schema = json!({"anyOf": [{"$ref": "#"}, {"type": "object"}]});
    let rules = json!({"rules": [{"name": "it", "channels": ["*"], "schema": schema}]});
    components::install(directory.path(), "validate", &components::built("validate")?, &rules)?;
    let path = directory.path().to_string_lossy().into_owned();
    let mut server = Server::run_alone(&["--plugins", &path])?;
    let (status, _) = server.exit().await?;
    let log = server.log();
    ensure!(status.code() == Some(1), "{status}: {log}");
    for says in ["rule 1: schema it: ", "/anyOf/0 leads back to the schema"] {
        ensure!(log.contains(says), "{says:?} is not said: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_malformed_pattern_is_refused_before_anything_is_decided_by_it() -> Result<()> {
    let directory = components::directory()?;
    let rules = json!({"rules": [{"users": ["*"], "subscribe": ["public.*", "[a-"]}]});
    components::install(directory.path(), "acl", &components::built("acl")?, &rules)?;
    let path = directory.path().to_string_lossy().into_owned();
    let mut server = Server::run_alone(&["--plugins", &path])?;
    let (status, _) = server.exit().await?;
    let log = server.log();
    ensure!(
        status.code() == Some(1) && log.contains("rule 1: the pattern `[a-` has a `[`"),
        "{log}"
    );
    Ok(())
}
