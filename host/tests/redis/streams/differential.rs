//! Redis and Switchyard have streams with the same entries, and must answer the same.
//!
//! Switchyard chooses the IDs, and Redis is given them. Each run is from a seed, which is printed;
//! with `SWITCHYARD_SEED` it is that one.

use anyhow::{Context, Result, ensure};
use guest_core::model::Random;

use super::add;
use crate::client::RespClient;
use crate::differences;
use crate::redis_server::RedisServer;
use crate::support::server::Launch;
use crate::value::{Shape, Value};

const CHANNELS: [&str; 3] = ["chat.1", "chat.2", "chat.none"];
const KEPT: &str = "20";
const RULE: &str = "[[channels]]\nmatch = 'chat.*'\nhistory_messages = 20\nhistory_ms = '1h'\n";

/// What was appended so far.
#[derive(Default)]
struct Ids(Vec<String>);

impl Ids {
    /// A text that is an ID, or nearly.
    fn some(&self, random: &mut Random) -> String {
        let last = self.0.last().and_then(|id| id.split_once('-'));
        let (epoch, _) = last.unwrap_or(("5", "1"));
        let offset = random.below(self.0.len() as u64 + 3);
        let other: u64 = epoch.parse::<u64>().unwrap_or(5);
        match random.index(12) {
            0 => epoch.to_owned(),
            1 => format!("{}-{offset}", other - 1),
            2 => format!("{}", other + 1),
            3 => (*random.pick(&[
                "0",
                "0-0",
                "0-1",
                "18446744073709551615",
                "1-18446744073709551615",
            ]))
            .to_owned(),
            4 => format!(" +0{epoch}-00{offset}"),
            5 => (*random.pick(&["", "x", "-1", "1-", "1-x", "1--1", " -1", "1-1-1", "(", "((1"]))
                .to_owned(),
            6 => format!("{epoch}-{offset}\0x"),
            _ => format!("{epoch}-{offset}"),
        }
    }

    fn end(&self, random: &mut Random) -> String {
        match random.index(6) {
            0 => "-".to_owned(),
            1 => "+".to_owned(),
            2 => format!("({}", self.some(random)),
            3 => {
                (*random.pick(&["(-", "(+", "(0-0", "(18446744073709551615-18446744073709551615"]))
                    .to_owned()
            }
            _ => self.some(random),
        }
    }
}

fn count(random: &mut Random) -> Vec<String> {
    let number = random.pick(&["0", "1", "2", "5", "100", "-1", "x", "01", ""]);
    match random.index(8) {
        0..4 => Vec::new(),
        4 => vec!["COUNT".to_owned()],
        5 => vec!["LIMIT".to_owned(), "1".to_owned()],
        _ => vec!["count".to_owned(), (*number).to_owned()],
    }
}

/// What a client may say that reads.
fn some_command(random: &mut Random, ids: &Ids) -> Vec<String> {
    let channel = (*random.pick(&CHANNELS)).to_owned();
    match random.index(8) {
        0 => vec!["XLEN".to_owned(), channel],
        1 | 2 => {
            let verb = random.pick(&["XRANGE", "xrevrange", "XREVRANGE"]);
            let ends = [ids.end(random), ids.end(random)];
            [vec![(*verb).to_owned(), channel], ends.to_vec(), count(random)].concat()
        }
        3 => {
            const OPTIONS: &[&[&str]] = &[
                &[],
                &["FULL"],
                &["full", "COUNT", "3"],
                &["FULL", "COUNT", "0"],
                &["FULL", "COUNT", "-5"],
                &["FULL", "COUNT", "x"],
                &["FULL", "COUNT"],
                &["NOPE"],
            ];
            let options = random.pick(OPTIONS).iter().map(|word| (*word).to_owned());
            let words = ["XINFO", "stream"].map(str::to_owned).into_iter();
            words.chain([channel]).chain(options).collect()
        }
        _ => {
            let mut words = vec!["XREAD".to_owned()];
            words.extend(count(random));
            if random.index(4) == 0 {
                let time = random.pick(&["1", "-1", "x", "1.5"]);
                words.extend(["BLOCK".to_owned(), (*time).to_owned()]);
            }
            if random.index(30) == 0 {
                words.push((*random.pick(&["NOACK", "nope", "GROUP"])).to_owned());
            }
            words.push("Streams".to_owned());
            let channels = random.index(4);
            words.extend((0..channels).map(|_| (*random.pick(&CHANNELS)).to_owned()));
            for _ in 0..channels {
                words.push(match random.index(6) {
                    0 => "$".to_owned(),
                    1 => (*random.pick(&[">", "*", "-", "(1"])).to_owned(),
                    _ => ids.some(random),
                });
            }
            if random.index(15) == 0 {
                words.push("0".to_owned());
            }
            words
        }
    }
}

/// Without what only one of them knows: how many entries Redis trimmed and how it stores them.
fn comparable(value: Value) -> Value {
    match value {
        Value::Aggregate(shape, items) => {
            let mut items: Vec<_> = items.into_iter().map(comparable).collect();
            for name in ["max-deleted-entry-id", "radix-tree-keys", "radix-tree-nodes"] {
                let at = items.iter().position(|item| *item == Value::bulk(name));
                if let Some(value) = at.and_then(|at| items.get_mut(at + 1)) {
                    *value = Value::Null;
                }
            }
            Value::Aggregate(shape, items)
        }
        other => other,
    }
}

#[tokio::test]
async fn streams_are_read_as_from_redis() -> Result<()> {
    const STEPS: usize = 3_000;
    let mut random = Random::from_environment();
    let redis = RedisServer::start().await?;
    let server = Launch::with_config(RULE).start().await?;
    let address = server.resp_address().await?;
    let mut ids = Ids::default();
    let mut writers =
        [RespClient::connect(redis.address).await?, RespClient::connect(address).await?];
    for version in ["2", "3"] {
        let [mut theirs, mut ours] =
            [RespClient::connect(redis.address).await?, RespClient::connect(address).await?];
        for client in [&mut theirs, &mut ours] {
            client.call(&["HELLO", version]).await?;
        }
        for _ in 0..STEPS {
            if random.index(10) == 0 {
                let channel = *random.pick(&["chat.1", "chat.2"]);
                let payload = *random.pick(&["", "x", "a\r\nb"]);
                let [redis, switchyard] = &mut writers;
                let id = add(switchyard, channel, payload).await?;
                let add = ["XADD", channel, "MAXLEN", KEPT, &id, "payload", payload];
                ensure!(redis.call(&add).await? == Value::bulk(&id));
                ids.0.push(id);
                continue;
            }
            let words = some_command(&mut random, &ids);
            let is_in_transaction = random.index(20) == 0;
            let mut answers = Vec::new();
            for client in [&mut theirs, &mut ours] {
                if is_in_transaction {
                    client.call(&["MULTI"]).await?;
                    client.call(&words).await?;
                }
                answers.push(match is_in_transaction {
                    true => client.call(&["EXEC"]).await?,
                    false => client.call(&words).await?,
                });
            }
            let came = comparable(answers.pop().context("there are two")?);
            let expected = answers.pop().context("there are two")?;
            let expected = comparable(differences::modernise(redis.version, expected));
            let shown = Value::Aggregate(Shape::Array, words.iter().map(Value::bulk).collect());
            ensure!(came == expected, "{shown} is answered {came} instead of {expected}");
        }
    }
    drop(writers);
    server.stop().await
}
