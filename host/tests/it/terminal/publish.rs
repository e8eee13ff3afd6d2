//! `switchyard pub`.

use std::os::unix::ffi::OsStrExt;

use anyhow::Result;
use serde_json::json;

use super::{command, fed, in_a_terminal, outcome};
use crate::support::components;
use crate::support::process::Process;
use crate::support::server::Launch;

#[tokio::test]
async fn what_is_given_is_published_in_its_order() -> Result<()> {
    let server = Launch::default().start().await?;
    let url = server.url().await?;
    let mut listener = server.client().await?;
    listener.call(json!(["SUBSCRIBE", "news"])).await?;

    let process = Process::start("pub", &mut command(&url, &["pub", "news", "one", "two", "-x"]))?;
    let (_, said) = outcome(process, 64).await?;
    assert!(said.contains("-x"), "{said}");

    let words = ["pub", "--url", &url, "news", "one", "two", "--", "-x"];
    let mut run = super::switchyard(&words);
    let (lines, _) = outcome(Process::start("pub", &mut run)?, 0).await?;
    let line = r#"{"channel":"news","deliveries":1}"#;
    assert_eq!(lines, [line, line, line]);
    for payload in ["one", "two", "-x"] {
        assert_eq!(listener.next_json().await?, json!(["message", "news", payload]));
    }

    // Bytes that are not UTF-8, and no subscriber.
    let not_utf8 = std::ffi::OsStr::from_bytes(b"\xff");
    let mut run = command(&url, &["pub".as_ref(), not_utf8, not_utf8]);
    let (lines, _) = outcome(Process::start("pub", &mut run)?, 0).await?;
    assert_eq!(lines, [r#"{"channel":{"base64":"/w=="},"deliveries":0}"#]);
    server.stop().await
}

#[tokio::test]
async fn standard_input_is_published() -> Result<()> {
    let server = Launch::with_config("limits.payload_bytes_max = 300").start().await?;
    let url = server.url().await?;
    let mut listener = server.client().await?;
    listener.call(json!(["SUBSCRIBE", "news"])).await?;

    let process = fed("pub", &mut command(&url, &["pub", "news", "-"]), b"a\nb\n")?;
    outcome(process, 0).await?;
    assert_eq!(listener.next_json().await?, json!(["message", "news", "a\nb\n"]));

    // Many more than may be in flight at once, and the last without a line end.
    let lines: Vec<String> = (0..1_000).map(|n| format!("line {n}")).collect();
    let process =
        fed("pub", &mut command(&url, &["pub", "news", "--lines"]), lines.join("\n").as_bytes())?;
    let (printed, _) = outcome(process, 0).await?;
    assert_eq!(printed.len(), lines.len());
    for line in lines {
        assert_eq!(listener.next_json().await?, json!(["message", "news", line]));
    }

    // Input that the server would refuse is not read to its end.
    let long = [b"short\n".to_vec(), vec![b'x'; 301]].concat();
    let process = fed("pub", &mut command(&url, &["pub", "news", "--lines"]), &long)?;
    let (_, said) = outcome(process, 1).await?;
    assert!(said.contains("300 bytes"), "{said}");
    assert_eq!(listener.next_json().await?, json!(["message", "news", "short"]));
    server.stop().await
}

#[tokio::test]
async fn a_terminal_shows_how_many_deliveries_that_made() -> Result<()> {
    let server = Launch::default().start().await?;
    let run = command(&server.url().await?, &["pub", "news", "one", "two"]);
    let (lines, _) = outcome(Process::start("pub", &mut in_a_terminal(&run)?)?, 0).await?;
    let shown = lines.join("\n");
    assert!(shown.contains("2 messages on ") && shown.contains("0 deliveries"), "{shown:?}");
    assert!(shown.contains("\u{1b}["), "no colour: {shown:?}");
    server.stop().await
}

#[tokio::test]
async fn refusals_exit_with_1_and_name_the_plugin() -> Result<()> {
    let plugins = components::directory()?;
    let settings = json!({
        "tokens": { "s3cret": "alice" },
        "rules": [{ "users": ["alice"], "subscribe": ["*"], "publish": ["*"] }],
    });
    components::install(plugins.path(), "10-acl", &components::built("acl")?, &settings)?;
    let plugins = Some(plugins.path().to_owned());
    let server = Launch { plugins, ..Launch::default() }.start().await?;
    let url = server.url().await?;

    let run = |words: &[&str], token: Option<&str>| -> Result<Process> {
        let mut command = command(&url, words);
        if let Some(token) = token {
            command.env("SWITCHYARD_TOKEN", token);
        }
        Process::start("pub", &mut command)
    };
    let publishes = ["pub", "news", "hello"];
    let (lines, said) = outcome(run(&publishes, None)?, 1).await?;
    assert!(lines.is_empty(), "{lines:?}");
    assert!(said.contains("[acl@") && said.matches("NOPERM").count() == 1, "{said}");
    // A token in the environment, sent in the URL or by AUTH.
    outcome(run(&publishes, Some("s3cret"))?, 0).await?;
    outcome(run(&["pub", "--token-by", "auth", "news", "hello"], Some("s3cret"))?, 0).await?;
    let (_, said) = outcome(run(&publishes, Some("wr0ng"))?, 1).await?;
    assert!(said.contains("4001") && !said.contains("wr0ng"), "{said}");
    let by_auth = ["pub", "--token-by", "auth", "news", "hello"];
    let (_, said) = outcome(run(&by_auth, Some("wr0ng"))?, 1).await?;
    assert!(said.contains("NOAUTH") && !said.contains("wr0ng"), "{said}");
    // The help does not show it either.
    let (help, _) = outcome(run(&["pub", "--help"], Some("s3cret"))?, 0).await?;
    assert!(!help.join("\n").contains("s3cret"), "{help:?}");
    server.stop().await
}

#[tokio::test]
async fn nonsense_ends_with_64_and_no_server_with_1() -> Result<()> {
    for (words, says) in [
        (&["pub"][..], "CHANNEL"),
        (&["pub", "news"], "PAYLOAD"),
        (&["pub", "news", "x", "--lines"], "--lines"),
        (&["pub", "news", "x", "--url", "resp://here"], "resp:// is not spoken"),
        (&["pub", "news", "x", "--timeout", "0"], "seconds"),
        (&["pub", "news", "x", "--user", "alice"], "--token"),
        (&["sub"], "NAME"),
        (&["sub", "news", "--count", "0"], "--count"),
    ] {
        let process = Process::start("pub", &mut super::switchyard(words))?;
        let (lines, said) = outcome(process, 64).await?;
        assert!(lines.is_empty() && said.contains(says), "{words:?}: {said}");
    }
    // A port that accepts connections but never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let url = format!("ws://{}", silent.local_addr()?);
    let run = &mut command(&url, &["pub", "news", "x", "--timeout", "0.2"]);
    let (_, said) = outcome(Process::start("pub", run)?, 1).await?;
    assert!(said.contains("no answer from ws://"), "{said}");
    drop(silent);
    for words in [&["pub", "news", "x"][..], &["sub", "news"]] {
        let (_, said) = outcome(Process::start("pub", &mut command(&url, words))?, 1).await?;
        assert!(said.contains("cannot connect to ws://"), "{said}");
    }
    Ok(())
}
