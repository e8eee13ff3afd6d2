//! One client's commands, carried out in their order.
//!
//! A burst of commands that is already here is one batch: its publications go
//! through the chain and the engine together, and its replies leave together. It
//! knows commands and replies, and neither sockets nor how they are spelled.

use std::collections::HashSet;
use std::iter::Peekable;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::smallvec;

use crate::backplane::{Admission, Backplane, Hold};
use crate::batch::Batch;
use crate::close::CloseReason;
use crate::hub::Hub;
use crate::hub::connections::Connection;
use crate::limits::{LiveLimits, Pace, Rate};
use crate::log;
use crate::middleware::Middleware;
use crate::middleware::chain::{Action, Chain, Fate, Step, Walk};
use crate::protocol::command::{
    Bytestring, Command, Credentials, Ending, Greeting, Kind, LIMIT, ListenVerb, NOPERM,
    Publication, Refusal, Reply, Request, Space, TOOLARGE, Tag, Verb,
};
use crate::protocol::websocket;
use crate::stats::Stats;

/// How many commands hold the chain at once. More gain little by sharing calls,
/// and a swap waits for them.
const BURST_MAX: usize = 128;

/// How long a connection's commands are carried out before others have a turn.
const TURN_TIME: Duration = Duration::from_millis(5);

/// How many bytes of replies are put together before they are queued, where the
/// outbox counts them.
const REPLIES_BYTES_MAX: usize = 64 << 10;

/// The largest token that any client has reason to show.
const CREDENTIALS_BYTES_MAX: usize = 16 << 10;

/// What all sessions share.
#[derive(Clone)]
pub struct Services {
    /// Who listens to what.
    pub hub: Arc<Hub>,
    /// Who may do what.
    pub middleware: Arc<Middleware>,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// What clients may ask for.
    pub limits: Arc<LiveLimits>,
    /// What lies between this node and others; none: it is alone.
    pub backplane: Option<Arc<Backplane>>,
}

/// One client's commands.
pub struct Session {
    /// The connection they come from.
    pub connection: Arc<Connection>,
    /// What it shares with all others.
    pub services: Services,
    framing: Framing,
    replies: Vec<u8>,
    turn_began: Instant,
    rate: Rate,
    /// Whether somebody was sent something since this was last looked at.
    is_heard: bool,
    /// Commands that the turn was too short for.
    pending: Vec<Request<'static>>,
    /// A SUBSCRIBE that waits for the backplane. What came behind it is pending.
    joining: Option<Joining>,
    /// Credentials that a plugin asks the outside world about. What came behind
    /// them is pending.
    authenticating: Option<Box<Authenticating>>,
    is_over: bool,
}

/// Credentials that are looked into elsewhere.
struct Authenticating {
    /// Of the command to answer; none: the door answers.
    tag: Option<Tag>,
    asking: Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>,
    /// None: the wait is not over.
    answer: Option<Result<(), Refusal>>,
}

/// A SUBSCRIBE that was let through and waits until the backplane listens to its
/// names, too, lest what is published elsewhere after its acknowledgement be
/// missed.
struct Joining {
    tag: Tag,
    kind: Kind,
    names: Vec<Bytestring<'static>>,
    /// None: the wait is over.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Kept until the connection itself listens.
    _hold: Arc<Hold>,
}

/// What replies are wrapped in when they leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// They are sent as they were spelled.
    None,
    /// One binary WebSocket frame around all that leave together.
    BinaryFrame,
}

/// Spells replies.
pub trait WriteReply {
    /// Appends the reply to the command with this tag; nothing where the protocol
    /// has none.
    fn write(&self, tag: Tag, reply: &Reply<'_>, output: &mut Vec<u8>);
}

/// What a publication is answered and counted by.
type Asked = (Tag, Space);

/// A publication of a burst, on its way to a reply.
enum Pending<'a> {
    Open(Publication<'a>),
    /// Its place among the publications that are forwarded to the hub.
    Forwarded,
    Settled(Result<u64, Refusal>),
}

impl Session {
    /// A session of a connection that was let in.
    pub fn new(connection: Arc<Connection>, services: Services, framing: Framing) -> Session {
        Session {
            connection,
            services,
            framing,
            replies: Vec::new(),
            turn_began: Instant::now(),
            rate: Rate::default(),
            is_heard: false,
            pending: Vec::new(),
            joining: None,
            authenticating: None,
            is_over: false,
        }
    }

    /// Appends what a door itself has to say, in the order of the replies.
    pub fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.replies);
        if self.replies.len() > REPLIES_BYTES_MAX {
            self.flush();
        }
    }

    /// Begins a turn: what the connection has to say is carried out until the turn
    /// is over, and then others have theirs.
    pub fn begin_turn(&mut self) {
        self.turn_began = Instant::now();
    }

    /// Whether the turn is over, or nothing more is to be said because the
    /// connection is closing.
    pub fn is_turn_over(&self) -> bool {
        self.turn_began.elapsed() > TURN_TIME || self.connection.outbox.is_closing()
    }

    /// Whether somebody was sent something since this was last asked.
    pub fn was_heard(&mut self) -> bool {
        std::mem::take(&mut self.is_heard)
    }

    /// Whether commands wait for the next turn.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty() || self.is_waiting()
    }

    /// Whether a command is not answered yet: those behind it come after it.
    fn is_waiting(&self) -> bool {
        self.joining.is_some() || self.authenticating.is_some()
    }

    /// Waits until the next turn is of use.
    pub fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(joining) = &mut self.joining
            && let Some(waiting) = &mut joining.waiting
        {
            ready!(waiting.as_mut().poll(context));
            joining.waiting = None;
        }
        if let Some(authenticating) = &mut self.authenticating
            && authenticating.answer.is_none()
        {
            authenticating.answer = Some(ready!(authenticating.asking.as_mut().poll(context)));
        }
        Poll::Ready(())
    }

    /// Carries out the commands that wait, as `execute` does.
    pub fn resume(&mut self, write: impl WriteReply) -> Option<CloseReason> {
        if let Some(joining) = self.joining.take_if(|joining| joining.waiting.is_none()) {
            let Joining { tag, kind, names, waiting: _, _hold } = joining;
            let listens = self.listen(tag, kind, &names, &write);
            self.is_done(ListenVerb::Subscribe(kind).into(), tag, listens, &write);
        }
        let is_settled = |authenticating: &mut Box<Authenticating>| {
            authenticating.tag.is_some() && authenticating.answer.is_some()
        };
        if let Some(authenticating) = self.authenticating.take_if(is_settled)
            && let Authenticating { tag: Some(tag), answer: Some(answer), .. } = *authenticating
        {
            let done = answer.map(|()| write.write(tag, &Reply::Ok, &mut self.replies));
            self.is_done(Verb::Auth, tag, done, &write);
        }
        if self.is_waiting() {
            return None;
        }
        let pending = std::mem::take(&mut self.pending);
        self.execute_paced(pending.into_iter(), write)
    }

    /// Carries out commands and queues their replies. Those that the turn is too
    /// short for wait for the next; those that come too fast are refused, and in
    /// the end the outbox is closed. A reason to close: the client said QUIT, and
    /// what came after is not carried out.
    pub fn execute<'a>(
        &mut self,
        requests: impl Iterator<Item = Request<'a>>,
        write: impl WriteReply,
    ) -> Option<CloseReason> {
        let meter = self.services.limits.meter(self.turn_began);
        let mut rate = self.rate;
        let mut is_flood = false;
        let followed = log::is_followed(self.connection.id).then_some(self.connection.id);
        let paced = requests.map(|request| {
            let pace = rate.spend(meter);
            if let Some(connection) = followed {
                let verb = request.command.as_ref().map_or(Verb::None, Command::verb);
                follow(connection, verb.name(), pace);
            }
            if pace == Pace::Fine {
                return request;
            }
            is_flood |= pace == Pace::Flood;
            Request { tag: request.tag, command: Err(too_fast(meter.per_second())) }
        });
        let close = self.execute_paced(paced, write);
        self.rate = rate;
        if is_flood {
            self.connection.outbox.close(CloseReason::Flood);
        }
        close
    }

    /// Counts a command that a door carries out itself. A refusal: it came too
    /// fast; in the end the outbox is closed.
    pub fn pace(&mut self, verb: &'static str) -> Result<(), Refusal> {
        let meter = self.services.limits.meter(self.turn_began);
        let pace = self.rate.spend(meter);
        if log::is_followed(self.connection.id) {
            follow(self.connection.id, verb, pace);
        }
        match pace {
            Pace::Fine => return Ok(()),
            Pace::TooFast => {}
            Pace::Flood => {
                self.flush();
                self.connection.outbox.close(CloseReason::Flood);
            }
        }
        Err(too_fast(meter.per_second()))
    }

    fn execute_paced<'a>(
        &mut self,
        requests: impl Iterator<Item = Request<'a>>,
        write: impl WriteReply,
    ) -> Option<CloseReason> {
        let mut requests = requests.peekable();
        let mut is_first = true;
        while requests.peek().is_some() {
            // However late it is, something is done in every turn.
            if !std::mem::take(&mut is_first) && self.is_turn_over() {
                self.pending = requests.map(Request::into_owned).collect();
                break;
            }
            let middleware = self.services.middleware.clone();
            let chain = middleware.chain();
            let mut burst = requests.by_ref().take(BURST_MAX).peekable();
            while let Some(request) = burst.next() {
                match request.command {
                    Ok(Command::Publish(first)) => {
                        self.publish(&chain, (request.tag, first), &mut burst, &write);
                    }
                    Ok(Command::Quit) => {
                        self.services.stats.carried_out(Verb::Quit, Ending::Ok, 1);
                        write.write(request.tag, &Reply::Ok, &mut self.replies);
                        self.flush();
                        return Some(CloseReason::Quit);
                    }
                    Ok(command) => {
                        let is_listing = command.is_listing();
                        self.carry_out(&chain, request.tag, command, &write);
                        if self.is_waiting() || is_listing && self.is_turn_over() {
                            break;
                        }
                    }
                    Err(refusal) => {
                        self.services.stats.carried_out(Verb::None, (&refusal).into(), 1);
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
            // A peeked request is not lost: it goes before the rest.
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

    /// Whether a plugin is there to authenticate with.
    pub fn has_authentication(&self) -> bool {
        self.services.middleware.chain().has_admission()
    }

    /// Shows credentials to the chain. An error: a plugin refuses them, or none knows
    /// them. None: a plugin asks the outside world; until `authenticated` has the
    /// answer, something is pending.
    pub fn authenticate(&mut self, credentials: Credentials) -> Option<Result<(), Refusal>> {
        let services = self.services.clone();
        self.check_credentials(&services.middleware.chain(), credentials, None)
    }

    /// What came of credentials that were waited for, once.
    pub fn authenticated(&mut self) -> Option<Result<(), Refusal>> {
        let is_settled =
            |waiting: &mut Box<Authenticating>| waiting.tag.is_none() && waiting.answer.is_some();
        self.authenticating.take_if(is_settled)?.answer
    }

    fn check_credentials(
        &mut self,
        chain: &Chain,
        credentials: Credentials,
        tag: Option<Tag>,
    ) -> Option<Result<(), Refusal>> {
        let bytes = credentials.secret.len() + credentials.user.as_ref().map_or(0, String::len);
        if bytes > CREDENTIALS_BYTES_MAX {
            return Some(Err(Refusal::new(
                TOOLARGE,
                format!("credentials of {bytes} bytes; there may be {CREDENTIALS_BYTES_MAX}"),
            )));
        }
        self.connection.keep_attributes();
        let (id, mut walk) = (self.connection.id, Walk::default());
        match chain.authenticate(id, &credentials, &mut walk) {
            Step::Settled(settled) => Some(settled),
            Step::Outside(plugin) => {
                let middleware = self.services.middleware.clone();
                let asking = Box::pin(middleware.authenticate(id, credentials, walk, plugin));
                self.authenticating = Some(Box::new(Authenticating { tag, asking, answer: None }));
                None
            }
        }
    }

    /// Ends all subscriptions of a kind without a word.
    pub fn leave_all(&mut self, kind: Kind) {
        self.services.hub.unsubscribe(&self.connection, kind, &[], |_, _| {});
    }

    /// Ends the session: it listens to nothing any more, the chain is told, and
    /// the connection is forgotten. Dropping a session ends it, too.
    pub fn end(&mut self) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.services.hub.disconnect(&self.connection);
            self.services.middleware.chain().disconnect(self.connection.id);
            self.services.hub.connections().remove(self.connection.id);
        }
    }

    /// Queues the replies that there are.
    pub fn flush(&mut self) {
        queue(&self.connection, self.framing, &mut self.replies);
    }

    fn carry_out(
        &mut self,
        chain: &Chain,
        tag: Tag,
        command: Command<'_>,
        write: &impl WriteReply,
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
            Command::Channels(space, matching) => {
                hub.channels(space, matching.as_deref()).map_err(Refusal::from).map(|names| {
                    write.write(tag, &Reply::Names(&names), &mut self.replies);
                })
            }
            Command::SubscriberCounts(space, channels) => {
                hub.subscriber_counts(space, &channels).map_err(Refusal::from).map(|counts| {
                    let counts: Vec<_> = channels.into_iter().zip(counts).collect();
                    write.write(tag, &Reply::Counts(&counts), &mut self.replies);
                })
            }
            Command::PatternCount => hub.pattern_count().map_err(Refusal::from).map(|count| {
                write.write(tag, &Reply::Number(count), &mut self.replies);
            }),
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
        // One that waits is not done.
        if !self.is_waiting() {
            self.is_done(verb, tag, done, write);
        }
    }

    /// Counts a command, and answers it if it was refused.
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
        self.services.stats.carried_out(verb, ending, 1);
    }

    fn subscribe(
        &mut self,
        chain: &Chain,
        tag: Tag,
        kind: Kind,
        names: &[Bytestring<'_>],
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        let mut texts = Vec::new();
        if chain.sees_names() {
            for name in names {
                texts.push(as_text(name)?);
            }
        }
        self.check_room(kind, names)?;
        let actions: Vec<Action<'_>> = texts
            .into_iter()
            .map(|name| match kind {
                Kind::Pattern => Action::Psubscribe(name),
                Kind::Channel | Kind::Shard => Action::Subscribe(name),
            })
            .collect();
        if let Some(refusal) =
            chain.access(self.connection.id, &actions).into_iter().flatten().next()
        {
            return Err(refusal);
        }
        if let Some(backplane) = &self.services.backplane {
            let hold = backplane.interest().hold(kind, names.iter().map(|name| &**name));
            if !hold.is_settled() {
                let names = names.iter().map(|name| name.clone().into_owned().into()).collect();
                let hold = Arc::new(hold);
                let waiting = Some(backplane.clone().joined(hold.clone()));
                self.joining = Some(Joining { tag, kind, names, waiting, _hold: hold });
                return Ok(());
            }
        }
        self.listen(tag, kind, names, write)
    }

    /// Subscribes to what was let through.
    fn listen(
        &mut self,
        tag: Tag,
        kind: Kind,
        names: &[Bytestring<'_>],
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        let hub = self.services.hub.clone();
        let connection = self.connection.clone();
        hub.subscribe(&connection, kind, names, |acks, held| {
            let verb = ListenVerb::Subscribe(kind);
            write.write(tag, &Reply::Listening { verb, acks, held }, &mut self.replies);
            self.flush();
        })?;
        Ok(())
    }

    /// Publishes `first` and all publications that follow it.
    fn publish<'a>(
        &mut self,
        chain: &Chain,
        first: (Tag, Publication<'a>),
        burst: &mut Peekable<impl Iterator<Item = Request<'a>>>,
        write: &impl WriteReply,
    ) {
        let mut pending: Batch<(Asked, Pending<'a>)> =
            smallvec![((first.0, first.1.space), self.check_publication(chain, first.1))];
        while let Some(Request { tag, command: Ok(Command::Publish(publication)) }) =
            burst.next_if(|request| matches!(request.command, Ok(Command::Publish(_))))
        {
            let asked = (tag, publication.space);
            pending.push((asked, self.check_publication(chain, publication)));
        }
        self.ask_access(chain, &mut pending);
        let (mut places, mut forwarded) = self.ask_messages(chain, &mut pending);
        let backplane = self.services.backplane.clone();
        let mut admitted = match &backplane {
            None => Vec::new(),
            Some(backplane) => self.admit(backplane, &mut pending, &mut places, &mut forwarded),
        };

        let mut unanswered = pending.iter().enumerate();
        let connection = self.connection.clone();
        let framing = self.framing;
        let replies = &mut self.replies;
        let stats = &self.services.stats;
        let mut published = [0; 2];
        let mut settle =
            |until: usize, outcome: Option<Result<u64, Refusal>>, replies: &mut Vec<u8>| {
                for (place, ((tag, space), pending)) in unanswered.by_ref() {
                    let outcome = match pending {
                        Pending::Settled(outcome) => outcome,
                        Pending::Forwarded | Pending::Open(_) => match &outcome {
                            Some(outcome) => outcome,
                            None => continue,
                        },
                    };
                    let [channels, shard_channels] = &mut published;
                    let (verb, published) = match space {
                        Space::Channels => (Verb::Publish, channels),
                        Space::ShardChannels => (Verb::Spublish, shard_channels),
                    };
                    match outcome {
                        Ok(receivers) => {
                            *published += 1;
                            write.write(*tag, &Reply::Published(*receivers), replies);
                        }
                        Err(refusal) => {
                            stats.carried_out(verb, refusal.into(), 1);
                            write.write(*tag, &Reply::Refused(refusal), replies);
                        }
                    }
                    if place == until {
                        break;
                    }
                }
            };
        let hub = &self.services.hub;
        let is_heard = hub.publish(chain, connection.id, &forwarded, |index, outcome, own| {
            let Some(place) = places.get(index) else { return };
            if outcome.is_err()
                && let Some(backplane) = &backplane
                && let (Some(admission), Some(refused)) =
                    (admitted.get_mut(index), forwarded.get(index))
                && *admission == Admission::Forward
            {
                // Nobody else receives what was refused here.
                backplane.withdraw(refused);
                *admission = Admission::Stay;
            }
            settle(*place, Some(outcome), replies);
            // Its own copy comes after the reply.
            if own {
                queue(&connection, framing, replies);
            }
        });
        settle(usize::MAX, None, replies);
        self.is_heard |= is_heard;
        for (verb, count) in [Verb::Publish, Verb::Spublish].into_iter().zip(published) {
            if count > 0 {
                stats.carried_out(verb, Ending::Ok, count);
            }
        }
        if let Some(backplane) = &backplane {
            for (publication, admission) in forwarded.into_iter().zip(admitted) {
                if admission == Admission::Forward {
                    backplane.forward(publication);
                }
            }
        }
    }

    /// Asks the backplane about what goes on to the hub; answers what becomes of
    /// each. What the backplane brings back itself does not go on.
    fn admit<'a>(
        &self,
        backplane: &Backplane,
        pending: &mut [(Asked, Pending<'a>)],
        places: &mut Batch<usize>,
        forwarded: &mut Batch<Publication<'a>>,
    ) -> Vec<Admission> {
        let mut admitted = Vec::with_capacity(forwarded.len());
        let asked = std::mem::take(places).into_iter().zip(std::mem::take(forwarded));
        for (place, publication) in asked {
            let settled = match backplane.admit(&publication) {
                Ok(Admission::Return) => {
                    let channel = std::slice::from_ref(&publication.channel);
                    match self.services.hub.subscriber_counts(publication.space, channel) {
                        Ok(counts) => {
                            backplane.forward(publication);
                            Ok(counts.first().copied().unwrap_or(0))
                        }
                        Err(unavailable) => {
                            backplane.withdraw(&publication);
                            Err(unavailable.into())
                        }
                    }
                }
                Ok(admission) => {
                    places.push(place);
                    forwarded.push(publication);
                    admitted.push(admission);
                    continue;
                }
                Err(refusal) => Err(refusal),
            };
            if let Some((_, slot)) = pending.get_mut(place) {
                *slot = Pending::Settled(settled);
            }
        }
        admitted
    }

    fn ask_access(&self, chain: &Chain, pending: &mut [(Asked, Pending<'_>)]) {
        let mut asked = Batch::new();
        let mut actions = Batch::new();
        for (place, (_, pending)) in pending.iter().enumerate() {
            if let Pending::Open(publication) = pending
                && let Ok(channel) = std::str::from_utf8(&publication.channel)
            {
                asked.push(place);
                actions.push(Action::Publish { channel, payload_bytes: publication.payload.len() });
            }
        }
        let answers = chain.access(self.connection.id, &actions);
        drop(actions);
        for (place, answer) in asked.into_iter().zip(answers) {
            if let (Some(refusal), Some((_, slot))) = (answer, pending.get_mut(place)) {
                *slot = Pending::Settled(Err(refusal));
            }
        }
    }

    /// Answers the publications that go on to the hub, with the place of each in
    /// the burst.
    fn ask_messages<'a>(
        &self,
        chain: &Chain,
        pending: &mut [(Asked, Pending<'a>)],
    ) -> (Batch<usize>, Batch<Publication<'a>>) {
        let mut places = Batch::new();
        let mut open = Batch::new();
        for (place, (_, pending)) in pending.iter_mut().enumerate() {
            if matches!(pending, Pending::Open(_))
                && let Pending::Open(publication) = std::mem::replace(pending, Pending::Forwarded)
            {
                places.push(place);
                open.push(publication);
            }
        }
        let mut forwarded = (Batch::new(), Batch::new());
        for (place, fate) in places.into_iter().zip(chain.publish(self.connection.id, open)) {
            let settled = match fate {
                Fate::Forward(publication) => match self.check_size(&publication) {
                    Ok(()) => {
                        forwarded.0.push(place);
                        forwarded.1.push(publication);
                        continue;
                    }
                    Err(refusal) => Err(refusal),
                },
                Fate::Absorbed(receivers) => Ok(receivers),
                Fate::Refused(refusal) => Err(refusal),
            };
            if let Some((_, slot)) = pending.get_mut(place) {
                *slot = Pending::Settled(settled);
            }
        }
        forwarded
    }

    fn check_publication<'a>(&self, chain: &Chain, publication: Publication<'a>) -> Pending<'a> {
        let checked = self.check_size(&publication).and_then(|()| match chain.sees_names() {
            true => as_text(&publication.channel).map(|_| ()),
            false => Ok(()),
        });
        match checked {
            Ok(()) => Pending::Open(publication),
            Err(refusal) => Pending::Settled(Err(refusal)),
        }
    }

    fn check_size(&self, publication: &Publication<'_>) -> Result<(), Refusal> {
        self.check_name(&publication.channel)?;
        let (bytes, bytes_max) =
            (publication.payload.len(), self.services.limits.payload_bytes_max());
        if bytes > bytes_max {
            return Err(Refusal::new(
                TOOLARGE,
                format!("a payload of {bytes} bytes is over the limit of {bytes_max}"),
            ));
        }
        Ok(())
    }

    /// One name that is too long refuses its command, whatever it is.
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
        names.iter().try_for_each(|name| self.check_name(name))
    }

    fn check_name(&self, name: &[u8]) -> Result<(), Refusal> {
        let (bytes, bytes_max) = (name.len(), self.services.limits.name_bytes_max());
        if bytes > bytes_max {
            return Err(Refusal::new(
                TOOLARGE,
                format!("a name of {bytes} bytes is over the limit of {bytes_max}"),
            ));
        }
        Ok(())
    }

    /// Only this session changes what the connection listens to, so what is true
    /// here is true when the hub is asked.
    fn check_room(&self, kind: Kind, names: &[Bytestring<'_>]) -> Result<(), Refusal> {
        let subscriptions = self.connection.subscriptions();
        let names_max = self.services.limits.subscriptions_max();
        if subscriptions.len() + names.len() <= names_max {
            return Ok(());
        }
        let held = subscriptions.of(kind);
        let new: HashSet<&[u8]> =
            names.iter().map(|name| &**name).filter(|name| !held.contains(*name)).collect();
        if subscriptions.len() + new.len() <= names_max {
            return Ok(());
        }
        Err(Refusal::new(
            LIMIT,
            format!(
                "the connection listens to {} names and may listen to {names_max}",
                subscriptions.len()
            ),
        ))
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
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

/// Queues replies. The connection's own task does, while it has a turn.
fn queue(connection: &Connection, framing: Framing, replies: &mut Vec<u8>) {
    if replies.is_empty() {
        return;
    }
    let replies = std::mem::take(replies);
    connection.outbox.push_own(Bytes::from(match framing {
        Framing::None => replies,
        Framing::BinaryFrame => websocket::binary_frame(&replies),
    }));
}

fn too_fast(per_second: u64) -> Refusal {
    Refusal::new(LIMIT, format!("more than {per_second} commands per second"))
}

fn follow(connection: u64, verb: &'static str, pace: Pace) {
    let is_too_fast = pace != Pace::Fine;
    tracing::info!(target: log::FOLLOWED, connection, verb, is_too_fast, "command");
}

fn as_text(name: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(name).map_err(|_| {
        Refusal::new(NOPERM, "the name is not UTF-8, and a plugin in the chain takes names as text")
    })
}
