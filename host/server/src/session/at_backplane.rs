//! Commands that the backplane carries out: publications on channels whose histories it keeps, and
//! with a key; RESUME and HISTORY of such channels. Later commands of the connection wait.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::task::JoinHandle;

use super::streams_at_backplane::{StreamFound, StreamReader};
use super::{Session, Waiting, WriteReply, publish};
use switchyard_backplane::{Backplane, Hold};
use switchyard_history::{Info, Message, Page, Resume, Resumed as Found};
use switchyard_hub::connections::holdings::WaitingNames;
use switchyard_hub::history::{Resuming, no_history};
use switchyard_middleware::chain::Chain;
use switchyard_middleware::items::Action;
use switchyard_types::batch::Batch;
use switchyard_types::close::CloseReason;
use switchyard_types::command::{
    Bytestring, Command, Kind, Publication, Refusal, Reply, Tag, UNAVAILABLE, Verb,
};
use switchyard_types::history::{HistoryOptions, ResumeOptions};
use switchyard_types::position::Position;
use switchyard_types::stream::{InfoDetail, InfoEntries, StreamCommand, StreamInfo, StreamReply};

/// A command that the backplane carries out.
pub(super) enum AtBackplane {
    /// Publications. They go on when the connection has ended.
    Publishing(JoinHandle<Vec<u8>>, Option<Result<Vec<u8>, ()>>),
    /// A RESUME.
    Resuming(Reading<Found>, Box<ResumeState>),
    /// A HISTORY.
    Looking(Reading<Page>, HistoryOptions),
    /// A command of presence, for which the members on other nodes must be known.
    Joining(Reading<()>, Box<Command<'static>>),
    /// A command that reads streams.
    Streams(Reading<StreamFound>, Box<StreamState>),
}

/// What a command that reads streams keeps until it is answered.
pub(super) struct StreamState {
    command: StreamCommand<'static>,
    /// The encoding of replies when the command arrived.
    write: Box<dyn WriteReply + Send>,
}

/// What is read from the backplane for a command.
pub(super) struct Reading<T> {
    tag: Tag,
    channel: Bytestring<'static>,
    /// The chain that permitted it.
    generation: u64,
    reading: Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send>>,
    found: Option<Result<T, Refusal>>,
}

impl<T> Reading<T> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.found.is_none() {
            self.found = Some(ready!(self.reading.as_mut().poll(context)));
        }
        Poll::Ready(())
    }
}

/// What a RESUME keeps until the connection is subscribed.
pub(super) struct ResumeState {
    request: Resume,
    resuming: Resuming,
    _hold: Arc<Hold>,
    _counted: WaitingNames,
}

/// The result of a publication that is under way.
#[derive(Clone, Default)]
pub struct PublishedLater(Arc<Mutex<Option<Result<u64, Refusal>>>>);

impl PublishedLater {
    /// The number of receivers.
    ///
    /// # Errors
    ///
    /// The refusal.
    pub fn result(&self) -> Result<u64, Refusal> {
        let unknown = || Err(Refusal::new(UNAVAILABLE, "it is not known what became of it"));
        self.0.lock().take().unwrap_or_else(unknown)
    }
}

impl WriteReply for PublishedLater {
    fn write(&self, _: Tag, reply: &Reply<'_>, _: &mut Vec<u8>) {
        *self.0.lock() = match reply {
            Reply::Published(receivers) => Some(Ok(*receivers)),
            Reply::PublishedWith(published) => Some(Ok(published.deliveries)),
            Reply::Refused(refusal) => Some(Err((*refusal).clone())),
            _ => None,
        };
    }
}

impl AtBackplane {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            AtBackplane::Publishing(task, done) => {
                if done.is_none() {
                    *done = Some(ready!(Pin::new(task).poll(context)).map_err(|_| ()));
                }
                Poll::Ready(())
            }
            AtBackplane::Resuming(reading, _) => reading.poll(context),
            AtBackplane::Looking(reading, _) => reading.poll(context),
            AtBackplane::Joining(reading, _) => reading.poll(context),
            AtBackplane::Streams(reading, _) => reading.poll(context),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            AtBackplane::Publishing(_, done) => done.is_some(),
            AtBackplane::Resuming(reading, _) => reading.found.is_some(),
            AtBackplane::Looking(reading, _) => reading.found.is_some(),
            AtBackplane::Joining(reading, _) => reading.found.is_some(),
            AtBackplane::Streams(reading, _) => reading.found.is_some(),
        }
    }

    fn is_publishing(&self) -> bool {
        matches!(self, AtBackplane::Publishing(..))
    }

    /// Whether it waits for as long as its client likes.
    pub(super) fn is_blocked(&self) -> bool {
        matches!(
            self,
            AtBackplane::Streams(_, state)
                if matches!(&state.command, StreamCommand::Read(read) if read.block_ms.is_some())
        )
    }
}

impl Session {
    /// Publishes through the backplane.
    pub(super) fn publish_at_backplane(
        &mut self,
        chain: &Chain,
        publications: Batch<(Tag, Publication<'_>)>,
        write: impl WriteReply + Send + 'static,
    ) {
        let request = self.owned_request(write, publications);
        let checked = publish::shared::check(&self.services, chain, request);
        // A task of its own: what was sent is published, also if the connection ends now.
        let task = tokio::spawn(publish::shared::publish(self.services.clone(), checked));
        self.waiting = Some(Waiting::Shared(Box::new(AtBackplane::Publishing(task, None))));
    }

    /// Publishes without a reply, if the backplane carries that out: the result is there when the
    /// session has made progress. None: `publish_now` does it.
    pub fn publish_later(&mut self, publication: &Publication<'_>) -> Option<PublishedLater> {
        if self.must_authenticate() {
            return None;
        }
        let middleware = self.services.middleware.clone();
        let chain = middleware.chain();
        if !publish::shared::is_needed(&self.services, &chain, std::iter::once(publication)) {
            return None;
        }
        let later = PublishedLater::default();
        let publications = smallvec![(Tag::InOrder, publication.clone())];
        self.publish_at_backplane(&chain, publications, later.clone());
        Some(later)
    }

    /// Takes note of what `publish_later` published, if it is done.
    pub fn finish_publishing(&mut self) {
        if !matches!(&self.waiting, Some(Waiting::Shared(command)) if command.is_publishing()) {
            return;
        }
        self.finish_at_backplane(&PublishedLater::default());
    }

    /// A RESUME that is permitted: reads what was missed.
    pub(super) fn resume_at_backplane(
        &mut self,
        chain: &Chain,
        tag: Tag,
        channel: &Bytestring<'_>,
        options: ResumeOptions,
    ) -> Result<(), Refusal> {
        let (hub, backplane) = (self.services.hub.clone(), self.backplane()?);
        let request = hub.resume_request(options)?;
        let names = std::slice::from_ref(channel);
        let counted = hub.wait_for_backplane(&self.connection, Kind::Channel, names)?;
        let hold = backplane.interest().hold(Kind::Channel, std::iter::once(&**channel));
        let hold = Arc::new(hold);
        let resuming = hub.begin_resume(channel);
        let limits = hub.history().limits();
        let rule = hub.history().shared_rule(channel).ok_or_else(no_history)?;
        let (name, joining) = (channel.to_vec(), hold.clone());
        let reading = Box::pin(async move {
            if !joining.is_settled() {
                backplane.clone().joined(joining).await;
            }
            backplane.resume((&name, rule), &request, limits).await
        });
        let reading = self.reading(chain, tag, channel, reading);
        let state = ResumeState { request, resuming, _hold: hold, _counted: counted };
        let command = AtBackplane::Resuming(reading, Box::new(state));
        self.waiting = Some(Waiting::Shared(Box::new(command)));
        Ok(())
    }

    /// A HISTORY that is permitted: reads a page.
    pub(super) fn look_at_backplane(
        &mut self,
        chain: &Chain,
        tag: Tag,
        channel: &Bytestring<'_>,
        options: HistoryOptions,
    ) -> Result<(), Refusal> {
        let (hub, backplane) = (self.services.hub.clone(), self.backplane()?);
        let look = hub.look_request(options)?;
        let limits = hub.history().limits();
        let rule = hub.history().shared_rule(channel).ok_or_else(no_history)?;
        let name = channel.to_vec();
        let reading = Box::pin(async move { backplane.look((&name, rule), &look, limits).await });
        let reading = self.reading(chain, tag, channel, reading);
        let command = AtBackplane::Looking(reading, options);
        self.waiting = Some(Waiting::Shared(Box::new(command)));
        Ok(())
    }

    /// Learns the members on other nodes for a command of presence that is permitted.
    pub(super) fn join_room(&mut self, chain: &Chain, tag: Tag, command: Command<'_>) {
        let Some(backplane) = self.services.backplane.clone() else { return };
        let hub = self.services.hub.clone();
        let command = command.into_owned();
        let channel = match &command {
            Command::Enter(channel, _)
            | Command::Leave(channel)
            | Command::Presence(channel, _)
            | Command::WatchRoom(channel, _) => channel.clone(),
            _ => return,
        };
        let name = channel.to_vec();
        let joining = Box::pin(async move { backplane.join_room(&hub, &name).await });
        let reading = self.reading(chain, tag, &channel, joining);
        let command = AtBackplane::Joining(reading, Box::new(command));
        self.waiting = Some(Waiting::Shared(Box::new(command)));
    }

    fn finish_room(
        &mut self,
        reading: Reading<()>,
        command: Command<'static>,
        write: &impl WriteReply,
    ) {
        let Reading { tag, generation, found, .. } = reading;
        let verb = command.verb();
        let middleware = self.services.middleware.clone();
        let chain = middleware.chain();
        let done = found.unwrap_or(Ok(())).and_then(|()| {
            if chain.generation() != generation {
                self.may_in_room(&chain, &command, Chain::access_again)?;
            }
            self.do_in_room(tag, command, write)
        });
        drop(chain);
        // A WATCH with many members goes on.
        if !self.is_waiting() {
            self.is_done(verb, tag, done, write);
        }
    }

    /// A command that reads streams and is permitted.
    pub(super) fn streams_at_backplane(
        &mut self,
        chain: &Chain,
        tag: Tag,
        command: StreamCommand<'_>,
        write: &(impl WriteReply + Copy + Send + 'static),
    ) -> Result<(), Refusal> {
        let reader = StreamReader {
            services: self.services.clone(),
            backplane: self.backplane()?,
            connection: self.connection.clone(),
        };
        let command = command.into_owned();
        let reading = Box::pin(reader.run(command.clone()));
        let reading = self.reading(chain, tag, &Bytestring::default(), reading);
        let state = StreamState { command, write: Box::new(*write) };
        let command = AtBackplane::Streams(reading, Box::new(state));
        self.waiting = Some(Waiting::Shared(Box::new(command)));
        Ok(())
    }

    fn finish_streams(&mut self, reading: Reading<StreamFound>, state: StreamState) {
        let Reading { tag, generation, found, .. } = reading;
        let StreamState { command, write } = state;
        let verb = Command::Stream(command.clone()).verb();
        let middleware = self.services.middleware.clone();
        let chain = middleware.chain();
        let done = found.unwrap_or_else(|| Err(no_history())).and_then(|found| {
            if chain.generation() != generation {
                self.may(&chain, command.channels(), Action::History, Chain::access_again)?;
            }
            self.answer_streams(tag, &command, found, &write)
        });
        drop(chain);
        // The time in which it may be idle begins now.
        let hub = self.services.hub.clone();
        hub.connections().mark_active(&self.connection);
        self.is_done(verb, tag, done, &write);
    }

    fn answer_streams(
        &mut self,
        tag: Tag,
        command: &StreamCommand<'_>,
        found: StreamFound,
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        match found {
            StreamFound::Length(length) => {
                write.write(tag, &Reply::Number(length), &mut self.replies);
            }
            StreamFound::Entries(entries) => {
                let entries: Vec<_> = entries.messages().collect();
                self.check_reply_size(entries.iter())?;
                // Redis' reply to `COUNT 0`.
                let reply = match command {
                    StreamCommand::Range(_, options) if options.count == Some(0) => {
                        StreamReply::Nothing
                    }
                    _ => StreamReply::Entries(&entries),
                };
                write.write(tag, &Reply::Stream(reply), &mut self.replies);
            }
            StreamFound::Info(None) => return Err(Refusal::new("ERR", "no such key")),
            StreamFound::Info(Some((info, shown))) => {
                let shown: Vec<_> = shown.messages().collect();
                self.check_reply_size(shown.iter())?;
                let is_full = matches!(command, StreamCommand::Info(_, Ok(InfoDetail::Full(_))));
                let at = |position: Option<Position>| {
                    shown.iter().find(|entry| Some(entry.position) == position).cloned()
                };
                let position_of = |message: &Option<Message>| Some(message.as_ref()?.position);
                let entries = match is_full {
                    true => InfoEntries::Full(shown.clone()),
                    false => InfoEntries::Ends([
                        at(position_of(&info.first)),
                        at(position_of(&info.last)),
                    ]),
                };
                let first = position_of(&info.first).unwrap_or_default();
                let Info { length, position, deleted, .. } = info;
                self.write_info(
                    tag,
                    StreamInfo { length, position, deleted, first, entries },
                    write,
                );
            }
            StreamFound::Read(found) => {
                let channels = command.channels();
                return self.write_found(tag, channels, &found, write);
            }
            StreamFound::Unblocked => {
                return Err(Refusal::new("UNBLOCKED", "client unblocked via CLIENT UNBLOCK"));
            }
        }
        Ok(())
    }

    fn reading<T>(
        &self,
        chain: &Chain,
        tag: Tag,
        channel: &Bytestring<'_>,
        reading: Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send>>,
    ) -> Reading<T> {
        let channel = channel.clone().into_owned().into();
        Reading { tag, channel, generation: chain.generation(), reading, found: None }
    }

    fn backplane(&self) -> Result<Arc<Backplane>, Refusal> {
        let backplane = self.services.backplane.clone();
        backplane.ok_or_else(|| Refusal::new(UNAVAILABLE, "there is no backplane"))
    }

    /// Replies to the command that waited for the backplane, if it is done.
    pub(super) fn finish_at_backplane(&mut self, write: &impl WriteReply) {
        let is_done = |waiting: &mut Waiting| matches!(waiting, Waiting::Shared(command) if command.is_done());
        let Some(Waiting::Shared(command)) = self.waiting.take_if(is_done) else { return };
        match *command {
            AtBackplane::Publishing(_, Some(Ok(replies))) => {
                self.replies.extend_from_slice(&replies);
                self.flush();
            }
            // A client that misses a reply would read every later one as that to another command.
            AtBackplane::Publishing(..) => self.connection.outbox.close(CloseReason::Internal),
            AtBackplane::Resuming(reading, state) => self.finish_resuming(reading, &state, write),
            AtBackplane::Looking(reading, options) => self.finish_looking(reading, options, write),
            AtBackplane::Joining(reading, command) => self.finish_room(reading, *command, write),
            AtBackplane::Streams(reading, state) => self.finish_streams(reading, *state),
        }
    }

    fn finish_resuming(
        &mut self,
        reading: Reading<Found>,
        state: &ResumeState,
        write: &impl WriteReply,
    ) {
        let Reading { tag, channel, generation, found, .. } = reading;
        let middleware = self.services.middleware.clone();
        let chain = middleware.chain();
        let (hub, connection) = (self.services.hub.clone(), self.connection.clone());
        let done = found.unwrap_or_else(|| Err(no_history())).and_then(|found| {
            // The check of existing subscriptions did not include this one.
            if chain.generation() != generation {
                let names = std::slice::from_ref(&channel);
                let ask = Chain::access_again;
                self.may_listen(&chain, Kind::Channel, names, Action::Resume, ask)?;
            }
            let ResumeState { request, resuming, .. } = state;
            hub.finish_resume(&*chain, &connection, resuming, request, found, |resumed, missed| {
                self.answer_resume(tag, &channel, resumed, missed, write);
            })
        });
        drop(chain);
        self.is_done(Verb::Resume, tag, done, write);
    }

    fn finish_looking(
        &mut self,
        reading: Reading<Page>,
        options: HistoryOptions,
        write: &impl WriteReply,
    ) {
        let Reading { tag, channel, generation, found, .. } = reading;
        let middleware = self.services.middleware.clone();
        let chain = middleware.chain();
        let (hub, connection) = (self.services.hub.clone(), self.connection.clone());
        let done = found.unwrap_or_else(|| Err(no_history())).and_then(|page| {
            if chain.generation() != generation {
                let names = std::slice::from_ref(&channel);
                self.may(&chain, names, Action::History, Chain::access_again)?;
            }
            hub.answer_page(&*chain, &connection, &channel, page, options.has_times, |page| {
                write.write(tag, &Reply::History(page), &mut self.replies);
            });
            Ok(())
        });
        drop(chain);
        self.is_done(Verb::History, tag, done, write);
    }
}
