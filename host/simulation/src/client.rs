//! A client that sends random commands over one connection after another, and records what it sees.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Message;

use crate::chance::Chance;
use crate::record::{Command, Connection, End, Name, Recorder, Reply, Step};
use crate::wire::{ClientEnd, wire};
use switchyard_server::in_memory::InMemoryServer;
use switchyard_types::position::Position;

/// For how long a client waits for what must come, in simulated time.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many commands a client may send at once.
const BURST_MAX: usize = 6;

/// What all clients of a simulation share.
pub struct World {
    /// The server.
    pub server: InMemoryServer,
    /// What decides.
    pub chance: Chance,
    /// Where steps are recorded.
    pub recorder: Recorder,
    /// The channels.
    pub channels: Vec<String>,
    /// One in so many steps drops the connection; never: zero.
    pub drop_one_in: usize,
    /// One in so many steps reads nothing for a second; never: zero.
    pub stall_one_in: usize,
    /// How many clients have not sent all that they send.
    pub sending: AtomicUsize,
    /// Where they wait for the others: it has a permit for each when all have. A barrier wakes its
    /// tasks in random order.
    pub all_sent: Semaphore,
    /// The next connection.
    pub connections: AtomicUsize,
    /// The next payload.
    pub payloads: AtomicU64,
}

/// A client.
pub struct Client {
    world: Arc<World>,
    stream: WebSocketStream<ClientEnd>,
    connection: Connection,
    /// The id of the last command, and how many replies are missing.
    last_id: u64,
    missing: u64,
    positions: Positions,
}

/// The position of the last message that a client has, by channel.
type Positions = BTreeMap<String, Position>;

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
}

/// Takes `steps` random steps, over as many connections as it takes, and then waits for the others
/// before it reads what is left and quits.
///
/// # Errors
///
/// The server did something that no client expects, such as a frame that is none of its protocol.
pub async fn run(world: Arc<World>, steps: usize) -> Result<()> {
    let mut client = Client::connect(world.clone(), Positions::new()).await?;
    for _ in 0..steps {
        if client.step().await? == State::Ended {
            let positions = std::mem::take(&mut client.positions);
            client = Client::connect(world.clone(), positions).await?;
        }
    }
    let is_open = client.read_replies().await? == State::Open;
    if world.sending.fetch_sub(1, Ordering::Relaxed) == 1 {
        world.all_sent.add_permits(Semaphore::MAX_PERMITS);
    }
    world.all_sent.acquire().await?.forget();
    if is_open { client.quit().await } else { Ok(()) }
}

impl Client {
    async fn connect(world: Arc<World>, positions: Positions) -> Result<Client> {
        let connection = world.connections.fetch_add(1, Ordering::Relaxed);
        let stats = world.server.services().stats.clone();
        let (end, server_end) = wire(world.chance.clone(), stats);
        world.server.connect(server_end);
        let upgrading = tokio_tungstenite::client_async("ws://localhost/ws", end);
        let (stream, _) = timeout(PATIENCE, upgrading).await.context("no upgrade")??;
        Ok(Client { world, stream, connection, last_id: 0, missing: 0, positions })
    }

    async fn step(&mut self) -> Result<State> {
        let chance = self.world.chance.clone();
        if chance.one_in(self.world.drop_one_in) {
            self.note(Step::Ended(End::Dropped));
            return Ok(State::Ended);
        }
        if chance.one_in(self.world.stall_one_in) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let count = chance.number(0..BURST_MAX);
        for _ in 0..count {
            let command = self.command();
            if self.send(command).await? == State::Ended {
                return Ok(State::Ended);
            }
        }
        let time = Duration::from_millis(chance.number(0..5) as u64);
        self.read_until(Instant::now() + time).await
    }

    /// A random command.
    fn command(&self) -> Command {
        let chance = &self.world.chance;
        let channel = || chance.pick(&self.world.channels).cloned().unwrap_or_default();
        let names = || -> Vec<Name> {
            let count = chance.number(1..4);
            let name = |_| match chance.one_in(4) {
                true => Name::Beginning(channel().chars().take(1).collect()),
                false => Name::Channel(channel()),
            };
            let mut names: Vec<Name> = (0..count).map(name).collect();
            // A command is about channels or about patterns.
            let is_first = |name: &Name| matches!(name, Name::Channel(_));
            let are_channels = names.first().is_some_and(is_first);
            names.retain(|name| is_first(name) == are_channels);
            names.sort();
            names.dedup();
            names
        };
        match chance.number(0..12) {
            0 | 1 => Command::Subscribe(names()),
            10 | 11 => {
                let channel = channel();
                let from = self.positions.get(&channel).filter(|_| !chance.one_in(8)).copied();
                Command::Resume { name: Name::Channel(channel), from }
            }
            2 => Command::Unsubscribe(names()),
            _ => {
                let number = self.world.payloads.fetch_add(1, Ordering::Relaxed);
                let padding = if chance.one_in(8) { chance.number(0..700) } else { 0 };
                let payload = format!("{number}{}", " ".repeat(padding));
                Command::Publish { channel: channel(), payload }
            }
        }
    }

    async fn send(&mut self, command: Command) -> Result<State> {
        self.last_id += 1;
        let id = self.last_id;
        let all = |verb: [&str; 2], names: &[Name]| {
            let is_pattern = matches!(names.first(), Some(Name::Beginning(_)));
            let mut parts = vec![json!(id), json!(if is_pattern { verb[1] } else { verb[0] })];
            parts.extend(names.iter().map(|name| json!(name.text())));
            Value::Array(parts)
        };
        let text = match &command {
            Command::Subscribe(names) => all(["SUBSCRIBE", "PSUBSCRIBE"], names),
            Command::Unsubscribe(names) => all(["UNSUBSCRIBE", "PUNSUBSCRIBE"], names),
            Command::Resume { name, from } => {
                json!([id, "RESUME", name.text(), from.map(|from| from.to_string())])
            }
            Command::Publish { channel, payload } => json!([id, "PUBLISH", channel, payload]),
        };
        self.missing += 1;
        self.note(Step::Sent(id, command));
        self.write(&Message::text(text.to_string())).await
    }

    /// Writes a message. The server does not read from a client that does not read its replies, so
    /// this reads, too.
    async fn write(&mut self, message: &Message) -> Result<State> {
        let until = Instant::now() + PATIENCE;
        let mut is_fed = false;
        loop {
            let writing = async {
                if !is_fed {
                    self.stream.feed(message.clone()).await?;
                    is_fed = true;
                }
                self.stream.flush().await
            };
            match timeout(Duration::from_millis(1), writing).await {
                Ok(Ok(())) => return Ok(State::Open),
                // What the server sent before it closed can still be read.
                Ok(Err(_)) => return self.read_until(until).await,
                Err(_) if Instant::now() > until => bail!("a command cannot be sent"),
                Err(_) => {
                    if self.read_until(Instant::now()).await? == State::Ended {
                        return Ok(State::Ended);
                    }
                }
            }
        }
    }

    /// Reads until this time.
    async fn read_until(&mut self, until: Instant) -> Result<State> {
        while let Ok(received) = timeout_at(until, self.stream.next()).await {
            if self.received(received)? == State::Ended {
                return Ok(State::Ended);
            }
        }
        Ok(State::Open)
    }

    /// Reads until all replies are there.
    async fn read_replies(&mut self) -> Result<State> {
        let until = Instant::now() + PATIENCE;
        while self.missing > 0 {
            let received =
                timeout_at(until, self.stream.next()).await.context("a reply is missing")?;
            if self.received(received)? == State::Ended {
                return Ok(State::Ended);
            }
        }
        Ok(State::Open)
    }

    /// Sends QUIT and reads what is left.
    async fn quit(mut self) -> Result<()> {
        // All publications are in the outboxes, and what is written before the reply to QUIT was
        // queued before it.
        let mut state = self.write(&Message::text(r#"["QUIT"]"#)).await?;
        if state == State::Open {
            state = self.read_until(Instant::now() + PATIENCE).await?;
        }
        match state {
            State::Ended => Ok(()),
            State::Open => bail!("connection {} does not end after QUIT", self.connection),
        }
    }

    fn received(
        &mut self,
        received: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>,
    ) -> Result<State> {
        let end = match received {
            Some(Ok(Message::Text(text))) => {
                self.understand(&text).with_context(|| format!("received {text}"))?;
                return Ok(State::Open);
            }
            Some(Ok(Message::Close(frame))) => {
                let code = frame.map_or(1005, |frame| u16::from(frame.code));
                if code == 1000 { End::Quit } else { End::Closed(code) }
            }
            Some(Ok(_)) => return Ok(State::Open),
            Some(Err(error)) => End::Failed(error.to_string()),
            None => End::Failed("end of input".to_owned()),
        };
        self.note(Step::Ended(end));
        Ok(State::Ended)
    }

    fn understand(&mut self, text: &str) -> Result<()> {
        let frame: Vec<Value> = serde_json::from_str(text)?;
        let word = |at: usize| {
            let word = frame.get(at).and_then(Value::as_str).map(str::to_owned);
            word.ok_or_else(|| anyhow!("no text at {at}"))
        };
        let step = match frame.first() {
            Some(Value::Number(id)) => {
                self.missing = self.missing.checked_sub(1).context("a reply to no command")?;
                let reply = match word(1)?.as_str() {
                    "OK" => match frame.get(2) {
                        Some(Value::Object(resumed)) => reply_to_resume(resumed)?,
                        number => Reply::Ok(number.and_then(Value::as_u64).context("no number")?),
                    },
                    _ => {
                        let code = frame.get(2).and_then(|error| error.get("code"));
                        Reply::Err(code.and_then(Value::as_str).context("no code")?.to_owned())
                    }
                };
                Step::Reply(id.as_u64().context("an id that was not sent")?, reply)
            }
            Some(Value::String(event)) if event == "message" => {
                let position = position_of(frame.get(3))?;
                if let Some(position) = position {
                    self.positions.insert(word(1)?, position);
                }
                Step::Message { pattern: None, channel: word(1)?, payload: word(2)?, position }
            }
            Some(Value::String(event)) if event == "pmessage" => Step::Message {
                pattern: Some(word(1)?),
                channel: word(2)?,
                payload: word(3)?,
                position: position_of(frame.get(4))?,
            },
            // The server may announce that it closes the connection.
            Some(Value::String(event)) if event == "goaway" => return Ok(()),
            _ => bail!("a frame that no client expects"),
        };
        self.note(step);
        Ok(())
    }

    fn note(&self, step: Step) {
        self.world.recorder.note(self.connection, step);
    }
}

fn reply_to_resume(reply: &Map<String, Value>) -> Result<Reply> {
    let number = |name| reply.get(name).and_then(Value::as_u64).context("no number");
    let text = |name| reply.get(name).and_then(Value::as_str);
    Ok(Reply::Resumed {
        listening: number("listening")?,
        position: text("position").and_then(|text| text.parse().ok()).context("no position")?,
        is_recovered: reply.get("recovered").and_then(Value::as_bool).context("no answer")?,
        missed: number("missed")?,
        reason: text("reason").map(str::to_owned),
    })
}

/// The position in the last element of a message; none: there is no such element.
fn position_of(more: Option<&Value>) -> Result<Option<Position>> {
    let Some(more) = more else { return Ok(None) };
    let text = more.get("position").and_then(Value::as_str).context("no position")?;
    Ok(Some(text.parse()?))
}
