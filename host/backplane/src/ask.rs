//! Requests to all nodes: PUBSUB replies for the cluster, merged from the nodes that respond in
//! time.
//!
//! A request is published on a channel that all nodes subscribe to, a response on a channel of
//! the requesting node. Both are JSON with names in base64, and not larger than NATS accepts by
//! default.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::debug;

use super::room_members::RoomMembers;
use super::{Backplane, Link, LinkError, State, within};
use switchyard_hub::Hub;
use switchyard_types::command::{Bytestring, Space};

/// The kinds of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// PUBSUB CHANNELS or SHARDCHANNELS: those that match, or all.
    #[allow(missing_docs, reason = "the verbs are documented")]
    Channels { is_shard: bool, matching: Option<Text> },
    /// PUBSUB NUMSUB or SHARDNUMSUB.
    #[allow(missing_docs, reason = "the verbs are documented")]
    SubscriberCounts { is_shard: bool, channels: Vec<Text> },
    /// PUBSUB NUMPAT.
    PatternCount,
    /// With which number connection ids begin there. They begin with this one at the requesting
    /// node.
    NodeNumber(u64),
    /// The members of a channel on the node, after this connection.
    #[allow(missing_docs, reason = "one line above")]
    Members { channel: Text, after: Option<u64> },
}

/// What a node responds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Channels; whether some were left out, because there were too many.
    #[allow(missing_docs, reason = "one line above")]
    Names { names: Vec<Text>, is_cut: bool },
    /// Subscribers of each of the channels.
    Counts(Vec<u64>),
    /// Patterns.
    Count(u64),
    /// The number with which connection ids begin.
    NodeNumber(u64),
    /// Members of a channel.
    Members(RoomMembers),
    /// The engine of the responding node is not available.
    Unavailable,
}

/// The response of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAnswer {
    /// The name of the node.
    pub node: String,
    /// The response.
    pub answer: Answer,
}

/// Any bytes; in base64 on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text(pub Vec<u8>);

impl From<Text> for String {
    fn from(text: Text) -> String {
        STANDARD_NO_PAD.encode(text.0)
    }
}

impl TryFrom<String> for Text {
    type Error = base64::DecodeError;

    fn try_from(encoded: String) -> Result<Text, Self::Error> {
        STANDARD_NO_PAD.decode(encoded).map(Text)
    }
}

/// The nodes that a message is sent to.
#[derive(Debug, Clone, Copy)]
pub enum To<'a> {
    /// All nodes, including the sender.
    All,
    /// The node of this name.
    Node(&'a str),
}

/// A message from one node to others.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    /// The sending node.
    node: String,
    /// The number of the request at the requesting node.
    number: u64,
    #[serde(flatten)]
    says: Says,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Says {
    Asks(Question),
    Answers(Answer),
    /// It is alive. The number rises when others may have missed what it said about rooms.
    Alive(u64),
}

/// How many bytes of names a response may have, before base64.
const ANSWER_BYTES_MAX: usize = 512 << 10;
/// How many messages of other nodes may be queued, and how many bytes they may have. More are
/// dropped; the requesting node then waits until its timeout.
const MESSAGES_MAX: usize = 256;
const MESSAGES_BYTES_MAX: usize = 8 << 20;
/// How many channels a question may name.
const QUESTION_NAMES_MAX: usize = 10_000;
/// The largest message of another node: a response of many short names in base64. Decoded, it
/// takes several times its bytes.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Pending requests.
pub struct Asks {
    next: AtomicU64,
    open: Mutex<FxHashMap<u64, mpsc::UnboundedSender<Event>>>,
    request_sender: mpsc::UnboundedSender<Asked>,
    requests: tokio::sync::Mutex<mpsc::UnboundedReceiver<Asked>>,
    message_sender: MessageSender,
    messages: tokio::sync::Mutex<mpsc::Receiver<Vec<u8>>>,
}

/// A request to be sent.
struct Asked {
    number: u64,
    /// The node that is asked; none: all of them.
    node: Option<Box<str>>,
    message: Vec<u8>,
}

/// What happens to a pending request.
enum Event {
    /// This many nodes received it, including the requesting one.
    Reached(usize),
    Answered(NodeAnswer),
}

impl Default for Asks {
    fn default() -> Asks {
        let (request_sender, requests) = mpsc::unbounded_channel();
        let (queue, messages) = mpsc::channel(MESSAGES_MAX);
        let message_sender = MessageSender { queue, queued_bytes: Arc::default() };
        Asks {
            next: AtomicU64::new(1),
            open: Mutex::default(),
            request_sender,
            requests: requests.into(),
            message_sender,
            messages: messages.into(),
        }
    }
}

impl Asks {
    /// The sender for messages that arrive on the nodes' own channels.
    pub fn message_sender(&self) -> MessageSender {
        self.message_sender.clone()
    }
}

/// Queues messages of other nodes.
#[derive(Clone)]
pub struct MessageSender {
    queue: mpsc::Sender<Vec<u8>>,
    queued_bytes: Arc<AtomicUsize>,
}

impl MessageSender {
    /// Queues a message, or drops it if it is too large or too many are queued.
    pub fn send(&self, message: &[u8]) {
        if message.len() > MESSAGE_BYTES_MAX {
            debug!(bytes = message.len(), "a message on the nodes' own channel is too large");
            return;
        }
        let queued = self.queued_bytes.fetch_add(message.len(), Ordering::Relaxed);
        let has_room = queued + message.len() <= MESSAGES_BYTES_MAX;
        if !has_room || self.queue.try_send(message.to_vec()).is_err() {
            self.received(message);
        }
    }

    /// A message left the queue.
    fn received(&self, message: &[u8]) {
        self.queued_bytes.fetch_sub(message.len(), Ordering::Relaxed);
    }
}

impl Backplane {
    /// Sends the request to all nodes; this node's response comes first. Nodes that do not respond
    /// within `cluster.ask_timeout_ms` are left out.
    pub async fn ask_all(&self, hub: &Arc<Hub>, question: Question) -> Vec<NodeAnswer> {
        let own = answer(hub.clone(), question.clone()).await;
        let mut answers = vec![NodeAnswer { node: self.node.clone(), answer: own }];
        if self.state() == State::Disconnected {
            return answers;
        }
        let (_open, mut events) = self.open_request(None, question);
        let collecting = async {
            let mut reached = None;
            while reached.is_none_or(|reached| answers.len() < reached) {
                match events.recv().await {
                    Some(Event::Reached(nodes)) => reached = Some(nodes),
                    Some(Event::Answered(answer)) => answers.push(answer),
                    None => return,
                }
            }
        };
        let _outcome = tokio::time::timeout(self.config.ask_time, collecting).await;
        answers
    }

    /// Sends the request to one node. None: it did not respond within `cluster.ask_timeout_ms`.
    pub(super) async fn ask_node(&self, node: &str, question: Question) -> Option<Answer> {
        if self.state() == State::Disconnected {
            return None;
        }
        let (_open, mut events) = self.open_request(Some(node.into()), question);
        let answering = async {
            loop {
                match events.recv().await? {
                    Event::Answered(answer) => return Some(answer.answer),
                    Event::Reached(_) => {}
                }
            }
        };
        tokio::time::timeout(self.config.ask_time, answering).await.ok()?
    }

    fn open_request(
        &self,
        node: Option<Box<str>>,
        question: Question,
    ) -> (Open<'_>, mpsc::UnboundedReceiver<Event>) {
        let number = self.asks.next.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = mpsc::unbounded_channel();
        self.asks.open.lock().insert(number, sender);
        // Removed also when the caller is dropped before there is a response.
        let open = Open { asks: &self.asks, number };
        let message = Message { node: self.node.clone(), number, says: Says::Asks(question) };
        let _ = self.asks.request_sender.send(Asked { number, node, message: spell(&message) });
        (open, events)
    }

    /// The message that this node is alive.
    pub(super) fn alive(&self) -> Vec<u8> {
        let says = Says::Alive(self.incarnation.load(Ordering::Relaxed));
        spell(&Message { node: self.node.clone(), number: 0, says })
    }

    /// Sends and receives requests and responses.
    pub(super) async fn converse(&self, link: &Link, hub: &Arc<Hub>) -> LinkError {
        let mut requests = self.asks.requests.lock().await;
        let mut messages = self.asks.messages.lock().await;
        loop {
            let carried = tokio::select! {
                Some(Asked { number, node, message }) = requests.recv() => {
                    let to = node.as_deref().map_or(To::All, To::Node);
                    let reached = within(self.config.answer_time, link.send_to(to, message)).await;
                    if let Ok(Some(nodes)) = reached
                        && node.is_none()
                        && let Some(open) = self.asks.open.lock().get(&number)
                    {
                        let _ = open.send(Event::Reached(nodes));
                    }
                    reached.map(|_| ())
                }
                Some(message) = messages.recv() => {
                    self.asks.message_sender.received(&message);
                    self.understand(link, hub, &message).await
                }
                else => std::future::pending().await,
            };
            if let Err(problem) = carried {
                return problem;
            }
        }
    }

    async fn understand(
        &self,
        link: &Link,
        hub: &Arc<Hub>,
        message: &[u8],
    ) -> Result<(), LinkError> {
        let Message { node, number, says } = match serde_json::from_slice(message) {
            Ok(message) => message,
            Err(problem) => {
                debug!(%problem, "a message on the nodes' own channel could not be decoded");
                return Ok(());
            }
        };
        match says {
            Says::Asks(_) | Says::Alive(_) if node == self.node => Ok(()),
            Says::Alive(incarnation) => {
                hub.presence().record_contact(&node, Some(incarnation));
                Ok(())
            }
            Says::Asks(question) => {
                let answer = answer(hub.clone(), question).await;
                let says = Says::Answers(answer);
                let message = spell(&Message { node: self.node.clone(), number, says });
                within(self.config.answer_time, link.send_to(To::Node(&node), message)).await?;
                Ok(())
            }
            Says::Answers(answer) => {
                if let Some(open) = self.asks.open.lock().get(&number) {
                    let _ = open.send(Event::Answered(NodeAnswer { node, answer }));
                }
                Ok(())
            }
        }
    }
}

/// A pending request; removed when this is dropped.
struct Open<'a> {
    asks: &'a Asks,
    number: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.asks.open.lock().remove(&self.number);
    }
}

fn spell(message: &Message) -> Vec<u8> {
    serde_json::to_vec(message).expect("it has nothing that JSON has not")
}

/// This node's response. The time of a listing grows with the number of channels, so it runs on a
/// blocking thread, not on a connection's.
pub async fn answer(hub: Arc<Hub>, question: Question) -> Answer {
    let asking = tokio::task::spawn_blocking(move || ask(&hub, question));
    asking.await.unwrap_or(Answer::Unavailable)
}

fn ask(hub: &Hub, question: Question) -> Answer {
    let space = |is_shard| if is_shard { Space::ShardChannels } else { Space::Channels };
    let answer = match question {
        Question::Channels { is_shard, matching } => {
            let matching = matching.map(|text| text.0);
            hub.channels(space(is_shard), matching.as_deref())
                .map_err(|_| switchyard_hub::Unavailable)
                .map(|all| {
                    let mut bytes = 0;
                    let fitting = all.iter().take_while(|name| {
                        bytes += name.len();
                        bytes <= ANSWER_BYTES_MAX
                    });
                    let names: Vec<Text> = fitting.map(|name| Text(name.to_vec())).collect();
                    let is_cut = names.len() < all.len();
                    Answer::Names { names, is_cut }
                })
        }
        Question::SubscriberCounts { channels, .. } if channels.len() > QUESTION_NAMES_MAX => {
            return Answer::Unavailable;
        }
        Question::SubscriberCounts { is_shard, channels } => {
            let channels: Vec<Bytestring<'_>> =
                channels.into_iter().map(|text| text.0.into()).collect();
            hub.subscriber_counts(space(is_shard), &channels).map(Answer::Counts)
        }
        Question::PatternCount => hub.pattern_count().map(Answer::Count),
        Question::Members { channel, after } => {
            Ok(Answer::Members(hub.presence().own_members(&channel.0, after).into()))
        }
        Question::NodeNumber(_) => Ok(Answer::NodeNumber(hub.connections().ids().node())),
    };
    answer.unwrap_or(Answer::Unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_of_other_nodes_are_bounded_in_number_and_in_bytes() {
        let asks = Asks::default();
        let sender = asks.message_sender();
        let mut messages = asks.messages.lock().await;
        sender.send(&vec![b'x'; MESSAGE_BYTES_MAX + 1]);
        assert!(messages.try_recv().is_err(), "it is too large");
        let large = vec![b'x'; MESSAGE_BYTES_MAX];
        for _ in 0..2 * MESSAGES_BYTES_MAX / MESSAGE_BYTES_MAX {
            sender.send(&large);
        }
        assert_eq!(messages.len(), MESSAGES_BYTES_MAX / MESSAGE_BYTES_MAX);
        while let Ok(message) = messages.try_recv() {
            sender.received(&message);
        }
        for _ in 0..2 * MESSAGES_MAX {
            sender.send(b"x");
        }
        assert_eq!(messages.len(), MESSAGES_MAX);
        while let Ok(message) = messages.try_recv() {
            sender.received(&message);
        }
        assert_eq!(sender.queued_bytes.load(Ordering::Relaxed), 0);
    }
}
