//! Passwords and certificates: they are used, and they are never shown.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::backplane::{Backplane, Kind};
use crate::listener::{Listener, payload};
use crate::nodes::{Node, Options};
use crate::support::server::Server;

const PASSWORD: &str = "c0rrect-horse";

async fn passwords(kind: Kind, extra: &[&str], user: &str) -> Result<()> {
    let backplane = Backplane::start_with(kind, extra).await?;
    let home = tempfile::tempdir()?;
    let options = |password: &str| -> Result<Options> {
        let file = home.path().join(format!("{}.txt", password.len()));
        std::fs::write(&file, format!("{password}\n"))?;
        let config = format!("{user}password_file = {file:?}\n[log]\nfilter = \"trace\"\n");
        Ok(Options { config, ..Options::default() })
    };
    let in_a_file = options(PASSWORD)?;
    let in_the_environment = Options {
        config: format!("{user}\n[log]\nfilter = \"trace\"\n"),
        environment: vec![("SWITCHYARD_CLUSTER_PASSWORD".to_owned(), PASSWORD.into())],
        ..Options::default()
    };
    let (one, two) = tokio::try_join!(
        Node::start(&backplane, &in_a_file),
        Node::start(&backplane, &in_the_environment),
    )?;
    let mut listener = Listener::start(one.client().await?, &["news"], &[]).await?;
    two.publish("news", &payload("two", 1)).await?;
    listener.expect(1).await?;
    // One that does not know it serves its own clients, and says what is wrong.
    let wrong = "connect_timeout_ms = 500\n".to_owned() + &options("wr0ng-horse-1")?.config;
    let unknown = Node::start(&backplane, &Options { config: wrong, ..Options::default() }).await?;
    let away = (200, "degraded: the backplane is disconnected\n".to_owned());
    ensure!(unknown.health().await? == away);
    unknown.server.wait_for_log("the backplane is disconnected").await?;
    for node in [one, two, unknown] {
        let log = node.server.log();
        ensure!(!log.contains("horse"), "the log has the password");
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_password_of_redis_is_used_and_not_logged() -> Result<()> {
    passwords(Kind::Redis, &["--requirepass", PASSWORD], "").await
}

#[tokio::test]
async fn the_password_of_nats_is_used_and_not_logged() -> Result<()> {
    passwords(Kind::Nats, &["--user", "sw", "--pass", PASSWORD], "user = \"sw\"\n").await
}

/// A node that was started with a wrong password connects once its file has the right one.
async fn replaced_password(kind: Kind, extra: &[&str], user: &str) -> Result<()> {
    let backplane = Backplane::start_with(kind, extra).await?;
    let home = tempfile::tempdir()?;
    let file = home.path().join("password.txt");
    std::fs::write(&file, "wr0ng-horse-1\n")?;
    let config = format!("connect_timeout_ms = 500\n{user}password_file = {file:?}\n");
    let node = Node::start(&backplane, &Options { config, ..Options::default() }).await?;
    node.server.wait_for_log("the backplane is disconnected").await?;
    std::fs::write(&file, PASSWORD)?;
    node.server.wait_for_log("the password or the certificates for the backplane").await?;
    node.until_connected(true).await?;
    ensure!(!node.server.log().contains("horse"), "the log has the password");
    node.stop().await
}

#[tokio::test]
async fn a_replaced_password_of_redis_is_used() -> Result<()> {
    replaced_password(Kind::Redis, &["--requirepass", PASSWORD], "").await
}

#[tokio::test]
async fn a_replaced_password_of_nats_is_used() -> Result<()> {
    let extra = ["--user", "sw", "--pass", PASSWORD];
    replaced_password(Kind::Nats, &extra, "user = \"sw\"\n").await
}

#[tokio::test]
async fn a_password_on_the_command_line_is_refused_and_not_repeated() -> Result<()> {
    let url = format!("redis://me:{PASSWORD}@127.0.0.1:1");
    let mut server = Server::run_alone(&["--cluster", &url])?;
    let (status, _) = server.exit().await?;
    ensure!(status.code() == Some(64), "it ended with {status}");
    let log = server.log();
    ensure!(log.contains("SWITCHYARD_CLUSTER_PASSWORD") && !log.contains(PASSWORD), "{log}");
    Ok(())
}

/// An authority, and certificates by it for a server and for nodes, made by OpenSSL.
struct Certificates {
    authority: PathBuf,
    /// With their keys.
    server: [PathBuf; 2],
    node: [PathBuf; 2],
}

impl Certificates {
    fn make(home: &Path) -> Result<Certificates> {
        let openssl = |words: &str| -> Result<()> {
            let output = Command::new("openssl").args(words.split(' ')).current_dir(home).output();
            let output = output.context("there is no openssl")?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        std::fs::write(home.join("names"), "subjectAltName=IP:127.0.0.1\n")?;
        openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tests -keyout ca.key -out ca.pem",
        )?;
        let signed = |name: &str| -> Result<[PathBuf; 2]> {
            openssl(&format!(
                "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ))?;
            openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                 -extfile names -out {name}.pem"
            ))?;
            Ok(["pem", "key"].map(|kind| home.join(format!("{name}.{kind}"))))
        };
        let (server, node) = (signed("server")?, signed("node")?);
        Ok(Certificates { authority: home.join("ca.pem"), server, node })
    }
}

async fn tls(kind: Kind) -> Result<()> {
    let home = tempfile::tempdir()?;
    let Certificates { authority, server: [certificate, key], node } =
        Certificates::make(home.path())?;
    let [certificate, key, ca] =
        [&certificate, &key, &authority].map(|path| path.display().to_string());
    let extra = match kind {
        Kind::Redis => vec![
            "--port",
            "0",
            "--tls-port",
            "{port}",
            "--tls-auth-clients",
            "yes",
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
        ],
        Kind::Nats => {
            vec!["--tlsverify", "--tlscert", &certificate, "--tlskey", &key, "--tlscacert", &ca]
        }
    };
    let backplane = Backplane::start_with(kind, &extra).await?;
    let scheme = if kind == Kind::Redis { "rediss" } else { "tls" };
    let url = format!("{scheme}://{}", backplane.address);
    let trusting = format!("ca_file = {authority:?}\n");
    let [node_certificate, node_key] = &node;
    let known =
        format!("client_cert_file = {node_certificate:?}\nclient_key_file = {node_key:?}\n");
    let options = Options { config: trusting.clone() + &known, ..Options::default() };
    let (one, two) = tokio::try_join!(
        Node::start_with_url(&url, &options),
        Node::start_with_url(&url, &options),
    )?;
    let mut listener = Listener::start(one.client().await?, &["news"], &["*"]).await?;
    two.publish("news", &payload("two", 1)).await?;
    listener.expect(2).await?;
    // A node that does not trust the backplane does not connect, and one without a
    // certificate of its own is rejected.
    for (what, config) in [("is trusted", known), ("trusts", trusting)] {
        let config = "connect_timeout_ms = 500\n".to_owned() + &config;
        let unknown = Node::start_with_url(&url, &Options { config, ..Options::default() }).await?;
        ensure!(!unknown.is_connected().await?, "a node that nothing is known of {what}");
    }
    Ok(())
}

#[tokio::test]
async fn redis_is_spoken_to_over_tls() -> Result<()> {
    tls(Kind::Redis).await
}

#[tokio::test]
async fn nats_is_spoken_to_over_tls() -> Result<()> {
    tls(Kind::Nats).await
}
