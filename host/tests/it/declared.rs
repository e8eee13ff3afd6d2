//! A plugin declares how it fails, in a section that is read without an instance. The operator's
//! settings take precedence.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::admin::{Done, Operator};
use crate::support::components;
use crate::support::server::{Launch, Server};

const UNDECLARED: &str = "does not say how it fails";

/// A plugin that only rewrites messages.
const PLUGIN: &str = "redact";

fn settings() -> Value {
    json!({"rules": [{"channels": ["*"], "regex": "secret", "action": "mask"}]})
}

#[tokio::test]
async fn the_policy_is_the_operators_or_the_components_or_that_of_the_hooks() -> Result<()> {
    for (configured, declared, policy, source) in [
        (None, "{}", "open", "default"),
        (None, r#"{"on_failure": "closed", "later": 1}"#, "closed", "component"),
        (None, r#"{"on_failure": "open"}"#, "open", "component"),
        (Some("open"), r#"{"on_failure": "closed"}"#, "open", "config"),
        (Some("closed"), "{}", "closed", "config"),
    ] {
        let directory = components::directory()?;
        let component = components::declaring(components::built(PLUGIN)?, declared);
        let mut config = json!({"settings": settings()});
        if let (Some(policy), Some(config)) = (configured, config.as_object_mut()) {
            config.insert("policy".to_owned(), json!(policy));
        }
        components::configure(directory.path(), PLUGIN, &config)?;
        let file = components::path(directory.path(), PLUGIN);
        components::write_atomically(&file, &component)?;
        let plugins = Some(directory.path().to_owned());
        let server = Launch { plugins, ..Launch::default() }.start().await?;
        let operator = Operator::of(&server).await?;
        let shown = operator.get("/v1/plugins/redact")?;
        ensure!(shown["policy"] == policy && shown["policy_source"] == source, "{shown}");
        let listed = operator.say(&["plugin", "ls"])?;
        ensure!(listed.contains(policy) && listed.contains("(default)") == (source == "default"));
        let said = operator.say(&["plugin", "show", PLUGIN])?;
        ensure!(said.contains(&format!("{policy} (")), "{said}");
        let is_warned = server.log().contains(UNDECLARED);
        ensure!(is_warned == (source == "default"), "{declared}: {}", server.log());
        server.stop().await?;

        let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_switchyard"));
        check.env("SWITCHYARD_CACHE", crate::support::compiled());
        let done = Done::of(check.args(["plugin", "check"]).arg(&file).output()?)?;
        ensure!(done.code == Some(0) && done.stdout.contains(&format!("{policy} (")), "{done:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_malformed_declaration_is_refused_with_a_message() -> Result<()> {
    let directory = components::directory()?;
    let component = components::declaring(components::built(PLUGIN)?, r#"{"on_failure": "shut"}"#);
    components::install(directory.path(), PLUGIN, &component, &settings())?;
    let path = directory.path().to_string_lossy().into_owned();
    let mut server = Server::run_alone(&["--plugins", &path])?;
    let (status, _) = server.exit().await?;
    let log = server.log();
    for word in ["declaration", "redact.wasm", "switchyard:plugin", "shut"] {
        ensure!(log.contains(word), "{word:?} is not said: {log}");
    }
    ensure!(status.code() == Some(1), "{log}");
    Ok(())
}
