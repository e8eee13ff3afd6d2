//! RESUME and HISTORY: permitted by the plugins, answered by the hub.

use std::pin::Pin;

use tokio::sync::{AcquireError, OwnedSemaphorePermit};

use super::{Session, Waiting, WriteReply};
use switchyard_hub::encoding::Message;
use switchyard_hub::history::Missed;
use switchyard_middleware::chain::Chain;
use switchyard_middleware::items::Action;
use switchyard_types::command::{Bytestring, Kind, Refusal, Reply, Space, Tag};
use switchyard_types::history::{HistoryOptions, ResumeOptions, Resumed};

/// Waits for a permit to read histories.
pub(super) type WaitForPermit =
    Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

impl Session {
    /// Whether this session may read histories now. Otherwise it waits for a permit: when very many
    /// clients come back at once, only a few of them are served at a time, and all others, which do
    /// something else, are not behind them.
    pub(super) fn may_read_history(&mut self) -> bool {
        let history = self.services.hub.history();
        if self.history_permit.is_some() || history.is_shared() {
            return true;
        }
        let readers = history.readers();
        self.history_permit = readers.clone().try_acquire_owned().ok();
        if self.history_permit.is_none() {
            self.waiting = Some(Waiting::Permit(Box::pin(readers.clone().acquire_owned())));
        }
        self.history_permit.is_some()
    }

    /// Whether histories were read since `release_history`.
    #[inline]
    pub fn has_read_history(&self) -> bool {
        self.history_permit.is_some()
    }

    /// Lets another connection read histories.
    #[inline]
    pub fn release_history(&mut self) {
        self.history_permit = None;
    }

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
