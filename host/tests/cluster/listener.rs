//! A client that listens and checks what comes: each message once, and those of
//! one publisher in their order.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::client::RespClient;
use crate::value::Value;

/// A listening client.
pub struct Listener {
    pub client: RespClient,
    /// For each name it listens to (of a pattern, with the channel) and each
    /// publisher, the number of the last message.
    last: BTreeMap<(String, String), u64>,
    question: u64,
}

/// What was published: the publisher's name and the message's number.
pub fn payload(publisher: &str, number: u64) -> String {
    format!("{publisher} {number}")
}

impl Listener {
    /// Listens by SUBSCRIBE to channels and by PSUBSCRIBE to patterns.
    pub async fn start(
        mut client: RespClient,
        channels: &[&str],
        patterns: &[&str],
    ) -> Result<Listener> {
        for (verb, names) in [("SUBSCRIBE", channels), ("PSUBSCRIBE", patterns)] {
            for name in names {
                let ack = client.call(&[verb, name]).await?;
                ensure!(ack.is_pubsub(), "{ack}");
            }
        }
        Ok(Listener { client, last: BTreeMap::new(), question: 0 })
    }

    /// The next so many messages, each the next one of its publisher.
    pub async fn expect(&mut self, count: usize) -> Result<()> {
        for message in self.client.next_many(count).await? {
            self.take(&message, true)?;
        }
        Ok(())
    }

    /// The next messages until this one came for this name. They may have gaps, but
    /// come once and in order.
    pub async fn until(&mut self, name: &str, last: &str) -> Result<()> {
        loop {
            let message = self.client.next().await?;
            let received = self.take(&message, false)?;
            if received == name && message.payload()? == last.as_bytes() {
                return Ok(());
            }
        }
    }

    /// Fails if anything else has come.
    pub async fn nothing_more(&mut self) -> Result<()> {
        self.question += 1;
        self.client.nothing(self.question).await
    }

    fn take(&mut self, message: &Value, is_whole: bool) -> Result<String> {
        let Value::Aggregate(_, items) = message else { anyhow::bail!("{message} came") };
        let name = match items.get(1) {
            Some(Value::Bulk(name)) => String::from_utf8_lossy(name).into_owned(),
            _ => anyhow::bail!("{message} came"),
        };
        let text = std::str::from_utf8(message.payload()?)?;
        let (publisher, number) = text.split_once(' ').context("a message has a number")?;
        let number: u64 = number.parse()?;
        let channel = String::from_utf8_lossy(message.channel()?).into_owned();
        let key = (format!("{name}\n{channel}"), publisher.to_owned());
        let last = self.last.entry(key).or_insert(0);
        if is_whole {
            ensure!(number == *last + 1, "after {last} of {publisher} came {message}");
        } else {
            ensure!(number > *last, "after {last} of {publisher} came {message}");
        }
        *last = number;
        Ok(name)
    }
}
