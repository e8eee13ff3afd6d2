//! Clients behind proxies: their addresses, from a header or by the PROXY protocol, are those that
//! are shown and limited everywhere.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::handshakes::metric;
use crate::support::admin::Operator;
use crate::support::client::RespClient;
use crate::support::components;
use crate::support::flood::HALF;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, UPGRADE, Upgrade};
use crate::support::{PATIENCE, within};
use crate::tls::{Authority, connector, server_name};
use switchyard_cli::authors::conversation::client::Client as AnyClient;

/// The test is the proxy.
const TRUSTED: &str = "security.trusted_proxies = ['127.0.0.1']\n";
const HEADER: &str = "http.client_address_header = 'X-Forwarded-For'\n";
const ALL_REQUIRED: &str = "http.proxy_protocol = 'required'\nresp.proxy_protocol = 'required'\n";

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21";

fn v2(family: u8, block: &[u8]) -> Vec<u8> {
    [V2, &[family], &(block.len() as u16).to_be_bytes(), block].concat()
}

fn v1(client: &str) -> Vec<u8> {
    let family = if client.contains(':') { "TCP6" } else { "TCP4" };
    let here = if client.contains(':') { "::1" } else { "127.0.0.1" };
    format!("PROXY {family} {client} {here} 4711 80\r\n").into_bytes()
}

/// A request of a WebSocket with these values of the header.
async fn open(server: &Server, header: &str, values: &[&str]) -> Result<Client> {
    let headers = values.iter().map(|value| (header.to_owned(), (*value).to_owned())).collect();
    let upgrade = Upgrade { headers, ..Upgrade::default() };
    let opened = Client::connect(server.address().await?, &upgrade).await?;
    opened.map_err(|refused| anyhow::anyhow!("HTTP {} {}", refused.status, refused.body))
}

/// A RESP client behind a proxy that sends this header.
async fn resp_behind(server: &Server, header: &[u8]) -> Result<RespClient> {
    let mut client = RespClient::connect(server.resp_address().await?).await?;
    client.send(header).await?;
    Ok(client)
}

/// Its own address, as CLIENT INFO shows it.
async fn own_address(client: &mut RespClient) -> Result<String> {
    let info = client.call(&["CLIENT", "INFO"]).await?.to_string();
    let (_, rest) = info.split_once(" addr=").with_context(|| info.clone())?;
    Ok(rest.split(' ').next().unwrap_or_default().to_owned())
}

/// The addresses of all connections, as the admin API shows them.
async fn addresses(server: &Server) -> Result<Vec<String>> {
    let connections = Operator::of(server).await?.get("/v1/connections")?;
    let all = connections.get("connections").and_then(|all| all.as_array()).context("no list")?;
    let mut all: Vec<String> =
        all.iter().filter_map(|it| it["address"].as_str()).map(str::to_owned).collect();
    all.sort_unstable();
    Ok(all)
}

async fn ping(client: &mut Client) -> Result<()> {
    assert_eq!(client.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    Ok(())
}

#[tokio::test]
async fn the_address_in_a_header_of_a_trusted_proxy_is_shown_and_limited() -> Result<()> {
    let config =
        format!("{TRUSTED}{HEADER}limits.connections_per_address_max = 1\nlog.filter = 'debug'");
    let server = Launch::with_config(&config).start().await?;
    let mut first = open(&server, "X-Forwarded-For", &["203.0.113.9, 192.0.2.7:81"]).await?;
    ping(&mut first).await?;
    // What the client says itself changes nothing, in one header or in two.
    for values in [&["198.51.100.1, 192.0.2.7"][..], &["198.51.100.1", "192.0.2.7"]] {
        let (code, _) = open(&server, "x-forwarded-for", values).await?.next_close().await?;
        assert_eq!(code, Some(4103), "{values:?}");
    }
    let mut other = open(&server, "X-Forwarded-For", &["[2001:db8::7]"]).await?;
    ping(&mut other).await?;
    // The proxy itself is not limited.
    let mut own = Vec::new();
    for _ in 0..3 {
        own.push(open(&server, "X-Forwarded-For", &[]).await?);
    }
    for client in &mut own {
        ping(client).await?;
    }
    let shown = addresses(&server).await?;
    for address in ["192.0.2.7:81", "[2001:db8::7]:0"] {
        ensure!(shown.contains(&address.to_owned()), "{address} is not in {shown:?}");
        let opened = format!("remote={address}");
        let line = server.wait_for_log(&opened).await?;
        ensure!(line.contains("connection opened"), "{line}");
        let mut resp = RespClient::connect(server.resp_address().await?).await?;
        let list = resp.call(&["CLIENT", "LIST"]).await?.to_string();
        ensure!(list.contains(&format!("addr={address} ")), "{list}");
    }
    server.stop().await
}

#[tokio::test]
async fn the_header_forwarded_is_read_as_rfc_7239_says() -> Result<()> {
    let config = format!("{TRUSTED}http.client_address_header = 'Forwarded'\n");
    let server = Launch::with_config(&config).start().await?;
    let mut clients = Vec::new();
    for (values, address) in [
        (&["for=203.0.113.9, for=\"[2001:db8::1]:4711\";proto=https"][..], "[2001:db8::1]:4711"),
        (&["for=\"unfinished", "For=192.0.2.7"], "192.0.2.7:0"),
    ] {
        let mut client = open(&server, "Forwarded", values).await?;
        ping(&mut client).await?;
        clients.push(client);
        let shown = addresses(&server).await?;
        ensure!(shown.contains(&address.to_owned()), "{address} is not in {shown:?}");
    }
    // The proxy hides the client.
    let mut hidden = open(&server, "Forwarded", &["for=203.0.113.9, for=_hidden"]).await?;
    ping(&mut hidden).await?;
    let shown = addresses(&server).await?;
    ensure!(shown.iter().any(|address| address.starts_with("127.0.0.1:")), "{shown:?}");
    server.stop().await
}

#[tokio::test]
async fn a_header_of_another_peer_does_not_count() -> Result<()> {
    let config = format!("security.trusted_proxies = ['10.0.0.0/8']\n{HEADER}");
    let server = Launch::with_config(&config).start().await?;
    let mut client = open(&server, "X-Forwarded-For", &["192.0.2.7"]).await?;
    ping(&mut client).await?;
    let shown = addresses(&server).await?;
    ensure!(shown.iter().all(|address| address.starts_with("127.0.0.1:")), "{shown:?}");
    // The list of trusted proxies is read again.
    let file = server.home().join("switchyard.toml");
    components::write_atomically(&file, format!("{TRUSTED}{HEADER}").as_bytes())?;
    let line = server.wait_for_log("settings were changed").await?;
    ensure!(line.contains("security.trusted_proxies"), "{line}");
    let mut client = open(&server, "X-Forwarded-For", &["192.0.2.7"]).await?;
    ping(&mut client).await?;
    let shown = addresses(&server).await?;
    ensure!(shown.contains(&"192.0.2.7:0".to_owned()), "{shown:?}");
    server.stop().await
}

/// Other limits of an address than those of its connections and handshakes.
#[tokio::test]
async fn limits_of_an_address_are_those_of_the_client() -> Result<()> {
    let config = format!("{TRUSTED}{HEADER}limits.name_bytes_per_address_max = 2000\n");
    let server = Launch::with_config(&config).start().await?;
    let long = "n".repeat(1000);
    let subscribe = |suffix: &str| json!(["SUBSCRIBE", format!("{long}{suffix}")]);
    let mut first = open(&server, "X-Forwarded-For", &["192.0.2.7"]).await?;
    assert_eq!(first.call(subscribe("a")).await?, json!(["OK", 1]));
    let mut second = open(&server, "X-Forwarded-For", &["192.0.2.7"]).await?;
    let refused = second.call(subscribe("b")).await?;
    assert_eq!(refused.pointer("/1/code"), Some(&json!("LIMIT")), "{refused}");
    let mut other = open(&server, "X-Forwarded-For", &["192.0.2.8"]).await?;
    assert_eq!(other.call(subscribe("c")).await?, json!(["OK", 1]));
    server.stop().await
}

#[tokio::test]
async fn plugins_receive_the_address_of_the_proxy() -> Result<()> {
    let plugins = components::directory()?;
    let settings = json!({"on_publish": {"show": "proxy.address"}});
    components::install(plugins.path(), "10-probe", &components::built("test/probe")?, &settings)?;
    let config = format!("{TRUSTED}{HEADER}");
    let server = Launch { config, plugins: Some(plugins.path().into()), ..Launch::default() };
    let server = server.start().await?;
    let mut client = open(&server, "X-Forwarded-For", &["192.0.2.7"]).await?;
    client.call(json!(["SUBSCRIBE", "a"])).await?;
    client.call(json!(["PUBLISH", "a", "x"])).await?;
    let message = client.next_json().await?;
    let text = message[2].as_str().unwrap_or_default();
    ensure!(text.starts_with("x:127.0.0.1:"), "{message}");
    server.stop().await
}

/// The header that the plugin's own setting names may be the client's.
#[tokio::test]
async fn rate_limit_counts_the_address_that_the_server_knows() -> Result<()> {
    let plugins = components::directory()?;
    let settings = json!({
        "address_header": "x-real-ip",
        "limits": [{"name": "connects", "of": "connects", "per": "address", "rate": 1, "every_ms": 3600000}],
    });
    let component = components::built("rate-limit")?;
    components::install(plugins.path(), "15-rate-limit", &component, &settings)?;
    let config = format!("{TRUSTED}{HEADER}");
    let server = Launch { config, plugins: Some(plugins.path().into()), ..Launch::default() };
    let server = server.start().await?;
    let connect = async |client: &str, claimed: &str| {
        let headers = [("X-Forwarded-For", client), ("X-Real-IP", claimed)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let upgrade = Upgrade { headers, ..Upgrade::default() };
        let opened = Client::connect(server.address().await?, &upgrade).await?;
        opened.ok().context("the upgrade")
    };
    ping(&mut connect("192.0.2.7", "203.0.113.1").await?).await?;
    let mut second = connect("192.0.2.7", "203.0.113.2").await?;
    assert_eq!(second.next_close().await?.0, Some(4106));
    ping(&mut connect("192.0.2.8", "203.0.113.1").await?).await?;
    server.stop().await
}

#[tokio::test]
async fn the_proxy_protocol_says_the_client_of_each_listener() -> Result<()> {
    let config = format!("{ALL_REQUIRED}admin.proxy_protocol = 'required'\nlog.filter = 'debug'");
    let server = Launch::with_config(&config).start().await?;
    let v4 = [192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x67, 0, 80];
    let v6: Vec<u8> = [
        &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..],
        &[0; 16],
        &[0x12, 0x67, 0, 80],
    ]
    .concat();
    let tlvs = [&v4[..], &[4, 0, 40], &[0; 40]].concat();
    for (header, address) in [
        (v1("192.0.2.7"), "192.0.2.7:4711"),
        (v1("2001:db8::7"), "[2001:db8::7]:4711"),
        (v1("::ffff:192.0.2.7"), "192.0.2.7:4711"),
        (v2(0x11, &v4), "192.0.2.7:4711"),
        (v2(0x21, &v6), "[2001:db8::7]:4711"),
        (v2(0x11, &tlvs), "192.0.2.7:4711"),
        // Not known: the peer's own.
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1:"),
        ([&V2[..12], &[0x20, 0, 0, 0]].concat(), "127.0.0.1:"),
        (v2(0, &[]), "127.0.0.1:"),
    ] {
        // At once with the first command, and byte by byte.
        let mut client = resp_behind(&server, &header).await?;
        let own = own_address(&mut client).await?;
        ensure!(own.starts_with(address), "{own} instead of {address}");
        let mut client = RespClient::connect(server.resp_address().await?).await?;
        for byte in &header {
            client.send(&[*byte]).await?;
            tokio::task::yield_now().await;
        }
        let own = own_address(&mut client).await?;
        ensure!(own.starts_with(address), "{own} instead of {address}");
    }
    let mut stream = TcpStream::connect(server.address().await?).await?;
    stream.write_all(&v1("192.0.2.77")).await?;
    let authority = server.address().await?.to_string();
    let opened = Client::open(stream, &authority, &Upgrade::default(), PATIENCE).await?;
    let mut client = opened.ok().context("the upgrade")?;
    ping(&mut client).await?;
    server.wait_for_log("remote=192.0.2.77:4711").await?;

    // The admin listener, which has no log line for each connection.
    let admin = server.admin_url().await?;
    let admin: SocketAddr = admin.strip_prefix("http://").context("a URL")?.parse()?;
    let get = "GET /v1/connections HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    let without = exchange(admin, get.as_bytes()).await?;
    assert_eq!(without, "");
    let with = String::from_utf8(v1("192.0.2.9"))? + get;
    let answer = exchange(admin, with.as_bytes()).await?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("192.0.2.77:4711"), "{answer}");
    let scrape = String::from_utf8(v1("192.0.2.9"))? + &get.replace("/v1/connections", "/metrics");
    let page = exchange(admin, scrape.as_bytes()).await?;
    let refused = r#"switchyard_admin_connections_refused_total{reason="proxy_protocol"} 1"#;
    ensure!(page.contains(refused), "{page}");
    server.stop().await
}

#[tokio::test]
async fn a_connection_without_the_header_is_closed_and_counted() -> Result<()> {
    let config = format!(
        "{ALL_REQUIRED}http.handshake_timeout_ms = 500\nsecurity.proxy_header_bytes_max = 300"
    );
    let server = Launch::with_config(&config).start().await?;
    let long = v2(0x11, &[0; 285]);
    let cases: [&[u8]; 8] = [
        b"*1\r\n$4\r\nPING\r\n",
        UPGRADE.as_bytes(),
        b"PROXY TCP4 192.0.2.7 127.0.0.1 99999 80\r\nPING\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 +1 80\r\nPING\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 01 80\r\nPING\r\n",
        b"PROXY \r\n\r\n\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00\x00",
        &long,
    ];
    for (door, address) in
        [("http", server.address().await?), ("resp", server.resp_address().await?)]
    {
        for bytes in cases {
            is_closed(address, bytes).await?;
        }
        // One that sends nothing, and one that sends too slowly.
        for bytes in [&b""[..], b"PROXY TCP4 192"] {
            let began = Instant::now();
            is_closed(address, bytes).await?;
            ensure!(began.elapsed() > Duration::from_millis(300), "{:?}", began.elapsed());
        }
        let refused = format!(
            r#"switchyard_connections_refused_total{{door="{door}",reason="proxy_protocol"}}"#
        );
        assert_eq!(metric(&server, &refused).await? as usize, cases.len() + 2, "{door}");
    }
    server.stop().await
}

/// Sends these bytes; returns what is answered until the end of the connection.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    // It may be reset, because not all bytes were read.
    let _ = within(PATIENCE, "the end of the connection", stream.read_to_end(&mut answer)).await?;
    Ok(String::from_utf8(answer)?)
}

/// Checks that the server closes a connection on which these bytes were sent, without an answer.
async fn is_closed(address: SocketAddr, bytes: &[u8]) -> Result<()> {
    let answer = exchange(address, bytes).await?;
    ensure!(answer.is_empty(), "{} was answered: {answer}", bytes.escape_ascii());
    Ok(())
}

#[tokio::test]
async fn the_proxy_protocol_of_a_peer_that_is_not_trusted_is_refused() -> Result<()> {
    let config = format!("{ALL_REQUIRED}security.trusted_proxies = ['10.0.0.0/8']");
    let server = Launch::with_config(&config).start().await?;
    is_closed(server.resp_address().await?, &v1("192.0.2.7")).await?;
    is_closed(server.address().await?, &v1("192.0.2.7")).await?;
    server.stop().await
}

#[tokio::test]
async fn the_share_of_handshakes_is_that_of_the_client() -> Result<()> {
    let config = format!("{TRUSTED}{ALL_REQUIRED}limits.handshakes_per_address_max = 2\n");
    let server = Launch::with_config(&config).start().await?;
    let address = server.address().await?;
    let start = async |client: &str| {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&[v1(client), HALF.into()].concat()).await?;
        anyhow::Ok(stream)
    };
    let mut held = vec![start("192.0.2.8").await?, start("192.0.2.8").await?];
    let refused = r#"switchyard_connections_refused_total{door="http",reason="handshake_share"}"#;
    within(PATIENCE, "the share of the client", async {
        while metric(&server, refused).await? < 1.0 {
            held.push(start("192.0.2.7").await?);
        }
        anyhow::Ok(())
    })
    .await??;
    // Others are served.
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&[v1("192.0.2.9"), UPGRADE.into()].concat()).await?;
    let mut answer = [0; 12];
    within(PATIENCE, "an answer", stream.read_exact(&mut answer)).await??;
    assert_eq!(&answer, b"HTTP/1.1 101");
    server.stop().await
}

/// The header comes before TLS, and the address in it may be that of a further proxy, whose header
/// counts.
#[tokio::test]
async fn the_proxy_protocol_precedes_tls() -> Result<()> {
    let authority = Authority::new()?;
    let (certificate, key) = authority.sign("server")?;
    let files = vec![("s.pem".to_owned(), certificate), ("s.key".to_owned(), key)];
    let mut config = format!(
        "security.trusted_proxies = ['127.0.0.1', '10.0.0.0/8']\n{HEADER}{ALL_REQUIRED}log.filter = 'debug'\n"
    );
    for door in ["http", "resp"] {
        config += &format!("{door}.tls.certificate = 's.pem'\n{door}.tls.key = 's.key'\n");
    }
    let server = Launch { config, files, ..Launch::default() }.start().await?;
    let connector = connector(&authority)?;

    let mut stream = TcpStream::connect(server.resp_address().await?).await?;
    stream.write_all(&v1("192.0.2.7")).await?;
    let mut stream = connector.connect(server_name()?, stream).await?;
    stream.write_all(b"CLIENT INFO\r\nQUIT\r\n").await?;
    let mut answer = String::new();
    within(PATIENCE, "an answer", stream.read_to_string(&mut answer)).await??;
    ensure!(answer.contains(" addr=192.0.2.7:4711 "), "{answer}");

    let mut stream = TcpStream::connect(server.address().await?).await?;
    stream.write_all(&v1("10.1.2.3")).await?;
    let stream = connector.connect(server_name()?, stream).await?;
    let headers = vec![("X-Forwarded-For".to_owned(), "203.0.113.9, 192.0.2.8".to_owned())];
    let upgrade = Upgrade { headers, ..Upgrade::default() };
    let opened = AnyClient::open(stream, "127.0.0.1", &upgrade, PATIENCE).await?;
    let mut client = opened.ok().context("the upgrade")?;
    let pong: Value = client.call(json!(["PING"])).await?;
    assert_eq!(pong, json!(["OK", "PONG"]));
    server.wait_for_log("remote=192.0.2.8:0").await?;
    server.stop().await
}
