//! Executes one client's commands in order.
//!
//! The commands that arrived together are one batch: their publications go through the chain and
//! the engine together, and their replies are sent together. A session knows commands and replies,
//! but neither sockets nor encodings.

pub mod at_backplane;
mod authentication;
mod history;
mod inspection;
mod presence;
pub mod publish;
pub mod publish_batcher;
mod streams;
mod streams_at_backplane;
mod subscribing;

use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use smallvec::smallvec;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use at_backplane::AtBackplane;
use authentication::Authenticating;
use history::WaitForPermit;
use inspection::Inspection;
use presence::Watching;
use streams::Reading;
use subscribing::Joining;

use crate::auth_attempts::AuthAttempts;
use publish::PublishRequest;
use publish_batcher::{Place, PublishBatcher};
use switchyard_backplane::Backplane;
use switchyard_config::limits::{LiveLimits, Rate, RateDecision};
use switchyard_hub::Hub;
use switchyard_hub::connections::Connection;
use switchyard_hub::connections::attributes::USER;
use switchyard_hub::connections::expiries::unix_ms;
use switchyard_middleware::Middleware;
use switchyard_middleware::chain::Chain;
use switchyard_middleware::items::Inspection as Inspected;
use switchyard_net::descriptors::Reserves;
use switchyard_telemetry::log;
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::Stats;
use switchyard_telemetry::supervise::Supervisor;
use switchyard_types::batch::Batch;
use switchyard_types::close::CloseReason;
use switchyard_types::command::{
    BADFRAME, Command, Ending, Greeting, Kind, LIMIT, ListenVerb, NOAUTH, Publication, Refusal,
    Reply, Request, Tag, Verb,
};

/// How many commands are executed under one lock of the chain. More gain little from sharing calls,
/// and a swap waits for them.
pub const BURST_MAX: usize = 128;

/// The time budget: how long a connection's commands are executed before its task yields. All
/// others wait this long for each connection that uses it up, so it is short; a task that yields
/// costs a few microseconds.
pub const TIME_BUDGET: Duration = Duration::from_micros(500);

/// How many bytes of replies are collected before they are queued and the outbox counts them.
const REPLIES_BYTES_MAX: usize = 64 << 10;

/// What all sessions share.
#[derive(Clone)]
pub struct Services {
    /// The subscriptions and their delivery.
    pub hub: Arc<Hub>,
    /// The plugins.
    pub middleware: Arc<Middleware>,
    /// The counters.
    pub stats: Arc<Stats>,
    /// The limits of client commands.
    pub limits: Arc<LiveLimits>,
    /// The backplane between this node and the others; none: the node is alone.
    pub backplane: Option<Arc<Backplane>>,
    /// Batches the publications of several connections.
    pub publish_batcher: Arc<PublishBatcher>,
    /// How often clients failed to authenticate.
    pub auth_attempts: Arc<AuthAttempts>,
    /// Keeps the server's own tasks running.
    pub supervisor: Arc<Supervisor>,
    /// Reserved file descriptors.
    pub reserves: Arc<Reserves>,
}

/// One client's commands.
pub struct Session {
    /// The connection that sends them.
    pub connection: Arc<Connection>,
    /// The services that all sessions share.
    pub services: Services,
    framing: Framing,
    /// The framing after a reply that is sent as a whole; none: there is no such reply.
    framing_after: Option<Framing>,
    replies: Vec<u8>,
    budget_began: Instant,
    rate: Rate,
    /// Whether a publication had receivers since the last call of `had_receivers`.
    had_receivers: bool,
    /// Held from the first command that reads a history to the next poll of the I/O driver.
    history_permit: Option<OwnedSemaphorePermit>,
    /// Commands that are left because the time budget was exhausted.
    pending: VecDeque<Request<'static>>,
    /// What the reply to the last command waits for. Commands after it are pending.
    waiting: Option<Waiting>,
    /// Why the connection is closed after the replies to the executed commands.
    ending: Option<CloseReason>,
    is_over: bool,
}

/// What the reply to a command waits for.
enum Waiting {
    /// The batch that its publications are in.
    Batch(Place),
    /// The backplane, which must subscribe to the names of a SUBSCRIBE.
    Backplane(Box<Joining>),
    /// The backplane, which publishes, or reads the history of a channel.
    Shared(Box<AtBackplane>),
    /// The plugins that verify credentials off the data path.
    Credentials(Box<Authenticating>),
    /// The next time budget, for the rest of a PUBSUB.
    Budget(Box<Inspection>),
    /// Room for further members of a channel that is watched.
    Members(Watching),
    /// A publication on one of the channels of an XREAD.
    Stream(Box<Reading>),
    /// Other connections, which read histories.
    Permit(WaitForPermit),
}

/// The framing of replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// They are sent as encoded.
    None,
    /// One binary WebSocket frame for all replies that are sent together.
    BinaryFrame,
    /// They are not sent yet, because they are parts of one reply ([`Session::hold_replies`]).
    Held,
}

/// Encodes replies.
pub trait WriteReply {
    /// Appends the reply to the command with this tag; nothing if the protocol has none.
    fn write(&self, tag: Tag, reply: &Reply<'_>, output: &mut Vec<u8>);
}

impl<W: WriteReply + ?Sized> WriteReply for &W {
    fn write(&self, tag: Tag, reply: &Reply<'_>, output: &mut Vec<u8>) {
        (**self).write(tag, reply, output);
    }
}

impl<W: WriteReply + ?Sized> WriteReply for Box<W> {
    fn write(&self, tag: Tag, reply: &Reply<'_>, output: &mut Vec<u8>) {
        (**self).write(tag, reply, output);
    }
}

impl Session {
    /// The session of an admitted connection.
    pub fn new(connection: Arc<Connection>, services: Services, framing: Framing) -> Session {
        Session {
            connection,
            services,
            framing,
            framing_after: None,
            replies: Vec::new(),
            budget_began: Instant::now(),
            rate: Rate::default(),
            had_receivers: false,
            pending: VecDeque::new(),
            waiting: None,
            history_permit: None,
            ending: None,
            is_over: false,
        }
    }

    /// Appends bytes of the door itself, in the order of the replies.
    pub fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.replies);
        if self.replies.len() > REPLIES_BYTES_MAX {
            self.flush();
        }
    }

    /// Begins a reply that is sent as a whole: replies are collected until `release_replies`, and
    /// messages for this connection come after them. False: such a reply has begun already.
    pub fn hold_replies(&mut self) -> bool {
        let is_first = self.framing_after.is_none();
        if is_first {
            self.flush();
            self.framing_after = Some(std::mem::replace(&mut self.framing, Framing::Held));
            self.connection.outbox.hold();
        }
        is_first
    }

    /// Queues the reply that `hold_replies` began, and then what was held back.
    pub fn release_replies(&mut self) {
        if let Some(framing) = self.framing_after.take() {
            self.framing = framing;
            let reply = publish::framed(framing, &mut self.replies);
            self.connection.outbox.release(reply);
        }
    }

    /// Starts a time budget: commands are executed until it is exhausted, and then the task
    /// yields.
    pub fn start_budget(&mut self, now: Instant) {
        self.budget_began = now;
    }

    /// When the time budget started.
    pub fn budget_began(&self) -> Instant {
        self.budget_began
    }

    /// Whether the time budget is exhausted, or no more commands are executed because the
    /// connection is closing.
    pub fn is_budget_exhausted(&self) -> bool {
        self.budget_began.elapsed() > TIME_BUDGET
            || self.connection.outbox.is_closing()
            || self.has_unread_replies()
    }

    /// Whether a publication had receivers since the last call.
    pub fn had_receivers(&mut self) -> bool {
        std::mem::take(&mut self.had_receivers)
    }

    /// Whether commands wait for the next time budget.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty() || self.is_waiting()
    }

    /// How much memory the commands hold that wait for the next time budget, and a command that is
    /// executed in parts.
    pub fn held_bytes(&self) -> usize {
        let in_parts = match &self.waiting {
            Some(Waiting::Budget(inspection)) => inspection.heap_bytes(),
            Some(Waiting::Stream(reading)) => reading.heap_bytes(),
            _ => 0,
        };
        let in_parts = in_parts + self.framing_after.map_or(0, |_| self.replies.capacity());
        if self.pending.is_empty() {
            return in_parts;
        }
        let places = self.pending.capacity() * size_of::<Request<'static>>();
        in_parts + places + self.pending.iter().map(Request::heap_bytes).sum::<usize>()
    }

    /// Drops the commands that wait, and a held reply: the connection is closing.
    pub fn forget_pending(&mut self) {
        if self.framing == Framing::Held {
            self.replies = Vec::new();
        }
        self.pending = VecDeque::new();
        self.waiting.take_if(|waiting| match waiting {
            Waiting::Budget(_) | Waiting::Members(_) => true,
            Waiting::Stream(_) | Waiting::Permit(_) => true,
            Waiting::Shared(command) => command.is_blocked(),
            _ => false,
        });
    }

    /// Whether the reply to a command is pending: later commands wait for it.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether the reply to a command is pending until another task has done something.
    #[inline]
    pub fn waits_for_another_task(&self) -> bool {
        !matches!(self.waiting, None | Some(Waiting::Budget(_) | Waiting::Members(_)))
    }

    /// Whether it waits for as long as its client likes: what the client sends in the meantime is
    /// received, so that its end is noticed, and executed later.
    #[inline]
    pub fn is_blocked(&self) -> bool {
        match &self.waiting {
            Some(Waiting::Stream(_)) => true,
            Some(Waiting::Shared(command)) => command.is_blocked(),
            _ => false,
        }
    }

    /// Ready when the session can make progress. The connection's outbox must have this task's
    /// waker.
    pub fn poll_progress(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.waiting {
            Some(Waiting::Batch(_)) if self.connection.is_publishing() => return Poll::Pending,
            Some(Waiting::Batch(_)) => self.waiting = None,
            Some(Waiting::Backplane(joining)) => return joining.poll(context),
            Some(Waiting::Shared(command)) => return command.poll(context),
            Some(Waiting::Credentials(authenticating)) => return authenticating.poll(context),
            Some(Waiting::Stream(reading)) => return reading.poll(context),
            Some(Waiting::Permit(permit)) => {
                self.history_permit = ready!(permit.as_mut().poll(context)).ok();
                self.waiting = None;
            }
            Some(Waiting::Budget(_) | Waiting::Members(_)) | None => {}
        }
        Poll::Ready(())
    }

    /// Executes the commands that wait, as `execute` does.
    pub fn resume(
        &mut self,
        write: impl WriteReply + Copy + Send + 'static,
    ) -> Option<CloseReason> {
        self.finish_joining(&write);
        self.finish_at_backplane(&write);
        self.finish_inspecting();
        self.finish_watching();
        self.finish_reading();
        self.finish_authenticating(&write);
        if let Some(reason) = self.ending.take() {
            self.flush();
            return Some(reason);
        }
        if self.is_waiting() {
            return None;
        }
        let mut pending = std::mem::take(&mut self.pending);
        let mut requests = std::iter::from_fn(|| pending.pop_front()).peekable();
        let (close, stopped_at) = self.execute_until_stopped(&mut requests, write, false);
        // Those behind stay where they are: there may be very many, and few are executed each time.
        if let Some(next) = stopped_at {
            next.into_iter().rev().for_each(|request| pending.push_front(request));
            self.pending = pending;
        }
        close
    }

    /// Executes commands and queues their replies. When the time budget is exhausted, the rest
    /// waits for the next one. Commands over the rate limit are refused, and in the end the
    /// outbox is closed. Returns a close reason if the client sent QUIT; commands after it are
    /// not executed. `more`: the door has more commands behind these, which should not wait for
    /// a batch with publications of other connections.
    pub fn execute<'a>(
        &mut self,
        requests: impl Iterator<Item = Request<'a>>,
        write: impl WriteReply + Copy + Send + 'static,
        more: bool,
    ) -> Option<CloseReason> {
        let meter = self.services.limits.meter(self.budget_began.into_std());
        let mut rate = self.rate;
        let mut is_flood = false;
        let followed = log::is_followed(self.connection.id).then_some(self.connection.id);
        let paced = requests.map(|request| {
            let pace = rate.spend(meter);
            if let Some(connection) = followed {
                let verb = request.command.as_ref().map_or(Verb::None, Command::verb);
                follow(connection, verb.name(), pace);
            }
            if pace == RateDecision::Allow {
                return request;
            }
            is_flood |= pace == RateDecision::Disconnect;
            Request { tag: request.tag, command: Err(too_fast(meter.per_second())) }
        });
        let close = self.execute_paced(paced, write, more);
        self.rate = rate;
        if is_flood {
            self.close(CloseReason::Flood);
        }
        close
    }

    /// Whether the plugins let this client look at this.
    ///
    /// # Errors
    ///
    /// The refusal.
    pub fn may_inspect(&self, subject: Inspected<'_>) -> Result<(), Refusal> {
        let chain = self.services.middleware.chain();
        inspection::may_inspect(self.connection.id, &chain, subject)
    }

    /// Counts a command that a door executes itself. A refusal: it was over the rate limit; in the
    /// end the outbox is closed.
    pub fn pace(&mut self, verb: &'static str) -> Result<(), Refusal> {
        let meter = self.services.limits.meter(self.budget_began.into_std());
        let pace = self.rate.spend(meter);
        if log::is_followed(self.connection.id) {
            follow(self.connection.id, verb, pace);
        }
        match pace {
            RateDecision::Allow => return Ok(()),
            RateDecision::Reject => {}
            RateDecision::Disconnect => {
                self.flush();
                self.close(CloseReason::Flood);
            }
        }
        Err(too_fast(meter.per_second()))
    }

    /// Executes commands as `execute` does. They were counted before, or are refused here.
    pub fn execute_paced<'a>(
        &mut self,
        requests: impl Iterator<Item = Request<'a>>,
        write: impl WriteReply + Copy + Send + 'static,
        more: bool,
    ) -> Option<CloseReason> {
        let mut requests = requests.peekable();
        let (close, stopped_at) = self.execute_until_stopped(&mut requests, write, more);
        if let Some(next) = stopped_at {
            self.pending = next.into_iter().chain(requests).map(Request::into_owned).collect();
        }
        close
    }

    /// As `execute_paced`. If it stops before the end, the second value has the requests that were
    /// removed from `requests` and come before the rest.
    fn execute_until_stopped<'a>(
        &mut self,
        requests: &mut Peekable<impl Iterator<Item = Request<'a>>>,
        write: impl WriteReply + Copy + Send + 'static,
        more: bool,
    ) -> (Option<CloseReason>, Option<Vec<Request<'a>>>) {
        let mut stopped_at = None;
        let mut is_first = true;
        while requests.peek().is_some() {
            // At least one command is executed in every time budget.
            if !std::mem::take(&mut is_first) && self.is_budget_exhausted() {
                stopped_at = Some(requests.next().into_iter().collect());
                break;
            }
            let middleware = self.services.middleware.clone();
            let chain = middleware.chain();
            let mut burst = requests.by_ref().take(BURST_MAX).peekable();
            // A command that is executed later, before the rest.
            let mut returned = None;
            while let Some(request) = burst.next() {
                match request.command {
                    Ok(command)
                        if self.connection.must_authenticate()
                            && !command.is_allowed_before_auth() =>
                    {
                        let refused = Err(must_authenticate());
                        self.is_done(command.verb(), request.tag, refused, &write);
                    }
                    Ok(Command::Publish(first)) => {
                        let publication = (request.tag, first);
                        let is_cut = self.publish(&chain, publication, &mut burst, &write, more);
                        if self.is_waiting() || is_cut && self.is_budget_exhausted() {
                            break;
                        }
                    }
                    Ok(Command::Quit) => {
                        self.services.stats.record_command(Verb::Quit, Ending::Ok, 1);
                        write.write(request.tag, &Reply::Ok, &mut self.replies);
                        self.flush();
                        return (Some(CloseReason::Quit), None);
                    }
                    Ok(command) => {
                        if command.reads_history() && !self.may_read_history() {
                            let command = Ok(command);
                            returned = Some(Request { tag: request.tag, command });
                            break;
                        }
                        let may_take_long = command.may_take_long();
                        self.execute_command(&chain, request.tag, command, &write);
                        if let Some(reason) = self.ending.take() {
                            self.flush();
                            return (Some(reason), None);
                        }
                        if self.is_waiting() || may_take_long && self.is_budget_exhausted() {
                            break;
                        }
                    }
                    // An invalid command is not explained to it either.
                    Err(refusal)
                        if self.connection.must_authenticate()
                            && ![BADFRAME, LIMIT].contains(&&*refusal.code) =>
                    {
                        self.is_done(Verb::None, request.tag, Err(must_authenticate()), &write);
                    }
                    Err(refusal) => {
                        self.services.stats.record_command(Verb::None, (&refusal).into(), 1);
                        write.write(request.tag, &Reply::Refused(&refusal), &mut self.replies);
                    }
                }
                if self.replies.len() > REPLIES_BYTES_MAX {
                    self.flush();
                    if self.connection.outbox.is_closing() {
                        return (None, None);
                    }
                }
            }
            // A peeked request is not lost: it is queued before the rest.
            let peeked: Vec<Request<'a>> = returned.into_iter().chain(burst).collect();
            if !peeked.is_empty() || self.is_waiting() {
                stopped_at = Some(peeked);
                break;
            }
        }
        self.flush();
        (None, stopped_at)
    }

    /// Unsubscribes from all names of a kind without replying.
    pub fn leave_all(&mut self, kind: Kind) {
        self.services.hub.unsubscribe(&self.connection, kind, &[], |_, _| {});
    }

    /// Ends the session: removes its subscriptions, notifies the chain, and removes the
    /// connection. Dropping a session ends it, too.
    pub fn end(&mut self) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        self.release_history();
        // Each step is contained: a panic in one must not skip the others, and a panic that left a
        // `drop` during another panic would abort the process.
        let id = self.connection.id;
        // Its publications are visible before its end.
        panics::contain(|| self.publish_waiting_batch());
        let Services { hub, middleware, .. } = &self.services;
        // Other holders of the connection must not keep its socket open.
        panics::contain(|| self.connection.outbox.attach(None));
        panics::contain(|| hub.disconnect(&self.connection));
        // The connection is removed even if its plugins could not be notified.
        let plugins = panics::contain(|| middleware.chain().disconnect(id));
        panics::contain(|| middleware.forget(self.connection.clone(), plugins.unwrap_or_default()));
    }

    /// Closes the connection after all replies to the executed commands.
    pub fn close(&mut self, reason: CloseReason) {
        self.publish_waiting_batch();
        self.connection.outbox.close(reason);
    }

    fn publish_waiting_batch(&mut self) {
        let is_batch = |waiting: &mut Waiting| matches!(waiting, Waiting::Batch(_));
        if let Some(Waiting::Batch(place)) = self.waiting.take_if(is_batch) {
            self.services.publish_batcher.publish(&self.services, place);
        }
    }

    /// Queues the replies, unless they are held. A held reply that no outbox may hold is queued
    /// nevertheless, which closes the outbox.
    pub fn flush(&mut self) {
        if self.framing == Framing::Held && self.replies.len() >= self.connection.outbox.bytes_max()
        {
            let replies = std::mem::take(&mut self.replies);
            self.connection.outbox.push_without_wake(replies.into());
        }
        publish::queue(&self.connection, self.framing, &mut self.replies);
    }

    fn execute_command(
        &mut self,
        chain: &Chain,
        tag: Tag,
        command: Command<'_>,
        write: &(impl WriteReply + Copy + Send + 'static),
    ) {
        let hub = self.services.hub.clone();
        let verb = command.verb();
        let done = self.check_names(&command).and_then(|()| match command {
            Command::Subscribe(kind, names) => self.subscribe(chain, tag, kind, &names, write),
            Command::Unsubscribe(kind, names) => {
                let connection = self.connection.clone();
                hub.unsubscribe(&connection, kind, &names, |acks, held| {
                    let verb = ListenVerb::Unsubscribe(kind);
                    write.write(tag, &Reply::Listening { verb, acks, held }, &mut self.replies);
                    self.flush();
                });
                Ok(())
            }
            Command::Resume(channel, options) => {
                self.resume_channel(chain, tag, &channel, options, write)
            }
            Command::History(channel, options) => {
                self.look_back(chain, tag, &channel, options, write)
            }
            Command::Stream(command) => self.stream_command(chain, tag, command, write),
            command @ (Command::Enter(..)
            | Command::Leave(_)
            | Command::Presence(..)
            | Command::WatchRoom(..)
            | Command::UnwatchRoom(_)) => self.presence(chain, tag, command, write),
            command @ (Command::Channels(..)
            | Command::SubscriberCounts(..)
            | Command::PatternCount) => self.inspect(chain, tag, command, write),
            Command::Ping(text) => {
                write.write(tag, &Reply::Pong(text.as_deref()), &mut self.replies);
                Ok(())
            }
            Command::Authenticate(credentials) => {
                match self.check_credentials(chain, credentials, Some(tag)) {
                    Some(settled) => {
                        settled.map(|()| write.write(tag, &Reply::Ok, &mut self.replies))
                    }
                    None => Ok(()),
                }
            }
            Command::Hello => {
                write.write(tag, &Reply::Hello(&self.greeting()), &mut self.replies);
                Ok(())
            }
            Command::Publish(_) | Command::Quit => unreachable!("`execute` sees to these"),
        });
        // A pending command is not complete.
        if !self.is_waiting() {
            self.is_done(verb, tag, done, write);
        }
    }

    /// Counts a command, and replies if it was refused.
    fn is_done(
        &mut self,
        verb: Verb,
        tag: Tag,
        done: Result<(), Refusal>,
        write: &impl WriteReply,
    ) {
        let ending = match done {
            Ok(()) => Ending::Ok,
            Err(refusal) => {
                write.write(tag, &Reply::Refused(&refusal), &mut self.replies);
                Ending::from(&refusal)
            }
        };
        self.services.stats.record_command(verb, ending, 1);
    }

    /// Publishes `first` and the publications that follow it. They are batched with those of other
    /// connections if they are few and nothing follows. True: more follow, and matching them all at
    /// once would take too long.
    fn publish<'a>(
        &mut self,
        chain: &Chain,
        first: (Tag, Publication<'a>),
        burst: &mut Peekable<impl Iterator<Item = Request<'a>>>,
        write: &(impl WriteReply + Copy + Send + 'static),
        more: bool,
    ) -> bool {
        let mut work = self.services.hub.holdings().work();
        work.take(&first.1.channel);
        let mut publications: Batch<(Tag, Publication<'a>)> = smallvec![first];
        let mut is_cut = false;
        while let Some(Request { tag, command: Ok(Command::Publish(publication)) }) =
            burst.next_if(|request| match &request.command {
                Ok(Command::Publish(publication)) => {
                    is_cut = !work.take(&publication.channel);
                    !is_cut
                }
                _ => false,
            })
        {
            publications.push((tag, publication));
        }
        let mut all = publications.iter().map(|(_, publication)| publication);
        if publish::shared::is_needed(&self.services, chain, &mut all) {
            self.publish_at_backplane(chain, publications, *write);
            return false;
        }
        let is_alone = more || self.framing == Framing::Held || burst.peek().is_some();
        if is_alone || !publish_batcher::is_batchable(&publications) {
            let publish_request = self.publish_request(write, publications);
            self.publish_alone(chain, publish_request);
            return is_cut;
        }
        self.flush();
        let publish_request = self.owned_request(*write, publications);
        match self.services.publish_batcher.add(&self.services, publish_request) {
            Ok(place) => self.waiting = Some(Waiting::Batch(place)),
            Err(publish_request) => self.publish_alone(chain, publish_request),
        }
        false
    }

    fn publish_alone<W: WriteReply>(
        &mut self,
        chain: &Chain,
        mut publish_request: PublishRequest<'_, W>,
    ) {
        let publish_requests = std::slice::from_mut(&mut publish_request);
        self.had_receivers |= publish::publish(&self.services, chain, publish_requests);
        self.replies = publish_request.replies;
    }

    /// The same, for another task.
    fn owned_request(
        &mut self,
        write: impl WriteReply + Send + 'static,
        publications: Batch<(Tag, Publication<'_>)>,
    ) -> PublishRequest<'static, Box<dyn WriteReply + Send>> {
        let publications = publications
            .into_iter()
            .map(|(tag, publication)| (tag, publication.into_owned()))
            .collect();
        let write: Box<dyn WriteReply + Send> = Box::new(write);
        self.publish_request(write, publications)
    }

    /// The pending publications of this connection, with their replies.
    fn publish_request<'a, W>(
        &mut self,
        write: W,
        publications: Batch<(Tag, Publication<'a>)>,
    ) -> PublishRequest<'a, W> {
        PublishRequest {
            connection: self.connection.clone(),
            framing: self.framing,
            write,
            publications,
            replies: std::mem::take(&mut self.replies),
        }
    }

    /// A single name that is too long refuses its command.
    fn check_names(&self, command: &Command<'_>) -> Result<(), Refusal> {
        let names = match command {
            Command::Subscribe(_, names)
            | Command::Unsubscribe(_, names)
            | Command::SubscriberCounts(_, names) => names.as_slice(),
            Command::Channels(_, matching) => matching.as_slice(),
            Command::Stream(command) => command.channels(),
            Command::Resume(channel, _)
            | Command::History(channel, _)
            | Command::Enter(channel, _)
            | Command::Leave(channel)
            | Command::Presence(channel, _)
            | Command::WatchRoom(channel, _)
            | Command::UnwatchRoom(channel) => std::slice::from_ref(channel),
            _ => &[],
        };
        let names_max = self.services.limits.names_per_command_max();
        if names.len() > names_max {
            return Err(Refusal::new(
                LIMIT,
                format!("{} names in one command; there may be {names_max}", names.len()),
            ));
        }
        names.iter().try_for_each(|name| publish::check_name(&self.services, name))
    }

    fn greeting(&self) -> Greeting {
        let limits = &self.services.limits;
        Greeting {
            connection: self.connection.id,
            limits: [
                ("name_bytes_max", limits.name_bytes_max()),
                ("payload_bytes_max", limits.payload_bytes_max()),
                ("subscriptions_max", limits.subscriptions_max()),
                ("connections_max", limits.connections_max()),
            ],
            features: self.services.hub.features(),
            user: self.connection.attribute(USER).filter(|user| !user.is_empty()),
            expires_in_ms: self.connection.expires_in_ms(),
            now_ms: unix_ms(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
        let connections = self.services.hub.connections();
        connections.memory().hold_input(&self.connection, 0, connections.now_ms());
        connections.left(&self.connection);
    }
}

fn must_authenticate() -> Refusal {
    Refusal::new(NOAUTH, "authenticate first: AUTH with a token, or with a user and a password")
}

fn too_fast(per_second: u64) -> Refusal {
    Refusal::new(LIMIT, format!("more than {per_second} commands per second"))
}

fn follow(connection: u64, verb: &'static str, pace: RateDecision) {
    let is_too_fast = pace != RateDecision::Allow;
    tracing::info!(target: log::FOLLOWED, connection, verb, is_too_fast, "command");
}
