//! HAProxy's health checks, by default and of each probe, at both HTTP listeners.

use std::process::Command;

use anyhow::Result;

use crate::proxy::Proxy;
use crate::support::process::Pipe;
use crate::support::server::{Launch, Server};

/// The checks, each with a name.
const CHECKS: [(&str, &str); 5] = [
    ("default", "option httpchk"),
    ("get", "option httpchk GET /readyz"),
    ("head", "option httpchk HEAD /readyz/"),
    (
        "later",
        "option httpchk\n    http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost",
    ),
    ("alive", "option httpchk GET /livez"),
];

/// HAProxy with a backend for each check of each listener.
async fn checks(server: &Server) -> Result<Proxy> {
    let door = server.address().await?.to_string();
    let admin = server.admin_url().await?.replace("http://", "");
    let mut backends = String::new();
    for (listener, address) in [("door", &door), ("admin", &admin)] {
        for (name, check) in CHECKS {
            backends += &format!(
                "backend {listener}-{name}\n    {check}\n    \
                 server node {address} check inter 50ms rise 1 fall 1\n"
            );
        }
    }
    let configuration = |port: u16| {
        format!(
            "global\n    log stdout format raw local0\n\
             defaults\n    mode http\n    log global\n    option log-health-checks\n    \
             timeout connect 5s\n    timeout client 5s\n    timeout server 5s\n    \
             timeout check 5s\n\
             frontend clients\n    bind 127.0.0.1:{port}\n    default_backend door-get\n{backends}"
        )
    };
    Proxy::start("haproxy", |home, port| {
        let file = home.path().join("haproxy.cfg");
        std::fs::write(&file, configuration(port))?;
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(file).current_dir(home.path());
        Ok(command)
    })
    .await
}

#[tokio::test]
async fn its_checks_see_a_node_that_is_ready_and_one_that_is_not() -> Result<()> {
    let mut server = Launch::with_config("shutdown.grace_ms = 86400000").start().await?;
    let _client = server.client().await?;
    let proxy = checks(&server).await?;
    let said = |listener: &str, name: &str, what: &str| {
        format!("Health check for server {listener}-{name}/node {what}")
    };
    let all = || ["door", "admin"].into_iter().flat_map(|it| CHECKS.map(|(name, _)| (it, name)));
    for (listener, name) in all() {
        let line = said(listener, name, "succeeded, reason: Layer7 check passed, code: 200");
        proxy.process.line_with(Pipe::Stdout, &line).await?;
    }
    server.signal("TERM")?;
    for (listener, name) in all().filter(|(_, name)| *name != "alive") {
        let line = said(listener, name, "failed, reason: Layer7 wrong status, code: 503");
        proxy.process.line_with(Pipe::Stdout, &line).await?;
    }
    let text = proxy.process.text(Pipe::Stdout);
    assert!(!text.contains(&said("door", "alive", "failed")), "{text}");
    assert!(!text.contains(&said("admin", "alive", "failed")), "{text}");
    server.signal("TERM")?;
    server.exit().await?;
    Ok(())
}
