//! Batches the publications of several connections that are ready at the same time.
//!
//! A connection that publishes one message and waits for the reply would need one call of each
//! plugin and of the engine for that message alone, and the call costs more than the work in it. So
//! small publications of a worker's connections are collected in a batch. The batch is published
//! once the worker has polled all connections that it knows to be ready. No timer is involved; a
//! lone publisher is not delayed.

use std::thread::available_parallelism;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::session::publish::{self, PublishRequest};
use crate::session::{BURST_MAX, Services, WriteReply};
use switchyard_hub::connections::holdings::Work;
use switchyard_net::scheduling;
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::thread_number;
use switchyard_types::close::CloseReason;
use switchyard_types::command::{Publication, Tag};

/// The most publications of one connection that are batched: more of them share calls anyway.
const FEW: usize = 8;
/// How many bytes of names and payloads they may have, because they are copied.
const FEW_BYTES_MAX: usize = 16 << 10;
/// How long publishing a batch may take. If it takes longer, the next batches are smaller, because
/// the first request in a batch waits for the last one.
const TIME_MAX: Duration = Duration::from_millis(2);

/// A request that waits for its batch to be published.
type Waiting = PublishRequest<'static, Box<dyn WriteReply + Send>>;

/// The batches: as many as there are cores, so that each worker has one.
pub struct PublishBatcher {
    places: Box<[WorkerBatch]>,
}

#[derive(Default)]
struct WorkerBatch {
    open: Mutex<OpenBatch>,
    /// Held while the batch is published.
    publishing: Mutex<()>,
}

struct OpenBatch {
    requests: PendingRequests,
    /// How many publications the batch has.
    publications: usize,
    /// How many publications it may have: at most as many as a burst of one connection.
    room: usize,
    /// How much more matching the batch may need.
    work: Option<Work>,
}

impl Default for OpenBatch {
    fn default() -> OpenBatch {
        OpenBatch {
            requests: PendingRequests::default(),
            publications: 0,
            room: BURST_MAX,
            work: None,
        }
    }
}

/// The pending requests. Their connections continue when this is dropped, whatever the result.
#[derive(Default)]
struct PendingRequests {
    waiting: Vec<Waiting>,
    /// Whether each request has all its replies. A connection that misses one would read every
    /// later reply as that to another command, so it is closed.
    are_answered: bool,
}

impl Drop for PendingRequests {
    fn drop(&mut self) {
        for PublishRequest { connection, framing, mut replies, .. } in self.waiting.drain(..) {
            if self.are_answered {
                publish::queue(&connection, framing, &mut replies);
            } else {
                connection.outbox.close(CloseReason::Internal);
            }
            connection.end_publishing();
        }
    }
}

impl Default for PublishBatcher {
    fn default() -> PublishBatcher {
        let threads = available_parallelism().map_or(1, usize::from);
        PublishBatcher { places: (0..threads).map(|_| WorkerBatch::default()).collect() }
    }
}

impl OpenBatch {
    /// Adapts the room to how long a batch took to publish.
    fn learn(&mut self, took: Duration) {
        self.room = match took > TIME_MAX {
            true => (self.room / 2).max(1),
            false => (self.room * 2).min(BURST_MAX),
        };
    }
}

/// The batch that a request was added to.
#[derive(Debug, Clone, Copy)]
pub struct Place(usize);

/// Whether these publications are so few that batching them is useful.
pub fn is_batchable(publications: &[(Tag, Publication<'_>)]) -> bool {
    let bytes = |(_, publication): &(Tag, Publication<'_>)| {
        publication.channel.len() + publication.payload.len()
    };
    publications.len() <= FEW && publications.iter().map(bytes).sum::<usize>() <= FEW_BYTES_MAX
}

impl PublishBatcher {
    /// Adds the request to this worker's batch. The connection is `is_publishing` until the batch
    /// is published; then the writer of its outbox is woken.
    ///
    /// # Errors
    ///
    /// The batch is full, or there is no runtime to run on: the caller publishes.
    #[expect(clippy::result_large_err, reason = "it is handed back as it came")]
    pub fn add(&self, services: &Services, request: Waiting) -> Result<Place, Waiting> {
        let number = thread_number() % self.places.len();
        let Some(place) = self.places.get(number) else { return Err(request) };
        let mut open = place.open.lock();
        let is_first = open.requests.waiting.is_empty();
        let mut work = match open.work {
            Some(work) if !is_first => work,
            _ => services.hub.holdings().work(),
        };
        // All that remains of the matching budget.
        let is_little = request
            .publications
            .iter()
            .fold(true, |is_little, (_, publication)| work.take(&publication.channel) && is_little);
        let is_few = open.publications + request.publications.len() <= open.room;
        // Always admit the first request, or a lowered limit could never recover.
        if !(is_first || is_few && is_little) {
            return Err(request);
        }
        if is_first {
            let Ok(runtime) = Handle::try_current() else { return Err(request) };
            let services = services.clone();
            runtime
                .spawn(async move { services.publish_batcher.publish(&services, Place(number)) });
            // It must run after the connections that are ready.
            scheduling::defeat_lifo_slot();
        }
        request.connection.begin_publishing();
        open.work = Some(work);
        open.publications += request.publications.len();
        open.requests.waiting.push(request);
        Ok(Place(number))
    }

    /// Publishes a batch. A batch that is being published there already is also published when this
    /// returns. The caller does not hold the chain.
    pub fn publish(&self, services: &Services, place: Place) {
        let Some(WorkerBatch { open, publishing }) = self.places.get(place.0) else { return };
        // Take the chain first: a thread that holds `publishing` must never wait for a swap.
        let chain = services.middleware.chain();
        let _publishing = publishing.lock();
        let mut requests = {
            let mut open = open.lock();
            open.publications = 0;
            // The next batch will have about as many.
            let waiting = Vec::with_capacity(open.requests.waiting.len());
            let next = PendingRequests { waiting, are_answered: false };
            std::mem::replace(&mut open.requests, next)
        };
        if requests.waiting.is_empty() {
            return;
        }
        let began = Instant::now();
        // A panic closes the connections of this batch, and does not unwind the caller: that may
        // be the task of a connection that is not in the batch.
        let waiting = &mut requests.waiting;
        let Some(had_receivers) = panics::contain(|| publish::publish(services, &chain, waiting))
        else {
            return;
        };
        requests.are_answered = true;
        open.lock().learn(began.elapsed());
        drop(requests);
        if had_receivers {
            scheduling::defeat_lifo_slot();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use anyhow::{Context as _, Result};

    use super::*;
    use crate::prepare::prepare;
    use crate::session::{Framing, Session};
    use switchyard_config::Overrides;
    use switchyard_config::{Config, EngineSource};
    use switchyard_hub::connections::Connection;
    use switchyard_hub::encoding::Encoding;
    use switchyard_hub::stats::EngineCall;
    use switchyard_net::chunks::{Chunks, Written};
    use switchyard_types::command::{Command, Kind, Reply, Request, Space};

    /// Writes the number of receivers.
    #[derive(Clone, Copy)]
    struct Plain;

    impl WriteReply for Plain {
        fn write(&self, _: Tag, reply: &Reply<'_>, output: &mut Vec<u8>) {
            match reply {
                Reply::Published(receivers) => output.extend(format!("{receivers};").bytes()),
                other => output.extend(format!("{other:?};").bytes()),
            }
        }
    }

    fn services() -> Result<Services> {
        let mut config = Config::default();
        config.engine.source = EngineSource::Native;
        config.engine.shards = 1;
        Ok(prepare(&config)?.1)
    }

    fn connection(services: &Services) -> Result<Arc<Connection>> {
        let added = services.hub.connections().add(Encoding::RESP2, ([127, 0, 0, 1], 1).into());
        added.ok().context("there is room")
    }

    fn session(services: &Services) -> Result<Session> {
        Ok(Session::new(connection(services)?, services.clone(), Framing::None))
    }

    /// A connection that is subscribed to `news`.
    fn subscriber(services: &Services) -> Result<Arc<Connection>> {
        let subscriber = connection(services)?;
        subscribe(services, &subscriber)?;
        Ok(subscriber)
    }

    fn subscribe(services: &Services, connection: &Connection) -> Result<()> {
        let names = [b"news".as_slice().into()];
        let subscribed = services.hub.subscribe(connection, Kind::Channel, &names, |_, _| {});
        subscribed.ok().context("the engine is there")
    }

    fn publish(session: &mut Session, payloads: &[&str]) {
        publish_with(session, payloads, Plain);
    }

    fn publish_with(
        session: &mut Session,
        payloads: &[&str],
        write: impl WriteReply + Copy + Send + 'static,
    ) {
        let publication = |payload: &&str| Request {
            tag: Tag::InOrder,
            command: Ok(Command::Publish(Publication::new(
                Space::Channels,
                b"news".to_vec().into(),
                payload.as_bytes().to_vec().into(),
            ))),
        };
        assert!(session.execute(payloads.iter().map(publication), write, false).is_none());
    }

    /// What is queued in an outbox.
    fn waiting(connection: &Connection, context: &Context<'_>) -> String {
        let mut chunks = Chunks::default();
        connection.outbox.take(Written::default(), &mut chunks, context);
        let bytes = chunks.iter().flat_map(|chunk| chunk.iter()).copied().collect();
        String::from_utf8(bytes).expect("it is text")
    }

    fn received(subscriber: &Connection) -> Vec<String> {
        let text = waiting(subscriber, &Context::from_waker(Waker::noop()));
        text.lines()
            .filter(|line| line.starts_with('m'))
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    }

    /// Waits until it is published, as the connection's task does.
    async fn replies(session: &mut Session) -> String {
        let mut replies = String::new();
        poll_fn(|context| {
            replies += &waiting(&session.connection, context);
            session.poll_progress(context)
        })
        .await;
        replies + &waiting(&session.connection, &Context::from_waker(Waker::noop()))
    }

    fn is_waiting(session: &mut Session) -> bool {
        session.poll_progress(&mut Context::from_waker(Waker::noop())) == Poll::Pending
    }

    fn calls_of_the_engine(services: &Services) -> u64 {
        let calls = services.hub.stats().calls().find(|(call, _, _)| *call == EngineCall::Route);
        calls.map_or(0, |(_, time, _)| time.count())
    }

    #[tokio::test]
    async fn publications_of_one_batch_are_one_call_and_each_has_a_reply() -> Result<()> {
        let services = services()?;
        let subscriber = subscriber(&services)?;
        let mut sessions = [session(&services)?, session(&services)?, session(&services)?];
        publish(&mut sessions[0], &["ma"]);
        publish(&mut sessions[1], &["mb", "mc"]);
        publish(&mut sessions[2], &["md"]);
        assert_eq!(calls_of_the_engine(&services), 0);
        let mut answers = Vec::new();
        for session in &mut sessions {
            assert!(session.has_pending());
            answers.push(replies(session).await);
            assert!(!session.has_pending());
        }
        assert_eq!(answers, ["1;", "1;1;", "1;"]);
        assert_eq!(calls_of_the_engine(&services), 1);
        assert_eq!(received(&subscriber), ["ma", "mb", "mc", "md"]);
        Ok(())
    }

    #[tokio::test]
    async fn a_subscribed_publisher_has_the_reply_before_its_own_message() -> Result<()> {
        let services = services()?;
        let mut sessions = [session(&services)?, session(&services)?];
        for Session { connection, .. } in &sessions {
            subscribe(&services, connection)?;
        }
        publish(&mut sessions[0], &["ma", "mb"]);
        publish(&mut sessions[1], &["mc"]);
        let of = |payload: &str| {
            format!("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n${}\r\n{payload}\r\n", payload.len())
        };
        let (ma, mb, mc) = (of("ma"), of("mb"), of("mc"));
        assert_eq!(replies(&mut sessions[0]).await, format!("2;{ma}2;{mb}{mc}"));
        assert_eq!(replies(&mut sessions[1]).await, format!("{ma}{mb}2;{mc}"));
        Ok(())
    }

    #[test]
    fn where_publishing_takes_long_fewer_wait() {
        let mut open = OpenBatch::default();
        (0..20).for_each(|_| open.learn(TIME_MAX * 2));
        assert_eq!(open.room, 1);
        (0..20).for_each(|_| open.learn(TIME_MAX));
        assert_eq!(open.room, BURST_MAX);
    }

    #[tokio::test]
    async fn the_first_request_is_admitted_even_without_room() -> Result<()> {
        let services = services()?;
        for place in &services.publish_batcher.places {
            place.open.lock().room = 1;
        }
        let mut sessions = [session(&services)?, session(&services)?];
        publish(&mut sessions[0], &["ma", "mb"]);
        publish(&mut sessions[1], &["mc"]);
        assert!(sessions[0].has_pending() && !sessions[1].has_pending());
        assert_eq!(replies(&mut sessions[0]).await, "0;0;");
        assert!(services.publish_batcher.places.iter().any(|place| place.open.lock().room == 2));
        Ok(())
    }

    #[tokio::test]
    async fn a_session_that_ends_publishes_its_whole_batch() -> Result<()> {
        let services = services()?;
        let subscriber = subscriber(&services)?;
        let (mut leaving, mut staying) = (session(&services)?, session(&services)?);
        publish(&mut staying, &["ma"]);
        publish(&mut leaving, &["mb"]);
        assert!(is_waiting(&mut leaving));
        drop(leaving);
        assert_eq!(received(&subscriber), ["ma", "mb"]);
        assert!(!is_waiting(&mut staying));
        assert_eq!(replies(&mut staying).await, "1;");
        Ok(())
    }

    #[tokio::test]
    async fn a_request_that_is_large_or_finds_no_room_is_published_at_once() -> Result<()> {
        let services = services()?;
        let mut busy = session(&services)?;
        publish(&mut busy, &["m"; FEW + 1]);
        assert!(!busy.has_pending());
        publish(&mut busy, &[&"m".repeat(FEW_BYTES_MAX)]);
        assert!(!busy.has_pending());

        let subscriber = subscriber(&services)?;
        let mut sessions = Vec::new();
        for _ in 0..BURST_MAX + 2 {
            let mut session = session(&services)?;
            publish(&mut session, &["m"]);
            sessions.push(session);
        }
        let at_once = sessions.iter().filter(|session| !session.has_pending()).count();
        assert_eq!((at_once, received(&subscriber).len()), (2, 2));
        for session in &mut sessions {
            assert_eq!(replies(session).await, "1;");
        }
        assert_eq!(received(&subscriber).len(), BURST_MAX);
        Ok(())
    }

    /// Fails on the second reply.
    #[derive(Clone, Copy)]
    struct Fails;

    impl WriteReply for Fails {
        fn write(&self, _: Tag, _: &Reply<'_>, output: &mut Vec<u8>) {
            assert!(output.is_empty(), "a defect");
            output.push(b'.');
        }
    }

    #[tokio::test]
    async fn a_panic_closes_all_whose_publications_were_published_together() -> Result<()> {
        let services = services()?;
        let subscriber = subscriber(&services)?;
        let (mut first, mut failing, mut last) =
            (session(&services)?, session(&services)?, session(&services)?);
        publish(&mut first, &["ma"]);
        publish_with(&mut failing, &["mb", "mc"], Fails);
        publish(&mut last, &["md"]);
        for session in [&mut first, &mut failing, &mut last] {
            // A reply would be read as the reply to another command.
            assert_eq!(replies(session).await, "");
            assert!(session.connection.outbox.is_closing() && !session.has_pending());
        }
        // The messages of the failed batch may or may not have been delivered.
        received(&subscriber);
        // All other requests continue.
        let mut other = session(&services)?;
        publish(&mut other, &["me"]);
        assert_eq!(replies(&mut other).await, "1;");
        assert_eq!(received(&subscriber), ["me"]);
        Ok(())
    }

    #[tokio::test]
    async fn a_session_that_ends_ends_whole_when_its_batch_panics() -> Result<()> {
        let services = services()?;
        let (mut leaving, mut failing) = (session(&services)?, session(&services)?);
        publish(&mut leaving, &["ma"]);
        publish_with(&mut failing, &["mb", "mc"], Fails);
        let id = leaving.connection.id;
        drop(leaving);
        assert!(services.hub.connections().get(id).is_none(), "it is forgotten");
        assert!(failing.connection.outbox.is_closing());
        Ok(())
    }

    #[tokio::test]
    async fn room_at_the_backplane_is_given_back_after_a_panic() -> Result<()> {
        let args =
            Overrides { cluster: Some("redis://127.0.0.1:1".to_owned()), ..Default::default() };
        let mut config = Config::load(&args)?;
        config.engine.source = EngineSource::Native;
        let services = prepare(&config)?.1;
        let backplane = services.backplane.clone().context("there is one")?;
        backplane.pretend_to_be_ready();
        let mut failing = session(&services)?;
        publish_with(&mut failing, &["ma", "mb"], Fails);
        assert_eq!(replies(&mut failing).await, "");
        assert_eq!(backplane.waiting(), 0);
        let mut other = session(&services)?;
        publish(&mut other, &["mc"]);
        assert_eq!(replies(&mut other).await, "0;");
        assert_eq!(backplane.waiting(), 1);
        Ok(())
    }

    #[test]
    fn without_a_runtime_no_request_waits() -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let services = runtime.block_on(async { services() })?;
        let mut session = session(&services)?;
        publish(&mut session, &["m"]);
        assert!(!session.has_pending());
        Ok(())
    }
}
