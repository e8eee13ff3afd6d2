//! Two nodes behind nginx: a node that shuts down, or is restarted, refuses no client and loses no
//! message.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::backplane::{Backplane, Kind};
use crate::proxy::Proxy;
use crate::support::raw;
use crate::support::resp::Resp;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Upgrade};
use crate::support::{PATIENCE, within};

const CLIENTS: usize = 300;
/// The time between two publications.
const PAUSE: Duration = Duration::from_millis(20);

/// nginx before nodes at these two addresses, with the part of packaging/compose/nginx.conf that is
/// about them.
async fn nginx(nodes: [&str; 2]) -> Result<Proxy> {
    let packaged = include_str!("../../../packaging/compose/nginx.conf");
    let (_, http) = packaged.split_once("http {\n").context("nginx.conf has a block http")?;
    let without = |line: &&str| {
        let line = line.trim_start();
        !["access_log", "error_log"].iter().any(|start| line.starts_with(start))
    };
    let http: String = http.lines().filter(without).map(|line| line.to_owned() + "\n").collect();
    let [a, b] = nodes;
    let http = http.replace("server node-a:8080", &format!("server {a}"));
    let http = http.replace("server node-b:8080", &format!("server {b}"));
    Proxy::start("nginx", |home, port| {
        let directory = home.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {directory}/{kind};\n"))
            .concat();
        let http = http.replace("listen 8080;", &format!("listen 127.0.0.1:{port};"));
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log stderr warn;\n\
             worker_rlimit_nofile 4096;\nevents {{ worker_connections 2048; }}\n\
             http {{\naccess_log off;\n{temporary}{http}"
        );
        let file = home.path().join("nginx.conf");
        std::fs::write(&file, configuration)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(home.path()).arg("-c").arg(file).args(["-e", "stderr"]);
        Ok(command)
    })
    .await
}

/// A connection through nginx: never refused, and subscribed.
async fn subscribed(proxy: SocketAddr) -> Result<Client> {
    let mut client = match Client::connect(proxy, &Upgrade::default()).await? {
        Ok(client) => client,
        Err(refused) => bail!("refused: {} {}", refused.status, refused.body),
    };
    assert_eq!(client.call(json!(["SUBSCRIBE", "news"])).await?, json!(["OK", 1]));
    Ok(client)
}

/// What a client received: the numbers of the messages, from the first on.
#[derive(Default)]
struct Received {
    numbers: BTreeSet<u64>,
    /// How often a number came a second time on the same connection.
    repeated: usize,
    moves: usize,
}

/// One connection, with the numbers that came on it.
struct Connection {
    client: Client,
    first: Option<u64>,
    last: Option<u64>,
}

impl Connection {
    async fn open(proxy: SocketAddr) -> Result<Connection> {
        Ok(Connection { client: subscribed(proxy).await?, first: None, last: None })
    }

    /// The next message or notice.
    async fn next(&mut self) -> Result<Said> {
        let said = self.client.next_json().await?;
        if said.pointer("/0") != Some(&json!("message")) {
            return Ok(Said::Notice(said));
        }
        let number = said.pointer("/2").and_then(Value::as_str).context("a number")?.parse()?;
        let is_repeated = self.last.is_some_and(|last| number <= last);
        self.first.get_or_insert(number);
        self.last = Some(number);
        Ok(Said::Number { number, is_repeated })
    }
}

enum Said {
    Number { number: u64, is_repeated: bool },
    Notice(Value),
}

impl Received {
    fn note(&mut self, said: &Said) {
        if let Said::Number { number, is_repeated } = said {
            self.numbers.insert(*number);
            self.repeated += usize::from(*is_repeated);
        }
    }
}

/// Receives until the number `end` came. When the server says that it goes away, it connects again
/// first, subscribes there, and closes the old connection once it has no messages that the new one
/// does not have.
async fn follow(proxy: SocketAddr, mut end: watch::Receiver<Option<u64>>) -> Result<Received> {
    let mut received = Received::default();
    let mut current = Connection::open(proxy).await?;
    while !end.borrow().is_some_and(|end| received.numbers.contains(&end)) {
        let said = tokio::select! {
            said = current.next() => said?,
            _ = end.changed() => continue,
        };
        received.note(&said);
        let Said::Notice(notice) = said else { continue };
        ensure!(notice.pointer("/0") == Some(&json!("goaway")), "{notice}");
        let from = notice.pointer("/1/reconnect_within_ms/0").and_then(Value::as_u64);
        let due = Instant::now() + Duration::from_millis(from.context("a time")?);
        // The messages in the meantime come on the old connection.
        while let Ok(said) = tokio::time::timeout_at(due, current.next()).await {
            received.note(&said?);
        }
        let mut new = Connection::open(proxy).await?;
        while new.first.is_none() || current.last.map(|last| last + 1) < new.first {
            let said = tokio::select! {
                said = new.next() => said?,
                said = current.next() => said?,
            };
            received.note(&said);
        }
        drop(std::mem::replace(&mut current, new));
        received.moves += 1;
    }
    Ok(received)
}

/// Publishes numbers until it is dropped, and returns the last one.
async fn publish(node: SocketAddr, mut stop: watch::Receiver<bool>) -> Result<u64> {
    let mut publisher = Resp::connect(node).await?;
    let mut pace = tokio::time::interval(PAUSE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0_u64.. {
        pace.tick().await;
        let answer = publisher.call(&["PUBLISH", "news", &number.to_string()]).await?;
        ensure!(answer.starts_with(':'), "{answer}");
        if stop.has_changed()? && *stop.borrow_and_update() {
            return Ok(number);
        }
    }
    unreachable!("there are enough numbers")
}

/// Clients that follow what is published.
struct Following {
    clients: Vec<JoinHandle<Result<Received>>>,
    publishing: JoinHandle<Result<u64>>,
    stop: watch::Sender<bool>,
    ended: watch::Sender<Option<u64>>,
}

impl Following {
    /// Clients of the proxy, and a publisher at a node that stays.
    fn start(proxy: SocketAddr, staying: SocketAddr) -> Following {
        let (ended, end) = watch::channel(None);
        let (stop, stopped) = watch::channel(false);
        let publishing = tokio::spawn(publish(staying, stopped));
        let clients = (0..CLIENTS).map(|_| tokio::spawn(follow(proxy, end.clone()))).collect();
        Following { clients, publishing, stop, ended }
    }

    /// Ends them, and checks that no client was refused, and that each received all messages from
    /// its first one on, once on each connection. Returns how often a client moved.
    async fn end(self) -> Result<usize> {
        self.stop.send_replace(true);
        let last = self.publishing.await??;
        self.ended.send_replace(Some(last));
        let mut moves = 0;
        for (place, client) in self.clients.into_iter().enumerate() {
            let received = client.await?.with_context(|| format!("client {place}"))?;
            let numbers = received.numbers;
            let (first, end) = (numbers.first().copied(), numbers.last().copied());
            let (first, end) = (first.context("a message")?, end.context("a message")?);
            ensure!(end == last, "client {place} ended with {end} of {last}");
            let missing = end - first + 1 - numbers.len() as u64;
            ensure!(missing == 0, "client {place} misses {missing} of {first} to {end}");
            ensure!(received.repeated == 0, "client {place} received {} twice", received.repeated);
            moves += received.moves;
        }
        Ok(moves)
    }
}

/// Waits until each client is on one of these nodes.
async fn all_are_on<const N: usize>(nodes: [&Server; N]) -> Result<()> {
    within(PATIENCE, "all clients", async {
        loop {
            let mut there = 0;
            for node in nodes {
                there += subscribers(node).await?;
            }
            if there >= CLIENTS {
                return anyhow::Ok(());
            }
        }
    })
    .await?
}

fn config(backplane: &Backplane) -> String {
    format!(
        "shutdown.grace_ms = 500\nshutdown.reconnect_spread_ms = 2000\n\
         shutdown.close_delay_ms = 10000\nshutdown.timeout_ms = 30000\n\
         cluster.url = '{}'\n",
        backplane.url()
    )
}

async fn node(backplane: &Backplane) -> Result<Server> {
    Launch::with_config(&config(backplane)).start().await
}

/// A node that is ready, and listens on this Unix socket as well: another one can listen there after
/// it.
async fn node_at(socket: &Path, backplane: &Backplane) -> Result<Server> {
    let file = socket.with_extension("toml");
    std::fs::write(&file, config(backplane))?;
    let unix = format!("unix:{}", socket.display());
    let (free, file) = ("127.0.0.1:0", file.to_string_lossy());
    let words = ["serve", "--http", free, "--http", &unix, "--resp", free, "--admin", "off"];
    let server = Server::run_with(&[&words[..], &["--config", &file]].concat())?;
    assert_eq!(raw::get(server.address().await?, "/readyz").await?.0, 200);
    Ok(server)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_connect_elsewhere_first_lose_nothing_when_a_node_ends() -> Result<()> {
    let backplane = Backplane::start(Kind::Redis).await?;
    let (mut leaving, staying) = tokio::try_join!(node(&backplane), node(&backplane))?;
    let nodes = [leaving.address().await?, staying.address().await?].map(|it| it.to_string());
    let proxy = nginx(nodes.each_ref().map(String::as_str)).await?;
    let following = Following::start(proxy.address, staying.resp_address().await?);
    all_are_on([&leaving, &staying]).await?;
    let on_the_leaving = subscribers(&leaving).await?;
    ensure!(on_the_leaving > CLIENTS / 4, "only {on_the_leaving} are on the node that ends");
    leaving.signal("TERM")?;
    assert_eq!(leaving.exit().await?.0.code(), Some(0), "{}", leaving.log());
    assert_eq!(subscribers(&staying).await?, CLIENTS);
    let moves = following.end().await?;
    ensure!(moves == on_the_leaving, "{moves} of {on_the_leaving} moved");
    println!("{moves} of {CLIENTS} clients moved");
    staying.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_refuses_no_client_and_loses_nothing() -> Result<()> {
    let backplane = Backplane::start(Kind::Redis).await?;
    let home = tempfile::tempdir()?;
    let sockets = ["a", "b"].map(|name| home.path().join(name));
    let [a, b] = &sockets;
    let (mut first, mut second, publisher) =
        tokio::try_join!(node_at(a, &backplane), node_at(b, &backplane), node(&backplane))?;
    let unix = sockets.each_ref().map(|socket| format!("unix:{}", socket.display()));
    let proxy = nginx(unix.each_ref().map(String::as_str)).await?;
    let following = Following::start(proxy.address, publisher.resp_address().await?);
    all_are_on([&first, &second]).await?;
    let on_the_first = subscribers(&first).await?;
    ensure!(on_the_first > CLIENTS / 4, "only {on_the_first} are on the node that ends first");
    first.signal("TERM")?;
    assert_eq!(first.exit().await?.0.code(), Some(0), "{}", first.log());
    assert_eq!(subscribers(&second).await?, CLIENTS);
    // The next node is ended as soon as the first one is ready again.
    let restarted = node_at(a, &backplane).await?;
    second.signal("TERM")?;
    assert_eq!(second.exit().await?.0.code(), Some(0), "{}", second.log());
    assert_eq!(subscribers(&restarted).await?, CLIENTS);
    let moves = following.end().await?;
    ensure!(moves == on_the_first + CLIENTS, "{moves} moves, {on_the_first} were on the first");
    restarted.stop().await?;
    publisher.stop().await
}

/// How many are subscribed on a node.
async fn subscribers(node: &Server) -> Result<usize> {
    let mut client = Resp::connect(node.resp_address().await?).await?;
    client.send(&crate::value::command(&["PUBSUB", "NUMSUB", "news"])).await?;
    let counts = client.array().await?;
    Ok(counts.last().context("a count")?.trim_start_matches(':').parse()?)
}

#[tokio::test]
async fn a_node_that_ends_is_passed_over() -> Result<()> {
    let config = "shutdown.reconnect_spread_ms = 86400000";
    let mut leaving = Launch::with_config(config).start().await?;
    let staying = Launch::default().start().await?;
    let mut held = leaving.client().await?;
    leaving.signal("TERM")?;
    held.next_json().await?;
    assert_eq!(raw::get(leaving.address().await?, "/readyz").await?.0, 503);
    let nodes = [leaving.address().await?, staying.address().await?].map(|it| it.to_string());
    let proxy = nginx(nodes.each_ref().map(String::as_str)).await?;
    for _ in 0..10 {
        subscribed(proxy.address).await?;
        for path in ["/livez", "/livez/", "/readyz", "/readyz/", "/healthz", "/healthz/"] {
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            let answer = raw::converse(proxy.address, &request).await?;
            ensure!(
                answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok\n"),
                "{path}: {answer}"
            );
        }
    }
    let upgrade = Upgrade { path: "/ws/".to_owned(), ..Upgrade::default() };
    if let Err(refused) = Client::connect(proxy.address, &upgrade).await? {
        bail!("/ws/ was refused: {} {}", refused.status, refused.body);
    }
    drop(held);
    assert_eq!(leaving.exit().await?.0.code(), Some(0));
    staying.stop().await
}
