//! The commands over TLS, and the environment variables for the server's address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{outcome, switchyard};
use crate::support::process::{Pipe, Process};
use crate::support::server::Launch;
use crate::tls::{Authority, start};

/// Ends TLS for another listener, as a reverse proxy does. Returns its URL.
async fn proxy(authority: &Authority, to: SocketAddr) -> Result<String> {
    let (certificate, key) = authority.sign("proxy")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("https://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut client = acceptor.accept(stream).await?;
                let mut server = TcpStream::connect(to).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok(url)
}

fn file_of(authority: &Authority, directory: &Path) -> Result<PathBuf> {
    let path = directory.join("ca.pem");
    std::fs::write(&path, &authority.pem)?;
    Ok(path)
}

#[tokio::test]
async fn clients_speak_tls() -> Result<()> {
    let server = start(&Authority::new()?, "", None).await?;
    let (url, ca) = (server.url().await?, server.home().join("ca.pem"));
    let at = ["--url", &url, "--ca", ca.to_str().context("text")?];

    let words = [&["sub", "news", "--count", "1"], &at[..]].concat();
    let mut subscriber = Process::start("sub", &mut switchyard(&words))?;
    subscriber.line_with(Pipe::Stderr, "listening").await?;
    let words = [&["pub", "news", "hello"], &at[..]].concat();
    let (lines, _) = outcome(Process::start("pub", &mut switchyard(&words))?, 0).await?;
    assert_eq!(lines, [r#"{"channel":"news","deliveries":1}"#]);
    let (status, lines) = subscriber.exit().await?;
    assert!(status.success() && lines[0].contains("hello"), "{lines:?}");

    let bench = ["bench", "--connections", "2", "--channels", "1", "--publishers", "1"];
    let words = [&bench[..], &["--duration", "0.2"], &at].concat();
    let (lines, _) = outcome(Process::start("bench", &mut switchyard(&words))?, 0).await?;
    assert!(lines[0].contains("\"deliveries_lost\":0"), "{lines:?}");

    // The variables instead of the flags.
    let mut command = switchyard(&["pub", "news", "hello"]);
    command.env("SWITCHYARD_URL", &url).env("SWITCHYARD_CA", &ca);
    outcome(Process::start("pub", &mut command)?, 0).await?;
    server.stop().await
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_ends_the_command() -> Result<()> {
    let server = start(&Authority::new()?, "", None).await?;
    let directory = tempfile::tempdir()?;
    let other = file_of(&Authority::new()?, directory.path())?;
    let (url, other) = (server.url().await?, other.to_str().context("text")?.to_owned());
    let missing = directory.path().join("missing.pem");
    let missing = missing.to_str().context("text")?;
    for (ca, says) in [(&*other, "trusted with --ca"), (missing, "missing.pem")] {
        for words in [&["sub", "news"][..], &["pub", "news", "hello"]] {
            let words = [words, &["--url", &url, "--ca", ca]].concat();
            let process = Process::start("a client", &mut switchyard(&words))?;
            let (_, said) = outcome(process, 1).await?;
            assert!(said.contains(says), "{words:?}: {said}");
        }
        let health = url.replace("wss://", "https://").replace("/ws", "/healthz");
        let words = ["health", &health, "--ca", ca];
        let process = Process::start("health", &mut switchyard(&words))?;
        let (_, said) = outcome(process, 1).await?;
        assert!(said.contains("certificate") || said.contains(says), "{said}");
    }
    for (url, says) in [("rediss://127.0.0.1:1", "wss://"), ("wss://", "wss://")] {
        let words = ["pub", "news", "hello", "--url", url];
        let process = Process::start("pub", &mut switchyard(&words))?;
        let (_, said) = outcome(process, 64).await?;
        assert!(said.contains(says), "{said}");
    }
    server.stop().await
}

#[tokio::test]
async fn the_health_check_is_the_same_with_tls() -> Result<()> {
    let server = start(&Authority::new()?, "", None).await?;
    let ca = server.home().join("ca.pem");
    let ca = ca.to_str().context("text")?;
    let address = server.address().await?;
    let [plain, tls] = ["http", "https"].map(|scheme| format!("{scheme}://{address}/healthz"));
    for words in [&["health", &plain][..], &["health", &tls], &["health", &tls, "--ca", ca]] {
        let process = Process::start("health", &mut switchyard(words))?;
        let (lines, _) = outcome(process, 0).await.with_context(|| format!("{words:?}"))?;
        assert_eq!(lines, ["ok"], "{words:?}");
    }
    server.stop().await
}

#[tokio::test]
async fn operators_speak_tls() -> Result<()> {
    let server = Launch::default().start().await?;
    let admin = server.admin_url().await?;
    let address = admin.strip_prefix("http://").context("a URL")?.parse()?;
    let authority = Authority::new()?;
    let url = proxy(&authority, address).await?;
    let directory = tempfile::tempdir()?;
    let ca = file_of(&authority, directory.path())?;
    let ca = ca.to_str().context("text")?;
    for words in [&["plugin", "ls"][..], &["connections", "--json"], &["top", "--count", "1"]] {
        let flags = [words, &["--admin", &url, "--ca", ca]].concat();
        outcome(Process::start("an operator", &mut switchyard(&flags))?, 0)
            .await
            .with_context(|| format!("{words:?}"))?;

        let mut command = switchyard(words);
        command.env("SWITCHYARD_ADMIN", &url).env("SWITCHYARD_CA", ca);
        outcome(Process::start("an operator", &mut command)?, 0).await?;
        // A flag overrides the variable.
        let mut command = switchyard(&[words, &["--admin", &admin]].concat());
        command.env("SWITCHYARD_ADMIN", "https://127.0.0.1:1").env("SWITCHYARD_CA", ca);
        outcome(Process::start("an operator", &mut command)?, 0).await?;
    }
    let other = file_of(&Authority::new()?, directory.path())?;
    let words = ["plugin", "ls", "--admin", &url, "--ca", other.to_str().context("text")?];
    let (_, said) = outcome(Process::start("an operator", &mut switchyard(&words))?, 1).await?;
    assert!(said.contains("trusted with --ca"), "{said}");
    server.stop().await
}

/// A certificate that signed itself is trusted with itself, unless it is one of an authority.
#[tokio::test]
async fn a_self_signed_certificate_is_trusted_or_the_reason_is_said() -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let own = |is_ca| {
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.is_ca = is_ca;
        anyhow::Ok(params.self_signed(&key)?.pem())
    };
    for (is_ca, code, says) in [
        (rcgen::IsCa::ExplicitNoCa, 0, ""),
        (
            rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            1,
            "basicConstraints=critical,CA:FALSE",
        ),
    ] {
        let files = [("server.pem", own(is_ca)?), ("server.key", key.serialize_pem())];
        let config = "http.tls.certificate = 'server.pem'\nhttp.tls.key = 'server.key'\n";
        let files = files.map(|(name, text)| (name.to_owned(), text)).into();
        let server = Launch { files, ..Launch::with_config(config) }.start().await?;
        let (url, ca) = (server.url().await?, server.home().join("server.pem"));
        let words = ["pub", "news", "hello", "--url", &url, "--ca", ca.to_str().context("text")?];
        let (_, said) = outcome(Process::start("pub", &mut switchyard(&words))?, code).await?;
        assert!(said.contains(says), "{said}");
        server.stop().await?;
    }
    Ok(())
}

/// What never ends is not read.
#[tokio::test]
async fn an_authority_must_be_a_regular_file() -> Result<()> {
    let server = start(&Authority::new()?, "", None).await?;
    let url = server.url().await?;
    for words in [&["sub", "news"][..], &["pub", "news", "hello"]] {
        let words = [words, &["--url", &*url, "--ca", "/dev/zero"]].concat();
        let process = Process::start("a client", &mut switchyard(&words))?;
        let (_, said) = outcome(process, 1).await?;
        assert!(said.contains("it is not a regular file"), "{words:?}: {said}");
    }
    server.stop().await
}
