//! `switchyard plugin test`: conversations played without a server.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::admin::Done;
use crate::support::components;

/// A folder with plugins and a conversation.
struct Rehearsal {
    folder: TempDir,
}

impl Rehearsal {
    fn of(conversation: &str) -> Result<Rehearsal> {
        let folder = components::directory()?;
        std::fs::write(folder.path().join("talk.txt"), conversation)?;
        Ok(Rehearsal { folder })
    }

    /// Adds this plugin with these settings.
    fn with(self, slot: &str, component: &str, beside: &Value) -> Result<Rehearsal> {
        let component = components::built(component)?;
        components::configure(self.path(), slot, beside)?;
        components::write_atomically(&components::path(self.path(), slot), &component)?;
        Ok(self)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Plays it. Arguments that begin with a dot are in the folder.
    fn play(&self, words: &[&str]) -> Result<Done> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
        command.args(["plugin", "test"]).args(words).current_dir(self.path());
        command.env("SWITCHYARD_CACHE", crate::support::compiled());
        Done::of(command.output()?)
    }

    /// The output for programs, and the exit code.
    fn play_for_programs(&self, words: &[&str]) -> Result<(Option<i32>, Value)> {
        let done = self.play(&[words, &["--json"]].concat())?;
        let played = serde_json::from_str(&done.stdout);
        Ok((done.code, played.with_context(|| format!("{done:?}"))?))
    }
}

fn masking() -> Value {
    json!({"settings": {"rules": [
        {"channels": ["*"], "regex": "s[e3]cret", "action": "mask", "with": "***"},
    ]}})
}

#[test]
fn a_conversation_that_goes_as_written_passes() -> Result<()> {
    let conversation = r#"# Masks.
alice> [1,"SUBSCRIBE","a","b"]
alice< [1,"OK",2]
bob> [1,"PUBLISH","a","my secret"]
bob< [1,"OK",1]
bob> [2,"PUBLISH","b","s3cret"]
bob< [2,"OK",*number]
alice<& ["message","b","***"]
alice<& ["message","a",~"***"]
bob<nothing
"#;
    let rehearsal = Rehearsal::of(conversation)?.with("redact", "redact", &masking())?;
    let done = rehearsal.play(&["./redact.wasm", "./talk.txt"])?;
    ensure!(done.code == Some(0), "{done:?}");
    for says in [
        "plugins: redact@",
        "ok        2: alice> [1,\"SUBSCRIBE\",\"a\",\"b\"]\n",
        "ok        9: alice<& [\"message\",\"a\",~\"***\"]\n",
        "came: [\"message\",\"a\",\"my ***\"]\n",
        "all 8 steps as expected",
    ] {
        ensure!(done.stdout.contains(says), "{says:?} is not said: {}", done.stdout);
    }

    let (_, played) = rehearsal.play_for_programs(&["./redact.wasm", "./talk.txt"])?;
    assert_eq!(played.pointer("/passed"), Some(&json!(true)));
    assert_eq!(played.pointer("/at_end"), Some(&Value::Null));
    let expected = json!({
        "line": 8,
        "text": ["alice<& [\"message\",\"b\",\"***\"]", "alice<& [\"message\",\"a\",~\"***\"]"],
        "outcome": "passed",
        "came": ["[\"message\",\"a\",\"my ***\"]", "[\"message\",\"b\",\"***\"]"],
        "problem": null,
    });
    assert_eq!(played.pointer("/steps/6"), Some(&expected));
    Ok(())
}

#[test]
fn the_first_difference_ends_it_with_what_came() -> Result<()> {
    let conversation = r#"alice> [1,"SUBSCRIBE","a"]
alice< [1,"OK",1]

bob> [1,"PUBLISH","a","secret"]
bob< [1,"OK",1]
alice< ["message","a","secret"]
bob> [2,"PING"]
bob< [2,"OK","PONG"]
"#;
    let rehearsal = Rehearsal::of(conversation)?.with("redact", "redact", &masking())?;
    let done = rehearsal.play(&["./redact.wasm", "./talk.txt"])?;
    ensure!(done.code == Some(1), "{done:?}");
    for says in [
        "ok        5: bob<",
        "FAILED    6: alice< [\"message\",\"a\",\"secret\"]\n",
        "what came is [\"message\",\"a\",\"***\"]\n",
        "it went otherwise, and 2 steps were not played",
    ] {
        ensure!(done.stdout.contains(says), "{says:?} is not said: {}", done.stdout);
    }
    let (_, played) = rehearsal.play_for_programs(&["./redact.wasm", "./talk.txt"])?;
    assert_eq!(played.pointer("/passed"), Some(&json!(false)));
    assert_eq!(played.pointer("/steps/4/outcome"), Some(&json!("failed")));
    assert_eq!(played.pointer("/steps/5/outcome"), Some(&json!("not played")));
    Ok(())
}

#[test]
fn what_is_left_and_what_never_comes_are_differences() -> Result<()> {
    let plugin = |conversation| Rehearsal::of(conversation)?.with("redact", "redact", &masking());
    for (conversation, says) in [
        ("alice> [1,\"SUBSCRIBE\",\"a\"]\n", "FAILED at the end: for alice came"),
        ("alice> [1,\"PING\"]\nalice<nothing\n", "FAILED    2: alice<nothing"),
        ("alice< [1,\"OK\",1]\n", "waited 50ms in vain"),
        ("connect alice /ws -> switchyard.v1.json\n", "was chosen is none"),
        ("connect alice /nope\n", "it was refused with HTTP 404"),
        ("connect alice /ws -> http 404\n", "it was accepted"),
        ("alice<close 4001\n", "in vain"),
    ] {
        let play = ["./redact.wasm", "./talk.txt", "--patience-ms", "50"];
        let done = plugin(conversation)?.play(&play)?;
        ensure!(done.code == Some(1), "{conversation}: {done:?}");
        ensure!(done.stdout.contains(says), "{says:?} is not said: {}", done.stdout);
    }
    Ok(())
}

#[test]
fn a_failing_call_is_seen_where_the_policy_hides_it() -> Result<()> {
    let conversation = "alice> [1,\"PUBLISH\",\"a\",\"x\"]\nalice< [1,\"OK\",0]\n";
    let beside = json!({"policy": "open", "settings": {"on_publish": ["panic"]}});
    let rehearsal = Rehearsal::of(conversation)?.with("probe", "test/probe", &beside)?;
    let done = rehearsal.play(&["./probe.wasm", "./talk.txt"])?;
    ensure!(done.code == Some(1), "{done:?}");
    ensure!(done.stdout.contains("failed in on-publish: "), "{done:?}");
    Ok(())
}

#[test]
fn a_chain_is_played_in_the_order_of_its_names() -> Result<()> {
    // 10-acl admits only alice; 20-redact masks. The conversation adds a third plugin.
    let conversation = r#"config: limits.name_bytes_max = 8
plugin: 30-late redact.wasm {"rules":[{"channels":["*"],"regex":"[*]+","action":"mask","with":"(masked)"}]}

connect eve /ws
eve> [1,"PUBLISH","a","x"]
eve< [1,"ERR",{"code":"NOPERM","message":*string,"by":~"acl@"}]
connect alice /ws?token=s3cret
alice> [1,"SUBSCRIBE","a"]
alice< [1,"OK",1]
alice> [2,"PUBLISH","a","a secret"]
alice<& [2,"OK",1]
alice<& ["message","a","a (masked)"]
alice> [3,"SUBSCRIBE","too-long-a-name"]
alice< [3,"ERR",{"code":"TOOLARGE",...}]
"#;
    let acl = json!({"settings": {
        "tokens": {"s3cret": "alice"},
        "rules": [{"users": ["alice"], "subscribe": ["*"], "publish": ["*"]}],
    }});
    let rehearsal = Rehearsal::of(conversation)?
        .with("20-redact", "redact", &masking())?
        .with("10-acl", "acl", &acl)?;
    std::fs::copy(rehearsal.path().join("20-redact.wasm"), rehearsal.path().join("redact.wasm"))?;
    let play = ["./20-redact.wasm", "./talk.txt", "--with", "./10-acl.wasm"];
    let done = rehearsal.play(&play)?;
    ensure!(done.code == Some(0), "{done:?}");
    let plugins = done.stdout.lines().next().unwrap_or_default();
    let order = ["acl@", "redact@", "late@"].map(|name| plugins.find(name));
    ensure!(order.is_sorted() && order.iter().all(Option::is_some), "{plugins}");
    Ok(())
}

#[test]
fn settings_are_those_that_were_named() -> Result<()> {
    let conversation =
        "a> [1,\"PUBLISH\",\"a\",\"secret\"]\na< [1,\"ERR\",{\"message\":~\"not that\",...}]\n";
    let rehearsal = Rehearsal::of(conversation)?.with("redact", "redact", &masking())?;
    let rejecting = json!({"settings": {"rules": [
        {"channels": ["*"], "regex": "secret", "action": "reject", "message": "not that"},
    ]}});
    components::configure(rehearsal.path(), "other", &rejecting)?;
    let play = ["./redact.wasm", "./talk.txt", "--config", "./other.toml"];
    let done = rehearsal.play(&play)?;
    ensure!(done.code == Some(0), "{done:?}");
    Ok(())
}

#[test]
fn nonsense_is_reported_with_its_line_and_exit_code_64() -> Result<()> {
    for (conversation, says) in [
        ("# fine\nalice> [1,\"PING\"]\n\nalice says hello\n", "talk.txt: line 4: neither"),
        ("alice> x\nalice< [1,\n", "talk.txt: line 2: "),
        ("alice>shout x\n", "talk.txt: line 1: no such kind of line: `>shout`"),
        ("alice> x\nconfig: limits.name_bytes_max = 8\n", "line 2: `config:` stands before"),
        ("config: limits.name_bytes_min = 8\n", "name_bytes_min"),
        ("config: cluster.url = \"redis://127.0.0.1:1\"\n", "no other nodes in a test"),
        ("plugin: 10-no not-there.wasm\n", "not-there.wasm"),
        ("plugin: redact redact.wasm\n", "the slot redact is occupied"),
        ("plugin: 10/20 redact.wasm\n", "cannot name a slot"),
    ] {
        let rehearsal = Rehearsal::of(conversation)?.with("redact", "redact", &masking())?;
        let done = rehearsal.play(&["./redact.wasm", "./talk.txt"])?;
        ensure!(done.code == Some(64) && done.stdout.is_empty(), "{conversation}: {done:?}");
        ensure!(done.stderr.contains(says), "{says:?} is not said: {done:?}");
        let (code, played) = rehearsal.play_for_programs(&["./redact.wasm", "./talk.txt"])?;
        ensure!(code == Some(64), "{conversation}: {played}");
        assert_eq!(played.pointer("/passed"), Some(&json!(false)));
    }
    let rehearsal = Rehearsal::of("a>shout\n")?.with("redact", "redact", &masking())?;
    let (_, played) = rehearsal.play_for_programs(&["./redact.wasm", "./talk.txt"])?;
    assert_eq!(played.pointer("/line"), Some(&json!(1)));
    for play in [
        &["./redact.wasm", "./no.txt"][..],
        &["./no.wasm", "./talk.txt"],
        &["./redact.toml", "./talk.txt"],
        &["./redact.wasm", "./talk.txt", "--config", "./no.toml"],
        &["./redact.wasm", "./talk.txt", "--patience-ms", "0"],
        &["./redact.wasm", "./talk.txt", "--log", "a=b=c"],
    ] {
        let rehearsal = Rehearsal::of("")?.with("redact", "redact", &masking())?;
        let done = rehearsal.play(play)?;
        ensure!(done.code == Some(64), "{play:?}: {done:?}");
    }
    Ok(())
}

#[test]
fn a_plugin_that_the_server_would_refuse_is_not_played() -> Result<()> {
    let beside = json!({"settings": {"init": "error"}});
    let rehearsal = Rehearsal::of("a> [1,\"PING\"]\n")?.with("probe", "test/probe", &beside)?;
    let done = rehearsal.play(&["./probe.wasm", "./talk.txt"])?;
    ensure!(done.code == Some(1) && done.stdout.is_empty(), "{done:?}");
    for says in ["the server would refuse it: init: ", "configured to refuse"] {
        ensure!(done.stderr.contains(says), "{says:?} is not said: {done:?}");
    }
    Ok(())
}
