//! Redis and Switchyard are told the same at random, and must say the same.
//!
//! A run is repeated with the `SWITCHYARD_SEED` that it prints, and made longer
//! with `SWITCHYARD_FUZZ_ITERATIONS`. What Redis leaves open is put in order
//! before it is compared; what its versions changed stands in `differences`.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use crate::client::RespClient;
use crate::differences;
use crate::random::Random;
use crate::redis_server::RedisServer;
use crate::support::server::{Engine, Launch, Server};
use crate::value::{Shape, Value, command, parse};

/// How often, unless the environment says otherwise.
fn iterations(otherwise: usize) -> usize {
    match std::env::var("SWITCHYARD_FUZZ_ITERATIONS") {
        Ok(iterations) => iterations.parse().expect("a number of iterations"),
        Err(_) => otherwise,
    }
}

/// The two that are compared.
struct Pair {
    redis: RedisServer,
    switchyard: Server,
    address: SocketAddr,
}

impl Pair {
    async fn start(engine: Engine) -> Result<Pair> {
        // Three shards, so that what is listed comes from several.
        // As large a request as Redis takes.
        let config = "engine.shards = 3\nresp.request_bytes_max = 1073741824".to_owned();
        let switchyard = Launch { engine, config, plugins: None }.start().await?;
        let address = switchyard.resp_address().await?;
        Ok(Pair { redis: RedisServer::start().await?, switchyard, address })
    }

    async fn connect(&self) -> Result<[RespClient; 2]> {
        let redis = RespClient::connect(self.redis.address).await?;
        Ok([redis, RespClient::connect(self.address).await?])
    }
}

/// Names that differ a little, are patterns of each other, and are no text.
const NAMES: &[&[u8]] = &[
    b"a", b"b", b"ab", b"A", b"", b"*", b"a*", b"?", b"[ab]", b"[^a]", b"\xff", b"\0", b"a\r\nb",
    b"\\*",
];
const PAYLOADS: &[&[u8]] = &[b"", b"x", b"\r\n", b"\xff\0\xfe", b"$3\r\nabc\r\n", b"*"];

/// What a client may say.
fn some_command(random: &mut Random) -> Vec<Vec<u8>> {
    const LISTEN: &[&str] = &[
        "SUBSCRIBE",
        "UNSUBSCRIBE",
        "PSUBSCRIBE",
        "PUNSUBSCRIBE",
        "SSUBSCRIBE",
        "SUNSUBSCRIBE",
        "subscribe",
        "pUnsubscribe",
    ];
    const ASK: &[&str] =
        &["CHANNELS", "NUMSUB", "NUMPAT", "SHARDCHANNELS", "SHARDNUMSUB", "HELP", "nope", "numSub"];
    const REST: &[&[&str]] = &[
        &["PING"],
        &["RESET"],
        &["HELLO"],
        &["HELLO", "2"],
        &["HELLO", "3"],
        &["HELLO", "4"],
        &["HELLO", "x"],
        &["CLIENT", "GETNAME"],
        &["CLIENT", "SETNAME"],
        &["CLIENT"],
        &["SELECT"],
        &["ECHO"],
        &["AUTH"],
        &["NOPE"],
        &["CONFIG", "GET", "save"],
        &["COMMAND", "nope"],
        &["AUTH", "default"],
    ];
    let said = |word: &&str| word.as_bytes().to_vec();
    let (mut words, further) = match random.below(10) {
        0..4 => (vec![said(random.one_of(LISTEN))], random.below(4)),
        4..7 => {
            let verb = said(random.one_of(&["PUBLISH", "PUBLISH", "SPUBLISH", "publish"]));
            let name = random.one_of(NAMES).to_vec();
            // Seldom too many or too few.
            let payloads = *random.one_of(&[1, 1, 1, 1, 1, 1, 1, 1, 0, 2]);
            let payloads = (0..payloads).map(|_| random.one_of(PAYLOADS).to_vec());
            ([verb, name].into_iter().chain(payloads).collect(), 0)
        }
        7..9 => (vec![said(&"PUBSUB"), said(random.one_of(ASK))], random.below(3)),
        _ => (random.one_of(REST).iter().map(said).collect(), random.below(3)),
    };
    words.extend((0..further).map(|_| random.one_of(NAMES).to_vec()));
    words
}

/// Tells both, and then asks everybody what has come: first the client that spoke.
/// Nothing is left under way.
async fn step(
    clients: &mut [[RespClient; 2]],
    speaker: usize,
    words: &[Vec<u8>],
    number: usize,
    version: (u32, u32),
) -> Result<()> {
    for side in &mut clients.get_mut(speaker).context("there is one")?.iter_mut() {
        side.command(words).await?;
    }
    // When it has its answer, everybody else has been sent what it caused.
    let mut in_order: Vec<_> = clients.iter_mut().enumerate().collect();
    in_order.sort_by_key(|(place, _)| *place != speaker);
    for (place, [redis, switchyard]) in in_order {
        let spoken = if place == speaker { words } else { &[] };
        let expected = heard(redis, number).await?;
        let expected = expected.into_iter().map(|value| differences::modernise(version, value));
        let expected = settled(expected.collect(), spoken, version);
        // What is new in the version is the order it has already.
        let came = settled(heard(switchyard, number).await?, spoken, (7, 4));
        ensure!(
            came == expected,
            "client {place} was told {} instead of {}",
            Value::Aggregate(Shape::Array, came),
            Value::Aggregate(Shape::Array, expected)
        );
    }
    Ok(())
}

/// All that has come for a client up to the answer to this question.
async fn heard(client: &mut RespClient, number: usize) -> Result<Vec<Value>> {
    let question = format!("question {number}");
    let listening =
        Value::Aggregate(Shape::Array, vec![Value::bulk("pong"), Value::bulk(&question)]);
    client.command(&["PING", &question]).await?;
    let mut came = Vec::new();
    loop {
        let value = client.next().await?;
        if value == Value::bulk(&question) || value == listening {
            return Ok(came);
        }
        came.push(value);
    }
}

/// What came for a client, with everything in order that has none: in answer to its
/// own command, or if that is empty to somebody else's.
fn settled(mut values: Vec<Value>, command: &[Vec<u8>], version: (u32, u32)) -> Vec<Value> {
    let is = |place: usize, word: &str| {
        command.get(place).is_some_and(|said| said.eq_ignore_ascii_case(word.as_bytes()))
    };
    let early = |value: &Value| differences::message_precedes_reply(version, value);
    if is(0, "PUBLISH") || is(0, "SPUBLISH") {
        values.sort_by_key(|value| early(value));
    }
    let kind = |value: &Value| match value {
        Value::Aggregate(_, items) => items.first().cloned(),
        _ => None,
    };
    // Which pattern comes first is open.
    for run in values.chunk_by_mut(|one, other| kind(one) == kind(other)) {
        if run.first().and_then(kind) == Some(Value::bulk("pmessage")) {
            run.sort();
        }
    }
    // So is which name comes first when all are left; the counts are not.
    if let [verb] = command
        && verb.to_ascii_lowercase().ends_with(b"unsubscribe")
    {
        let name = |value: &mut Value| match value {
            Value::Aggregate(_, items) => {
                items.get_mut(1).map(|name| std::mem::replace(name, Value::Null))
            }
            _ => None,
        };
        let mut names: Vec<_> = values.iter_mut().filter_map(name).collect();
        names.sort();
        values.extend(names);
    }
    let is_list = is(0, "PUBSUB") && (is(1, "CHANNELS") || is(1, "SHARDCHANNELS"));
    for value in &mut values {
        if let Value::Aggregate(_, items) = value {
            if is_list {
                items.sort();
            }
            // The version and the id in the answer to HELLO.
            if items.first() == Some(&Value::bulk("server")) {
                items.drain(6..8);
                items.drain(2..4);
            }
        }
    }
    values
}

#[tokio::test]
async fn commands() -> Result<()> {
    const CLIENTS: usize = 3;
    let pair = Pair::start(Engine::Component).await?;
    let mut random = Random::repeated();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(pair.connect().await?);
    }
    let mut history = Vec::new();
    for number in 0..iterations(1_500) {
        let (speaker, words) = (random.below(CLIENTS), some_command(&mut random));
        let shown = words.iter().map(Value::bulk).collect();
        history.push(format!("{speaker}> {}", Value::Aggregate(Shape::Array, shown)));
        let version = pair.redis.version;
        step(&mut clients, speaker, &words, number, version).await.with_context(|| {
            let last = history.len().saturating_sub(20);
            history.get(last..).unwrap_or_default().join("\n")
        })?;
    }
    drop(clients);
    pair.switchyard.stop().await
}

/// Patterns and names of few letters, so that many match.
#[tokio::test]
async fn globs() -> Result<()> {
    const LETTERS: &[&[u8]] = &[
        b"a", b"a", b"b", b"c", b"*", b"*", b"?", b"[", b"]", b"-", b"^", b"\\", b"[^", b"[a-",
        b"\n",
    ];
    let pair = Pair::start(Engine::Component).await?;
    let mut random = Random::repeated();
    let some_name = |random: &mut Random, letters_max: usize| -> Vec<u8> {
        (0..random.below(letters_max + 1)).flat_map(|_| random.one_of(LETTERS).to_vec()).collect()
    };
    let [mut redis, mut switchyard] = pair.connect().await?;
    let [mut redis_asks, mut switchyard_asks] = pair.connect().await?;
    for _ in 0..iterations(20) {
        let mut channels: Vec<_> = (0..80).map(|_| some_name(&mut random, 5)).collect();
        channels.sort();
        channels.dedup();
        let subscribe = [&[b"SUBSCRIBE".to_vec()], channels.as_slice()].concat();
        for client in [&mut redis, &mut switchyard] {
            client.command(&[b"RESET"]).await?;
            client.command(&subscribe).await?;
            client.next_many(1 + channels.len()).await?;
        }
        let patterns: Vec<_> = (0..80).map(|_| some_name(&mut random, 7)).collect();
        let asked: Vec<u8> = patterns
            .iter()
            .flat_map(|pattern| command(&["PUBSUB".as_bytes(), b"CHANNELS", pattern]))
            .collect();
        redis_asks.send(&asked).await?;
        switchyard_asks.send(&asked).await?;
        let expected = redis_asks.next_many(patterns.len()).await?;
        let came = switchyard_asks.next_many(patterns.len()).await?;
        for ((pattern, expected), came) in patterns.iter().zip(expected).zip(came) {
            let sorted = |value| match value {
                Value::Aggregate(shape, mut items) => {
                    items.sort();
                    Value::Aggregate(shape, items)
                }
                other => other,
            };
            let (expected, came) = (sorted(expected), sorted(came));
            ensure!(came == expected, "{} matches {came} and not {expected}", Value::bulk(pattern));
        }
    }
    drop((redis, switchyard, redis_asks, switchyard_asks));
    pair.switchyard.stop().await
}

/// Requests to start from. There is no HTTP among them: when Redis meets it, it
/// drops the replies that it has not sent, and here they are sent.
fn corpus() -> Vec<Vec<u8>> {
    let written = [
        command(&["PING"]),
        command(&["PUBLISH", "a", "b"]),
        command(&["SUBSCRIBE", "a", "a"]),
        command(&["PSUBSCRIBE", "a*"]),
        command(&["PUBSUB", "NUMSUB", "a", "b"]),
        command(&["ECHO", "\r\n\0"]),
        command(&["QUIT"]),
        command(&["RESET"]),
        command(&["NOPE", "a", "b c"]),
        command(&["CLIENT", "GETNAME"]),
    ];
    let by_hand = [
        b"PING\r\n".as_slice(),
        b"ping\n\r\n  \n\tPING x\r\n",
        b"echo \"a\\x41\\n\\\"b\"\r\nECHO 'it\\'s'\r\n",
        b"PING \"\r\n",
        b"PING 'a'b\r\n",
        b"PI\0NG\r\nPING\r\n",
        b"FETCH / HTTP/1.1\r\n\r\n",
        b"*1\r\n$4\r\nPINGxx*2\r?$4\rXECHO..$2\r!\r\n..",
        b"*0\r\n*-1\r\n*-10\r\n*1\r\n$4\r\nPING\r\n",
        b"*-9223372036854775808\r\nPING\r\n",
        b"*2147483647\r\n$536870912\r\nabc",
        b"*2147483648\r\n",
        b"*1\r\n$536870913\r\n",
        b"*+1\r\n",
        b"*01\r\n",
        b"*\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$\r\n",
        b"*1\r\n:4\r\n",
        b"*1\r\nPING\r\n",
        b"*\x001\r\n",
        b"*2\r\n$4\r\nECHO\r\n$1000\r\nx",
    ];
    written.into_iter().chain(by_hand.into_iter().map(<[u8]>::to_vec)).collect()
}

/// A few of them, after a few changes.
fn mutation(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    const TOKENS: &[&[u8]] = &[
        b"\r\n",
        b"\r",
        b"\n",
        b"\0",
        b"*",
        b"$",
        b"-",
        b"0",
        b"1",
        b"9",
        b"\"",
        b"'",
        b"\\",
        b" ",
        b"\\x4",
        b"*1\r\n",
        b"*2\r\n",
        b"$1\r\n",
        b"2147483647",
        b"9223372036854775807",
    ];
    let mut input = Vec::new();
    for _ in 0..=random.below(3) {
        input.extend(random.one_of(corpus));
    }
    for _ in 0..random.below(4) {
        let at = random.below(input.len() + 1);
        let end = input.len().min(at + random.below(12));
        match random.below(5) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => {
                let copy = input.get(at..end).unwrap_or_default().to_vec();
                input.splice(at..at, copy);
            }
            3 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = random.below(256) as u8;
                }
            }
            _ => drop(input.splice(at..at, random.one_of(TOKENS).iter().copied())),
        }
    }
    input
}

#[tokio::test]
async fn broken_requests() -> Result<()> {
    let pair = Pair::start(Engine::Native).await?;
    let mut random = Random::repeated();
    let corpus = corpus();
    for _ in 0..iterations(400) {
        let input = mutation(&mut random, &corpus);
        let mut answers = Vec::new();
        for mut client in pair.connect().await? {
            // It may be gone before it has taken all of it.
            let _ = client.send(&input).await;
            let _ = client.end_sending().await;
            answers.push(client.rest().await?);
        }
        let [expected, came] = answers.as_slice() else { continue };
        let same = came == expected || values(came)? == values(expected)?;
        ensure!(
            same,
            "{} is answered with {} instead of {}",
            input.escape_ascii(),
            came.escape_ascii(),
            expected.escape_ascii()
        );
    }
    pair.switchyard.stop().await
}

/// What somebody was told who left everything at once, in order.
fn values(mut bytes: &[u8]) -> Result<Vec<Value>> {
    let mut values = Vec::new();
    while let Some((value, length)) = parse(bytes)? {
        values.push(value);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    ensure!(bytes.is_empty(), "half a reply: {}", bytes.escape_ascii());
    Ok(settled(values, &[b"unsubscribe".to_vec()], (7, 4)))
}
