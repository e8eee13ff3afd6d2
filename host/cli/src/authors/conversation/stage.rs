//! Runs the steps of a conversation: has its clients, and opens their connections to the server.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, Upgrade, describe};
use super::notation::{Action, Expected, Outcome};
use super::pattern::Pattern;

/// The clients of one conversation.
pub struct Stage<S, D> {
    /// Opens a connection to the server.
    dial: D,
    /// The host name in requests.
    authority: String,
    patience: Duration,
    actors: BTreeMap<String, Actor<S>>,
    /// Makes the requests of `alice<nothing` differ from those of the file.
    questions: u64,
}

/// A client, and the bytes of binary frames that it has received and the conversation has not
/// checked yet.
struct Actor<S> {
    client: Client<S>,
    unread: Vec<u8>,
}

impl<S, D> Stage<S, D>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: AsyncFnMut() -> io::Result<S>,
{
    /// A stage without clients. `patience` is the timeout of each expected message.
    pub fn new(authority: String, patience: Duration, dial: D) -> Stage<S, D> {
        Stage { dial, authority, patience, actors: BTreeMap::new(), questions: 0 }
    }

    /// Executes a step, unless it is a swap, and returns what was received.
    ///
    /// # Errors
    ///
    /// Something else was received, or nothing in time.
    pub async fn act(&mut self, action: &Action) -> Result<Vec<String>> {
        match action {
            Action::Connect { name, upgrade, outcome } => {
                self.connect(name, upgrade, outcome).await
            }
            Action::Send { name, message } => {
                self.actor(name).await?.client.send(message.clone()).await?;
                Ok(Vec::new())
            }
            Action::Expect { name, what } => self.expect(name, what).await,
            Action::Swap { .. } => bail!("a swap is not for clients to make"),
        }
    }

    /// Checks that no client has unread messages, and then disconnects all clients.
    ///
    /// # Errors
    ///
    /// A client has unread messages.
    pub async fn clear(mut self) -> Result<()> {
        let names: Vec<_> = self.actors.keys().cloned().collect();
        for name in names {
            self.nothing(&name).await?;
        }
        Ok(())
    }

    async fn expect(&mut self, name: &str, what: &Expected) -> Result<Vec<String>> {
        match what {
            Expected::Texts(patterns) => expect_texts(self.reader(name).await?, patterns).await,
            Expected::Bytes(expected) => {
                let Actor { client, unread } = self.actor(name).await?;
                expect_bytes(client, unread, expected).await?;
                Ok(vec![expected.escape_ascii().to_string()])
            }
            Expected::Pong(body) => match self.reader(name).await?.next().await? {
                Message::Pong(came) if came == *body => Ok(Vec::new()),
                came => bail!("what came is {}", describe(&came)),
            },
            Expected::Close(code, words) => {
                let (came, reason) = self.reader(name).await?.next_close().await?;
                self.actors.remove(name);
                let came = came.map_or("none".to_owned(), |code| code.to_string());
                ensure!(
                    came == *code && reason.contains(words),
                    "what came is Close {came} ({reason})"
                );
                Ok(vec![format!("{came} {reason}")])
            }
            Expected::Nothing => {
                self.nothing(name).await?;
                Ok(Vec::new())
            }
        }
    }

    /// A client whose binary frames have all been read.
    async fn reader(&mut self, name: &str) -> Result<&mut Client<S>> {
        let Actor { client, unread } = self.actor(name).await?;
        ensure!(unread.is_empty(), "{} was left", unread.escape_ascii());
        Ok(client)
    }

    async fn actor(&mut self, name: &str) -> Result<&mut Actor<S>> {
        if !self.actors.contains_key(name) {
            let upgrade = Upgrade::default();
            self.connect(name, &upgrade, &Outcome::Accepted(None)).await?;
        }
        self.actors.get_mut(name).context("it was put there")
    }

    async fn connect(
        &mut self,
        name: &str,
        upgrade: &Upgrade,
        outcome: &Outcome,
    ) -> Result<Vec<String>> {
        ensure!(!self.actors.contains_key(name), "{name} is connected already");
        let stream = (self.dial)().await.context("the server cannot be reached")?;
        let opened = Client::open(stream, &self.authority, upgrade, self.patience).await?;
        match (opened, outcome) {
            (Ok(client), Outcome::Accepted(wanted)) => {
                let chosen = client.subprotocol.clone().unwrap_or("none".to_owned());
                let is_wanted = wanted.as_ref().is_none_or(|wanted| *wanted == chosen);
                ensure!(is_wanted, "the sub-protocol that was chosen is {chosen}");
                self.actors.insert(name.to_owned(), Actor { client, unread: Vec::new() });
                Ok(vec![chosen])
            }
            (Err(refused), Outcome::Refused(status, words)) => {
                let came = format!("HTTP {} {}", refused.status, refused.body.trim_end());
                let is_wanted =
                    refused.status.to_string() == *status && refused.body.contains(words);
                ensure!(is_wanted, "it was refused with {came}");
                Ok(vec![came])
            }
            (Ok(_), Outcome::Refused(..)) => bail!("it was accepted"),
            (Err(refused), Outcome::Accepted(_)) => {
                bail!("it was refused with HTTP {} {}", refused.status, refused.body.trim_end())
            }
        }
    }

    /// Fails if this client has received anything.
    async fn nothing(&mut self, name: &str) -> Result<()> {
        self.questions += 1;
        let question = 9_000_000_000_000_000 + self.questions;
        let Actor { client, unread } = self.actor(name).await?;
        if client.subprotocol.as_deref() == Some("resp") {
            let question = format!("${}\r\n{question}\r\n", question.to_string().len());
            client.send(Message::binary(format!("*2\r\n$4\r\nPING\r\n{question}"))).await?;
            // RESP2 has two replies: one for subscribers, and one for other clients.
            let listening = format!("*2\r\n$4\r\npong\r\n{question}");
            let answer = match next_bytes(client, unread, 1).await? {
                b"*" => listening,
                _ => question,
            };
            return expect_bytes(client, unread, answer.as_bytes()).await;
        }
        ensure!(unread.is_empty(), "{} was left", unread.escape_ascii());
        client.send(Message::text(format!("[{question},\"PING\"]"))).await?;
        let answer = Message::text(format!("[{question},\"OK\",\"PONG\"]"));
        match client.next().await? {
            came if came == answer => Ok(()),
            came => bail!("for {name} came {}", describe(&came)),
        }
    }
}

/// Reads as many messages as there are patterns; each must match one of the remaining patterns.
async fn expect_texts<S>(client: &mut Client<S>, patterns: &[Pattern]) -> Result<Vec<String>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut left: Vec<&Pattern> = patterns.iter().collect();
    let mut received = Vec::new();
    while !left.is_empty() {
        let came = client.next_json().await?;
        let Some(at) = left.iter().position(|pattern| pattern.matches(&came)) else {
            bail!("what came is {came}")
        };
        left.remove(at);
        received.push(came.to_string());
    }
    Ok(received)
}

/// The next bytes must be these.
async fn expect_bytes<S>(
    client: &mut Client<S>,
    unread: &mut Vec<u8>,
    expected: &[u8],
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let came = next_bytes(client, unread, expected.len()).await?;
    ensure!(came == expected, "what came is {}", unread.escape_ascii());
    unread.drain(..expected.len());
    Ok(())
}

/// The next bytes of binary frames, this many; they stay unread.
async fn next_bytes<'a, S>(
    client: &mut Client<S>,
    unread: &'a mut Vec<u8>,
    length: usize,
) -> Result<&'a [u8]>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while unread.len() < length {
        match client.next().await? {
            Message::Binary(bytes) => unread.extend(bytes),
            came => bail!("after {} came {}", unread.escape_ascii(), describe(&came)),
        }
    }
    Ok(unread.get(..length).unwrap_or_default())
}
