//! What a client is answered over JSON.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::websocket::Client;

/// What a successful command is answered.
pub async fn ask(client: &mut Client, command: Value) -> Result<Value> {
    let mut answer = client.call(command.clone()).await?;
    ensure!(answer.pointer("/0") == Some(&json!("OK")), "{command}: {answer}");
    Ok(answer.pointer_mut("/1").map(Value::take).unwrap_or_default())
}

/// The code of the refusal of a command.
pub async fn refused(client: &mut Client, command: Value) -> Result<String> {
    let answer = client.call(command.clone()).await?;
    let code = answer.pointer("/1/code").and_then(Value::as_str);
    Ok(code.with_context(|| format!("{command}: {answer}"))?.to_owned())
}
