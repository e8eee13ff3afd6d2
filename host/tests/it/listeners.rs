//! Listeners on several addresses, and on Unix sockets.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::admin::Operator;
use crate::support::client::RespClient;
use crate::support::process::Process;
use crate::support::server::{Server, with_quick_end};
use crate::support::websocket::{Client, Upgrade};
use crate::support::{PATIENCE, within};
use switchyard_cli::authors::conversation::client::Client as AnyClient;

/// Sends this over a Unix socket; returns what is answered until the end.
async fn exchange(socket: &Path, says: &str) -> Result<String> {
    within(PATIENCE, "an answer", async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(says.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })
    .await?
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// A server with these flags, whose config file has this text.
fn start(home: &TempDir, config: &str, flags: &[&str]) -> Result<Server> {
    let file = home.path().join("switchyard.toml");
    std::fs::write(&file, with_quick_end(config))?;
    let file = file.to_string_lossy();
    Server::run_with(&[&["serve", "--config", &*file][..], flags].concat())
}

const GET: &str = "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_listener_has_tcp_and_unix_addresses() -> Result<()> {
    let home = tempfile::tempdir()?;
    let [http, resp, admin] = ["http", "resp", "admin"].map(|name| home.path().join(name));
    // A path in the file is relative to it.
    let config = "
        http.listen = ['127.0.0.1:0', '127.0.0.1:0', 'unix:http']
        resp.listen = ['127.0.0.1:0', 'unix:resp']
        admin.listen = ['127.0.0.1:0', 'unix:admin']
        security.unix_socket_mode = '0600'
        limits.connections_per_address_max = 1
        log.filter = 'debug'
    ";
    let mut server = start(&home, config, &[])?;
    let operator = Operator::of(&server).await?;

    // All addresses are those of one door.
    let shown = operator.get("/v1/server")?;
    let addresses: Vec<&str> = shown["addresses"]
        .as_array()
        .context("a list")?
        .iter()
        .filter_map(|address| address.as_str())
        .collect();
    assert_eq!(addresses.len(), 5, "{shown}");
    assert_eq!(addresses[2], format!("ws+unix://{}:/ws", http.display()));
    assert_eq!(addresses[4], format!("resp+unix://{}", resp.display()));
    assert_eq!((&shown["websocket"], &shown["resp"]), (&json!(addresses[0]), &json!(addresses[3])));
    for url in [addresses[0], addresses[1]] {
        let address = url.trim_start_matches("ws://").trim_end_matches("/ws").parse()?;
        let opened = Client::connect(address, &Upgrade::default()).await?;
        let mut client = opened.ok().context("the upgrade")?;
        assert_eq!(client.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    }

    // Clients on a Unix socket are local, so their address is not limited.
    let mut clients = Vec::new();
    for _ in 0..3 {
        let stream = UnixStream::connect(&http).await?;
        let opened = AnyClient::open(stream, "localhost", &Upgrade::default(), PATIENCE).await?;
        let mut client = opened.ok().context("the upgrade")?;
        assert_eq!(client.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
        clients.push(client);
    }
    server.wait_for_log("remote=127.0.0.1:0").await?;
    let info = exchange(&resp, "CLIENT INFO\r\nQUIT\r\n").await?;
    ensure!(info.contains(" addr=127.0.0.1:0 "), "{info}");
    let answer = exchange(&http, &format!("GET /healthz {GET}")).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = exchange(&admin, &format!("GET /v1/connections {GET}")).await?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("127.0.0.1:0"), "{answer}");
    for path in [&http, &resp, &admin] {
        assert_eq!(std::fs::metadata(path)?.permissions().mode() & 0o7777, 0o600);
    }

    server.signal("TERM")?;
    let (status, stdout) = server.exit().await?;
    ensure!(status.success(), "{status} {}", server.log());
    ensure!(stdout.iter().any(|line| *line == format!("http+unix://{}", admin.display())));
    for address in &addresses {
        ensure!(stdout.iter().any(|line| line == address), "{address} is not in {stdout:?}");
    }
    for path in [&http, &resp, &admin] {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    Ok(())
}

#[tokio::test]
async fn redis_cli_speaks_over_a_unix_socket() -> Result<()> {
    let home = tempfile::tempdir()?;
    let socket = home.path().join("resp");
    // Other machines cannot reach it, so no plugin is needed.
    let flags = ["--http", "127.0.0.1:0", "--admin", "off", "--resp", &unix(&socket)];
    let server = start(&home, "log.format = 'text'", &flags)?;
    let url = server.url().await?;
    let cli = async |words: &[&str]| -> Result<Vec<String>> {
        let mut command = std::process::Command::new("redis-cli");
        command.arg("-s").arg(&socket).args(words);
        let mut process = Process::start("redis-cli", &mut command)?;
        Ok(process.exit().await?.1)
    };
    let address = url.trim_start_matches("ws://").trim_end_matches("/ws").parse()?;
    let opened = Client::connect(address, &Upgrade::default()).await?;
    let mut client = opened.ok().context("the upgrade")?;
    client.call(json!(["SUBSCRIBE", "a"])).await?;
    assert_eq!(cli(&["ping"]).await?, ["PONG"]);
    assert_eq!(cli(&["publish", "a", "x"]).await?, ["1"]);
    assert_eq!(client.next_json().await?, json!(["message", "a", "x"]));
    let large = "y".repeat(100_000);
    assert_eq!(cli(&["publish", "a", &large]).await?, ["1"]);
    assert_eq!(client.next_json().await?, json!(["message", "a", large]));
    server.stop().await
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_one_in_use_is_not() -> Result<()> {
    let home = tempfile::tempdir()?;
    let socket = home.path().join("resp");
    let flags = ["--http", "127.0.0.1:0", "--admin", "off", "--resp", &unix(&socket)];
    let mut killed = start(&home, "", &flags)?;
    killed.url().await?;

    // The other server says what to do, and the first one is not disturbed.
    let mut other = start(&home, "", &flags)?;
    let (status, _) = other.exit().await?;
    let log = other.log();
    ensure!(!status.success() && log.contains("another server listens on this socket"), "{log}");
    ensure!(log.contains("resp.listen, --resp") && log.contains(&unix(&socket)), "{log}");
    let pong = exchange(&socket, "PING\r\nQUIT\r\n").await?;
    assert_eq!(pong, "+PONG\r\n+OK\r\n");

    killed.signal("KILL")?;
    killed.exit().await?;
    ensure!(socket.exists(), "it was killed");
    let server = start(&home, "", &flags)?;
    server.url().await?;
    assert_eq!(exchange(&socket, "PING\r\nQUIT\r\n").await?, "+PONG\r\n+OK\r\n");
    server.stop().await?;
    ensure!(!socket.exists(), "it is left");

    // What is no socket stays.
    std::fs::write(&socket, "text")?;
    let mut server = start(&home, "", &flags)?;
    ensure!(!server.exit().await?.0.success(), "it started");
    let log = server.log();
    ensure!(log.contains("there is a file that is no socket"), "{log}");
    assert_eq!(std::fs::read_to_string(&socket)?, "text");
    Ok(())
}

#[tokio::test]
async fn the_proxy_protocol_works_over_a_unix_socket() -> Result<()> {
    let home = tempfile::tempdir()?;
    let socket = home.path().join("resp");
    let config = "
        http.listen = '127.0.0.1:0'
        resp.listen = ['127.0.0.1:0', 'unix:resp']
        resp.proxy_protocol = 'required'
        admin.listen = 'off'
    ";
    let server = start(&home, config, &[])?;
    server.url().await?;
    let header = "PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n";
    let info = exchange(&socket, &format!("{header}CLIENT INFO\r\nQUIT\r\n")).await?;
    ensure!(info.contains(" addr=192.0.2.7:4711 "), "{info}");
    // It may be reset, because not all bytes were read.
    let refused = exchange(&socket, "PING\r\n").await.unwrap_or_default();
    assert_eq!(refused, "");
    let mut client = RespClient::connect(server.resp_address().await?).await?;
    client.send(header.as_bytes()).await?;
    let info = client.call(&["CLIENT", "INFO"]).await?.to_string();
    ensure!(info.contains(" addr=192.0.2.7:4711 "), "{info}");
    server.stop().await
}

#[tokio::test]
async fn a_check_refuses_an_address_that_two_listeners_have() -> Result<()> {
    for (flags, says) in [
        (["--http", "127.0.0.1:1", "--admin", "127.0.0.1:1"], "admin.listen is \"127.0.0.1:1\""),
        (["--resp", "unix:/run/a", "--resp", "unix:/run/a"], "resp.listen is \"unix:/run/a\""),
    ] {
        let mut server = Server::run_with(&[&["serve", "--check"][..], &flags[..]].concat())?;
        assert_eq!(server.exit().await?.0.code(), Some(64), "{flags:?}");
        ensure!(server.log().contains(says), "{}", server.log());
    }
    Ok(())
}

/// A server with these settings that starts until the test ends: it waits for a backplane that
/// accepts connections and never replies. With the sockets of clients and of the admin API.
async fn starting(
    home: &TempDir,
    settings: &str,
) -> Result<(Server, std::net::TcpListener, [PathBuf; 2])> {
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let config = format!(
        "http.listen = 'unix:http'
        resp.listen = 'off'
        admin.listen = 'unix:admin'
        cluster.url = 'redis://{}'
        cluster.connect_timeout_ms = '60s'
        cluster.answer_timeout_ms = '60s'
        {settings}",
        silent.local_addr()?
    );
    let server = start(home, &config, &[])?;
    let sockets = ["http", "admin"].map(|name| home.path().join(name));
    for socket in &sockets {
        within(PATIENCE, "the socket", async {
            while UnixStream::connect(socket).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await?;
    }
    Ok((server, silent, sockets))
}

#[tokio::test]
async fn slow_clients_do_not_silence_probes_while_the_server_starts() -> Result<()> {
    let home = tempfile::tempdir()?;
    let times = "http.handshake_timeout_ms = 86400000\nadmin.head_timeout_ms = 86400000";
    let (_server, _silent, sockets) = starting(&home, times).await?;
    for socket in &sockets {
        let mut slow = Vec::new();
        for place in 0..300 {
            let mut stream = UnixStream::connect(socket).await?;
            if place % 2 == 0 {
                stream.write_all(b"GET /livez HTT").await?;
            }
            slow.push(stream);
        }
        for (path, status) in [("/livez", "200"), ("/readyz", "503")] {
            let answer = exchange(socket, &format!("GET {path} {GET}")).await?;
            ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_listener_has_its_own_time_for_a_request_while_the_server_starts() -> Result<()> {
    for (settings, name) in [
        ("http.handshake_timeout_ms = 86400000\nadmin.head_timeout_ms = 100", "admin"),
        ("http.handshake_timeout_ms = 100\nadmin.head_timeout_ms = 86400000", "http"),
    ] {
        let home = tempfile::tempdir()?;
        let (_server, _silent, _) = starting(&home, settings).await?;
        exchange(&home.path().join(name), "GET /livez HTT").await.context(name)?;
    }
    Ok(())
}

#[tokio::test]
async fn probes_are_answered_while_the_server_starts() -> Result<()> {
    let home = tempfile::tempdir()?;
    let (_server, _silent, sockets) = starting(&home, "").await?;
    for socket in sockets {
        for path in ["/livez", "/livez/"] {
            let answer = exchange(&socket, &format!("GET {path} {GET}")).await?;
            ensure!(answer.starts_with("HTTP/1.1 200 OK"), "{path}: {answer}");
        }
        for path in ["/readyz", "/healthz", "/ws", "/v1/stats"] {
            let answer = exchange(&socket, &format!("GET {path} {GET}")).await?;
            let is_expected = answer.starts_with("HTTP/1.1 503") && answer.ends_with("starting\n");
            ensure!(is_expected && answer.contains("retry-after: 1\r\n"), "{path}: {answer}");
        }
    }
    Ok(())
}
