//! XREAD BLOCK: what ends the wait, and what does not.

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::{RULE, add, blocked, read, server, text};
use crate::client::RespClient;
use crate::support::components::write_atomically;
use crate::support::server::{Launch, Server, with_quick_end};
use crate::support::websocket::{Client, Upgrade};
use crate::value::{Value, command};

async fn two(server: &Server) -> Result<[RespClient; 2]> {
    let address = server.resp_address().await?;
    Ok([RespClient::connect(address).await?, RespClient::connect(address).await?])
}

async fn id(client: &mut RespClient) -> Result<String> {
    match client.call(&["CLIENT", "ID"]).await? {
        Value::Integer(id) => Ok(id.to_string()),
        other => bail!("{other} is no id"),
    }
}

#[tokio::test]
async fn a_publication_by_any_door_wakes_the_readers_of_its_channel() -> Result<()> {
    let server = server().await?;
    let [mut reader, mut other] = two(&server).await?;
    let first = add(&mut other, "chat.1", "before").await?;
    let wait = ["XREAD", "BLOCK", "0", "STREAMS", "chat.1", "chat.2", "$", "$"];
    reader.command(&wait).await?;
    blocked(&mut other, 1).await?;
    // It is no subscriber, and other channels do not wake it.
    let counts = other.call(&["PUBSUB", "NUMSUB", "chat.1"]).await?;
    ensure!(counts.to_string() == "[chat.1 :0]", "{counts}");
    add(&mut other, "chat.3", "elsewhere").await?;
    let second = add(&mut other, "chat.1", "now").await?;
    let reply = reader.next().await?;
    ensure!(reply == read(&[("chat.1", &[(&second, "now")])]), "{reply}");
    blocked(&mut other, 0).await?;

    reader.command(&wait).await?;
    blocked(&mut other, 1).await?;
    assert_eq!(other.call(&["PUBLISH", "chat.2", "by PUBLISH"]).await?, Value::Integer(0));
    let reply = reader.next().await?;
    ensure!(reply.to_string().contains("by PUBLISH"), "{reply}");

    reader.command(&wait).await?;
    blocked(&mut other, 1).await?;
    let mut web = server.client().await?;
    web.call(json!(["PUBLISH", "chat.2", "in JSON"])).await?;
    let reply = reader.next().await?;
    ensure!(reply.to_string().contains("in JSON"), "{reply}");

    // All that came together is there, and no more than COUNT.
    reader.command(&["XREAD", "COUNT", "2", "BLOCK", "0", "STREAMS", "chat.1", &second]).await?;
    blocked(&mut other, 1).await?;
    let transaction: Vec<u8> = ["MULTI", "a", "b", "c", "EXEC"]
        .iter()
        .flat_map(|word| match word.len() {
            1 => command(&["XADD", "chat.1", "*", "payload", word]),
            _ => command(&[word]),
        })
        .collect();
    other.send(&transaction).await?;
    other.next_many(5).await?;
    let came = super::entries(reader.next().await?)?;
    let payloads: Vec<_> = came.iter().map(|(_, payload)| payload.as_str()).collect();
    ensure!(["a", "b"].starts_with(&payloads) && !payloads.is_empty(), "{payloads:?}");
    ensure!(first < second, "{first} {second}");
    drop((reader, other, web));
    server.stop().await
}

#[tokio::test]
async fn many_readers_of_a_channel_all_get_what_is_published() -> Result<()> {
    const READERS: usize = 50;
    let server = server().await?;
    let [mut publisher, _] = two(&server).await?;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut reader = RespClient::connect(server.resp_address().await?).await?;
        reader.command(&["XREAD", "BLOCK", "0", "STREAMS", "chat.1", "$"]).await?;
        readers.push(reader);
    }
    blocked(&mut publisher, READERS).await?;
    let metrics = crate::support::admin::Operator::of(&server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", metrics.authority());
    let (_, _, page) = metrics.exchange(&head, b"")?;
    ensure!(page.contains(&format!("switchyard_blocked_readers {READERS}")), "{page}");
    let id = add(&mut publisher, "chat.1", "for all").await?;
    for reader in &mut readers {
        let reply = reader.next().await?;
        ensure!(reply == read(&[("chat.1", &[(&id, "for all")])]), "{reply}");
    }
    blocked(&mut publisher, 0).await?;
    drop((publisher, readers));
    server.stop().await
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_is_gone_at_once() -> Result<()> {
    let server = server().await?;
    let [mut other, _] = two(&server).await?;
    let wait = command(&["XREAD", "BLOCK", "0", "STREAMS", "chat.1", "$"]);
    // Also with commands behind the wait, which are never executed.
    for behind in [0, 1, 100] {
        for is_reset in [false, true] {
            let mut reader = RespClient::connect(server.resp_address().await?).await?;
            reader.send(&wait).await?;
            blocked(&mut other, 1).await?;
            reader.send(&command(&["XADD", "chat.2", "*", "payload", "x"]).repeat(behind)).await?;
            match is_reset {
                true => reader.reset()?,
                false => drop(reader),
            }
            blocked(&mut other, 0).await?;
        }
    }
    assert_eq!(other.call(&["XLEN", "chat.2"]).await?, Value::Integer(0));
    // Half of a connection is all of it, as in Redis.
    let mut reader = RespClient::connect(server.resp_address().await?).await?;
    reader.send(&wait).await?;
    blocked(&mut other, 1).await?;
    reader.end_sending().await?;
    reader.ends().await?;
    blocked(&mut other, 0).await?;
    drop((other, reader));
    server.stop().await
}

/// What is received during a wait is kept and executed after it.
#[tokio::test]
async fn commands_behind_the_wait_are_executed_after_it() -> Result<()> {
    const BEHIND: usize = 20_000;
    let server = server().await?;
    let [mut reader, mut other] = two(&server).await?;
    let wait = command(&["XREAD", "BLOCK", "0", "STREAMS", "chat.1", "$"]);
    reader.send(&wait).await?;
    blocked(&mut other, 1).await?;
    // More than is read ahead.
    let behind: Vec<u8> =
        (0..BEHIND).flat_map(|number: usize| command(&["ECHO", &number.to_string()])).collect();
    let sending = async { reader.send(&behind).await.map(|()| reader) };
    let publishing = async {
        let id = add(&mut other, "chat.1", "now").await?;
        anyhow::Ok(id)
    };
    let (mut reader, id) = tokio::try_join!(sending, publishing)?;
    let reply = reader.next().await?;
    ensure!(reply == read(&[("chat.1", &[(&id, "now")])]), "{reply}");
    for number in 0..BEHIND {
        let reply = reader.next().await?;
        ensure!(reply == Value::bulk(number.to_string()), "{reply} instead of {number}");
    }
    drop((reader, other));
    server.stop().await
}

#[tokio::test]
async fn another_client_may_end_the_wait() -> Result<()> {
    let server = server().await?;
    let [mut reader, mut other] = two(&server).await?;
    let id = id(&mut reader).await?;
    let unblock = async |other: &mut RespClient, words: &[&str]| {
        other.call(&[&["CLIENT", "UNBLOCK", &id], words].concat()).await
    };
    assert_eq!(unblock(&mut other, &[]).await?, Value::Integer(0));
    let wait = ["XREAD", "BLOCK", "0", "STREAMS", "chat.1", "chat.2", "0", "$"];
    for (words, expected) in [
        (&[][..], Value::NullArray),
        (&["TIMEOUT"], Value::NullArray),
        (&["error"], Value::Error(b"UNBLOCKED client unblocked via CLIENT UNBLOCK".to_vec())),
    ] {
        reader.command(&wait).await?;
        blocked(&mut other, 1).await?;
        let list = text(other.call(&["CLIENT", "LIST", "ID", &id]).await?)?;
        ensure!(list.contains("flags=b "), "{list}");
        assert_eq!(unblock(&mut other, words).await?, Value::Integer(1));
        assert_eq!(reader.next().await?, expected);
        reader.nothing(1).await?;
    }
    // So does the end of its connection.
    reader.command(&wait).await?;
    blocked(&mut other, 1).await?;
    assert_eq!(other.call(&["CLIENT", "KILL", "ID", &id]).await?, Value::Integer(1));
    reader.ends().await?;
    blocked(&mut other, 0).await?;
    drop((reader, other));
    server.stop().await
}

#[tokio::test]
async fn a_server_that_ends_does_not_wait_for_readers() -> Result<()> {
    let server = server().await?;
    let [mut reader, mut other] = two(&server).await?;
    let mut framed = RespClient::connect_framed(&server, 1).await?;
    for reader in [&mut reader, &mut framed] {
        reader.command(&["XREAD", "BLOCK", "0", "STREAMS", "chat.1", "$"]).await?;
    }
    blocked(&mut other, 2).await?;
    let ends = async {
        reader.ends().await?;
        other.ends().await?;
        framed.ends().await
    };
    tokio::try_join!(server.stop(), ends)?;
    Ok(())
}

/// A WebSocket is pinged while it waits, and is closed from its side.
#[tokio::test]
async fn control_frames_are_answered_during_the_wait() -> Result<()> {
    let server = server().await?;
    let [mut other, _] = two(&server).await?;
    let upgrade = Upgrade { subprotocols: vec!["resp".to_owned()], ..Upgrade::default() };
    let Ok(mut reader) = Client::connect(server.address().await?, &upgrade).await? else {
        bail!("the sub-protocol resp was refused")
    };
    let wait = command(&["XREAD", "BLOCK", "0", "STREAMS", "chat.1", "$"]);
    reader.send(Message::binary(wait.clone())).await?;
    blocked(&mut other, 1).await?;
    for text in ["one", "two"] {
        reader.send(Message::Ping(text.into())).await?;
        let came = reader.next().await?;
        ensure!(came == Message::Pong(text.into()), "{came:?}");
    }
    add(&mut other, "chat.1", "now").await?;
    let came = reader.next().await?;
    ensure!(came.into_text().is_ok_and(|text| text.contains("now")));
    reader.send(Message::binary(wait)).await?;
    blocked(&mut other, 1).await?;
    reader.send(Message::Close(None)).await?;
    blocked(&mut other, 0).await?;
    drop((reader, other));
    server.stop().await
}

/// A rule that is taken away ends the stream, and the reader goes on waiting for one.
#[tokio::test]
async fn a_reader_waits_while_its_channel_has_no_history() -> Result<()> {
    let server = server().await?;
    let [mut reader, mut other] = two(&server).await?;
    let old = add(&mut other, "chat.1", "old").await?;
    reader.command(&["XREAD", "BLOCK", "0", "STREAMS", "chat.1", &old]).await?;
    blocked(&mut other, 1).await?;
    let file = server.home().join("switchyard.toml");
    let without = RULE.replace("chat.*", "other.*");
    for (reload, rule) in [without.as_str(), RULE].into_iter().enumerate() {
        write_atomically(&file, with_quick_end(rule).as_bytes())?;
        server.wait_for_logs("settings were changed", reload + 1).await?;
        if reload == 0 {
            other.call(&["PUBLISH", "chat.1", "not kept"]).await?;
        }
    }
    blocked(&mut other, 1).await?;
    let new = add(&mut other, "chat.1", "new").await?;
    let reply = reader.next().await?;
    ensure!(reply == read(&[("chat.1", &[(&new, "new")])]), "{reply}");
    drop((reader, other));
    server.stop().await
}

/// The times after which a silent client is closed do not run while it waits.
#[tokio::test]
async fn a_waiting_client_is_neither_idle_nor_slow() -> Result<()> {
    let config = format!("resp.idle_timeout_ms = 100\nlimits.input_timeout_ms = 100\n{RULE}");
    let server = Launch::with_config(&config).start().await?;
    let mut reader = RespClient::connect(server.resp_address().await?).await?;
    for _ in 0..2 {
        let wait = command(&["XREAD", "BLOCK", "700", "STREAMS", "chat.1", "$"]);
        reader.send(&[&wait[..], b"*1\r\n$4\r\nPI"].concat()).await?;
        assert_eq!(reader.next().await?, Value::NullArray);
        reader.send(b"NG\r\n").await?;
        assert_eq!(reader.next().await?, Value::Simple(b"PONG".to_vec()));
    }
    server.stop().await
}

#[tokio::test]
async fn what_readers_wait_for_is_bounded() -> Result<()> {
    let config = format!(
        "limits.name_bytes_total_max = 1024\nlimits.names_per_command_max = 8\n\
         limits.name_bytes_max = 64\n{RULE}"
    );
    let server = Launch::with_config(&config).start().await?;
    let [mut reader, mut other] = two(&server).await?;
    let wait = |names: usize| {
        let mut words: Vec<String> = ["XREAD", "BLOCK", "0", "STREAMS"].map(str::to_owned).into();
        words.extend((0..names).map(|number| format!("chat.{number}")));
        words.extend((0..names).map(|_| "$".to_owned()));
        words
    };
    let refused = other.call(&wait(9)).await?;
    ensure!(refused.to_string().contains("LIMIT 9 names in one command"), "{refused}");
    // Each counts as a subscription does.
    reader.command(&wait(6)).await?;
    blocked(&mut other, 1).await?;
    let refused = other.call(&wait(6)).await?;
    ensure!(refused.to_string().starts_with("-\"LIMIT all connections together"), "{refused}");
    // What is there needs no wait.
    let id = add(&mut other, "chat.7", "there").await?;
    let reply = other.call(&["XREAD", "BLOCK", "0", "STREAMS", "chat.7", "0"]).await?;
    ensure!(reply == read(&[("chat.7", &[(&id, "there")])]), "{reply}");
    add(&mut other, "chat.0", "now").await?;
    reader.next().await?;
    blocked(&mut other, 0).await?;
    other.command(&wait(6)).await?;
    blocked(&mut reader, 1).await?;
    drop((reader, other));
    server.stop().await
}

/// A reply that the outbox cannot hold would end the connection.
#[tokio::test]
async fn a_reply_that_is_too_large_is_refused_and_count_helps() -> Result<()> {
    let config = format!("outbox.bytes_max = 100000\noutbox.soft_bytes = 50000\n{RULE}");
    let server = Launch::with_config(&config).start().await?;
    let [mut client, _] = two(&server).await?;
    let payload = "x".repeat(1000);
    for _ in 0..200 {
        add(&mut client, "chat.1", &payload).await?;
    }
    for words in [
        &["XRANGE", "chat.1", "-", "+"][..],
        &["XREAD", "STREAMS", "chat.1", "0"],
        &["XINFO", "STREAM", "chat.1", "FULL", "COUNT", "0"],
    ] {
        let refused = client.call(words).await?;
        let text = refused.to_string();
        ensure!(text.starts_with("-\"LIMIT the reply has") && text.contains("COUNT"), "{refused}");
    }
    let (mut from, mut seen) = ("0".to_owned(), 0);
    loop {
        let reply = client.call(&["XREAD", "COUNT", "50", "STREAMS", "chat.1", &from]).await?;
        let came = super::entries(reply)?;
        let Some((last, _)) = came.last() else { break };
        from = last.clone();
        seen += came.len();
    }
    assert_eq!(seen, 200);
    drop(client);
    server.stop().await
}
