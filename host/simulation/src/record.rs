//! What the clients of a simulation did and saw, in order.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use switchyard_types::position::Position;

/// The number of a connection: each has its own.
pub type Connection = usize;

/// Something that a client did or saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, in milliseconds of simulated time.
    pub at_ms: u64,
    /// On which connection.
    pub connection: Connection,
    /// What it was.
    pub step: Step,
}

/// A step of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It sent a command with this id.
    Sent(u64, Command),
    /// It received the reply to the command with this id.
    Reply(u64, Reply),
    /// It received a message.
    Message {
        /// The pattern by which it did; none: the channel itself.
        pattern: Option<String>,
        /// The channel.
        channel: String,
        /// The payload.
        payload: String,
        /// Its position; none: its channel has no history.
        position: Option<Position>,
    },
    /// The connection ended.
    Ended(End),
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// SUBSCRIBE or PSUBSCRIBE.
    Subscribe(Vec<Name>),
    /// UNSUBSCRIBE or PUNSUBSCRIBE of these names.
    Unsubscribe(Vec<Name>),
    /// RESUME.
    Resume {
        /// The channel.
        name: Name,
        /// The position of the last message that the client has.
        from: Option<Position>,
    },
    /// PUBLISH. Each payload is published once in a simulation.
    Publish {
        /// The channel.
        channel: String,
        /// The payload.
        payload: String,
    },
}

/// A name that clients subscribe to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A channel.
    Channel(String),
    /// All channels that begin with this text: the pattern is this text with `*` after it.
    Beginning(String),
}

/// The reply to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It was executed; the number in the reply.
    Ok(u64),
    /// A RESUME was executed.
    Resumed {
        /// How many names the connection is subscribed to.
        listening: u64,
        /// The position of the last publication.
        position: Position,
        /// Whether everything after the position of the client follows.
        is_recovered: bool,
        /// How many messages follow.
        missed: u64,
        /// Why it is not recovered.
        reason: Option<String>,
    },
    /// It was refused with this code.
    Err(String),
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// After QUIT, when everything was read.
    Quit,
    /// The client dropped it.
    Dropped,
    /// The server closed it with this code.
    Closed(u16),
    /// It failed.
    Failed(String),
}

impl Name {
    /// Whether a publication on this channel reaches subscribers of the name.
    pub fn matches(&self, channel: &str) -> bool {
        match self {
            Name::Channel(name) => name == channel,
            Name::Beginning(beginning) => channel.starts_with(beginning.as_str()),
        }
    }

    /// As a client writes it.
    pub fn text(&self) -> String {
        match self {
            Name::Channel(name) => name.clone(),
            Name::Beginning(beginning) => format!("{beginning}*"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8} ms  connection {:<3} {:?}", self.at_ms, self.connection, self.step)
    }
}

/// Where all clients of a simulation record their steps.
#[derive(Clone)]
pub struct Recorder {
    began: Instant,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Recorder {
    /// Nothing is recorded yet, and the simulated time begins.
    pub fn new() -> Recorder {
        Recorder { began: Instant::now(), events: Arc::default() }
    }

    /// Records a step.
    pub fn note(&self, connection: Connection, step: Step) {
        let at_ms = self.began.elapsed().as_millis() as u64;
        self.events.lock().push(Event { at_ms, connection, step });
    }

    /// What was recorded.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder::new()
    }
}
