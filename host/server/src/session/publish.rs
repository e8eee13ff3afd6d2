//! The path of publications from the publishers to the hub.
//!
//! Publications that are pending at the same time go through the chain and the engine together,
//! also those of different publishers: they share the cost of a call into a component. The
//! publications of one publisher stay in order.

mod keys;
pub(super) mod shared;

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::smallvec;

use keys::ClaimedKeys;

use crate::session::{Framing, Services, Session, WriteReply, must_authenticate};
use switchyard_backplane::{Admission, Backplane};
use switchyard_hub::connections::Connection;
use switchyard_hub::delivery::Outcome;
use switchyard_hub::history::no_history;
use switchyard_middleware::chain::{Chain, PublishOutcome};
use switchyard_middleware::items::Action;
use switchyard_protocol::websocket;
use switchyard_types::batch::Batch;
use switchyard_types::command::{
    Ending, NOPERM, Publication, Published, Refusal, Reply, TOOLARGE, Tag, Verb,
};
use switchyard_types::history::PublishOptions;
use switchyard_types::ids::ConnectionId;

/// What one connection publishes at once.
pub struct PublishRequest<'a, W> {
    /// The publisher.
    pub connection: Arc<Connection>,
    /// What its replies are wrapped in.
    pub framing: Framing,
    /// Encodes its replies.
    pub write: W,
    /// Its publications, each with its tag.
    pub publications: Batch<(Tag, Publication<'a>)>,
    /// Replies that are not queued yet.
    pub replies: Vec<u8>,
}

impl Session {
    /// Publishes without a reply, on this node. Returns the number of receivers.
    ///
    /// # Errors
    ///
    /// The refusal.
    pub fn publish_now(&mut self, publication: Publication<'_>) -> Result<u64, Refusal> {
        if self.must_authenticate() {
            return Err(must_authenticate());
        }
        let middleware = self.services.middleware.clone();
        let outcome = Kept::default();
        let publications = smallvec![(Tag::InOrder, publication)];
        let publish_request = self.publish_request(&outcome, publications);
        self.publish_alone(&middleware.chain(), publish_request);
        outcome.0.into_inner()
    }
}

/// The commands that publish, as they are counted.
const PUBLISHING_VERBS: [Verb; 3] = [Verb::Publish, Verb::Spublish, Verb::Xadd];

/// Keeps the reply to one publication instead of writing it.
struct Kept(RefCell<Result<u64, Refusal>>);

impl Default for Kept {
    fn default() -> Kept {
        Kept(RefCell::new(Ok(0)))
    }
}

impl WriteReply for Kept {
    fn write(&self, _: Tag, reply: &Reply<'_>, _: &mut Vec<u8>) {
        match reply {
            Reply::Published(receivers) => *self.0.borrow_mut() = Ok(*receivers),
            Reply::PublishedWith(published) => *self.0.borrow_mut() = Ok(published.deliveries),
            Reply::Refused(refusal) => *self.0.borrow_mut() = Err((*refusal).clone()),
            _ => {}
        }
    }
}

/// A publication on its way to a reply.
struct Underway<'a> {
    /// The index of its request.
    request: usize,
    connection: ConnectionId,
    tag: Tag,
    verb: Verb,
    /// Whether the reply has the position.
    wants_position: bool,
    /// Whether plugins moved it to another channel, where its position is of no use to the publisher.
    is_moved: bool,
    pending: Pending<'a>,
}

/// How far it has come.
enum Pending<'a> {
    Open(Publication<'a>),
    /// It is passed on to the hub.
    Forwarded,
    /// It has the key of the publication at this place.
    SameAs(usize),
    Settled(Result<Published, Refusal>),
}

/// The publications that are forwarded to the hub, and the place of each in the request.
#[derive(Default)]
struct Forwarded<'a> {
    places: Batch<usize>,
    publications: Batch<(ConnectionId, Publication<'a>)>,
}

/// Publishes the publications of all requests, and encodes their replies. Replies that must come
/// before a message are queued, the others are left in `replies`. The requests' writers are not
/// woken. Returns whether there was any receiver.
pub fn publish<'a, W: WriteReply>(
    services: &Services,
    chain: &Chain,
    requests: &mut [PublishRequest<'a, W>],
) -> bool {
    let mut entries = check_all(services, chain, requests);
    let keys = ClaimedKeys::claim(services, &mut entries);
    let forwarded = ask_messages(services, chain, &mut entries);
    let mut replies = Replies {
        services,
        entries,
        keys,
        next: 0,
        published: PUBLISHING_VERBS.map(|verb| (verb, 0)),
    };
    let had_receivers = deliver(services, chain, forwarded, &mut replies, requests);
    replies.settle(usize::MAX, None, requests);
    replies.count();
    had_receivers
}

/// The publications of all requests, with those refused that are too large or that a plugin does not
/// permit.
fn check_all<'a, W>(
    services: &Services,
    chain: &Chain,
    requests: &mut [PublishRequest<'a, W>],
) -> Batch<Underway<'a>> {
    let mut entries = Batch::new();
    for (place, request) in requests.iter_mut().enumerate() {
        let connection = request.connection.id;
        entries.extend(std::mem::take(&mut request.publications).into_iter().map(
            |(tag, publication)| Underway {
                request: place,
                connection,
                tag,
                verb: publication.verb(),
                wants_position:
                    publication.options.as_ref().is_some_and(|options| options.wants_position),
                is_moved: false,
                pending: check(services, chain, publication),
            },
        ));
    }
    ask_access(chain, &mut entries);
    entries
}

/// Publications and the replies to them, which are written in order.
struct Replies<'s, 'a> {
    services: &'s Services,
    entries: Batch<Underway<'a>>,
    keys: ClaimedKeys<'s>,
    /// The first publication without a reply.
    next: usize,
    /// How many publications each command made.
    published: [(Verb, u64); PUBLISHING_VERBS.len()],
}

impl<'a> Replies<'_, 'a> {
    /// Writes the replies up to this place: what became of the publication there, and of those
    /// before it that did not reach the hub.
    fn settle<W: WriteReply>(
        &mut self,
        until: usize,
        outcome: Option<&Outcome>,
        requests: &mut [PublishRequest<'a, W>],
    ) {
        let Replies { services, entries, keys, next, published } = self;
        while let Some(entry) = entries.get(*next) {
            let place = *next;
            *next += 1;
            let settled = match &entry.pending {
                Pending::SameAs(first) => match keys.answer(*first) {
                    Some(settled) => settled,
                    None => continue,
                },
                Pending::Settled(settled) => {
                    let settled = settled.as_ref().copied();
                    keys.settle(place, settled);
                    settled
                }
                Pending::Forwarded | Pending::Open(_) => {
                    let Some(outcome) = outcome else { continue };
                    let mut settled = outcome.published();
                    if let Ok(published) = &mut settled
                        && entry.is_moved
                    {
                        published.position = None;
                    }
                    keys.settle(place, settled);
                    settled
                }
            };
            let Some(PublishRequest { write, replies, .. }) = requests.get_mut(entry.request)
            else {
                continue;
            };
            match settled {
                Ok(what) => {
                    let count = published.iter_mut().find(|(verb, _)| *verb == entry.verb);
                    if let Some((_, count)) = count {
                        *count += 1;
                    }
                    let reply = match entry.wants_position || what.is_stale {
                        true => Reply::PublishedWith(what),
                        false => Reply::Published(what.deliveries),
                    };
                    write.write(entry.tag, &reply, replies);
                }
                Err(refusal) => {
                    services.stats.record_command(entry.verb, refusal.into(), 1);
                    write.write(entry.tag, &Reply::Refused(refusal), replies);
                }
            }
            if place == until {
                break;
            }
        }
    }

    /// Counts the publications that were answered.
    fn count(&self) {
        for (verb, count) in self.published {
            if count > 0 {
                self.services.stats.record_command(verb, Ending::Ok, count);
            }
        }
    }
}

/// Delivers publications, writes the replies to them, and sends them to the other nodes. Returns
/// whether there was any receiver.
fn deliver<'a, W: WriteReply>(
    services: &Services,
    chain: &Chain,
    mut forwarded: Forwarded<'a>,
    replies: &mut Replies<'_, 'a>,
    requests: &mut [PublishRequest<'a, W>],
) -> bool {
    let mut admitted = services
        .backplane
        .as_deref()
        .map(|backplane| admit(services, backplane, &mut replies.entries, &mut forwarded));
    let Forwarded { places, publications } = forwarded;
    let (mut had_receivers, mut routed_before) = (false, 0);
    while let Some(rest) = publications.get(routed_before..).filter(|rest| !rest.is_empty()) {
        let routed = services.hub.route(chain, rest);
        let mut own_replies = Batch::new();
        for (index, outcome) in routed.outcomes().iter().enumerate() {
            let Some(place) = places.get(routed_before + index) else { continue };
            if outcome.deliveries.is_err()
                && let (Some(admitted), Some((_, refused))) = (&mut admitted, rest.get(index))
            {
                // A publication that was refused here must not be delivered anywhere.
                admitted.withdraw(routed_before + index, refused);
            }
            replies.settle(*place, Some(outcome), requests);
            // The publisher's own copy comes after the reply.
            if outcome.is_own
                && let Some(entry) = replies.entries.get(*place)
                && let Some(PublishRequest { framing, replies, .. }) =
                    requests.get_mut(entry.request)
                && let Some(replies) = framed(*framing, replies)
            {
                own_replies.push((index, replies));
            }
        }
        let (outcomes, some) = routed.deliver(own_replies);
        routed_before += outcomes.len();
        had_receivers |= some;
    }
    if let Some(mut admitted) = admitted {
        for (index, (_, publication)) in publications.into_iter().enumerate() {
            admitted.forward(index, publication);
        }
    }
    had_receivers
}

/// The admissions of the publications that go to the hub, and the room that is reserved for them at
/// the backplane. Dropping this releases the room that is left: otherwise a panic on the way to the
/// hub would keep it reserved.
struct Admitted<'a> {
    backplane: &'a Backplane,
    admissions: Vec<Admission>,
    /// For how many publications and bytes room is reserved.
    room: (usize, usize),
}

impl Admitted<'_> {
    /// Calls the backplane to admit a publication, and records the room that this reserves.
    fn ask(&mut self, publication: &Publication<'_>) -> Result<Admission, Refusal> {
        let admission = self.backplane.admit(publication)?;
        if admission != Admission::Stay {
            self.room.0 += 1;
            self.room.1 += publication.bytes();
        }
        Ok(admission)
    }

    /// Sends a publication for which room is reserved.
    fn send(&mut self, publication: Publication<'_>) {
        let bytes = publication.bytes();
        self.backplane.forward(publication);
        self.has_left(bytes);
    }

    /// Releases the room of one publication.
    fn give_up(&mut self, publication: &Publication<'_>) {
        self.backplane.withdraw(publication);
        self.has_left(publication.bytes());
    }

    /// Sends a publication to the backplane after the hub, if it is to leave this node.
    fn forward(&mut self, index: usize, publication: Publication<'_>) {
        if self.take(index) {
            self.send(publication);
        }
    }

    /// A publication does not leave this node after all.
    fn withdraw(&mut self, index: usize, publication: &Publication<'_>) {
        if self.take(index) {
            self.give_up(publication);
        }
    }

    /// Whether it was to leave this node; after this call, it is not.
    fn take(&mut self, index: usize) -> bool {
        let admission = self.admissions.get_mut(index);
        admission.is_some_and(|admission| {
            std::mem::replace(admission, Admission::Stay) == Admission::Forward
        })
    }

    fn has_left(&mut self, bytes: usize) {
        self.room.0 -= 1;
        self.room.1 -= bytes;
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let (publications, bytes) = self.room;
        if publications > 0 {
            self.backplane.give_up_room(publications, bytes);
        }
    }
}

/// Admits the publications that go to the hub, and returns the admission of each. Those that the
/// backplane itself brings back are not passed on.
fn admit<'a, 'b>(
    services: &Services,
    backplane: &'b Backplane,
    entries: &mut [Underway<'a>],
    forwarded: &mut Forwarded<'a>,
) -> Admitted<'b> {
    let admissions = Vec::with_capacity(forwarded.places.len());
    let mut admitted = Admitted { backplane, admissions, room: (0, 0) };
    let Forwarded { places, publications } = std::mem::take(forwarded);
    for (place, (connection, publication)) in places.into_iter().zip(publications) {
        let settled = match admitted.ask(&publication) {
            Ok(Admission::Return) => {
                let channel = std::slice::from_ref(&publication.channel);
                match services.hub.subscriber_counts(publication.space, channel) {
                    Ok(counts) => {
                        admitted.send(publication);
                        let deliveries = counts.first().copied().unwrap_or(0);
                        Ok(Published { deliveries, ..Published::default() })
                    }
                    Err(unavailable) => {
                        admitted.give_up(&publication);
                        Err(unavailable.into())
                    }
                }
            }
            Ok(admission) => {
                forwarded.places.push(place);
                forwarded.publications.push((connection, publication));
                admitted.admissions.push(admission);
                continue;
            }
            Err(refusal) => Err(refusal),
        };
        if let Some(entry) = entries.get_mut(place) {
            entry.pending = Pending::Settled(settled);
        }
    }
    admitted
}

fn ask_access(chain: &Chain, entries: &mut [Underway<'_>]) {
    let mut places = Batch::new();
    let mut actions = Batch::new();
    for (place, entry) in entries.iter().enumerate() {
        if let Pending::Open(publication) = &entry.pending
            && let Ok(channel) = std::str::from_utf8(&publication.channel)
        {
            let action = Action::Publish { channel, payload_bytes: publication.payload.len() };
            places.push(place);
            actions.push((entry.connection, action));
        }
    }
    let answers = chain.access(&actions);
    drop(actions);
    for (place, answer) in places.into_iter().zip(answers) {
        if let (Some(refusal), Some(entry)) = (answer, entries.get_mut(place)) {
            entry.pending = Pending::Settled(Err(refusal));
        }
    }
}

fn ask_messages<'a>(
    services: &Services,
    chain: &Chain,
    entries: &mut [Underway<'a>],
) -> Forwarded<'a> {
    let mut places = Batch::new();
    let mut open = Batch::new();
    for (place, entry) in entries.iter_mut().enumerate() {
        if matches!(entry.pending, Pending::Open(_))
            && let Pending::Open(publication) =
                std::mem::replace(&mut entry.pending, Pending::Forwarded)
        {
            // Those without options are not answered with a position.
            let named = publication.options.is_some().then(|| publication.channel.to_vec());
            places.push((place, entry.connection, named));
            open.push((entry.connection, publication));
        }
    }
    let mut forwarded = Forwarded::default();
    for ((place, connection, named), outcome) in places.into_iter().zip(chain.publish(open)) {
        let settled = match outcome {
            PublishOutcome::Forward(publication) => match check_size(services, &publication) {
                Ok(()) => {
                    let is_moved = named.is_some_and(|named| *named != *publication.channel);
                    if let Some(entry) = entries.get_mut(place) {
                        entry.is_moved = is_moved;
                    }
                    forwarded.places.push(place);
                    forwarded.publications.push((connection, publication));
                    continue;
                }
                Err(refusal) => Err(refusal),
            },
            PublishOutcome::Absorbed(deliveries) => {
                Ok(Published { deliveries, ..Published::default() })
            }
            PublishOutcome::Refused(refusal) => Err(refusal),
        };
        if let Some(entry) = entries.get_mut(place) {
            entry.pending = Pending::Settled(settled);
        }
    }
    forwarded
}

fn check<'a>(services: &Services, chain: &Chain, publication: Publication<'a>) -> Pending<'a> {
    let checked = check_size(services, &publication)
        .and_then(|()| match chain.sees_names() {
            true => as_text(&publication.channel).map(|_| ()),
            false => Ok(()),
        })
        .and_then(|()| match &publication.options {
            Some(options) => check_options(services, &publication.channel, options),
            None => Ok(()),
        });
    match checked {
        Ok(()) => Pending::Open(publication),
        Err(refusal) => Pending::Settled(Err(refusal)),
    }
}

/// Whether the server can do what a publication wants.
fn check_options(
    services: &Services,
    channel: &[u8],
    options: &PublishOptions,
) -> Result<(), Refusal> {
    let needs_history = options.version.is_some() || options.tags.is_some() || options.is_append;
    if needs_history && services.hub.history().rule(channel).is_none() {
        return Err(no_history());
    }
    Ok(())
}

fn check_size(services: &Services, publication: &Publication<'_>) -> Result<(), Refusal> {
    check_name(services, &publication.channel)?;
    let (bytes, bytes_max) = (publication.payload.len(), services.limits.payload_bytes_max());
    if bytes > bytes_max {
        return Err(Refusal::new(
            TOOLARGE,
            format!("a payload of {bytes} bytes is over the limit of {bytes_max}"),
        ));
    }
    Ok(())
}

/// Checks the length of a name.
///
/// # Errors
///
/// The name is too long.
pub fn check_name(services: &Services, name: &[u8]) -> Result<(), Refusal> {
    let (bytes, bytes_max) = (name.len(), services.limits.name_bytes_max());
    if bytes > bytes_max {
        return Err(Refusal::new(
            TOOLARGE,
            format!("a name of {bytes} bytes is over the limit of {bytes_max}"),
        ));
    }
    Ok(())
}

/// A name as plugins receive it.
///
/// # Errors
///
/// The name is not UTF-8.
pub fn as_text(name: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(name).map_err(|_| {
        Refusal::new(NOPERM, "the name is not UTF-8, and a plugin in the chain takes names as text")
    })
}

/// Queues replies without waking the writer: it is being polled, or is woken afterwards.
pub fn queue(connection: &Connection, framing: Framing, replies: &mut Vec<u8>) {
    if let Some(replies) = framed(framing, replies) {
        connection.outbox.push_without_wake(replies);
    }
}

/// Takes the replies as they are sent; none: there are none, or they are not sent yet.
pub fn framed(framing: Framing, replies: &mut Vec<u8>) -> Option<Bytes> {
    if replies.is_empty() || framing == Framing::Held {
        return None;
    }
    let replies = std::mem::take(replies);
    Some(Bytes::from(match framing {
        Framing::None | Framing::Held => replies,
        Framing::BinaryFrame => websocket::binary_frame(&replies),
    }))
}
