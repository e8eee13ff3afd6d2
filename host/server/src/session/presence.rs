//! ENTER, LEAVE, PRESENCE, WATCH and UNWATCH: permitted by the plugins, answered by the hub.

use super::{Session, Waiting, WriteReply, publish};
use switchyard_middleware::chain::Chain;
use switchyard_middleware::items::Action;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Command, Ending, Refusal, Reply, Tag, Verb};
use switchyard_types::ids::ConnectionId;

/// A WATCH whose further members are sent as there is room for them.
pub(super) struct Watching {
    channel: Vec<u8>,
}

impl Session {
    /// Executes one of these commands.
    pub(super) fn presence(
        &mut self,
        chain: &Chain,
        tag: Tag,
        command: Command<'_>,
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        let hub = self.services.hub.clone();
        let presence = hub.presence();
        let channel = match &command {
            Command::Enter(channel, data) => {
                presence.members_max(channel)?;
                presence.check_data(data)?;
                channel
            }
            Command::Presence(channel, _) | Command::WatchRoom(channel, _) => {
                presence.members_max(channel)?;
                channel
            }
            Command::Leave(channel) => {
                presence.members_max(channel)?;
                channel
            }
            _ => return self.do_in_room(tag, command, write),
        };
        self.may_in_room(chain, &command, Chain::access)?;
        if let Some(backplane) = &self.services.backplane {
            backplane.check_rooms()?;
            if !presence.is_known(channel) {
                self.join_room(chain, tag, command);
                return Ok(());
            }
        }
        self.do_in_room(tag, command, write)
    }

    /// Whether all plugins permit a command.
    pub(super) fn may_in_room(
        &self,
        chain: &Chain,
        command: &Command<'_>,
        ask: impl Fn(&Chain, &[(ConnectionId, Action<'_>)]) -> Batch<Option<Refusal>>,
    ) -> Result<(), Refusal> {
        match command {
            Command::Enter(channel, data) => {
                let data_bytes = data.len();
                let action = |channel| Action::Enter { channel, data_bytes };
                self.may(chain, std::slice::from_ref(channel), action, ask)
            }
            Command::Presence(channel, _) => {
                self.may(chain, std::slice::from_ref(channel), Action::Presence, ask)
            }
            Command::WatchRoom(channel, _) => {
                self.may(chain, std::slice::from_ref(channel), Action::Watch, ask)
            }
            _ => Ok(()),
        }
    }

    /// Executes a command that is permitted. The members on all nodes are known.
    pub(super) fn do_in_room(
        &mut self,
        tag: Tag,
        command: Command<'_>,
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        let hub = self.services.hub.clone();
        let (presence, connection) = (hub.presence(), self.connection.clone());
        match command {
            Command::Enter(channel, data) => {
                presence.enter(&connection, &channel, &data, |members| {
                    write.write(tag, &Reply::Number(members), &mut self.replies);
                    self.flush();
                })
            }
            Command::Leave(channel) => presence.leave(&connection, &channel, |members| {
                write.write(tag, &Reply::Number(members), &mut self.replies);
                self.flush();
            }),
            Command::Presence(channel, options) => presence.look(&channel, options, |page| {
                write.write(tag, &Reply::Presence(page), &mut self.replies);
            }),
            Command::WatchRoom(channel, options) => {
                let has_more = presence.watch(&connection, &channel, options, |page| {
                    write.write(tag, &Reply::Presence(page), &mut self.replies);
                    self.flush();
                })?;
                if has_more {
                    self.send_members(&channel);
                }
                Ok(())
            }
            Command::UnwatchRoom(channel) => {
                presence.unwatch(&connection, &channel, || {
                    write.write(tag, &Reply::True, &mut self.replies);
                    self.flush();
                });
                Ok(())
            }
            _ => unreachable!("only the commands of presence are executed here"),
        }
    }

    /// Continues a WATCH whose members did not all fit.
    pub(super) fn finish_watching(&mut self) {
        let is_watching = |waiting: &mut Waiting| matches!(waiting, Waiting::Members(_));
        if let Some(Waiting::Members(watching)) = self.waiting.take_if(is_watching) {
            self.send_members(&watching.channel);
            if self.waiting.is_none() {
                self.services.stats.record_command(Verb::Watch, Ending::Ok, 1);
            }
        }
    }

    /// Sends further members until there is no room for more, or there are no more.
    fn send_members(&mut self, channel: &[u8]) {
        let hub = self.services.hub.clone();
        let (connection, framing) = (self.connection.clone(), self.framing);
        loop {
            if self.is_budget_exhausted() {
                let channel = channel.to_vec();
                self.waiting = Some(Waiting::Members(Watching { channel }));
                return;
            }
            let queue = |mut frame| publish::queue(&connection, framing, &mut frame);
            if !hub.presence().next_members(&connection, channel, queue) {
                return;
            }
        }
    }
}
