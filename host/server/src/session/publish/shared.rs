//! Publications that the backplane carries out: on channels whose histories it keeps, and with a
//! key. They are sent there first and delivered when they come back, so that all nodes have one
//! order. The publisher's later commands wait for the answer.

use super::keys::ClaimedKeys;
use super::{
    Forwarded, PUBLISHING_VERBS, Pending, PublishRequest, Replies, Underway, ask_messages,
    check_all, deliver,
};
use crate::session::{Services, WriteReply};
use switchyard_backplane::Append;
use switchyard_middleware::chain::Chain;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Publication, Published, Refusal, Space};

/// What one connection publishes, with a way to write replies that can be sent to another task.
pub(in crate::session) type OwnedRequest = PublishRequest<'static, Box<dyn WriteReply + Send>>;

/// Whether the backplane carries out one of these publications.
pub(in crate::session) fn is_needed<'p>(
    services: &Services,
    chain: &Chain,
    mut publications: impl Iterator<Item = &'p Publication<'p>>,
) -> bool {
    services.backplane.is_some()
        && publications.any(|publication| {
            // A plugin may move a publication to another channel.
            services.hub.history().is_on() && chain.has_messages()
                || is_appended(services, publication)
        })
}

fn is_appended(services: &Services, publication: &Publication<'_>) -> bool {
    publication.space == Space::Channels
        && (publication.options.as_ref().is_some_and(|options| options.key.is_some())
            || services.hub.history().rule(&publication.channel).is_some())
}

/// Publications that are permitted, or refused already.
pub(in crate::session) struct Checked {
    request: OwnedRequest,
    entries: Batch<Underway<'static>>,
}

/// Asks the plugins whether the publications are permitted.
pub(in crate::session) fn check(
    services: &Services,
    chain: &Chain,
    mut request: OwnedRequest,
) -> Checked {
    let entries = check_all(services, chain, std::slice::from_mut(&mut request));
    Checked { request, entries }
}

/// Publishes. Returns the replies, except those that are queued already.
pub(in crate::session) async fn publish(services: Services, checked: Checked) -> Vec<u8> {
    let Checked { request, mut entries } = checked;
    let mut requests = [request];
    let mut keys = keys_of(&entries);
    settle_known(&services, &mut keys, &mut entries).await;
    let forwarded = ask_messages(&services, &services.middleware.chain(), &mut entries);
    let unclaimed = ClaimedKeys::none(&services);
    let published = PUBLISHING_VERBS.map(|verb| (verb, 0));
    let mut replies = Replies { services: &services, entries, keys: unclaimed, next: 0, published };
    for run in runs(&services, forwarded) {
        match run {
            Run::Here(forwarded) => {
                let chain = services.middleware.chain();
                deliver(&services, &chain, forwarded, &mut replies, &mut requests);
            }
            Run::Backplane(forwarded) => {
                append(&services, forwarded, &mut keys, &mut replies.entries).await;
            }
        }
    }
    remember(&services, &keys, &replies.entries).await;
    replies.settle(usize::MAX, None, &mut requests);
    replies.count();
    let [request] = requests;
    request.replies
}

/// A publication with a key: its place, and the channel as it was named.
struct Keyed {
    place: usize,
    channel: Vec<u8>,
    key: Box<str>,
    /// Whether the backplane remembers the answer together with the publication.
    is_appended: bool,
    /// Whether it was answered before.
    is_known: bool,
}

fn keys_of(entries: &[Underway<'_>]) -> Vec<Keyed> {
    let keyed = entries.iter().enumerate().filter_map(|(place, entry)| {
        let Pending::Open(publication) = &entry.pending else { return None };
        let key = publication.options.as_ref()?.key.clone()?;
        let channel = publication.channel.to_vec();
        Some(Keyed { place, channel, key, is_appended: false, is_known: false })
    });
    keyed.collect()
}

/// Settles the publications that were answered before.
async fn settle_known(services: &Services, keys: &mut [Keyed], entries: &mut Batch<Underway<'_>>) {
    let Some(backplane) = services.backplane.as_ref().filter(|_| !keys.is_empty()) else { return };
    let names: Vec<_> = keys.iter().map(|keyed| (&keyed.channel[..], &*keyed.key)).collect();
    let known = backplane.known(&names).await;
    for (keyed, known) in keys.iter_mut().zip(known) {
        let Some(entry) = entries.get_mut(keyed.place) else { continue };
        if let Some(settled) = known.transpose() {
            keyed.is_known = true;
            entry.pending = Pending::Settled(settled);
        }
    }
}

/// Remembers the answers to publications that the backplane has not appended with their keys: those
/// that a plugin absorbed or moved. A refusal is not remembered.
async fn remember(services: &Services, keys: &[Keyed], entries: &[Underway<'_>]) {
    let Some(backplane) = &services.backplane else { return };
    let key_time = services.hub.history().key_time();
    for keyed in keys.iter().filter(|keyed| !keyed.is_appended && !keyed.is_known) {
        if let Some(Underway { pending: Pending::Settled(Ok(answer)), .. }) =
            entries.get(keyed.place)
        {
            backplane.remember((&keyed.channel, &keyed.key), answer, key_time).await;
        }
    }
}

/// Publications in a row that take the same way.
enum Run<'a> {
    Here(Forwarded<'a>),
    Backplane(Forwarded<'a>),
}

fn runs<'a>(services: &Services, forwarded: Forwarded<'a>) -> Vec<Run<'a>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    for (place, publication) in forwarded.places.into_iter().zip(forwarded.publications) {
        let is_appended = is_appended(services, &publication.1);
        let run = match (runs.last_mut(), is_appended) {
            (Some(Run::Here(run)), false) | (Some(Run::Backplane(run)), true) => run,
            _ => {
                runs.push(match is_appended {
                    true => Run::Backplane(Forwarded::default()),
                    false => Run::Here(Forwarded::default()),
                });
                match runs.last_mut() {
                    Some(Run::Here(run) | Run::Backplane(run)) => run,
                    None => continue,
                }
            }
        };
        run.places.push(place);
        run.publications.push(publication);
    }
    runs
}

async fn append(
    services: &Services,
    forwarded: Forwarded<'static>,
    keys: &mut [Keyed],
    entries: &mut Batch<Underway<'static>>,
) {
    let Forwarded { places, publications } = forwarded;
    let (mut sent, mut sent_places) = (Vec::new(), Vec::new());
    let mut settle = |place: usize, mut settled: Result<Published, Refusal>| {
        if let Some(entry) = entries.get_mut(place) {
            if let (Ok(published), true) = (&mut settled, entry.is_moved) {
                published.position = None;
            }
            entry.pending = Pending::Settled(settled);
        }
    };
    for (place, (_, publication)) in places.into_iter().zip(publications) {
        let keyed = keys.iter_mut().find(|keyed| keyed.place == place);
        match appended(services, keyed, publication) {
            Ok(append) => {
                sent.push(append);
                sent_places.push(place);
            }
            Err(refusal) => settle(place, Err(refusal)),
        }
    }
    let Some(backplane) = &services.backplane else { return };
    for (place, settled) in sent_places.into_iter().zip(backplane.append(&sent).await) {
        settle(place, settled);
    }
}

fn appended(
    services: &Services,
    keyed: Option<&mut Keyed>,
    mut publication: Publication<'static>,
) -> Result<Append, Refusal> {
    if let (Some(keyed), Some(options)) = (keyed, &mut publication.options) {
        keyed.is_appended = *keyed.channel == *publication.channel;
        if !keyed.is_appended {
            // The key belongs to the channel as it was named.
            options.key = None;
        }
    }
    let history = services.hub.history();
    let deliveries = services.hub.receivers(publication.space, &publication.channel)?;
    let rule = history.shared_rule(&publication.channel);
    Ok(Append { rule, deliveries, key_time: history.key_time(), publication })
}
