//! Executes one client's commands in order.
//!
//! The commands that arrived together are one batch: their publications go through the chain and
//! the engine together, and their replies are sent together. A session knows commands and replies,
//! but neither sockets nor encodings.

mod authentication;
mod inspection;
pub mod publish;
pub mod publish_batcher;
mod subscribing;

use std::iter::Peekable;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use smallvec::smallvec;

use authentication::Authenticating;
use inspection::Inspection;
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
    replies: Vec<u8>,
    budget_began: Instant,
    rate: Rate,
    /// Whether a publication had receivers since the last call of `had_receivers`.
    had_receivers: bool,
    /// Commands that are left because the time budget was exhausted.
    pending: Vec<Request<'static>>,
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
    /// The plugins that verify credentials off the data path.
    Credentials(Box<Authenticating>),
    /// The next time budget, for the rest of a PUBSUB.
    Budget(Box<Inspection>),
}

/// The framing of replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// They are sent as encoded.
    None,
    /// One binary WebSocket frame for all replies that are sent together.
    BinaryFrame,
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
            replies: Vec::new(),
            budget_began: Instant::now(),
            rate: Rate::default(),
            had_receivers: false,
            pending: Vec::new(),
            waiting: None,
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
            _ => 0,
        };
        if self.pending.is_empty() {
            return in_parts;
        }
        let places = self.pending.capacity() * size_of::<Request<'static>>();
        in_parts + places + self.pending.iter().map(Request::heap_bytes).sum::<usize>()
    }

    /// Drops the commands that wait: the connection is closing.
    pub fn forget_pending(&mut self) {
        self.pending = Vec::new();
        self.waiting.take_if(|waiting| matches!(waiting, Waiting::Budget(_)));
    }

    /// Whether the reply to a command is pending: later commands wait for it.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether the reply to a command is pending until another task has done something.
    #[inline]
    pub fn waits_for_another_task(&self) -> bool {
        !matches!(self.waiting, None | Some(Waiting::Budget(_)))
    }

    /// Ready when the session can make progress. The connection's outbox must have this task's
    /// waker.
    pub fn poll_progress(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.waiting {
            Some(Waiting::Batch(_)) if self.connection.is_publishing() => return Poll::Pending,
            Some(Waiting::Batch(_)) => self.waiting = None,
            Some(Waiting::Backplane(joining)) => return joining.poll(context),
            Some(Waiting::Credentials(authenticating)) => return authenticating.poll(context),
            Some(Waiting::Budget(_)) | None => {}
        }
        Poll::Ready(())
    }

    /// Executes the commands that wait, as `execute` does.
    pub fn resume(
        &mut self,
        write: impl WriteReply + Copy + Send + 'static,
    ) -> Option<CloseReason> {
        self.finish_joining(&write);
        self.finish_inspecting();
        self.finish_authenticating(&write);
        if let Some(reason) = self.ending.take() {
            self.flush();
            return Some(reason);
        }
        if self.is_waiting() {
            return None;
        }
        let pending = std::mem::take(&mut self.pending);
        self.execute_paced(pending.into_iter(), write, false)
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
        let meter = self.services.limits.meter(self.budget_began);
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
        let meter = self.services.limits.meter(self.budget_began);
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

    fn execute_paced<'a>(
        &mut self,
        requests: impl Iterator<Item = Request<'a>>,
        write: impl WriteReply + Copy + Send + 'static,
        more: bool,
    ) -> Option<CloseReason> {
        let mut requests = requests.peekable();
        let mut is_first = true;
        while requests.peek().is_some() {
            // At least one command is executed in every time budget.
            if !std::mem::take(&mut is_first) && self.is_budget_exhausted() {
                self.pending = requests.map(Request::into_owned).collect();
                break;
            }
            let middleware = self.services.middleware.clone();
            let chain = middleware.chain();
            let mut burst = requests.by_ref().take(BURST_MAX).peekable();
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
                        if is_cut && self.is_budget_exhausted() {
                            break;
                        }
                    }
                    Ok(Command::Quit) => {
                        self.services.stats.record_command(Verb::Quit, Ending::Ok, 1);
                        write.write(request.tag, &Reply::Ok, &mut self.replies);
                        self.flush();
                        return Some(CloseReason::Quit);
                    }
                    Ok(command) => {
                        let is_listing = command.is_listing();
                        self.execute_command(&chain, request.tag, command, &write);
                        if let Some(reason) = self.ending.take() {
                            self.flush();
                            return Some(reason);
                        }
                        if self.is_waiting() || is_listing && self.is_budget_exhausted() {
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
                        return None;
                    }
                }
            }
            // A peeked request is not lost: it is queued before the rest.
            let peeked: Vec<Request<'a>> = burst.collect();
            if !peeked.is_empty() || self.is_waiting() {
                let rest = peeked.into_iter().chain(requests);
                self.pending = rest.map(Request::into_owned).collect();
                break;
            }
        }
        self.flush();
        None
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

    /// Queues the replies.
    pub fn flush(&mut self) {
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
        if more || burst.peek().is_some() || !publish_batcher::is_batchable(&publications) {
            let publish_request = self.publish_request(write, publications);
            self.publish_alone(chain, publish_request);
            return is_cut;
        }
        self.flush();
        let publications = publications
            .into_iter()
            .map(|(tag, publication)| (tag, publication.into_owned()))
            .collect();
        let write: Box<dyn WriteReply + Send> = Box::new(*write);
        let publish_request = self.publish_request(write, publications);
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
            features: &[],
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
