//! What a plugin in JavaScript or Python wrote when it failed reaches its author and the operator.
//!
//! The plugins are built here by the real toolchains; the payload chooses how they fail.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::support::admin::{Done, Operator};
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, components, toolchains, within};

const JAVASCRIPT: &str = r#"
import { add } from "switchyard:pubsub/counters@0.2.0";
function deep(x) { return x.nope(); }
const refusal = { tag: "reject", val: { code: "A", message: "b" } };
export const lifecycle = { init(settings) { if (settings.includes("boom")) deep({}); } };
export const messages = {
  onPublish(submissions) {
    switch (String.fromCharCode(...submissions[0].payload)) {
      case "throw": return deep({});
      case "string": throw "a \u001b[31mred\nstring";
      case "long": throw new Error("long ".repeat(1000));
      case "undefined": return;
      case "type": return 5;
      case "bigint": return [{ position: 0n, verdict: refusal }];
      case "bigint-argument": add("n", 1n, undefined); return [];
      case "tag": return [{ position: 0, verdict: { ...refusal, tag: "rejct" } }];
      case "time": return Date.now() > 1.7e12 ? [{ position: 0, verdict: refusal }] : [];
    }
    return [];
  },
};
"#;

const PYTHON: &str = r#"
import sys
import time
import traceback

from wit_world import exports
from wit_world.exports.messages import Decision, PublishVerdict_Reject
from wit_world.imports.types import Refusal

REJECT = PublishVerdict_Reject(Refusal("A", "b"))


class Lifecycle(exports.Lifecycle):
    def init(self, settings):
        if "boom" in settings:
            deep(5)


def deep(x):
    return x.nope()


class Messages(exports.Messages):
    def on_publish(self, submissions, extras):
        case = submissions[0].payload.decode()
        if case == "throw":
            deep(5)
        if case == "string":
            raise ValueError("a \x1b[31mred\nstring")
        if case == "long":
            raise ValueError("long " * 1000)
        if case == "undefined":
            return None
        if case == "type":
            return 5
        if case == "bigint":
            return [Decision(2**70, REJECT)]
        if case == "tag":
            return [Decision(0, 5)]
        if case == "socket":
            import socket

            socket.socket()
        if case == "file":
            open("/etc/passwd")
        if case == "print":
            print("printed on stdout")
            try:
                deep(5)
            except AttributeError:
                traceback.print_exc()
        if case == "time":
            return [Decision(0, REJECT)] if time.time() > 1.7e9 else []
        return []
"#;

/// A plugin named `failing`, built from this source.
struct Built {
    folder: TempDir,
}

/// The commands that build `failing.wasm`; `wit` is that of the contract.
fn commands(language: &str, wit: &str) -> String {
    match language {
        "js" => format!(
            "$TOOLS/npm/node_modules/.bin/componentize-qjs --wit {wit} --world transformer --sync \
             --js failing.js --output failing.wasm"
        ),
        _ => format!(
            "$TOOLS/venv/bin/componentize-py --quiet --wit-path {wit} --world transformer \
             componentize failing --output failing.wasm"
        ),
    }
}

impl Built {
    fn new(language: &str, source: &str, options: &str) -> Result<Built> {
        let folder = components::directory()?;
        let extension = if language == "js" { "js" } else { "py" };
        std::fs::write(folder.path().join("failing").with_extension(extension), source)?;
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        let wit = repository.join("wit");
        let wit = wit.to_str().context("a path in UTF-8")?;
        let tools = repository.join(".tools/plugins");
        let script = format!("TOOLS={}\n{} {options}", tools.display(), commands(language, wit));
        toolchains::run(folder.path(), &script)?;
        let built = Built { folder };
        // So many failures neither park the plugin nor isolate a connection.
        let settings = "policy = \"open\"\ncall_budget_ms = 1000\nstrikes_max = 100\n\
                        strikes_per_connection_max = 100\n";
        std::fs::write(built.file().with_extension("toml"), settings)?;
        Ok(built)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("failing.wasm")
    }

    fn command(&self, words: &[&str]) -> Result<Done> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
        command.arg("plugin").args(words).current_dir(self.folder.path());
        command.env("SWITCHYARD_CACHE", crate::support::compiled());
        Done::of(command.output()?)
    }

    /// A server with the plugin.
    async fn serve(&self, plugins: &Path) -> Result<Server> {
        for name in ["failing.wasm", "failing.toml"] {
            std::fs::copy(self.folder.path().join(name), plugins.join(format!("20-{name}")))?;
        }
        // Compiled before, because that may take longer than a server is waited for.
        let done = self.command(&["check", "failing.wasm"])?;
        ensure!(done.code == Some(0), "{done:?}");
        // The client answers no pings while a large component is compiled.
        let config = "websocket.ping_interval_ms = 600000\nplugins.rebuild_backoff_max_ms = 100";
        let directory = Some(plugins.to_owned());
        Launch { plugins: directory, ..Launch::with_config(config) }.start().await
    }

    /// `plugin test` with a client that publishes this payload.
    fn play(&self, payload: &str) -> Result<Done> {
        let conversation =
            format!("alice> [1,\"PUBLISH\",\"a\",\"{payload}\"]\nalice< [1,\"OK\",0]\n");
        std::fs::write(self.folder.path().join("talk.txt"), conversation)?;
        self.command(&["test", "failing.wasm", "talk.txt"])
    }

    /// Publishes payloads that make the plugin fail; each failure says what is expected, in the
    /// log, in the API, in `plugin show` and in `plugin test`.
    async fn check(&self, failures: &[(&str, &[&str])], init_says: &str) -> Result<()> {
        let plugins = components::directory()?;
        let server = self.serve(plugins.path()).await?;
        let operator = Operator::of(&server).await?;
        let mut client = server.client().await?;
        for (payload, says) in failures {
            // The plugin may be rebuilt yet after the failure before.
            let failing = async {
                loop {
                    let answer = client.call(json!(["PUBLISH", "a", payload])).await?;
                    assert_eq!(answer, json!(["OK", 0]), "{payload}");
                    let view = operator.get("/v1/plugins/failing")?;
                    let messages =
                        view.get("failures").and_then(|all| all.as_array()).into_iter().flatten();
                    let mut messages = messages.filter_map(|failure| failure["message"].as_str());
                    let is_it = |text: &&str| says.iter().all(|says| text.contains(says));
                    if let Some(message) = messages.find(is_it) {
                        return Ok::<_, anyhow::Error>(message.to_owned());
                    }
                }
            };
            let message = within(PATIENCE, payload, failing).await;
            let message = message.with_context(|| server.log())??;
            ensure!(message.len() <= 1 << 10, "{payload}: {message}");
            ensure!(!message.contains(char::is_control), "{payload}: {message:?}");
        }
        // The log has each failure in one line, and nothing else of a panic.
        ensure!(!server.log().contains("RUST_BACKTRACE"), "{}", server.log());
        let (payload, says) = failures.first().context("a failure")?;
        let shown = operator.say(&["plugin", "show", "failing"])?;
        let done = self.play(payload)?;
        ensure!(done.code == Some(1), "{done:?}");
        for says in *says {
            ensure!(server.log().contains(says), "{says:?} is not in {}", server.log());
            ensure!(shown.contains(says), "{says:?} is not in {shown}");
            ensure!(done.stdout.contains(says), "{says:?} is not in {done:?}");
        }
        // The clock works, so this is rejected.
        let answer = client.call(json!(["PUBLISH", "a", "time"])).await?;
        assert_eq!(answer.pointer("/1/code"), Some(&json!("A")), "{answer}");
        self.is_refused_in_init(&server, &operator, init_says)?;
        server.stop().await
    }

    /// A version that fails in `init` is refused with what it wrote.
    fn is_refused_in_init(&self, server: &Server, operator: &Operator, says: &str) -> Result<()> {
        let other = server.home().join("boom.toml");
        std::fs::write(&other, "settings.x = \"boom\"\n")?;
        let other = other.to_str().context("a path in UTF-8")?;
        let done = operator.run(&["plugin", "reload", "failing", "--config", other])?;
        ensure!(done.code == Some(1) && done.stderr.contains(says), "{done:?}");
        Ok(())
    }
}

#[tokio::test]
async fn what_javascript_threw_or_returned_wrongly_is_shown() -> Result<()> {
    let failures: [(&str, &[&str]); 8] = [
        ("throw", &["it threw not a function at deep (", "failing.js:3:", "onPublish ("]),
        ("string", &["it threw \"a \\u{1b}[31mred string\""]),
        ("long", &["it threw long long", "…"]),
        ("undefined", &["expected array"]),
        ("type", &["expected array"]),
        ("bigint", &["expected number", "big_int", "i32"]),
        ("bigint-argument", &["expected number", "big_int", "f64"]),
        ("tag", &["unknown variant tag: rejct"]),
    ];
    // `init` has a result: what it throws is the error of the contract, without a stack.
    Built::new("js", JAVASCRIPT, "")?.check(&failures, "not a function").await
}

#[tokio::test]
async fn what_python_raised_or_returned_wrongly_is_shown() -> Result<()> {
    let raised = "it raised AttributeError: 'int' object has no attribute 'nope' at deep (";
    let failures: [(&str, &[&str]); 9] = [
        ("throw", &[raised, "failing.py:", "on_publish ("]),
        ("string", &["it raised ValueError: a \\u{1b}[31mred string at on_publish ("]),
        ("long", &["it raised ValueError: long long", "…"]),
        ("undefined", &["CastError", "from: None"]),
        ("type", &["from: 5", "<class 'list'>"]),
        ("bigint", &["OverflowError"]),
        ("tag", &["KeyError(<class 'int'>)"]),
        // There is a file system and a network, but nothing in them.
        ("socket", &["it raised ", "socket"]),
        ("file", &["it raised FileNotFoundError"]),
    ];
    let built = Built::new("python", PYTHON, "")?;
    built.check(&failures, raised).await?;
    // A traceback that the plugin handles is logged, in one line.
    let done = built.play("print")?;
    ensure!(done.code == Some(0), "{done:?}");
    ensure!(done.stderr.contains("printed on stdout"), "{done:?}");
    let trace = done.stderr.lines().find(|line| line.contains("Traceback")).context("a line")?;
    ensure!(trace.contains("AttributeError: 'int' object"), "{trace}");
    Ok(())
}

#[test]
fn a_component_without_standard_error_says_so() -> Result<()> {
    let done = Built::new("js", JAVASCRIPT, "--stub-wasi")?.play("throw")?;
    ensure!(done.code == Some(1), "{done:?}");
    for says in ["it panicked or ran out of memory", "--stub-wasi"] {
        ensure!(done.stdout.contains(says), "{done:?}");
    }
    Ok(())
}

/// A component exports all hooks of its world, whether or not its source has them.
#[test]
fn a_misspelt_hook_is_found_before_it_is_loaded() -> Result<()> {
    for (wrong, hook) in [("onPublsh(", "on-publish"), ("onPublish: 5, other(", "on-publish")] {
        let source = JAVASCRIPT.replace("onPublish(", wrong);
        let done = Built::new("js", &source, "")?.command(&["check", "failing.wasm"])?;
        ensure!(done.code == Some(1), "{wrong}: {done:?}");
        ensure!(done.stdout.contains(&format!("{hook} fails whenever")), "{wrong}: {done:?}");
        ensure!(done.stdout.contains("onPublish"), "{wrong}: {done:?}");
    }
    let source = JAVASCRIPT.replace("const messages", "const mesages");
    let done = Built::new("js", &source, "")?.command(&["check", "failing.wasm"])?;
    ensure!(done.code == Some(1) && done.stdout.contains("messages"), "{done:?}");
    let source = JAVASCRIPT.replace("init(", "initt(");
    let done = Built::new("js", &source, "")?.command(&["check", "failing.wasm"])?;
    ensure!(done.code == Some(1) && done.stdout.contains("'init'"), "{done:?}");
    let done = Built::new("js", JAVASCRIPT, "")?.command(&["check", "failing.wasm"])?;
    ensure!(done.code == Some(0), "{done:?}");
    Ok(())
}

/// In Python the build fails, with the name of the function.
#[test]
fn a_misspelt_hook_in_python_ends_the_build() -> Result<()> {
    let source = PYTHON.replace("def on_publish", "def on_publsh");
    let Err(error) = Built::new("python", &source, "") else {
        anyhow::bail!("a misspelt hook was built");
    };
    ensure!(format!("{error:#}").contains("'on_publish'"), "{error:#}");
    Ok(())
}
