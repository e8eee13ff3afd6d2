//! The members of channels on several nodes: what the nodes say to each other about them.
//!
//! A change of a member is published on a channel of the room, to which the nodes are subscribed
//! that take part in it. The members of a node are asked for as other things are (`ask`). Each node
//! says regularly that it is alive.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::debug;

use super::ask::{Answer, Question, Text, To};
use super::room_members::{RoomMember, wire};
use super::{Backplane, Link, LinkError, State, within};
use switchyard_hub::Hub;
use switchyard_hub::presence::RoomPublisher;
use switchyard_presence::{Ask, OwnChange, RemoteChange, RemotePage, Update};
use switchyard_types::command::{Kind, Publication, Refusal, Space, UNAVAILABLE};
use switchyard_types::ids::ConnectionId;

/// What the channels of rooms begin with.
pub const ROOMS: &[u8] = b"__switchyard:room:";

/// How often a node looks for others that are not alive, and after how many times it says that it
/// is alive itself.
const INTERVAL: Duration = Duration::from_millis(500);
const ALIVE_TICKS: u32 = 4;
/// A node that looks this much too late did not run.
const SLEPT: Duration = Duration::from_secs(2);
/// How many questions about rooms are open at once.
const ASKS_MAX: usize = 16;

/// A change of a member, as it is published on the channel of the room.
#[derive(Debug, Serialize, Deserialize)]
struct Said {
    node: String,
    previous: u64,
    stamp: u64,
    #[serde(flatten)]
    change: SaidChange,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SaidChange {
    Enter {
        #[serde(flatten)]
        member: RoomMember,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        was: Option<ConnectionId>,
    },
    Leave(ConnectionId),
    Grace(ConnectionId),
}

impl RoomPublisher for Backplane {
    fn publish(&self, channel: &[u8], previous: u64, stamp: u64, change: &OwnChange) {
        let change = match change {
            OwnChange::Enter(member, was) => {
                SaidChange::Enter { member: wire(member, false), was: *was }
            }
            OwnChange::Leave(connection) => SaidChange::Leave(*connection),
            OwnChange::Grace(connection) => SaidChange::Grace(*connection),
        };
        let said = Said { node: self.node.clone(), previous, stamp, change };
        let payload = serde_json::to_vec(&said).expect("it has nothing that JSON has not");
        let name = [ROOMS, channel].concat();
        let publication = Publication::new(Space::Channels, name.into(), payload.into());
        let is_sent = self.state() != State::Disconnected && self.outgoing.reserve(&publication);
        match is_sent {
            true => self.outgoing.push(publication),
            // The others ask for all members when they hear of it.
            false => drop(self.incarnation.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// Applies a message on the channel of a room. False: it is another message.
pub(super) fn receive_of_room(hub: &Hub, channel: &[u8], payload: &[u8]) -> bool {
    let Some(channel) = channel.strip_prefix(ROOMS) else { return false };
    match serde_json::from_slice::<Said>(payload) {
        Ok(Said { node, previous, stamp, change }) => {
            let change = match change {
                SaidChange::Enter { member, was } => RemoteChange::Enter(member.into(), was),
                SaidChange::Leave(connection) => RemoteChange::Leave(connection),
                SaidChange::Grace(connection) => RemoteChange::Grace(connection),
            };
            hub.presence().receive(channel, &node, Update { previous, stamp, change });
        }
        Err(problem) => {
            debug!(%problem, "a message on the channel of a room could not be decoded");
        }
    }
    true
}

impl Backplane {
    /// Takes part in the room of a channel: completes when the members on all nodes are known, or
    /// the time for that is over.
    ///
    /// # Errors
    ///
    /// The backplane is disconnected.
    pub async fn join_room(self: Arc<Backplane>, hub: &Hub, channel: &[u8]) -> Result<(), Refusal> {
        let presence = hub.presence();
        if !presence.takes_part(channel) {
            let name = [ROOMS, channel].concat();
            let hold = self.interest.hold(Kind::Channel, std::iter::once(&*name));
            let hold = Arc::new(hold);
            if !hold.is_settled() {
                self.clone().joined(hold.clone()).await;
            }
            let mut knows_nodes = self.knows_nodes.subscribe();
            let knowing = knows_nodes.wait_for(|knows| *knows);
            let is_known = tokio::time::timeout(self.config.answer_time, knowing).await;
            if !is_known.is_ok_and(|known| known.is_ok()) {
                return Err(unavailable());
            }
            presence.take_part(channel, Box::new(hold));
        }
        presence.known(channel, self.config.ask_time).await;
        self.check_rooms()
    }

    /// Whether the members on other nodes can be known.
    ///
    /// # Errors
    ///
    /// The backplane is disconnected.
    pub fn check_rooms(&self) -> Result<(), Refusal> {
        match self.state() {
            State::Disconnected => Err(unavailable()),
            State::Restoring | State::Ready => Ok(()),
        }
    }

    /// Asks other nodes for their members of rooms, forever.
    pub(super) async fn ask_for_members(&self, hub: &Arc<Hub>) -> LinkError {
        let mut asking = FuturesUnordered::new();
        loop {
            tokio::select! {
                ask = hub.presence().next_ask(), if asking.len() < ASKS_MAX => {
                    asking.push(self.ask_node_for_members(hub, ask));
                }
                Some(()) = asking.next() => {}
            }
        }
    }

    async fn ask_node_for_members(&self, hub: &Arc<Hub>, ask: Ask) {
        let mut after = None;
        let mut is_first = true;
        loop {
            let question = Question::Members { channel: Text(ask.channel.to_vec()), after };
            let Some(Answer::Members(members)) = self.ask_node(&ask.node, question).await else {
                return hub.presence().unanswered(&ask);
            };
            let page = RemotePage::from(members);
            after = page.next;
            hub.presence().answered(&ask, page, is_first);
            is_first = false;
            if after.is_none() {
                return;
            }
        }
    }

    /// Says regularly that this node is alive, and notices when others are not, until the link
    /// fails.
    pub(super) async fn keep_alive(&self, link: &Link, hub: &Arc<Hub>) -> LinkError {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        for tick in 0_u32.. {
            ticks.tick().await;
            let presence = hub.presence();
            if !presence.is_on() {
                continue;
            }
            if last.elapsed() > INTERVAL + SLEPT {
                presence.slept();
            }
            last = Instant::now();
            if tick % ALIVE_TICKS == 0 {
                let sending = link.send_to(To::All, self.alive());
                if let Err(problem) = within(self.config.answer_time, sending).await {
                    return problem;
                }
            }
            while presence.sweep() {
                tokio::task::yield_now().await;
            }
        }
        std::future::pending().await
    }
}

fn unavailable() -> Refusal {
    let message = "the backplane, through which nodes share members, is disconnected; try again";
    Refusal::new(UNAVAILABLE, message)
}
