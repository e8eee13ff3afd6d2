//! Redis and Switchyard receive the same random commands, and must reply the same.
//!
//! Each test runs from a seed that is always the same and from a fresh one, which it
//! prints: with `SWITCHYARD_SEED` it runs from that one alone. It is made longer with
//! `SWITCHYARD_FUZZ_ITERATIONS`. What Redis leaves open is put in order before it is
//! compared; what its versions changed stands in `differences`; what only Redis has
//! is left out.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use guest_core::model::Random;
use switchyard_protocol::fuzzing::{Syntax, mutation};
use switchyard_protocol::resp::fuzzing::RESP;

use crate::client::RespClient;
use crate::differences;
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

/// Where the tests begin.
fn seeds() -> Vec<Random> {
    let fresh = Random::from_environment();
    match std::env::var("SWITCHYARD_SEED") {
        Ok(_) => vec![fresh],
        Err(_) => vec![Random::new(1), fresh],
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
        let switchyard = Launch { engine, config, ..Launch::default() }.start().await?;
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
        &["COMMAND", "nope"],
        &["AUTH", "default"],
        &["EXEC"],
        &["DISCARD"],
        &["WATCH"],
        &["UNWATCH"],
        &["SELECT", "3"],
        &["SELECT", "16"],
        &["READONLY"],
        &["CLUSTER", "SLOTS"],
        &["CLUSTER"],
        &["ROLE"],
        &["DBSIZE"],
        &["WAIT", "0"],
        &["WAIT", "0", "0"],
        &["ACL", "WHOAMI"],
        &["MEMORY", "USAGE"],
        &["SLOWLOG", "GET"],
        &["LATENCY", "LATEST"],
        &["CLIENT", "TRACKING"],
        &["CLIENT", "TRACKING", "ON"],
        &["CLIENT", "TRACKING", "OFF"],
        &["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX"],
        &["CLIENT", "TRACKINGINFO"],
        &["CLIENT", "CACHING", "YES"],
        &["CLIENT", "GETREDIR"],
        &["CLIENT", "UNBLOCK"],
        &["SCRIPT", "EXISTS"],
        &["EVALSHA", "x", "0"],
        &["COMMAND", "GETKEYS", "publish", "a"],
        &["COMMAND", "GETKEYS", "xread", "streams"],
        &["XLEN"],
        &["XRANGE", "a", "-"],
        &["XREVRANGE", "a", "+", "-"],
        &["XREAD", "STREAMS"],
        &["XREAD", "COUNT", "1", "STREAMS", "a"],
        &["XINFO", "STREAM"],
        // Never complete: Redis would make a key.
        &["XADD", "a"],
    ];
    // A further argument may be a pattern, and Redis has settings of its own.
    const WHOLE: &[&[&str]] = &[&["CONFIG", "GET", "save"], &["CONFIG", "GET", "SAVE", "nope"]];
    let said = |word: &&str| word.as_bytes().to_vec();
    let (mut words, further) = match random.index(10) {
        0..4 => (vec![said(random.pick(LISTEN))], random.index(4)),
        4..7 => {
            let verb = said(random.pick(&["PUBLISH", "PUBLISH", "SPUBLISH", "publish"]));
            let name = random.pick(NAMES).to_vec();
            // Seldom too many or too few.
            let payloads = *random.pick(&[1, 1, 1, 1, 1, 1, 1, 1, 0, 2]);
            let payloads = (0..payloads).map(|_| random.pick(PAYLOADS).to_vec());
            ([verb, name].into_iter().chain(payloads).collect(), 0)
        }
        7..9 => (vec![said(&"PUBSUB"), said(random.pick(ASK))], random.index(3)),
        _ if random.index(10) == 0 => (random.pick(WHOLE).iter().map(said).collect(), 0),
        _ => (random.pick(REST).iter().map(said).collect(), random.index(3)),
    };
    words.extend((0..further).map(|_| random.pick(NAMES).to_vec()));
    words
}

/// Sends to both, and then reads what each client received: first the client that sent.
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
    // When it has its answer, all other clients have been sent what it caused.
    let mut in_order: Vec<_> = clients.iter_mut().enumerate().collect();
    in_order.sort_by_key(|(place, _)| *place != speaker);
    for (place, [redis, switchyard]) in in_order {
        let spoken = if place == speaker { words } else { &[] };
        let expected = received(redis, number).await?;
        let expected = expected.into_iter().map(|value| differences::modernise(version, value));
        let expected = settled(expected.collect(), spoken, version);
        // What is new in the version is the order it has already.
        let came = settled(received(switchyard, number).await?, spoken, (7, 4));
        ensure!(
            came == expected,
            "client {place} received {} instead of {}",
            Value::Aggregate(Shape::Array, came),
            Value::Aggregate(Shape::Array, expected)
        );
    }
    Ok(())
}

/// All that has come for a client up to the answer to this question.
async fn received(client: &mut RespClient, number: usize) -> Result<Vec<Value>> {
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
/// own command, or if that is empty to another client's.
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
    for mut random in seeds() {
        let pair = Pair::start(Engine::Component).await?;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(pair.connect().await?);
        }
        let mut history = Vec::new();
        for number in 0..iterations(2_000) {
            let (speaker, words) = (random.index(CLIENTS), some_command(&mut random));
            let version = pair.redis.version;
            if differences::is_answered_otherwise(version, &words) {
                continue;
            }
            let shown = words.iter().map(Value::bulk).collect();
            history.push(format!("{speaker}> {}", Value::Aggregate(Shape::Array, shown)));
            step(&mut clients, speaker, &words, number, version).await.with_context(|| {
                let last = history.len().saturating_sub(20);
                history.get(last..).unwrap_or_default().join("\n")
            })?;
        }
        drop(clients);
        pair.switchyard.stop().await?;
    }
    Ok(())
}

/// Parts of transactions, in any order.
fn some_part(random: &mut Random) -> Vec<Vec<u8>> {
    const LOOP: &str = "for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1]) end";
    const PARTS: &[&[&str]] = &[
        &["MULTI"],
        &["MULTI"],
        &["MULTI"],
        &["EXEC"],
        &["EXEC"],
        &["EXEC"],
        &["EXEC", "x"],
        &["DISCARD"],
        &["WATCH", "a"],
        &["WATCH"],
        &["UNWATCH"],
        &["PING"],
        &["PING", "a", "b"],
        &["PUBLISH", "a"],
        &["NOPE"],
        &["PUBSUB", "nope"],
        &["PUBSUB", "NUMSUB", "a", "b"],
        &["PUBSUB", "NUMPAT"],
        &["PUBSUB", "CHANNELS", "a", "b"],
        &["SELECT", "5"],
        &["SELECT", "16"],
        &["CLIENT", "SETNAME", "x"],
        &["CLIENT", "GETNAME"],
        &["CLIENT", "TRACKING", "ON", "BCAST"],
        &["CLIENT", "TRACKINGINFO"],
        &["HELLO", "4"],
        &["RESET"],
        &["EVAL", LOOP, "0", "payload", "a", "b", "none"],
        &["EVAL", LOOP, "1", "payload", "a"],
        &["EVAL", LOOP, "5"],
        &["ECHO", ""],
    ];
    if random.index(3) == 0 {
        let verb: &[u8] = if random.index(2) == 0 { b"PUBLISH" } else { b"SPUBLISH" };
        return vec![verb.to_vec(), random.pick(NAMES).to_vec(), random.pick(PAYLOADS).to_vec()];
    }
    random.pick(PARTS).iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// Transactions of a client that is not subscribed, whole and broken ones.
#[tokio::test]
async fn transactions() -> Result<()> {
    for mut random in seeds() {
        let pair = Pair::start(Engine::Component).await?;
        let version = pair.redis.version;
        let mut listeners = pair.connect().await?;
        for listener in &mut listeners {
            let subscribe = [&[b"SUBSCRIBE".as_slice()], NAMES].concat();
            listener.command(&subscribe).await?;
            listener.next_many(NAMES.len()).await?;
            listener.call(&["PSUBSCRIBE", "a*"]).await?;
        }
        let mut publishers = pair.connect().await?;
        for number in 0..iterations(500) {
            let parts: Vec<_> = (0..=random.index(8)).map(|_| some_part(&mut random)).collect();
            let shown: Vec<_> = parts
                .iter()
                .map(|words| {
                    Value::Aggregate(Shape::Array, words.iter().map(Value::bulk).collect())
                })
                .collect();
            let end = format!("end {number}");
            let mut sent: Vec<u8> = parts.iter().flat_map(|words| command(words)).collect();
            sent.extend(command(&["DISCARD"]));
            sent.extend(command(&["ECHO", &end]));
            let mut all = Vec::new();
            for (publisher, version) in publishers.iter_mut().zip([version, (7, 4)]) {
                publisher.send(&sent).await?;
                let mut replies = Vec::new();
                while replies.last() != Some(&Value::bulk(&end)) {
                    replies.push(differences::modernise(version, publisher.next().await?));
                }
                all.push(Value::Aggregate(Shape::Array, replies));
            }
            for (listener, version) in listeners.iter_mut().zip([version, (7, 4)]) {
                let came = settled(received(listener, number).await?, &[], version);
                all.push(Value::Aggregate(Shape::Array, came));
            }
            let [expected, came, expected_messages, messages] = all.as_slice() else {
                bail!("there are two of each")
            };
            let shown = Value::Aggregate(Shape::Array, shown);
            ensure!(came == expected, "{shown} is answered {came} instead of {expected}");
            ensure!(
                messages == expected_messages,
                "{shown} publishes {messages} instead of {expected_messages}"
            );
        }
        drop((listeners, publishers));
        pair.switchyard.stop().await?;
    }
    Ok(())
}

/// COMMAND INFO of all commands that both have.
#[tokio::test]
async fn descriptions() -> Result<()> {
    /// Without the sub-commands, of which there are fewer, and with sets in order.
    fn comparable(info: Value) -> Value {
        let Value::Aggregate(shape, items) = info else { return info };
        let mut items: Vec<_> = items.into_iter().map(comparable).collect();
        if items.len() == 10 {
            items.pop();
        }
        if shape == Shape::Set {
            items.sort();
        }
        Value::Aggregate(shape, items)
    }
    let pair = Pair::start(Engine::Native).await?;
    let [mut redis, mut switchyard] = pair.connect().await?;
    for client in [&mut redis, &mut switchyard] {
        client.call(&["HELLO", "3"]).await?;
    }
    let Value::Aggregate(_, names) = switchyard.call(&["COMMAND", "LIST"]).await? else {
        bail!("COMMAND LIST answers no list")
    };
    let mut different = Vec::new();
    for name in names {
        let Value::Bulk(name) = name else { bail!("{name} is no name") };
        let is_other = |(other, _): &(&str, &str)| other.as_bytes() == name;
        if differences::DESCRIBED_OTHERWISE.iter().any(is_other) {
            continue;
        }
        let words: [&[u8]; 3] = [b"COMMAND", b"INFO", &name];
        let expected = comparable(redis.call(&words).await?);
        let came = comparable(switchyard.call(&words).await?);
        // An older Redis lacks some.
        if came != expected && expected != Value::Aggregate(Shape::Array, vec![Value::Null]) {
            different.push(format!("{came} instead of {expected}"));
        }
    }
    ensure!(different.is_empty(), "{}", different.join("\n"));
    drop((redis, switchyard));
    pair.switchyard.stop().await
}

#[tokio::test]
async fn globs() -> Result<()> {
    for random in seeds() {
        compare_globs(random).await?;
    }
    Ok(())
}

/// Patterns and names of few letters, so that many match.
async fn compare_globs(mut random: Random) -> Result<()> {
    const LETTERS: &[&[u8]] = &[
        b"a", b"a", b"b", b"c", b"*", b"*", b"?", b"[", b"]", b"-", b"^", b"\\", b"[^", b"[a-",
        b"\n",
    ];
    let pair = Pair::start(Engine::Component).await?;
    let some_name = |random: &mut Random, letters_max: usize| -> Vec<u8> {
        (0..random.index(letters_max + 1)).flat_map(|_| random.pick(LETTERS).to_vec()).collect()
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
        let queries: Vec<u8> = patterns
            .iter()
            .flat_map(|pattern| command(&["PUBSUB".as_bytes(), b"CHANNELS", pattern]))
            .collect();
        redis_asks.send(&queries).await?;
        switchyard_asks.send(&queries).await?;
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

/// Requests to start from.
fn corpus() -> Vec<Vec<u8>> {
    let written = [
        command(&["PUBLISH", "a", "b"]),
        command(&["SUBSCRIBE", "a", "a"]),
        command(&["PSUBSCRIBE", "a*"]),
        command(&["PUBSUB", "NUMSUB", "a", "b"]),
        command(&["ECHO", "\r\n\0"]),
        command(&["QUIT"]),
        command(&["RESET"]),
        command(&["NOPE", "a", "b c"]),
        command(&["CLIENT", "GETNAME"]),
        command(&["XRANGE", "a", "(1-1", "2", "COUNT", "3"]),
        command(&["XINFO", "STREAM", "a", "FULL"]),
        b"echo \"a\\x41\\n\\\"b\"\r\nECHO 'it\\'s'\r\n".to_vec(),
        b"FETCH / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    written.into_iter().chain((RESP.corpus)().into_iter().filter(|input| !is_http(input))).collect()
}

/// When Redis meets it, it drops the replies that it has not sent, and here they
/// are sent.
fn is_http(input: &[u8]) -> bool {
    let text = input.to_ascii_lowercase();
    ["post", "host:"].iter().any(|word| text.windows(word.len()).any(|w| w == word.as_bytes()))
}

/// Commands and, as `client|kill`, sub-commands that only Redis has.
async fn only_of_redis(pair: &Pair) -> Result<BTreeSet<Vec<u8>>> {
    let mut lists = Vec::new();
    for mut client in pair.connect().await? {
        let Value::Aggregate(_, names) = client.call(&["COMMAND", "LIST"]).await? else {
            bail!("COMMAND LIST answers no list")
        };
        let names = names.into_iter().map(|name| match name {
            Value::Bulk(name) => Ok(name),
            other => bail!("{other} is no name"),
        });
        lists.push(names.collect::<Result<BTreeSet<_>>>()?);
    }
    let [redis, switchyard] = lists.as_slice() else { bail!("there are two") };
    // An older Redis lacks some of the sub-commands.
    let mut more = switchyard.difference(redis).filter(|name| !name.contains(&b'|'));
    ensure!(more.next().is_none(), "there are commands that Redis has not");
    Ok(redis - switchyard)
}

/// The command that Switchyard says it does not know, if this is what it says.
fn unknown_command(value: &Value) -> Option<Vec<u8>> {
    let Value::Error(text) = value else { return None };
    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
    if let Some(rest) = text.strip_prefix("err unknown command '") {
        return Some(rest.split('\'').next()?.into());
    }
    let rest = text.strip_prefix("err unknown subcommand '")?;
    let (subcommand, rest) = rest.split_once("'. try ")?;
    Some(format!("{}|{subcommand}", rest.split(' ').next()?).into())
}

#[tokio::test]
async fn broken_requests() -> Result<()> {
    for mut random in seeds() {
        let pair = Pair::start(Engine::Native).await?;
        let only_of_redis = only_of_redis(&pair).await?;
        let corpus = corpus();
        let tokens: Vec<_> =
            RESP.syntax.tokens.iter().copied().filter(|token| !is_http(token)).collect();
        let syntax = Syntax { tokens: &tokens, ..RESP.syntax };
        for _ in 0..iterations(2_000) {
            let input = mutation(&mut random, &corpus, &syntax);
            if is_http(&input) {
                continue;
            }
            let mut answers = Vec::new();
            for mut client in pair.connect().await? {
                // It may be gone before it has accepted all of it.
                let _ = client.send(&input).await;
                let _ = client.end_sending().await;
                answers.push(client.rest().await?);
            }
            let [expected, came] = answers.as_slice() else { bail!("there are two") };
            if came == expected {
                continue;
            }
            let came_values = values(came)?;
            // What it takes for a command of Redis that it has not is no difference.
            let mut unknown = came_values.iter().filter_map(unknown_command);
            if unknown.any(|command| only_of_redis.contains(&command)) {
                println!("left out: {}", input.escape_ascii());
                continue;
            }
            ensure!(
                came_values == values(expected)?,
                "{} is answered with {} instead of {}",
                input.escape_ascii(),
                came.escape_ascii(),
                expected.escape_ascii()
            );
        }
        pair.switchyard.stop().await?;
    }
    Ok(())
}

/// The replies to a command that ends all subscriptions at once, in order. Those to INFO, which a
/// part of XINFO may become, are left out.
fn values(mut bytes: &[u8]) -> Result<Vec<Value>> {
    let mut values = Vec::new();
    while let Some((value, length)) = parse(bytes)? {
        let is_info = matches!(&value, Value::Bulk(text) if text.starts_with(b"# "));
        values.extend(Some(value).filter(|_| !is_info));
        bytes = bytes.get(length..).unwrap_or_default();
    }
    ensure!(bytes.is_empty(), "half a reply: {}", bytes.escape_ascii());
    Ok(settled(values, &[b"unsubscribe".to_vec()], (7, 4)))
}
