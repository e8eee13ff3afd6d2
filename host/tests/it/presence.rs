//! Presence: members of a channel, and the events for connections that watch it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::answers::{ask, refused};
use crate::support::components::write_atomically;
use crate::support::server::{Launch, Server, with_quick_end};
use crate::support::websocket::Client;

const RULE: &str = "[[channels]]\nmatch = 'room.*'\npresence = true\npresence_members_max = 3\n";
const WIDE: &str = "[[channels]]\nmatch = 'room.*'\npresence = true\n";

/// A client, and the id of its connection.
async fn client(server: &Server) -> Result<(Client, String)> {
    let mut client = server.client().await?;
    let hello = ask(&mut client, json!(["HELLO"])).await?;
    let id = hello.get("connection").and_then(Value::as_str).context("no id")?.to_owned();
    Ok((client, id))
}

fn member(connection: &str, data: Value) -> Value {
    json!({"connection": connection, "user": null, "data": data})
}

#[tokio::test]
async fn a_snapshot_and_events_meet_without_a_gap() -> Result<()> {
    let server = Launch::with_config(RULE).start().await?;
    let (mut ann, ann_id) = client(&server).await?;
    let (mut bob, bob_id) = client(&server).await?;
    assert_eq!(ask(&mut ann, json!(["ENTER", "room.1", {"name": "Ann"}])).await?, json!(1));
    let ann_is = member(&ann_id, json!({"name": "Ann"}));
    let snapshot = json!({"count": 1, "users": 1, "members": [ann_is]});
    assert_eq!(ask(&mut bob, json!(["WATCH", "room.1"])).await?, snapshot);

    assert_eq!(ask(&mut bob, json!(["ENTER", "room.1"])).await?, json!(2));
    let bob_is = member(&bob_id, Value::Null);
    assert_eq!(bob.next_json().await?, json!(["enter", "room.1", bob_is]));
    assert_eq!(ask(&mut ann, json!(["ENTER", "room.1", [1, "two"]])).await?, json!(2));
    let ann_is = member(&ann_id, json!([1, "two"]));
    assert_eq!(bob.next_json().await?, json!(["update", "room.1", ann_is]));

    let snapshot = json!({"count": 2, "users": 2, "members": [ann_is, bob_is]});
    assert_eq!(ask(&mut ann, json!(["PRESENCE", "room.1"])).await?, snapshot);
    let counts = json!({"count": 2, "users": 2});
    assert_eq!(ask(&mut ann, json!(["PRESENCE", "room.1", {"count": true}])).await?, counts);
    let page = ask(&mut ann, json!(["PRESENCE", "room.1", {"limit": 1}])).await?;
    assert_eq!(page, json!({"count": 2, "users": 2, "members": [ann_is], "next": ann_id}));
    let page = ask(&mut ann, json!(["PRESENCE", "room.1", {"after": ann_id}])).await?;
    assert_eq!(page, json!({"count": 2, "users": 2, "members": [bob_is]}));

    assert_eq!(ask(&mut bob, json!(["LEAVE", "room.1"])).await?, json!(1));
    assert_eq!(bob.next_json().await?, json!(["leave", "room.1", bob_is]));
    assert_eq!(ask(&mut bob, json!(["LEAVE", "room.1"])).await?, json!(1));
    drop(ann);
    assert_eq!(bob.next_json().await?, json!(["leave", "room.1", ann_is]));
    assert_eq!(ask(&mut bob, json!(["UNWATCH", "room.1"])).await?, json!(true));
    assert_eq!(ask(&mut bob, json!(["UNWATCH", "elsewhere"])).await?, json!(true));
    assert_eq!(ask(&mut bob, json!(["ENTER", "room.1"])).await?, json!(1));
    ask(&mut bob, json!(["PING"])).await?;
    server.stop().await
}

#[tokio::test]
async fn data_is_kept_as_written() -> Result<()> {
    let server = Launch::with_config(WIDE).start().await?;
    let mut raw = server.raw_client().await?;
    raw.send_text(r#"[1,"ENTER","room.1",{ "n": 1.0,"big":123456789012345678901234567890 }]"#)
        .await?;
    raw.send_text(r#"[[2,"enter","room.2","x"],["ENTER","room.3"],[3,"PRESENCE","room.1"]]"#)
        .await?;
    let mut last = String::new();
    while !last.starts_with("[3,") {
        let frame = raw.next_frame().await?.context("it was closed")?;
        last = String::from_utf8(frame.payload)?;
    }
    ensure!(last.contains(r#""data":{ "n": 1.0,"big":123456789012345678901234567890 }"#), "{last}");
    server.stop().await
}

#[tokio::test]
async fn the_members_of_a_large_room_come_in_pages() -> Result<()> {
    let server = Launch::with_config(WIDE).start().await?;
    let mut members = Vec::new();
    for number in 0..5 {
        let (mut client, id) = client(&server).await?;
        ask(&mut client, json!(["ENTER", "room.1", number])).await?;
        members.push((client, member(&id, json!(number))));
    }
    let (mut watcher, _) = client(&server).await?;
    let page = |from: usize, to: usize| -> Vec<Value> {
        members.iter().skip(from).take(to - from).map(|(_, member)| member.clone()).collect()
    };
    let first = json!({"count": 5, "users": 5, "members": page(0, 2)});
    assert_eq!(ask(&mut watcher, json!(["WATCH", "room.1", {"limit": 2}])).await?, first);
    let more = |members: Vec<Value>, more: bool| json!(["members", "room.1", {"members": members, "more": more}]);
    assert_eq!(watcher.next_json().await?, more(page(2, 4), true));
    assert_eq!(watcher.next_json().await?, more(page(4, 5), false));
    let (left, shown) = members.remove(1);
    drop(left);
    assert_eq!(watcher.next_json().await?, json!(["leave", "room.1", shown]));
    server.stop().await
}

#[tokio::test]
async fn many_changes_at_once_are_one_event() -> Result<()> {
    let server = Launch::with_config(WIDE).start().await?;
    let (mut watcher, _) = client(&server).await?;
    ask(&mut watcher, json!(["WATCH", "room.1"])).await?;
    let mut members = Vec::new();
    for _ in 0..40 {
        members.push(client(&server).await?);
    }
    for (member, _) in &mut members {
        ask(member, json!(["ENTER", "room.1"])).await?;
    }
    // The events together are the members, in one event or in several.
    let (mut entered, mut frames) = (Vec::new(), 0);
    while entered.len() < members.len() {
        let event = watcher.next_json().await?;
        frames += 1;
        match event.pointer("/0").and_then(Value::as_str) {
            Some("enter") => entered.push(event[2]["connection"].clone()),
            Some("presence") => {
                let enter = event[2]["enter"].as_array().context("no list")?;
                entered.extend(enter.iter().map(|member| member["connection"].clone()));
                let none = json!([]);
                ensure!(event[2]["update"] == none && event[2]["leave"] == none, "{event}");
            }
            _ => anyhow::bail!("{event}"),
        }
    }
    println!("{} members in {frames} frames", members.len());
    let ids: Vec<Value> = members.iter().map(|(_, id)| json!(id)).collect();
    entered.sort_by_key(|id| id.as_str().and_then(|id| id.parse::<u64>().ok()));
    assert_eq!(entered, ids);
    server.stop().await
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_and_has_no_effect() -> Result<()> {
    let config = format!("limits.subscriptions_max = 2\npresence.data_bytes_max = 10\n{RULE}");
    let server = Launch::with_config(&config).start().await?;
    let (mut one, one_id) = client(&server).await?;
    for (command, code) in [
        (json!(["ENTER", "news"]), "NOPRESENCE"),
        (json!(["LEAVE", "news"]), "NOPRESENCE"),
        (json!(["PRESENCE", "news"]), "NOPRESENCE"),
        (json!(["WATCH", "news"]), "NOPRESENCE"),
        (json!(["ENTER", "room.1", "12345678901"]), "TOOLARGE"),
        (json!(["ENTER"]), "ARITY"),
        (json!(["ENTER", "room.1", 1, 2]), "ARITY"),
        (json!(["LEAVE", "room.1", 1]), "ARITY"),
        (json!(["PRESENCE", "room.1", {"limit": 0}]), "BADVALUE"),
        (json!(["PRESENCE", "room.1", {"limit": 1001}]), "BADVALUE"),
        (json!(["PRESENCE", "room.1", {"after": 7}]), "BADVALUE"),
        (json!(["PRESENCE", "room.1", {"after": "x"}]), "BADVALUE"),
        (json!(["PRESENCE", "room.1", {"count": 1}]), "BADVALUE"),
        (json!(["PRESENCE", "room.1", {"counts": true}]), "BADVALUE"),
        (json!(["WATCH", "room.1", {"after": "7"}]), "BADVALUE"),
    ] {
        let answer = refused(&mut one, command.clone()).await?;
        ensure!(answer == code, "{command}: {answer}");
    }
    let empty = json!({"count": 0, "users": 0, "members": []});
    assert_eq!(ask(&mut one, json!(["PRESENCE", "room.1"])).await?, empty);
    // A connection may be a member of two rooms, and watch two.
    for verb in ["ENTER", "WATCH"] {
        for room in ["room.1", "room.2"] {
            ask(&mut one, json!([verb, room])).await?;
        }
        assert_eq!(refused(&mut one, json!([verb, "room.3"])).await?, "LIMIT");
    }
    // A room has three members.
    let mut others = Vec::new();
    for _ in 0..2 {
        let (mut other, _) = client(&server).await?;
        ask(&mut other, json!(["ENTER", "room.1"])).await?;
        others.push(other);
    }
    let (mut late, _) = client(&server).await?;
    assert_eq!(refused(&mut late, json!(["ENTER", "room.1"])).await?, "LIMIT");
    ask(&mut one, json!(["LEAVE", "room.1"])).await?;
    assert_eq!(ask(&mut late, json!(["ENTER", "room.1"])).await?, json!(3));
    ensure!(!one_id.is_empty());
    server.stop().await
}

#[tokio::test]
async fn a_member_stays_for_the_grace_period() -> Result<()> {
    let config = format!("presence.grace_ms = '1s'\n{RULE}");
    let server = Launch::with_config(&config).start().await?;
    let (mut watcher, _) = client(&server).await?;
    let (mut ann, ann_id) = client(&server).await?;
    ask(&mut ann, json!(["ENTER", "room.1", "Ann"])).await?;
    ask(&mut watcher, json!(["WATCH", "room.1"])).await?;
    drop(ann);
    let began = std::time::Instant::now();
    let event = watcher.next_json().await?;
    assert_eq!(event, json!(["leave", "room.1", member(&ann_id, json!("Ann"))]));
    ensure!(began.elapsed().as_millis() >= 900, "after {:?}", began.elapsed());
    server.stop().await
}

#[tokio::test]
async fn a_channel_that_lost_presence_loses_its_members() -> Result<()> {
    let server = Launch::with_config(RULE).start().await?;
    let (mut watcher, id) = client(&server).await?;
    ask(&mut watcher, json!(["WATCH", "room.1"])).await?;
    ask(&mut watcher, json!(["ENTER", "room.1"])).await?;
    let is = member(&id, Value::Null);
    assert_eq!(watcher.next_json().await?, json!(["enter", "room.1", is]));
    let file = server.home().join("switchyard.toml");
    write_atomically(&file, with_quick_end("").as_bytes())?;
    assert_eq!(watcher.next_json().await?, json!(["leave", "room.1", is]));
    assert_eq!(watcher.next_json().await?, json!(["unwatched", "room.1"]));
    assert_eq!(refused(&mut watcher, json!(["ENTER", "room.1"])).await?, "NOPRESENCE");
    server.stop().await
}

/// Data that other clients could not read is refused.
#[tokio::test]
async fn data_that_cannot_be_read_is_refused() -> Result<()> {
    let server = Launch::with_config(RULE).start().await?;
    let mut client = server.client().await?;
    for data in ["1e400", r#""\ud83d""#, r#"{"a":[-1e999]}"#] {
        let text = format!("[1,\"ENTER\",\"room.1\",{data}]");
        client.send(Message::text(text)).await?;
        let answer = client.next_json().await?;
        ensure!(answer.pointer("/2/code") == Some(&json!("BADVALUE")), "{data}: {answer}");
    }
    let text = r#"[2,"ENTER","room.1",{"a":1.50,"b":"\ud83d\ude00"}]"#;
    client.send(Message::text(text.to_owned())).await?;
    ensure!(client.next_json().await? == json!([2, "OK", 1]));
    server.stop().await
}
