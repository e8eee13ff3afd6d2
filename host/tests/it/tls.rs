//! TLS, with certificates made here and third-party clients.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::clients::repository;
use crate::descriptors::idle;
use crate::support::components::{self, write_atomically};
use crate::support::process::Process;
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};

/// A certificate authority.
pub struct Authority {
    /// Its own certificate.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Creates an authority that is not trusted yet.
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { pem, issuer: Issuer::new(params, key) })
    }

    /// A certificate of this name for 127.0.0.1, and its key.
    pub fn sign(&self, name: &str) -> Result<(String, String)> {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

const BOTH_DOORS: &str = "
    http.tls.certificate = 'server.pem'
    http.tls.key = 'server.key'
    resp.tls.certificate = 'server.pem'
    resp.tls.key = 'server.key'
";

/// A server with a certificate of this authority at both doors, and the authority's own in `ca.pem`.
pub async fn start(authority: &Authority, config: &str, plugins: Option<&Path>) -> Result<Server> {
    let (certificate, key) = authority.sign("server")?;
    let files =
        [("server.pem", certificate), ("server.key", key), ("ca.pem", authority.pem.clone())];
    let files = files.map(|(name, text)| (name.to_owned(), text)).into();
    let config = format!("{BOTH_DOORS}\n{config}");
    Launch { config, files, plugins: plugins.map(Path::to_owned), ..Launch::default() }
        .start()
        .await
}

/// Runs a script of `tests/clients/`; returns whether it succeeded, and its output.
async fn script(
    server: &Server,
    program: &str,
    script: &str,
    more: &[&str],
) -> Result<(bool, Vec<String>)> {
    let program = match program {
        "python" => repository().join(".tools/python/bin/python"),
        other => other.into(),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let mut command = Command::new(program);
    command.arg(path).arg(server.url().await?).arg(server.home().join("ca.pem")).args(more);
    command.env("NODE_PATH", repository().join(".tools/node/node_modules"));
    let install = "run host/tests/clients/install.sh";
    let mut process = Process::start("a client over TLS", &mut command).context(install)?;
    let (status, lines) = process.exit().await?;
    Ok((status.success(), lines))
}

#[tokio::test]
async fn third_party_clients_speak_tls() -> Result<()> {
    let server = start(&Authority::new()?, "log.filter = 'debug'", None).await?;
    ensure!(server.url().await?.starts_with("wss://"), "{}", server.url().await?);
    let (is_fine, _) = script(&server, "node", "tls.js", &[]).await?;
    ensure!(is_fine, "Node's ws could not");
    for (newest, spoken) in [("TLSv1_3", "TLSv1.3"), ("TLSv1_2", "TLSv1.2")] {
        let (is_fine, lines) = script(&server, "python", "tls.py", &[newest]).await?;
        ensure!(is_fine && lines == [spoken], "Python's websockets, {newest}: {lines:?}");
    }
    let (is_fine, lines) = script(&server, "python", "tls.py", &["TLSv1_1"]).await?;
    ensure!(!is_fine && lines.is_empty(), "TLS 1.1 was spoken: {lines:?}");
    server.wait_for_log("no TLS handshake").await?;
    let said = redis_cli(&server, &["ping"]).await?;
    assert_eq!(said, ["PONG"]);
    server.stop().await
}

async fn redis_cli(server: &Server, words: &[&str]) -> Result<Vec<String>> {
    let port = server.resp_address().await?.port().to_string();
    let mut command = Command::new("redis-cli");
    command.args(["--tls", "--cacert", "ca.pem", "-h", "127.0.0.1", "-p", &port]);
    command.args(words).current_dir(server.home());
    let mut process = Process::start("redis-cli", &mut command)?;
    Ok(process.exit().await?.1)
}

#[tokio::test]
async fn plugins_see_the_subject_of_a_clients_certificate() -> Result<()> {
    let authority = Authority::new()?;
    let plugins = components::directory()?;
    let settings = json!({"on_publish": {"show": "tls.subject"}});
    components::install(plugins.path(), "10-probe", &components::built("test/probe")?, &settings)?;
    let config = "
        resp.tls.client_ca = 'ca.pem'
        resp.tls.client_certificates = 'optional'
    ";
    let server = start(&authority, config, Some(plugins.path())).await?;
    let (certificate, key) = authority.sign("alice")?;
    std::fs::write(server.home().join("alice.pem"), certificate)?;
    std::fs::write(server.home().join("alice.key"), key)?;
    // Signed by an authority that the server does not know.
    let (certificate, key) = Authority::new()?.sign("alice")?;
    std::fs::write(server.home().join("mallory.pem"), certificate)?;
    std::fs::write(server.home().join("mallory.key"), key)?;

    let mut listener = connect(&server, &authority).await?;
    say(&mut listener, r#"[1,"SUBSCRIBE","a"]"#, r#"[1,"OK",1]"#).await?;
    let alice = ["--cert", "alice.pem", "--key", "alice.key", "publish", "a", "x"];
    assert_eq!(redis_cli(&server, &alice).await?, ["1"]);
    let message = next(&mut listener).await?;
    ensure!(message.contains("CN=alice") && message.contains("O=Example"), "{message}");
    // Without a certificate there is no subject.
    assert_eq!(redis_cli(&server, &["publish", "a", "y"]).await?, ["1"]);
    assert_eq!(next(&mut listener).await?, r#"["message","a","y:"]"#);
    let mallory = ["--cert", "mallory.pem", "--key", "mallory.key", "publish", "a", "z"];
    ensure!(
        redis_cli(&server, &mallory).await?.is_empty(),
        "a certificate of an unknown authority was accepted"
    );
    server.stop().await?;

    // Where a certificate is required, no client is accepted without one.
    let server = start(&authority, "resp.tls.client_ca = 'ca.pem'", None).await?;
    ensure!(redis_cli(&server, &["ping"]).await?.is_empty(), "it was let in without one");
    server.stop().await
}

type TlsClient = WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

/// Connects as a client that trusts this authority.
pub fn connector(authority: &Authority) -> Result<tokio_rustls::TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

/// The name in the servers' certificates.
pub fn server_name() -> Result<ServerName<'static>> {
    Ok(ServerName::try_from("127.0.0.1")?)
}

async fn connect(server: &Server, authority: &Authority) -> Result<TlsClient> {
    let connector = connector(authority)?;
    let address = server.address().await?;
    within(PATIENCE, "a TLS handshake", async {
        let stream = TcpStream::connect(address).await?;
        let stream = connector.connect(server_name()?, stream).await?;
        Ok(tokio_tungstenite::client_async(server.url().await?, stream).await?.0)
    })
    .await?
}

async fn next(client: &mut TlsClient) -> Result<String> {
    let message = within(PATIENCE, "a message", client.next()).await?;
    match message.context("the connection ended")?? {
        Message::Text(text) => Ok(text.to_string()),
        other => anyhow::bail!("{other} came"),
    }
}

async fn say(client: &mut TlsClient, text: &str, answer: &str) -> Result<()> {
    client.send(Message::text(text)).await?;
    let said = next(client).await?;
    ensure!(said == answer, "{text} was answered {said}");
    Ok(())
}

/// The certificate that the server presented to this client.
fn shown(client: &TlsClient) -> Result<Vec<u8>> {
    let shown = client.get_ref().get_ref().1.peer_certificates();
    Ok(shown.and_then(<[_]>::first).context("a server shows a certificate")?.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_under_load_without_errors() -> Result<()> {
    let authority = Authority::new()?;
    let server = Arc::new(start(&authority, "", None).await?);
    let (stop, is_stopped) = tokio::sync::watch::channel(false);
    let mut load = Vec::new();
    for number in 0..20 {
        let mut client = connect(&server, &authority).await?;
        let is_stopped = is_stopped.clone();
        load.push(tokio::spawn(async move {
            let channel = format!("own-{number}");
            let subscribe = format!(r#"[0,"SUBSCRIBE","{channel}"]"#);
            say(&mut client, &subscribe, r#"[0,"OK",1]"#).await?;
            let mut published = 0_u64;
            while !*is_stopped.borrow() {
                published += 1;
                let publish = format!(r#"[{published},"PUBLISH","{channel}","{published}"]"#);
                say(&mut client, &publish, &format!(r#"[{published},"OK",1]"#)).await?;
                let expected = format!(r#"["message","{channel}","{published}"]"#);
                let came = next(&mut client).await?;
                ensure!(came == expected, "{came} instead of {expected}");
            }
            Ok(published)
        }));
    }
    let mut before = shown(&connect(&server, &authority).await?)?;
    for round in 1..=5 {
        let (certificate, key) = authority.sign("server")?;
        // Between the two writes the files do not match, and those in use stay.
        write_atomically(&server.home().join("server.key"), key.as_bytes())?;
        let still = shown(&connect(&server, &authority).await?)?;
        ensure!(still == before, "a certificate without its key was accepted");
        write_atomically(&server.home().join("server.pem"), certificate.as_bytes())?;
        server.wait_for_logs("the certificate was replaced", 2 * round).await?;
        let after = shown(&connect(&server, &authority).await?)?;
        let wanted = CertificateDer::from_pem_slice(certificate.as_bytes())?;
        ensure!(after != before && after == wanted.as_ref(), "another certificate is shown");
        before = after;
    }
    // An invalid file is refused, and the log says why; SIGHUP reads it again, too.
    write_atomically(&server.home().join("server.pem"), b"nonsense")?;
    server.signal("HUP")?;
    let line = server.wait_for_log("there is no certificate in it").await?;
    ensure!(line.contains("the one in use stays") && line.contains("server.pem"), "{line}");
    ensure!(shown(&connect(&server, &authority).await?)? == before, "nonsense is shown");
    stop.send_replace(true);
    let mut published = 0;
    for load in load {
        published += load.await??;
    }
    println!("{published} round trips while the certificate was replaced five times");
    Arc::into_inner(server).context("all clients are gone")?.stop().await
}

/// What changes while its file cannot be opened is read when it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_changes_while_there_are_no_descriptors_is_read_later() -> Result<()> {
    let authority = Authority::new()?;
    let (certificate, key) = authority.sign("server")?;
    let files = [("server.pem", certificate), ("server.key", key)];
    let config = "http.tls.certificate = 'server.pem'\nhttp.tls.key = 'server.key'\n\
                  shutdown.timeout_ms = 100\n";
    let server = Launch {
        files: files.map(|(name, text)| (name.to_owned(), text)).into(),
        ulimit: Some("-n 80"),
        ..Launch::with_config(config)
    }
    .start()
    .await?;
    server.wait_for_log("changes of files are watched").await?;
    let held = idle(&server, 120).await?;
    server.wait_for_log("connections could not be accepted").await?;

    // Another file may be read in the place of a reserve at moments: then it is tried again.
    let mut wanted;
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    loop {
        let (certificate, key) = authority.sign("server")?;
        wanted = CertificateDer::from_pem_slice(certificate.as_bytes())?.to_vec();
        let replaced = server.log().matches("the certificate was replaced").count();
        write_atomically(&server.home().join("server.key"), key.as_bytes())?;
        write_atomically(&server.home().join("server.pem"), certificate.as_bytes())?;
        let is_late = within(PATIENCE, "the certificate to be read, or not", async {
            loop {
                let log = server.log();
                if log.contains("could not be read; reading it again") {
                    return true;
                }
                if log.matches("the certificate was replaced").count() > replaced {
                    return false;
                }
                looks.tick().await;
            }
        })
        .await?;
        if is_late {
            break;
        }
    }
    drop(held);
    within(PATIENCE, "the new certificate to be shown", async {
        loop {
            if let Ok(client) = connect(&server, &authority).await
                && shown(&client)? == wanted
            {
                return anyhow::Ok(());
            }
        }
    })
    .await??;
    server.stop().await
}

/// Reading a named pipe might never end, and other changes wait for it.
#[tokio::test]
async fn a_certificate_that_is_no_file_holds_up_no_other_change() -> Result<()> {
    let authority = Authority::new()?;
    let server = start(&authority, "limits.name_bytes_max = 5\n", None).await?;
    server.wait_for_log("changes of files are watched").await?;
    let certificate = server.home().join("server.pem");
    std::fs::remove_file(&certificate)?;
    ensure!(std::process::Command::new("mkfifo").arg(&certificate).status()?.success());
    let line = server.wait_for_log("it is not a regular file").await?;
    ensure!(line.contains("server.pem"), "{line}");
    let path = server.home().join("switchyard.toml");
    let config = std::fs::read_to_string(&path)?;
    write_atomically(&path, config.replace("name_bytes_max = 5", "name_bytes_max = 6").as_bytes())?;
    server.wait_for_log("settings were changed").await?;
    server.stop().await
}
