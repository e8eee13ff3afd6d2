//! Names that were chosen to collide in a hash without a key, and names that wait for a backplane.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::backplane::{Backplane, Kind};
use crate::nodes::{Node, Options};
use crate::support::{PATIENCE, within};
use crate::value::command;

const NAMES: u64 = 20_000;

/// How long it takes to subscribe to names that begin so, and to leave.
async fn time(node: &Node, prefix: [u8; 8]) -> Result<Duration> {
    let names: Vec<[u8; 16]> = (0..NAMES)
        .map(|number| {
            let mut name = [0; 16];
            name[..8].copy_from_slice(&prefix);
            name[8..].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
            name
        })
        .collect();
    let began = Instant::now();
    for half in names.chunks(NAMES as usize / 4) {
        let mut client = node.client().await?;
        for names in half.chunks(1_000) {
            let mut words: Vec<&[u8]> = vec![b"SUBSCRIBE"];
            words.extend(names.iter().map(<[u8; 16]>::as_slice));
            client.send(&command(&words)).await?;
            client.next_many(names.len()).await?;
        }
        client.send(&command(&["UNSUBSCRIBE"])).await?;
        client.next_many(half.len()).await?;
    }
    Ok(began.elapsed())
}

#[tokio::test]
async fn names_chosen_to_collide_take_as_long_as_others() -> Result<()> {
    for kind in [Kind::Redis, Kind::Nats] {
        let backplane = Backplane::start(kind).await?;
        let options = Options { config: "leave_delay_ms = 50\n".to_owned(), ..Options::default() };
        let node = Node::start(&backplane, &options).await?;
        let control = time(&node, *b"\x11\x22\x33\x44\x55\x66\x77\x88").await?;
        // The seed of `rustc_hash`.
        let colliding = time(&node, 0x243f_6a88_85a3_08d3_u64.to_le_bytes()).await?;
        println!("{kind:?}: {control:?}, and {colliding:?} for names chosen to collide");
        ensure!(
            colliding < control * 5,
            "{kind:?}: {colliding:?}, and {control:?} without collisions"
        );
        node.stop().await?;
    }
    Ok(())
}

/// They have the same bound as those that are subscribed to.
#[tokio::test]
async fn names_that_wait_for_the_backplane_are_bounded() -> Result<()> {
    for kind in [Kind::Redis, Kind::Nats] {
        let backplane = Backplane::start(kind).await?;
        let config = "join_timeout_ms = 60000\n[limits]\nname_bytes_total_max = 200000\n";
        let options = Options { config: config.to_owned(), ..Options::default() };
        let node = Node::start(&backplane, &options).await?;
        let mut clients = [node.client().await?, node.client().await?];
        backplane.stand_still().await?;
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(&subscribe(number)).await?;
        }
        // Both do not fit, so one is refused at once and the other waits.
        let [one, other] = &mut clients;
        let (refused, waits) = tokio::select! {
            said = one.next() => (said?, other),
            said = other.next() => (said?, one),
        };
        ensure!(refused.to_string().contains("LIMIT"), "{kind:?}: {refused}");
        backplane.go_on()?;
        waits.next_many(100).await?;
        // What waited is counted once.
        waits.send(&command(&["SUBSCRIBE", "one more"])).await?;
        let more = waits.next().await?;
        ensure!(!more.to_string().contains("LIMIT"), "{kind:?}: {more}");
        node.stop().await?;
    }
    Ok(())
}

/// A SUBSCRIBE to 100 names of about 1 KiB that no other round has.
fn subscribe(round: usize) -> Vec<u8> {
    let names = (0..100).map(|name| format!("{round}:{name}:{}", "n".repeat(1_000)));
    let words: Vec<String> = std::iter::once("SUBSCRIBE".to_owned()).chain(names).collect();
    command(&words)
}

/// Names that a client subscribed to and left count until the backplane knows that they are left.
#[tokio::test]
async fn names_that_leave_are_bounded_while_the_backplane_stands_still() -> Result<()> {
    for kind in [Kind::Redis, Kind::Nats] {
        let backplane = Backplane::start(kind).await?;
        let config = "join_timeout_ms = 50\n[limits]\nname_bytes_total_max = 500000\n";
        let options = Options { config: config.to_owned(), ..Options::default() };
        let node = Node::start(&backplane, &options).await?;
        let mut client = node.client().await?;
        backplane.stand_still().await?;
        let mut rounds = 0;
        loop {
            client.send(&subscribe(rounds)).await?;
            if client.next().await?.to_string().contains("LIMIT") {
                break;
            }
            rounds += 1;
            ensure!(rounds < 6, "{kind:?}: {rounds} times 100 KB of names were accepted");
            client.next_many(99).await?;
            client.send(&command(&["UNSUBSCRIBE"])).await?;
            client.next_many(100).await?;
        }
        ensure!(rounds > 2, "{kind:?}: refused after {rounds} rounds");
        backplane.go_on()?;
        within(PATIENCE, "room for the names", async {
            loop {
                client.send(&subscribe(0)).await?;
                if !client.next().await?.to_string().contains("LIMIT") {
                    return client.next_many(99).await;
                }
            }
        })
        .await??;
        node.stop().await?;
    }
    Ok(())
}
