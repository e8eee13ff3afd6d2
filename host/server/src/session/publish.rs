//! The path of publications from the publishers to the hub.
//!
//! Publications that are pending at the same time go through the chain and the engine together,
//! also those of different publishers: they share the cost of a call into a component. The
//! publications of one publisher stay in order.

use std::sync::Arc;

use bytes::Bytes;

use crate::session::{Framing, Services, WriteReply};
use switchyard_backplane::{Admission, Backplane};
use switchyard_hub::connections::Connection;
use switchyard_hub::delivery::Outcome;
use switchyard_middleware::chain::{Chain, PublishOutcome};
use switchyard_middleware::items::Action;
use switchyard_protocol::websocket;
use switchyard_types::batch::Batch;
use switchyard_types::command::{
    Ending, NOPERM, Publication, Refusal, Reply, Space, TOOLARGE, Tag, Verb,
};
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

/// A publication on its way to a reply.
struct Underway<'a> {
    /// The index of its request.
    request: usize,
    connection: ConnectionId,
    tag: Tag,
    space: Space,
    pending: Pending<'a>,
}

/// How far it has come.
enum Pending<'a> {
    Open(Publication<'a>),
    /// It is passed on to the hub.
    Forwarded,
    Settled(Result<u64, Refusal>),
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
    let mut entries = Batch::new();
    for (place, request) in requests.iter_mut().enumerate() {
        let connection = request.connection.id;
        entries.extend(std::mem::take(&mut request.publications).into_iter().map(
            |(tag, publication)| Underway {
                request: place,
                connection,
                tag,
                space: publication.space,
                pending: check(services, chain, publication),
            },
        ));
    }
    ask_access(chain, &mut entries);
    let mut forwarded = ask_messages(services, chain, &mut entries);
    let mut admitted = services
        .backplane
        .as_deref()
        .map(|backplane| admit(services, backplane, &mut entries, &mut forwarded));

    let mut unanswered = entries.iter().enumerate();
    let mut published = [0; 2];
    // Writes the replies up to this place: what became of the publication there, and of those
    // before it that did not reach the hub.
    let mut settle =
        |until: usize, outcome: Option<&Outcome>, requests: &mut [PublishRequest<'a, W>]| {
            for (place, entry) in unanswered.by_ref() {
                let outcome = match &entry.pending {
                    Pending::Settled(outcome) => outcome.as_ref(),
                    Pending::Forwarded | Pending::Open(_) => match outcome {
                        Some(outcome) => outcome.deliveries.as_ref().map_err(Box::as_ref),
                        None => continue,
                    },
                };
                let Some(PublishRequest { write, replies, .. }) = requests.get_mut(entry.request)
                else {
                    continue;
                };
                let [channels, shard_channels] = &mut published;
                let (verb, published) = match entry.space {
                    Space::Channels => (Verb::Publish, channels),
                    Space::ShardChannels => (Verb::Spublish, shard_channels),
                };
                match outcome {
                    Ok(receivers) => {
                        *published += 1;
                        write.write(entry.tag, &Reply::Published(*receivers), replies);
                    }
                    Err(refusal) => {
                        services.stats.record_command(verb, refusal.into(), 1);
                        write.write(entry.tag, &Reply::Refused(refusal), replies);
                    }
                }
                if place == until {
                    break;
                }
            }
        };
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
            settle(*place, Some(outcome), requests);
            // The publisher's own copy comes after the reply.
            if outcome.is_own
                && let Some(entry) = entries.get(*place)
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
    settle(usize::MAX, None, requests);
    for (verb, count) in [Verb::Publish, Verb::Spublish].into_iter().zip(published) {
        if count > 0 {
            services.stats.record_command(verb, Ending::Ok, count);
        }
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
                        Ok(counts.first().copied().unwrap_or(0))
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
            places.push((place, entry.connection));
            open.push((entry.connection, publication));
        }
    }
    let mut forwarded = Forwarded::default();
    for ((place, connection), outcome) in places.into_iter().zip(chain.publish(open)) {
        let settled = match outcome {
            PublishOutcome::Forward(publication) => match check_size(services, &publication) {
                Ok(()) => {
                    forwarded.places.push(place);
                    forwarded.publications.push((connection, publication));
                    continue;
                }
                Err(refusal) => Err(refusal),
            },
            PublishOutcome::Absorbed(receivers) => Ok(receivers),
            PublishOutcome::Refused(refusal) => Err(refusal),
        };
        if let Some(entry) = entries.get_mut(place) {
            entry.pending = Pending::Settled(settled);
        }
    }
    forwarded
}

fn check<'a>(services: &Services, chain: &Chain, publication: Publication<'a>) -> Pending<'a> {
    let checked = check_size(services, &publication).and_then(|()| match chain.sees_names() {
        true => as_text(&publication.channel).map(|_| ()),
        false => Ok(()),
    });
    match checked {
        Ok(()) => Pending::Open(publication),
        Err(refusal) => Pending::Settled(Err(refusal)),
    }
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

/// Takes the replies as they are sent; none: there are none.
fn framed(framing: Framing, replies: &mut Vec<u8>) -> Option<Bytes> {
    if replies.is_empty() {
        return None;
    }
    let replies = std::mem::take(replies);
    Some(Bytes::from(match framing {
        Framing::None => replies,
        Framing::BinaryFrame => websocket::binary_frame(&replies),
    }))
}
