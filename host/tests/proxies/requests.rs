//! Requests as probes, proxies and people send them: methods, versions, slashes, connections that
//! are kept.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::raw::converse;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{RawClient, TEXT, UPGRADE};
use crate::support::{PATIENCE, within};

/// The addresses of both HTTP listeners.
async fn listeners(server: &Server) -> Result<[SocketAddr; 2]> {
    let admin = server.admin_url().await?;
    Ok([server.address().await?, admin.trim_start_matches("http://").parse()?])
}

/// What is answered to this request line, without headers if it is of HTTP/1.0.
async fn ask(address: SocketAddr, line: &str) -> Result<(String, String)> {
    let headers = match line.ends_with("1.0") {
        true => "",
        false => "Host: localhost\r\nConnection: close\r\n",
    };
    let answer = converse(address, &format!("{line}\r\n{headers}\r\n")).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    Ok((head.to_lowercase(), body.to_owned()))
}

#[tokio::test]
async fn probes_are_answered_by_each_method_version_and_spelling() -> Result<()> {
    let server = Launch::default().start().await?;
    for address in listeners(&server).await? {
        for path in ["/livez", "/readyz", "/healthz"] {
            for version in ["1.0", "1.1"] {
                for path in [path.to_owned(), format!("{path}/"), format!("{path}?x=y")] {
                    let (head, body) = ask(address, &format!("GET {path} HTTP/{version}")).await?;
                    ensure!(head.starts_with(&format!("http/{version} 200 ")), "{path}: {head}");
                    ensure!(body.contains("ok"), "{path}: {body}");
                    let (head, nothing) =
                        ask(address, &format!("HEAD {path} HTTP/{version}")).await?;
                    ensure!(head.starts_with(&format!("http/{version} 200 ")), "{path}: {head}");
                    let length = format!("content-length: {}", body.len());
                    let is_json = body.starts_with('{');
                    ensure!(is_json || head.contains(&length), "{path}: {head}");
                    ensure!(nothing.is_empty(), "{path}: {nothing}");
                }
            }
            let (head, _) = ask(address, &format!("POST {path} HTTP/1.1")).await?;
            ensure!(head.starts_with("http/1.1 405 "), "{path}: {head}");
            ensure!(head.contains("allow: get") && head.contains("head"), "{path}: {head}");
        }
        for path in ["/", "/readyz"] {
            for version in ["1.0", "1.1"] {
                let (head, body) = ask(address, &format!("OPTIONS {path} HTTP/{version}")).await?;
                ensure!(head.starts_with(&format!("http/{version} 200 ")), "{path}: {head}");
                ensure!(head.contains("allow: get, head, options"), "{path}: {head}");
                ensure!(body.is_empty(), "{path}: {body}");
            }
        }
    }
    server.stop().await
}

#[tokio::test]
async fn the_door_says_what_is_served() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.address().await?;
    for (line, status, says) in [
        ("GET / HTTP/1.1", 200, "text/html"),
        ("HEAD / HTTP/1.0", 200, "text/html"),
        ("GET /ws HTTP/1.1", 426, "upgrade: websocket"),
        ("GET /ws/ HTTP/1.1", 426, "sec-websocket-version: 13"),
        ("GET /ws HTTP/1.0", 426, "upgrade: websocket"),
        ("POST / HTTP/1.1", 405, "allow: get, head, options"),
        ("PUT /ws HTTP/1.1", 405, "allow: get, options"),
        ("GET /nothing HTTP/1.1", 404, "connection: close"),
        ("POST /nothing/ HTTP/1.1", 404, "connection: close"),
        ("OPTIONS * HTTP/1.1", 200, "allow: get, head, options"),
        ("OPTIONS /ws HTTP/1.1", 200, "allow: "),
    ] {
        let (head, _) = ask(address, line).await?;
        let is = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        ensure!(is == Some(status) && head.contains(says), "{line}: {head}");
    }
    server.stop().await
}

#[tokio::test]
async fn a_slash_after_the_path_of_the_websocket_makes_no_difference() -> Result<()> {
    let server = Launch::default().start().await?;
    let request = UPGRADE.replace("GET /ws ", "GET /ws/ ");
    let mut client = RawClient::dial(server.address().await?).await?;
    client.send(request).await?;
    assert_eq!(client.response_head().await?.0, 101);
    client.send_text(r#"[1,"PING"]"#).await?;
    let frame = client.next_frame().await?.context("a frame")?;
    assert_eq!((frame.opcode, frame.payload), (TEXT, br#"[1,"OK","PONG"]"#.to_vec()));
    drop(client);
    server.stop().await
}

/// The upgrade is as before hyper served it: these headers, in this spelling, and no others.
#[tokio::test]
async fn the_response_to_an_upgrade_has_the_headers_of_rfc_6455_only() -> Result<()> {
    let server = Launch::default().start().await?;
    for protocol in [None, Some("switchyard.v1.json"), Some("resp")] {
        let header = protocol.map(|name| format!("\r\nSec-WebSocket-Protocol: {name}\r\n\r\n"));
        let request = match &header {
            None => UPGRADE.to_owned(),
            Some(header) => UPGRADE.replace("\r\n\r\n", header),
        };
        let mut client = RawClient::dial(server.address().await?).await?;
        client.send(request).await?;
        let (status, head) = client.response_head().await?;
        assert_eq!(status, 101);
        let mut headers: Vec<&str> = head.lines().skip(1).filter(|line| !line.is_empty()).collect();
        headers.sort_unstable();
        let named = protocol.map(|name| format!("sec-websocket-protocol: {name}"));
        let mut expected =
            vec!["connection: Upgrade", "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="];
        expected.extend(named.as_deref());
        expected.push("upgrade: websocket");
        assert_eq!(headers, expected);
    }
    server.stop().await
}

/// A request on a connection that is kept. Returns the status, and whether the server says that it
/// keeps the connection.
async fn next(stream: &mut BufReader<TcpStream>, request: &str) -> Result<(u16, bool)> {
    within(PATIENCE, "an answer", async {
        stream.get_mut().write_all(request.as_bytes()).await?;
        let mut is_kept = request.contains("HTTP/1.1");
        let (mut length, mut status) = (0, None);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let line = line.trim_end().to_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.") {
                status = rest.split(' ').nth(1).and_then(|status| status.parse().ok());
            }
            if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse()?;
            }
            is_kept &= line != "connection: close";
            is_kept |= line == "connection: keep-alive";
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        Ok((status.context("a status")?, is_kept))
    })
    .await?
}

#[tokio::test]
async fn a_probe_that_asks_for_it_keeps_its_connection() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.address().await?;
    for version in ["1.0", "1.1"] {
        let mut stream = BufReader::new(TcpStream::connect(address).await?);
        for path in ["/livez", "/readyz", "/healthz", "/livez/"].repeat(5) {
            let request =
                format!("GET {path} HTTP/{version}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n");
            assert_eq!(next(&mut stream, &request).await?, (200, true));
        }
        // The last request is one for a WebSocket, or for a path that is not there.
        let last =
            format!("GET /nothing HTTP/{version}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(next(&mut stream, &last).await?, (404, false));
        assert_eq!(within(PATIENCE, "the end", stream.read(&mut [0])).await??, 0);
    }
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    assert_eq!(next(&mut stream, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await?, (200, false));
    assert_eq!(within(PATIENCE, "the end", stream.read(&mut [0])).await??, 0);
    server.stop().await
}

#[tokio::test]
async fn connections_that_are_kept_give_way_to_new_clients() -> Result<()> {
    let server = Launch::with_config("http.handshakes_max = 4").start().await?;
    let address = server.address().await?;
    let mut kept = Vec::new();
    for _ in 0..20 {
        let mut stream = BufReader::new(TcpStream::connect(address).await?);
        let request = "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(next(&mut stream, request).await?, (200, true));
        kept.push(stream);
    }
    let mut client = server.client().await?;
    client.call(serde_json::json!(["PING"])).await?;
    server.stop().await
}

/// A page whose owner has pointed its name at loopback (DNS rebinding).
#[tokio::test]
async fn on_loopback_another_name_is_not_the_servers_own() -> Result<()> {
    let server = Launch::default().start().await?;
    let [door, admin] = listeners(&server).await?;
    let port = door.port();
    for (name, status) in [
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("10.0.0.1", 403),
        ("localhost", 101),
        ("127.0.0.1", 101),
        ("[::1]", 101),
    ] {
        let host = format!("Host: {name}:{port}\r\nOrigin: http://{name}:{port}\r\n");
        let mut client = RawClient::dial(door).await?;
        client.send(UPGRADE.replace("Host: localhost\r\n", &host)).await?;
        ensure!(client.response_head().await?.0 == status, "{name}");
    }
    for path in ["/readyz", "/v1/connections", "/metrics"] {
        let host = format!("evil.example:{}", admin.port());
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = converse(admin, &request).await?;
        ensure!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
    }
    server.stop().await
}

#[tokio::test]
async fn a_second_request_must_be_complete_within_the_time_of_the_first() -> Result<()> {
    let server = Launch::with_config("http.handshake_timeout_ms = 300").start().await?;
    let address = server.address().await?;
    let request = "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n";
    let mut idle = BufReader::new(TcpStream::connect(address).await?);
    assert_eq!(next(&mut idle, request).await?, (200, true));
    // The beginning of the second request comes after the first answer, or with the first request.
    for (first, second) in [(request, "GET /readyz HTT"), (&*format!("{request}GET /rea"), "")] {
        let mut slow = BufReader::new(TcpStream::connect(address).await?);
        assert_eq!(next(&mut slow, first).await?, (200, true));
        assert_eq!(next(&mut slow, second).await?.0, 408);
        assert_eq!(within(PATIENCE, "the end", slow.read(&mut [0])).await??, 0);
    }
    assert_eq!(next(&mut idle, request).await?, (200, true), "it was idle for longer");
    server.stop().await
}

/// The status that these request lines and headers are answered with.
async fn status(address: SocketAddr, head: &str) -> Result<u16> {
    let answer = converse(address, &format!("{head}Connection: close\r\n\r\n")).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.with_context(|| format!("a status of {answer:?}"))
}

/// RFC 9112, section 3.2.
#[tokio::test]
async fn a_request_names_its_host_once() -> Result<()> {
    let server = Launch::default().start().await?;
    for address in listeners(&server).await? {
        for (version, hosts, expected) in [
            ("1.1", "", 400),
            ("1.1", "Host: localhost\r\n", 200),
            ("1.1", "Host: localhost\r\nHost: localhost\r\n", 400),
            ("1.1", "Host: localhost\r\nHost: evil.example\r\n", 400),
            ("1.1", "Host: local host\r\n", 400),
            ("1.1", "Host: user@localhost\r\n", 400),
            ("1.0", "", 200),
            ("1.0", "Host: localhost\r\nHost: localhost\r\n", 400),
        ] {
            let head = format!("GET /livez HTTP/{version}\r\n{hosts}");
            let came = status(address, &head).await?;
            ensure!(came == expected, "{address}: {head:?} was answered {came}");
        }
    }
    server.stop().await
}

/// RFC 9112, section 3.2.2.
#[tokio::test]
async fn the_host_of_an_absolute_target_replaces_the_header() -> Result<()> {
    let server = Launch::default().start().await?;
    let [door, admin] = listeners(&server).await?;
    for (target, header, expected) in
        [("localhost", "evil.example", 200), ("evil.example", "localhost", 403)]
    {
        for path in ["/readyz", "/v1/connections"] {
            let head = format!("GET http://{target}{path} HTTP/1.1\r\nHost: {header}\r\n");
            let came = status(admin, &head).await?;
            ensure!(came == expected, "{head:?} was answered {came}");
        }
        let request = UPGRADE.replace("GET /ws ", &format!("GET http://{target}/ws "));
        let origin = format!("Host: {header}\r\nOrigin: http://{target}\r\n");
        let mut client = RawClient::dial(door).await?;
        client.send(request.replace("Host: localhost\r\n", &origin)).await?;
        let came = client.response_head().await?.0;
        ensure!(came == if expected == 200 { 101 } else { 403 }, "{target}: {came}");
    }
    server.stop().await
}

#[tokio::test]
async fn both_listeners_agree_on_methods_paths_and_headers() -> Result<()> {
    let server = Launch::default().start().await?;
    let [door, admin] = listeners(&server).await?;
    let allowed = async |address, line: &str| -> Result<(u16, BTreeSet<String>)> {
        let (head, _) = ask(address, line).await?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let allow = head.lines().filter_map(|line| line.strip_prefix("allow: "));
        let methods = allow.flat_map(|list| list.split(',')).map(|it| it.trim().to_owned());
        Ok((status.context("a status")?, methods.collect()))
    };
    let set = |methods: &[&str]| methods.iter().map(|it| (*it).to_owned()).collect();
    let all: BTreeSet<String> = set(&["get", "head", "options"]);
    // The methods of a path are those that are served.
    for (address, path, expected) in [
        (door, "/ws", set(&["get", "options"])),
        (door, "/ws/", set(&["get", "options"])),
        (door, "/", all.clone()),
        (admin, "/", all.clone()),
        (door, "/readyz", all.clone()),
        (admin, "/readyz", all.clone()),
        (door, "/livez/", all.clone()),
        (admin, "/livez/", all.clone()),
    ] {
        let options = allowed(address, &format!("OPTIONS {path} HTTP/1.1")).await?;
        ensure!(options == (200, expected.clone()), "{address} {path}: {options:?}");
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"] {
            let (status, methods) = allowed(address, &format!("{method} {path} HTTP/1.1")).await?;
            let is_served = expected.contains(&method.to_lowercase());
            ensure!(is_served == (status != 405), "{method} {path}: {status}");
            ensure!(is_served || methods == expected, "{method} {path}: {methods:?}");
        }
    }
    for address in [door, admin] {
        for (line, expected) in [
            ("OPTIONS * HTTP/1.1", 200),
            ("GET * HTTP/1.1", 400),
            ("GET /livez// HTTP/1.1", 404),
            ("GET //livez HTTP/1.1", 404),
            ("OPTIONS /nothing HTTP/1.1", 404),
        ] {
            let (status, methods) = allowed(address, line).await?;
            ensure!(status == expected, "{address}: {line}: {status}");
            ensure!(status != 200 || methods == all, "{address}: {line}: {methods:?}");
        }
        // Two more are added.
        for (more, expected) in [(122, 200), (123, 431)] {
            let headers: String = (0..more).map(|place| format!("x-{place}: y\r\n")).collect();
            let head = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{headers}");
            let came = status(address, &head).await?;
            ensure!(came == expected, "{address}: {more} headers were answered {came}");
        }
    }
    server.stop().await
}
