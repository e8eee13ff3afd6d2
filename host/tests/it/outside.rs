//! Plugins that send HTTP requests: to which hosts, when, and how many; and that only the client
//! concerned waits for the response.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;

use crate::support::admin::Operator;
use crate::support::http_service::{Answer, HttpService, answer, in_pieces};
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Close, Upgrade};
use crate::support::{PATIENCE, components, within};
use crate::tls::Authority;

const CONFIG: &str = "shutdown.timeout_ms = 100\nplugins.debounce_ms = 1\n";
/// Longer than any test takes, so that a wait ends only when the test ends it.
const LONG_MS: u64 = 30_000;

/// The asker in a directory, with these settings beside it.
fn directory_with(beside: &Value) -> Result<TempDir> {
    let directory = components::directory()?;
    components::configure(directory.path(), "asker", beside)?;
    let asker = components::built("test/asker")?;
    components::write_atomically(&components::path(directory.path(), "asker"), &asker)?;
    Ok(directory)
}

async fn start(directory: &TempDir) -> Result<Server> {
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
    server.wait_for_log("changes of files are watched").await?;
    Ok(server)
}

/// A service that answers as its paths say: `/hang` when the test permits it.
async fn service() -> Result<(HttpService, Arc<Semaphore>)> {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let service = HttpService::start(move |request| {
        let gate = gate.clone();
        async move {
            match request.path.as_str() {
                "/ok" => answer(200, "hello"),
                "/forbidden" => answer(403, "no"),
                "/hang" => {
                    gate.acquire().await.expect("it is never closed").forget();
                    answer(200, "late")
                }
                "/large" => answer(200, "x".repeat(1 << 20)),
                "/large-in-pieces" => in_pieces(vec!["x".repeat(600).into(); 2], true),
                "/never-ends" => in_pieces(vec!["x".into()], false),
                path => redirect(path),
            }
        }
    })
    .await?;
    Ok((service, opened))
}

/// `/to/HOST:PORT` redirects there.
fn redirect(path: &str) -> Answer {
    let Some(host) = path.strip_prefix("/to/") else { return answer(404, "") };
    let mut moved = answer(302, "");
    let to = format!("http://{host}/ok").parse().expect("a URL fits a header");
    moved.headers_mut().insert("location", to);
    moved
}

/// Connects, and makes the asker send this request.
async fn connect(server: &Server, what: &str) -> Result<Client> {
    let upgrade = Upgrade { path: format!("/ws?ask={what}"), ..Upgrade::default() };
    match Client::connect(server.address().await?, &upgrade).await? {
        Ok(client) => Ok(client),
        Err(refused) => bail!("the upgrade was answered with HTTP {}", refused.status),
    }
}

/// The same in a task of its own.
async fn connect_apart(server: &Server, what: &str) -> Result<JoinHandle<Result<Client>>> {
    let address = server.address().await?;
    let upgrade = Upgrade { path: format!("/ws?ask={what}"), ..Upgrade::default() };
    Ok(tokio::spawn(async move {
        let client = Client::connect(address, &upgrade).await?;
        client.map_err(|refused| anyhow::anyhow!("HTTP {}", refused.status))
    }))
}

async fn close_of(server: &Server, what: &str) -> Result<Close> {
    connect(server, what).await?.next_close().await
}

/// What the asker noted about the client.
async fn said(client: &mut Client) -> Result<Value> {
    client.call(json!(["SUBSCRIBE", "said"])).await?;
    client.call(json!(["PUBLISH", "said", "said"])).await?;
    let message = client.next_json().await?;
    message.get(2).cloned().context("a message has a payload")
}

fn is_refused(answer: &Value, code: &str, says: &str) -> Result<()> {
    let word = |key| answer.pointer(key).and_then(Value::as_str).unwrap_or_default();
    ensure!(word("/1/code") == code && word("/1/message").contains(says), "{answer}");
    ensure!(word("/1/by").starts_with("asker@"), "{answer}");
    Ok(())
}

// ---- hosts and times ---------------------------------------------------------------

#[tokio::test]
async fn requests_go_to_granted_hosts_only() -> Result<()> {
    let ((granted, _), (other, _)) = (service().await?, service().await?);
    let directory = directory_with(&json!({"http_allow": [granted.origin()]}))?;
    let server = start(&directory).await?;

    let mut client = connect(&server, &granted.url("/ok")).await?;
    assert_eq!(said(&mut client).await?, "200 hello");
    assert_eq!(client.call(json!(["AUTH", granted.url("/ok")])).await?, json!(["OK", "OK"]));
    let (code, reason) = close_of(&server, &granted.url("/forbidden")).await?;
    ensure!(code == Some(4003) && reason.contains("asker@"), "{code:?} {reason}");
    granted.wait_for(3).await?;

    // Another port, another name of the same machine, another scheme.
    let by_name = format!("http://localhost:{}/ok", granted.address.port());
    let over_tls = format!("https://{}/ok", granted.address);
    for not_granted in [other.url("/ok"), by_name, over_tls] {
        let denied = client.call(json!(["AUTH", not_granted])).await?;
        is_refused(&denied, "UNAVAILABLE", "not in http_allow")?;
    }
    let (code, reason) = close_of(&server, &other.url("/ok")).await?;
    ensure!(code == Some(4102) && reason.contains("asker@"), "{code:?} {reason}");

    // A redirect is a response.
    let to_other = granted.url(&format!("/to/{}", other.address));
    is_refused(&client.call(json!(["AUTH", to_other])).await?, "NOPERM", "302")?;
    ensure!(other.requests().is_empty(), "a request was sent to a host that is not granted");
    assert_eq!(granted.requests().len(), 4);
    server.stop().await
}

#[tokio::test]
async fn only_hooks_on_connect_and_authenticate_may_send_requests() -> Result<()> {
    let (service, _) = service().await?;
    let directory = directory_with(&json!({"http_allow": [service.origin()]}))?;
    let server = start(&directory).await?;
    let mut client = server.client().await?;
    let refused = client.call(json!(["PUBLISH", service.url("/ok"), "x"])).await?;
    is_refused(&refused, "UNAVAILABLE", "this hook may not ask")?;
    client.call(json!(["SUBSCRIBE", "a"])).await?;
    client.call(json!(["PUBLISH", "a", service.url("/ok")])).await?;
    let message = client.next_json().await?.to_string();
    ensure!(message.contains("this hook may not ask"), "{message}");
    ensure!(!server.log().contains("a plugin failed"), "to be denied is no failure");
    server.stop().await?;

    let beside = json!({
        "http_allow": [service.origin()],
        "settings": {"init": service.url("/ok")},
    });
    refused_at_start(&beside, &["init", "this hook may not ask"]).await?;
    ensure!(service.requests().is_empty(), "a request was sent");
    Ok(())
}

async fn refused_at_start(beside: &Value, says: &[&str]) -> Result<()> {
    let directory = directory_with(beside)?;
    let path = directory.path().to_str().context("a temporary path is text")?;
    let mut server = Server::run_alone(&["--plugins", path])?;
    let (status, _) = server.exit().await?;
    let log = server.log();
    ensure!(status.code() == Some(1), "{status}: {log}");
    for word in says {
        ensure!(log.contains(word), "{word:?} is not said: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn without_a_grant_it_is_refused_by_the_name_of_its_import() -> Result<()> {
    for nothing in [json!({"policy": "closed"}), json!({"http_allow": []})] {
        refused_at_start(&nothing, &["link", "wasi:http/outgoing-handler@", "http_allow"]).await?;
    }
    for no_host in ["https://*.example.com", "https://id.example.com/path", "id.example.com"] {
        let beside = json!({"http_allow": [no_host]});
        refused_at_start(&beside, &["config", "http_allow", no_host, "one host by name"]).await?;
    }
    for (key, value, range) in [
        ("http_timeout_ms", 0, "from 1 to 30000"),
        ("http_response_bytes_max", 0, "from 1 to 16777216"),
        ("http_requests_max", 101, "from 1 to 100"),
        ("http_calls_max", 513, "from 1 to 512"),
    ] {
        refused_at_start(&json!({ key: value }), &[key, range]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_service_over_tls_must_be_trusted() -> Result<()> {
    let (trusted, untrusted) = (Authority::new()?, Authority::new()?);
    let serve = |authority: &Authority| -> Result<TlsAcceptor> {
        let (certificate, key) = authority.sign("service")?;
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    };
    let hello = |_| async { answer(200, "hello") };
    let known = HttpService::start_tls(serve(&trusted)?, hello).await?;
    let unknown = HttpService::start_tls(serve(&untrusted)?, hello).await?;
    let [at_known, at_unknown, by_name] = [
        format!("https://{}", known.address),
        format!("https://{}", unknown.address),
        format!("https://localhost:{}", known.address.port()),
    ];
    let directory = directory_with(&json!({"http_allow": [at_known, at_unknown, by_name]}))?;
    let authorities = directory.path().join("authorities.pem");
    std::fs::write(&authorities, &trusted.pem)?;
    let launch = Launch {
        plugins: Some(directory.path().to_owned()),
        environment: vec![("SSL_CERT_FILE".to_owned(), authorities.into())],
        ..Launch::with_config(CONFIG)
    };
    let server = launch.start().await?;
    let mut client = connect(&server, &format!("{at_known}/ok")).await?;
    assert_eq!(said(&mut client).await?, "200 hello");
    // Signed by another authority; signed for another name.
    for host in [at_unknown, by_name] {
        let refused = client.call(json!(["AUTH", format!("{host}/ok")])).await?;
        is_refused(&refused, "UNAVAILABLE", "its certificate is not trusted")?;
    }
    ensure!(
        known.requests().len() == 1 && unknown.requests().is_empty(),
        "an untrusted service received a request"
    );
    server.stop().await
}

// ---- how much ------------------------------------------------------------------------

#[tokio::test]
async fn answers_and_requests_have_their_limits() -> Result<()> {
    let (service, _) = service().await?;
    let beside = json!({
        "http_allow": [service.origin()],
        "http_response_bytes_max": 1_000,
        "http_requests_max": 3,
        "http_timeout_ms": LONG_MS,
    });
    let directory = directory_with(&beside)?;
    let server = start(&directory).await?;
    let mut client = server.client().await?;
    for large in ["/large", "/large-in-pieces"] {
        let refused = client.call(json!(["AUTH", service.url(large)])).await?;
        is_refused(&refused, "UNAVAILABLE", "longer than 1000 bytes")?;
    }
    let before = service.requests().len();
    let three = format!("3*{}", service.url("/ok"));
    assert_eq!(client.call(json!(["AUTH", three])).await?, json!(["OK", "OK"]));
    let four = format!("4*{}", service.url("/ok"));
    is_refused(&client.call(json!(["AUTH", four])).await?, "UNAVAILABLE", "more requests")?;
    assert_eq!(service.requests().len() - before, 6);
    server.stop().await
}

/// This many calls wait for responses at once; the others queue, and none is lost.
#[tokio::test]
async fn calls_wait_for_an_instance() -> Result<()> {
    let (service, gate) = service().await?;
    let beside = json!({
        "http_allow": [service.origin()], "http_calls_max": 2, "http_timeout_ms": LONG_MS,
    });
    let directory = directory_with(&beside)?;
    let server = start(&directory).await?;
    let mut other = server.client().await?;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(connect_apart(&server, &service.url("/hang")).await?);
    }
    service.wait_for(2).await?;
    for _ in 0..100 {
        other.call(json!(["PUBLISH", "a", "x"])).await?;
    }
    ensure!(service.requests().len() == 2, "more than two requests at once");
    for let_in in 1..=5 {
        gate.add_permits(1);
        service.wait_for((2 + let_in).min(5)).await?;
    }
    for client in waiting {
        let mut client = client.await??;
        assert_eq!(said(&mut client).await?, "200 late");
    }
    server.stop().await
}

/// A client whose call gets no instance in time is refused with that reason, and this does not
/// count as a failure of the plugin.
#[tokio::test]
async fn a_client_that_waits_too_long_for_an_instance_is_refused() -> Result<()> {
    let beside = json!({
        "http_allow": ["http://127.0.0.1:9"], "http_calls_max": 1, "http_timeout_ms": 100,
    });
    let directory = directory_with(&beside)?;
    let server = start(&directory).await?;
    // They keep waiting after their time is over.
    let mut waiting = Vec::new();
    for _ in 0..6 {
        waiting.push(connect_apart(&server, "sleep").await?);
    }
    let mut reasons = Vec::new();
    for client in waiting {
        let (code, reason) = client.await??.next_close().await?;
        ensure!(code == Some(4102) && reason.contains("asker@"), "{code:?} {reason}");
        reasons.push(reason);
    }
    let rejected = reasons.iter().filter(|reason| reason.contains("1 of its calls")).count();
    ensure!(rejected > 0, "no client was refused by the limit: {reasons:?}");
    // The calls that got an instance kept waiting after their time, which is a failure.
    let line = server.wait_for_log("a plugin failed in a call with HTTP requests").await?;
    ensure!(line.contains("it went on waiting after the 100 ms"), "{line}");
    ensure!(server.log().matches("a plugin failed in a call").count() <= 6 - rejected);
    server.stop().await
}

#[tokio::test]
async fn a_call_with_requests_has_a_budget_like_others() -> Result<()> {
    let (service, _) = service().await?;
    let beside = json!({
        "http_allow": [service.origin()], "strikes_max": 2, "http_timeout_ms": LONG_MS,
    });
    let directory = directory_with(&beside)?;
    let server = start(&directory).await?;
    let mut client = server.client().await?;
    is_refused(&client.call(json!(["AUTH", "spin"])).await?, "UNAVAILABLE", "asker")?;
    let line = server.wait_for_log("a plugin failed in a call with HTTP requests").await?;
    ensure!(line.contains("more than its budget of 10 ms"), "{line}");
    // The next call runs in a new instance, and the second strike parks the plugin.
    assert_eq!(client.call(json!(["AUTH", service.url("/ok")])).await?, json!(["OK", "OK"]));
    let mut other = server.client().await?;
    is_refused(&other.call(json!(["AUTH", "spin"])).await?, "UNAVAILABLE", "asker")?;
    server.wait_for_log("a plugin was parked").await?;
    let refused = client.call(json!(["AUTH", service.url("/ok")])).await?;
    is_refused(&refused, "UNAVAILABLE", "asker")?;
    assert_eq!(service.requests().len(), 1);
    server.stop().await
}

// ---- slow services -------------------------------------------------------------------

/// All messages published during the wait arrive, through the same plugin; then the waiting client
/// is admitted.
#[tokio::test]
async fn a_slow_service_delays_no_other_client() -> Result<()> {
    const MESSAGES: usize = 1_000;
    let (service, gate) = service().await?;
    let beside = json!({"http_allow": [service.origin()], "http_timeout_ms": LONG_MS});
    let directory = directory_with(&beside)?;
    let server = start(&directory).await?;
    let (mut publisher, mut subscriber) = (server.client().await?, server.client().await?);
    subscriber.call(json!(["SUBSCRIBE", "a"])).await?;
    let arriving = connect_apart(&server, &service.url("/hang")).await?;
    service.wait_for(1).await?;
    let mut authenticating = server.client().await?;
    let auth = json!([1, "AUTH", service.url("/hang")]);
    authenticating.send(Message::text(auth.to_string())).await?;
    // Commands after it: no reply to them may arrive before its reply.
    authenticating.send(Message::text(r#"[2,"SUBSCRIBE","a"]"#)).await?;
    authenticating.send(Message::text(r#"[3,"PUBLISH","b","x"]"#)).await?;
    service.wait_for(2).await?;

    for number in 0..MESSAGES {
        let answer = publisher.call(json!(["PUBLISH", "a", number.to_string()])).await?;
        ensure!(answer == json!(["OK", 1]), "a waiting client is already subscribed: {answer}");
        let message = subscriber.next_json().await?;
        ensure!(message == json!(["message", "a", number.to_string()]), "{message} came");
    }
    // Another client is admitted, and one that authenticates elsewhere is answered.
    let mut next = connect(&server, &service.url("/ok")).await?;
    assert_eq!(next.call(json!(["AUTH", service.url("/ok")])).await?, json!(["OK", "OK"]));
    ensure!(!arriving.is_finished(), "it was let in before it was known");

    gate.add_permits(2);
    let mut arrived = arriving.await??;
    assert_eq!(said(&mut arrived).await?, "200 late");
    for expected in [json!([1, "OK", "OK"]), json!([2, "OK", 1]), json!([3, "OK", 0])] {
        assert_eq!(authenticating.next_json().await?, expected);
    }
    let answer = publisher.call(json!(["PUBLISH", "a", "last"])).await?;
    assert_eq!(answer, json!(["OK", 2]));
    server.stop().await
}

/// In the head of its response, or within the body.
#[tokio::test]
async fn a_service_that_never_answers_is_waited_for_until_the_time_is_over() -> Result<()> {
    let (service, _gate) = service().await?;
    let beside = json!({"http_allow": [service.origin()], "http_timeout_ms": 200});
    let directory = directory_with(&beside)?;
    let server = start(&directory).await?;
    for path in ["/hang", "/never-ends"] {
        let (code, reason) = close_of(&server, &service.url(path)).await?;
        ensure!(code == Some(4102), "{path}: {code:?} {reason}");
        for word in ["asker@", "did not answer in time"] {
            ensure!(reason.contains(word), "{path}: {word:?} is not said: {reason}");
        }
        let mut client = server.client().await?;
        let refused = client.call(json!(["AUTH", service.url(path)])).await?;
        is_refused(&refused, "UNAVAILABLE", "did not answer in time")?;
        assert_eq!(client.call(json!(["PUBLISH", "a", "x"])).await?, json!(["OK", 0]));
    }
    ensure!(!server.log().contains("a plugin failed"), "a slow service is no plugin's fault");
    server.stop().await
}

/// The call ends in the version where it began; all other clients use the new version at once.
#[tokio::test]
async fn a_swap_does_not_wait_for_pending_requests() -> Result<()> {
    let (service, gate) = service().await?;
    let version = |name: &str| {
        json!({
            "http_allow": [service.origin()],
            "http_timeout_ms": LONG_MS,
            "settings": {"name": name},
        })
    };
    let directory = directory_with(&version("old "))?;
    let server = start(&directory).await?;
    let arriving = connect_apart(&server, &service.url("/hang")).await?;
    service.wait_for(1).await?;
    components::configure(directory.path(), "asker", &version("new "))?;
    server.wait_for_log("a plugin was swapped").await?;
    let mut client = connect(&server, &service.url("/ok")).await?;
    assert_eq!(said(&mut client).await?, "new 200 hello");
    ensure!(!arriving.is_finished(), "it was let in before it was known");
    // Another call is under way when the plugin is removed.
    let leaving = connect_apart(&server, &service.url("/hang")).await?;
    service.wait_for(3).await?;
    Operator::of(&server).await?.say(&["plugin", "rm", "asker"])?;
    server.wait_for_log("a plugin was removed").await?;
    gate.add_permits(2);
    for client in [arriving, leaving] {
        let mut client = client.await??;
        assert_eq!(client.call(json!(["PUBLISH", "a", "x"])).await?, json!(["OK", 0]));
    }
    server.stop().await
}

/// A client that disconnects while a plugin waits for a response leaves nothing behind.
#[tokio::test]
async fn the_server_shuts_down_during_pending_requests() -> Result<()> {
    let (service, _gate) = service().await?;
    let beside = json!({"http_allow": [service.origin()], "http_timeout_ms": LONG_MS});
    let directory = directory_with(&beside)?;
    let server = start(&directory).await?;
    let _arriving = connect_apart(&server, &service.url("/hang")).await?;
    service.wait_for(1).await?;
    let mut client = server.client().await?;
    let auth = json!([1, "AUTH", service.url("/hang")]);
    client.send(Message::text(auth.to_string())).await?;
    service.wait_for(2).await?;
    server.stop().await
}

// ---- Redis clients -------------------------------------------------------------------

/// Sends this over RESP, and reads as many bytes as are expected.
async fn converse(stream: &mut TcpStream, says: &str, expected: &str) -> Result<()> {
    stream.write_all(says.as_bytes()).await?;
    receives(stream, expected).await
}

async fn receives(stream: &mut TcpStream, expected: &str) -> Result<()> {
    let mut received = vec![0; expected.len()];
    within(PATIENCE, expected, stream.read_exact(&mut received)).await??;
    ensure!(received == expected.as_bytes(), "{} came", received.escape_ascii());
    Ok(())
}

#[tokio::test]
async fn redis_clients_wait_in_order() -> Result<()> {
    let (service, gate) = service().await?;
    let beside = json!({"http_allow": [service.origin()], "http_timeout_ms": LONG_MS});
    let directory = directory_with(&beside)?;
    let server = start(&directory).await?;
    let mut client = TcpStream::connect(server.resp_address().await?).await?;
    let hang = service.url("/hang");
    client.write_all(format!("AUTH {hang}\r\nECHO a\r\nAUTH x y z\r\n").as_bytes()).await?;
    service.wait_for(1).await?;
    gate.add_permits(1);
    receives(&mut client, "+OK\r\n$1\r\na\r\n-ERR syntax error\r\n").await?;

    // A HELLO takes effect as a whole, once its credentials are verified.
    let hello = format!("HELLO 3 AUTH default {hang} SETNAME me\r\nCLIENT GETNAME\r\n");
    client.write_all(hello.as_bytes()).await?;
    service.wait_for(2).await?;
    gate.add_permits(1);
    receives(&mut client, "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n").await?;
    let mut rest = Vec::new();
    while !rest.ends_with(b"$2\r\nme\r\n") {
        rest.push(within(PATIENCE, "the name", client.read_u8()).await??);
    }
    // Commands without a reply have none.
    let ok = service.url("/ok");
    let skipped = format!("CLIENT REPLY SKIP\r\nAUTH {ok}\r\nPING\r\n");
    converse(&mut client, &skipped, "+PONG\r\n").await?;
    let bad = format!("HELLO 2 AUTH default {} SETNAME you\r\n", service.url("/forbidden"));
    converse(&mut client, &bad, "-").await?;
    let mut error = Vec::new();
    while !error.ends_with(b"\r\n") {
        error.push(within(PATIENCE, "an error", client.read_u8()).await??);
    }
    converse(&mut client, "CLIENT GETNAME\r\n", "$2\r\nme\r\n").await?;

    // Each is counted once, with the outcome of its reply.
    let mut other = connect(&server, &ok).await?;
    is_refused(&other.call(json!(["AUTH", service.url("/forbidden")])).await?, "NOPERM", "")?;
    let operator = Operator::of(&server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (_, _, metrics) = operator.exchange(&head, b"")?;
    for (verb, result, count) in
        [("AUTH", "ok", 2), ("AUTH", "err", 1), ("AUTH", "noperm", 1), ("HELLO", "ok", 1)]
    {
        let series =
            format!("switchyard_commands_total{{verb=\"{verb}\",result=\"{result}\"}} {count}\n");
        ensure!(metrics.contains(&series), "no {series} in:\n{metrics}");
    }
    server.stop().await
}
