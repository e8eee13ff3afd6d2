//! RESUME and HISTORY: permitted by the plugins, answered by the hub.

use super::{Session, WriteReply};
use switchyard_hub::encoding::Message;
use switchyard_hub::history::Missed;
use switchyard_middleware::chain::Chain;
use switchyard_middleware::items::Action;
use switchyard_types::command::{Bytestring, Kind, Refusal, Reply, Space, Tag};
use switchyard_types::history::{HistoryOptions, ResumeOptions, Resumed};

impl Session {
    /// Subscribes to a channel. The reply is followed by the messages that the client missed.
    pub(super) fn resume_channel(
        &mut self,
        chain: &Chain,
        tag: Tag,
        channel: &Bytestring<'_>,
        options: ResumeOptions,
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        let hub = self.services.hub.clone();
        let connection = self.connection.clone();
        hub.history().check(channel)?;
        let names = std::slice::from_ref(channel);
        self.may_listen(chain, Kind::Channel, names, Action::Resume, Chain::access)?;
        if hub.history().is_shared() {
            return self.resume_at_backplane(chain, tag, channel, options);
        }
        hub.resume(chain, &connection, channel, options, |resumed, missed| {
            self.answer_resume(tag, channel, resumed, missed, write);
        })
    }

    /// Queues the reply to a RESUME, and the missed messages.
    pub(super) fn answer_resume(
        &mut self,
        tag: Tag,
        channel: &[u8],
        resumed: Resumed,
        missed: &Missed,
        write: &impl WriteReply,
    ) {
        write.write(tag, &Reply::Resumed(resumed), &mut self.replies);
        let encoder = self.connection.encoding().encoder();
        for message in missed.messages() {
            let message = Message {
                position: Some(message.position),
                tags: message.tags,
                ..Message::new(Space::Channels, None, channel, &message.payload)
            };
            encoder.message(&message, &mut self.replies);
        }
        self.flush();
    }

    /// Answers what a channel retains.
    pub(super) fn look_back(
        &mut self,
        chain: &Chain,
        tag: Tag,
        channel: &Bytestring<'_>,
        options: HistoryOptions,
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        let hub = self.services.hub.clone();
        hub.history().check(channel)?;
        self.may(chain, std::slice::from_ref(channel), Action::History, Chain::access)?;
        if hub.history().is_shared() {
            return self.look_at_backplane(chain, tag, channel, options);
        }
        hub.look_back(chain, &self.connection, channel, options, |page| {
            write.write(tag, &Reply::History(page), &mut self.replies);
        })
    }
}
