//! Which requests the admin API answers: tokens, origins, other machines, and no server at all.

use super::*;

const OPS: &str = "0123456789abcdef-ops";
const CI: &str = "fedcba9876543210-ci";

#[tokio::test]
async fn where_there_are_tokens_one_must_be_shown() -> Result<()> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("tokens");
    std::fs::write(&file, format!("# the tokens\nops:{OPS}\nci:{CI}\n"))?;
    let config = format!("{CONFIG}admin.tokens_file = {:?}\n", file.to_str().context("text")?);
    let server = Launch::with_config(&config).start().await?;
    let anonymous = Operator::of(&server).await?;
    let (status, error) = anonymous.ask("GET", "/v1/plugins", None)?;
    ensure!((status, &error["code"]) == (401, &json!("unauthorised")), "{error}");
    let head = format!("GET /v1/stats HTTP/1.1\r\nHost: {}\r\n", anonymous.authority());
    let (_, answered, _) = anonymous.exchange(&head, b"")?;
    ensure!(answered.to_lowercase().contains("www-authenticate: bearer"), "{answered}");
    let done = anonymous.run(&["plugin", "ls"])?;
    ensure!(done.code == Some(1) && done.stderr.contains("SWITCHYARD_ADMIN_TOKEN"), "{done:?}");
    for wrong in ["0123456789abcdef-opt", "ops", "", "0123456789abcdef-ops-and-more"] {
        let wrong = Operator::of(&server).await?.with_token(wrong);
        ensure!(wrong.ask("GET", "/v1/plugins", None)?.0 == 401);
        ensure!(wrong.ask("POST", "/v1/engine/rollback", None)?.0 == 401);
        ensure!(wrong.ask("GET", "/v1/trace?connection=1", None)?.0 == 401);
    }
    let file = home.path().join("probe.wasm");
    std::fs::write(&file, probe(1)?)?;
    let path = file.to_str().context("text")?;
    let ops = Operator::of(&server).await?.with_token(OPS);
    ops.say(&["plugin", "load", "10-probe", path])?;
    let ci = Operator::of(&server).await?.with_token(CI);
    let swapped = ci.json(&["plugin", "reload", "probe"])?;
    ensure!(swapped["by"] == "ci", "{swapped}");
    let added = server.wait_for_log("a plugin was added").await?;
    ensure!(added.contains("by=ops") && added.contains("pause_us="), "{added}");
    let swapped = server.wait_for_log("a plugin was swapped").await?;
    ensure!(swapped.contains("by=ci"), "{swapped}");
    let log = server.log();
    ensure!(!log.contains(OPS) && !log.contains(CI), "a token is in the log");
    server.stop().await
}

#[tokio::test]
async fn what_others_can_reach_needs_tokens() -> Result<()> {
    let words = ["serve", "--http", "127.0.0.1:0", "--resp", "off", "--admin", "0.0.0.0:0"];
    let mut server = Server::run_with(&words)?;
    let (status, stdout) = server.exit().await?;
    let log = server.log();
    ensure!((status.code(), stdout.len()) == (Some(64), 0), "{log}");
    for word in ["0.0.0.0:0", "admin.tokens_file", "SWITCHYARD_ADMIN_TOKENS", "127.0.0.1"] {
        ensure!(log.contains(word), "{word} is not said: {log}");
    }
    let check = |tokens: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_switchyard"));
        command.args(words).arg("--check").env("SWITCHYARD_ADMIN_TOKENS", tokens);
        Done::of(command.output()?)
    };
    let done = check(&format!("ops:{OPS},ci:{CI}"))?;
    ensure!(done.code == Some(0), "{done:?}");
    for bad in ["ops", "ops:short", "file:0123456789abcdef", ","] {
        let done = check(bad)?;
        ensure!(done.code == Some(64) && !done.stderr.contains("short"), "{bad}: {done:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_page_in_a_browser_can_do_nothing() -> Result<()> {
    let server = Launch::with_config(CONFIG).start().await?;
    let operator = Operator::of(&server).await?;
    let authority = operator.authority();
    let port = authority.rsplit_once(':').context("a port")?.1;
    let mine = format!("Host: {authority}\r\n");
    for (head, expected) in [
        (mine.clone(), 200),
        (format!("Host: localhost:{port}\r\n"), 200),
        // A name that was pointed at loopback.
        (format!("Host: evil.example:{port}\r\n"), 403),
        (format!("{mine}Origin: http://evil.example\r\n"), 403),
        (format!("{mine}Origin: null\r\n"), 403),
        (format!("{mine}Origin: http://{authority}\r\n"), 200),
        (format!("{mine}Sec-Fetch-Site: cross-site\r\n"), 403),
        (String::new(), 400),
    ] {
        let request = format!("GET /v1/stats HTTP/1.1\r\n{head}");
        let (status, ..) = operator.exchange(&request, b"")?;
        ensure!(status == expected, "{head:?} was answered {status}");
    }
    // The content types that a form can send without a preflight request.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let body = json!({"path": "/x"}).to_string().into_bytes();
        let (status, error) =
            operator.ask_with("POST", "/v1/plugins/10-x", Some((kind, body.clone())))?;
        ensure!((status, &error["code"]) == (415, &json!("wrong-kind")), "{status} {error}");
        let (status, _) = operator.ask_with("POST", "/v1/plugins/x/reload", Some((kind, body)))?;
        ensure!(status == 415, "{status}");
    }
    server.stop().await
}

#[tokio::test]
async fn a_command_without_a_server_says_so() -> Result<()> {
    let run = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_switchyard"));
        Done::of(command.args(words).output()?)
    };
    // No server listens on port 1 of loopback.
    let unused = "http://127.0.0.1:1";
    for words in [
        &["plugin", "ls"][..],
        &["engine", "show"],
        &["connections"],
        &["plugin", "trace", "--channel", "*"],
    ] {
        let done = run(&[words, &["--admin", unused]].concat())?;
        ensure!(done.code == Some(1) && done.stdout.is_empty(), "{done:?}");
        ensure!(done.stderr.contains(unused) && done.stderr.contains("--admin"), "{done:?}");
    }
    for words in [
        &["plugin"][..],
        &["plugin", "swap", "x"],
        &["plugin", "move", "x"],
        &["plugin", "move", "x", "--to", "a", "--before", "b"],
        &["plugin", "trace"],
        &["plugin", "ls", "--admin", "127.0.0.1:1"],
        &["plugin", "ls", "--admin", "ws://127.0.0.1:1"],
        &["plugin", "load", "x", "/nowhere.wasm"],
        &["connections", "--close"],
        &["engine", "swap"],
    ] {
        let done = run(words)?;
        ensure!(done.code == Some(64) && !done.stderr.is_empty(), "{words:?}: {done:?}");
    }
    Ok(())
}
