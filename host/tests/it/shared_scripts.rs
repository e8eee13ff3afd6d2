//! What one client does with scripts affects no other client.

use anyhow::{Result, ensure};

use crate::support::client::RespClient;
use crate::support::server::Launch;
use crate::support::value::{Shape, Value};

const LOOP: &str = "for i = 2, #ARGV do redis.call('publish', ARGV[i], ARGV[1]) end";

#[tokio::test]
async fn a_script_is_known_until_the_last_client_that_loaded_it_is_gone() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let mut first = RespClient::connect(address).await?;
    let mut second = RespClient::connect(address).await?;
    let mut browser = RespClient::connect_framed(&server, 1).await?;
    let digest = match first.call(&["SCRIPT", "LOAD", LOOP]).await? {
        Value::Bulk(digest) => String::from_utf8(digest)?,
        other => anyhow::bail!("{other}"),
    };
    let evalsha = ["EVALSHA", &digest, "0", "x", "a"];
    let is_known = |reply: Value| reply == Value::NullBulk;
    for other in [&mut second, &mut browser] {
        ensure!(is_known(other.call(&evalsha).await?));
        ensure!(other.call(&["SCRIPT", "FLUSH"]).await? == Value::Simple(b"OK".to_vec()));
        for spaces in 1..200 {
            let script = format!("{}{LOOP}", " ".repeat(spaces));
            ensure!(is_known(other.call(&["EVAL", &script, "0", "x", "a"]).await?));
        }
        ensure!(is_known(other.call(&evalsha).await?));
    }
    ensure!(is_known(first.call(&evalsha).await?));
    // Of its own, a connection keeps some.
    let is_unknown =
        |reply: &Value| matches!(reply, Value::Error(text) if text.starts_with(b"NOSCRIPT "));
    ensure!(is_known(browser.call(&["EVAL", LOOP, "0", "x", "a"]).await?));
    drop(first);
    ensure!(is_known(second.call(&evalsha).await?));
    ensure!(browser.call(&["SCRIPT", "FLUSH"]).await? == Value::Simple(b"OK".to_vec()));
    second
        .until(
            &["SCRIPT", "EXISTS", &digest],
            &Value::Aggregate(Shape::Array, vec![Value::Integer(0)]),
        )
        .await?;
    ensure!(is_unknown(&second.call(&evalsha).await?));
    drop((second, browser));
    server.stop().await
}
