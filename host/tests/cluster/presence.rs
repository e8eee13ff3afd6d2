//! The members of channels on several nodes.

#![expect(clippy::indexing_slicing, reason = "what is not there fails the test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::answers::{ask, refused};
use crate::backplane::{Backplane, Kind};
use crate::nodes::{Node, Options};
use crate::support::websocket::Client;
use crate::support::{PATIENCE, within};

const RULE: &str = "[[channels]]\nmatch = 'room.*'\npresence = true\npresence_members_max = 40\n";

async fn nodes<const N: usize>(backplane: &Backplane, config: &str) -> Result<[Node; N]> {
    let mut nodes = Vec::new();
    for _ in 0..N {
        let options = Options { config: config.to_owned(), ..Options::default() };
        let node = Node::start(backplane, &options).await?;
        node.until_connected(true).await?;
        nodes.push(node);
    }
    nodes.try_into().ok().context("as many as were started")
}

async fn client(node: &Node) -> Result<Client> {
    node.server.client().await
}

/// A client that has entered, and its connection.
async fn member(node: &Node, name: &str) -> Result<(Client, String)> {
    let mut client = client(node).await?;
    let hello = ask(&mut client, json!(["HELLO"])).await?;
    let connection = hello.get("connection").context("no connection")?;
    let connection = connection.as_str().map_or_else(|| connection.to_string(), str::to_owned);
    ask(&mut client, json!(["ENTER", "room.1", {"name": name}])).await?;
    Ok((client, connection))
}

fn names(page: &Value) -> Vec<String> {
    let members = page["members"].as_array().cloned().unwrap_or_default();
    let name = |member: &Value| Some(member.pointer("/data/name")?.as_str()?.to_owned());
    let mut names: Vec<String> = members.iter().filter_map(name).collect();
    names.sort_unstable();
    names
}

/// Follows what a watcher is told, and what it knows by that.
struct Watcher {
    client: Client,
    known: BTreeMap<String, String>,
}

impl Watcher {
    async fn start(node: &Node) -> Result<Watcher> {
        let mut client = client(node).await?;
        let page = ask(&mut client, json!(["WATCH", "room.1"])).await?;
        let mut watcher = Watcher { client, known: BTreeMap::new() };
        for member in page["members"].as_array().context("no members")? {
            watcher.enter(member)?;
        }
        Ok(watcher)
    }

    fn enter(&mut self, member: &Value) -> Result<()> {
        let connection = member["connection"].as_str().context("no connection")?.to_owned();
        let name = member.pointer("/data/name").and_then(Value::as_str).context("no name")?;
        if let Some(was) = member["was"].as_str() {
            self.known.remove(was).context("a takeover of a member that was not known")?;
        }
        self.known.insert(connection, name.to_owned());
        Ok(())
    }

    fn leave(&mut self, member: &Value) -> Result<()> {
        let connection = member["connection"].as_str().context("no connection")?;
        self.known.remove(connection).with_context(|| format!("it did not know {connection}"))?;
        Ok(())
    }

    /// Waits until it knows exactly these.
    async fn until(&mut self, expected: &[&str]) -> Result<()> {
        let waiting = within(PATIENCE, format!("{expected:?}"), async {
            loop {
                let mut names: Vec<&str> = self.known.values().map(String::as_str).collect();
                names.sort_unstable();
                if names == expected {
                    return anyhow::Ok(());
                }
                let event = self.client.next_json().await?;
                let what = event.get(2).cloned().unwrap_or_default();
                match event.get(0).and_then(Value::as_str) {
                    Some("enter" | "update") => self.enter(&what)?,
                    Some("leave") => self.leave(&what)?,
                    Some("presence") => {
                        let of = |kind: &str| what[kind].as_array().cloned().unwrap_or_default();
                        for member in of("leave") {
                            self.leave(&member)?;
                        }
                        for member in of("enter").iter().chain(&of("update")) {
                            self.enter(member)?;
                        }
                    }
                    _ => anyhow::bail!("{event}"),
                }
            }
        });
        waiting.await?.with_context(|| format!("it knows {:?}", self.known))
    }
}

async fn members_on_all_nodes(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let [a, b, c] = nodes(&backplane, RULE).await?;
    let mut at_c = Watcher::start(&c).await?;
    let (mut ann, ann_connection) = member(&a, "Ann").await?;
    let (bob, _) = member(&b, "Bob").await?;
    at_c.until(&["Ann", "Bob"]).await?;
    for node in [&a, &b, &c] {
        let mut anyone = client(node).await?;
        let page = ask(&mut anyone, json!(["PRESENCE", "room.1"])).await?;
        ensure!(page["count"] == 2 && names(&page) == ["Ann", "Bob"], "{page}");
        let count = ask(&mut anyone, json!(["PRESENCE", "room.1", {"count": true}])).await?;
        ensure!(count == json!({"count": 2, "users": 2}), "{count}");
    }
    // A watcher that comes later, on a node that takes part already.
    let mut at_a = Watcher::start(&a).await?;
    at_a.until(&["Ann", "Bob"]).await?;
    ensure!(ask(&mut ann, json!(["ENTER", "room.1", {"name": "Anna"}])).await? == 2);
    at_c.until(&["Anna", "Bob"]).await?;
    drop(bob);
    at_c.until(&["Anna"]).await?;
    at_a.until(&["Anna"]).await?;
    ensure!(at_a.known.contains_key(&ann_connection), "another connection");
    ensure!(ask(&mut ann, json!(["LEAVE", "room.1"])).await? == 0);
    at_c.until(&[]).await?;
    for node in [a, b, c] {
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn members_on_all_nodes_over_redis() -> Result<()> {
    members_on_all_nodes(Kind::Redis).await
}

#[tokio::test]
async fn members_on_all_nodes_over_nats() -> Result<()> {
    members_on_all_nodes(Kind::Nats).await
}

/// The limit of a room counts the members on all nodes.
#[tokio::test]
async fn a_room_is_full_on_all_nodes() -> Result<()> {
    let backplane = Backplane::start(Kind::Redis).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let mut members = Vec::new();
    for number in 0..40 {
        let node = if number % 2 == 0 { &a } else { &b };
        members.push(member(node, &number.to_string()).await?);
    }
    let mut last = client(&b).await?;
    // Until the last ones that entered at the other node are known here, there seems to be room.
    let waiting = within(PATIENCE, "40 members", async {
        while ask(&mut last, json!(["PRESENCE", "room.1", {"count": true}])).await?["count"] != 40 {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    });
    waiting.await??;
    ensure!(refused(&mut last, json!(["ENTER", "room.1", 1])).await? == "LIMIT");
    drop(members);
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

async fn a_node_that_dies(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let mut watcher = Watcher::start(&a).await?;
    let (_ann, _) = member(&a, "Ann").await?;
    let (_bob, _) = member(&b, "Bob").await?;
    watcher.until(&["Ann", "Bob"]).await?;
    let died = Instant::now();
    // Dropping the server kills it.
    drop(b);
    watcher.until(&["Ann"]).await?;
    ensure!(died.elapsed() < Duration::from_secs(10), "after {:?}", died.elapsed());
    a.stop().await
}

#[tokio::test]
async fn members_of_a_node_that_dies_leave_over_redis() -> Result<()> {
    a_node_that_dies(Kind::Redis).await
}

#[tokio::test]
async fn members_of_a_node_that_dies_leave_over_nats() -> Result<()> {
    a_node_that_dies(Kind::Nats).await
}

/// A node that stands still for longer than its lease, and goes on: its members left and are back,
/// and it has none of those that left in the meantime.
#[tokio::test]
async fn a_node_that_stood_still_shows_no_ghosts() -> Result<()> {
    let backplane = Backplane::start(Kind::Redis).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let mut at_a = Watcher::start(&a).await?;
    let (_ann, _) = member(&a, "Ann").await?;
    let (bob, _) = member(&a, "Bob").await?;
    let (_cid, _) = member(&b, "Cid").await?;
    let mut at_b = Watcher::start(&b).await?;
    at_a.until(&["Ann", "Bob", "Cid"]).await?;
    at_b.until(&["Ann", "Bob", "Cid"]).await?;
    b.server.signal("STOP")?;
    at_a.until(&["Ann", "Bob"]).await?;
    drop(bob);
    at_a.until(&["Ann"]).await?;
    b.server.signal("CONT")?;
    at_a.until(&["Ann", "Cid"]).await?;
    at_b.until(&["Ann", "Cid"]).await?;
    let mut anyone = client(&b).await?;
    let page = ask(&mut anyone, json!(["PRESENCE", "room.1"])).await?;
    ensure!(names(&page) == ["Ann", "Cid"], "{page}");
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

/// A backplane that is lost and comes back empty: nobody knows less afterwards.
#[tokio::test]
async fn members_survive_a_backplane_that_restarts() -> Result<()> {
    let mut backplane = Backplane::start(Kind::Redis).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let (_ann, _) = member(&a, "Ann").await?;
    let (bob, _) = member(&b, "Bob").await?;
    let mut at_a = Watcher::start(&a).await?;
    at_a.until(&["Ann", "Bob"]).await?;
    backplane.kill();
    a.until_connected(false).await?;
    b.until_connected(false).await?;
    let mut anyone = client(&a).await?;
    for command in [json!(["PRESENCE", "room.1"]), json!(["ENTER", "room.1", 1])] {
        ensure!(refused(&mut anyone, command).await? == "UNAVAILABLE");
    }
    drop(bob);
    backplane.come_back().await?;
    a.until_connected(true).await?;
    b.until_connected(true).await?;
    at_a.until(&["Ann"]).await?;
    let (_cid, _) = member(&b, "Cid").await?;
    at_a.until(&["Ann", "Cid"]).await?;
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

/// Members come, change and go on all nodes at random; in the end all know the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_watchers_agree_in_the_end() -> Result<()> {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let backplane = Backplane::start(Kind::Redis).await?;
    let nodes = nodes::<3>(&backplane, RULE).await?;
    let mut watchers = Vec::new();
    for node in &nodes {
        watchers.push(Watcher::start(node).await?);
    }
    let mut members: Vec<(Client, String)> = Vec::new();
    for number in 0..200 {
        let action = random.usize(..3);
        if members.len() < 5 || action == 0 && members.len() < 30 {
            let node = nodes.get(random.usize(..3)).context("there are three")?;
            let name = format!("m{number:03}");
            members.push((member(node, &name).await?.0, name));
        } else if action == 1 {
            let place = random.usize(..members.len());
            let name = format!("m{number:03}");
            let (client, known) = members.get_mut(place).context("it is there")?;
            ask(client, json!(["ENTER", "room.1", {"name": name}])).await?;
            *known = name;
        } else {
            members.swap_remove(random.usize(..members.len()));
        }
        if random.usize(..40) == 0 {
            backplane.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await?;
            for node in &nodes {
                node.until_connected(true).await?;
            }
        }
    }
    let mut expected: Vec<&str> = members.iter().map(|(_, name)| name.as_str()).collect();
    expected.sort_unstable();
    for watcher in &mut watchers {
        watcher.until(&expected).await.with_context(|| format!("seed {seed}"))?;
    }
    for node in nodes {
        node.stop().await?;
    }
    Ok(())
}
