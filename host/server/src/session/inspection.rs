//! PUBSUB: what a client may see of other clients' subscriptions.
//!
//! Where plugins decide about subscriptions, they are called for each name first: a channel that
//! the client may not subscribe to has no subscribers for it, and is not listed. The cost depends
//! on the number of names, so it is done in slices, between which other tasks run.

use guest_core::Names;

use super::{Services, Session, Waiting, WriteReply};
use crate::session::publish;
use switchyard_hub::Hub;
use switchyard_hub::listing::Listing;
use switchyard_middleware::chain::Chain;
use switchyard_middleware::items::{Action, Inspection as Inspected};
use switchyard_types::batch::Batch;
use switchyard_types::command::{Command, LIMIT, Refusal, Reply, Space, Tag, UNAVAILABLE, Verb};
use switchyard_types::ids::ConnectionId;

/// How many names are processed between two checks of the time budget: as many as a plugin
/// receives in one call.
const SLICE_MAX: usize = 256;

/// An unfinished command.
pub(super) struct Inspection {
    tag: Tag,
    /// The encoding of replies when the command arrived.
    write: Box<dyn WriteReply + Send>,
    /// The list of channels; none: the command has names.
    listing: Option<Listing>,
    /// Whether a page was read in this time budget: at least one is.
    has_begun: bool,
    /// The names of the command, or those of the last page, in order.
    names: Names,
    /// How many of them have been visited.
    done: usize,
    found: Found,
}

/// The result so far.
enum Found {
    /// The number of subscribers of each name.
    Counts { space: Space, counts: Vec<u64> },
    /// The names that may be shown.
    Channels(Names),
}

impl Session {
    /// Executes a PUBSUB command until the time budget is exhausted. The rest waits for the
    /// next one.
    pub(super) fn inspect(
        &mut self,
        chain: &Chain,
        tag: Tag,
        command: Command<'_>,
        write: &(impl WriteReply + Copy + Send + 'static),
    ) -> Result<(), Refusal> {
        let hub = &self.services.hub;
        let boxed: Box<dyn WriteReply + Send> = Box::new(*write);
        let inspection = match command {
            Command::SubscriberCounts(space, names) => {
                let counts = Vec::with_capacity(names.len());
                let names = names.iter().collect();
                let found = Found::Counts { space, counts };
                Inspection {
                    tag,
                    write: boxed,
                    listing: None,
                    has_begun: false,
                    names,
                    done: 0,
                    found,
                }
            }
            Command::Channels(space, matching) => {
                let matching = matching.map(std::borrow::Cow::into_owned);
                let listing = Some(Listing::new(hub, space, matching));
                let found = Found::Channels(Names::new());
                Inspection {
                    tag,
                    write: boxed,
                    listing,
                    has_begun: false,
                    names: Names::new(),
                    done: 0,
                    found,
                }
            }
            Command::PatternCount => {
                if self.connection.encoding().encoder().is_web() {
                    may_inspect(self.connection.id, chain, Inspected::Patterns)?;
                }
                let count = hub.pattern_count()?;
                write.write(tag, &Reply::Number(count), &mut self.replies);
                return Ok(());
            }
            _ => unreachable!("only PUBSUB is carried out here"),
        };
        let mut inspection = Box::new(inspection);
        if !self.advance(chain, &mut inspection)? {
            self.waiting = Some(Waiting::Budget(inspection));
        }
        Ok(())
    }

    /// Continues a PUBSUB command that is unfinished because the time budget was exhausted.
    pub(super) fn finish_inspecting(&mut self) {
        let is_listing = |waiting: &mut Waiting| matches!(waiting, Waiting::Budget(_));
        if let Some(Waiting::Budget(mut inspection)) = self.waiting.take_if(is_listing) {
            let middleware = self.services.middleware.clone();
            inspection.has_begun = false;
            match self.advance(&middleware.chain(), &mut inspection) {
                Ok(false) => self.waiting = Some(Waiting::Budget(inspection)),
                done => {
                    let done = done.map(|_| ());
                    self.is_done(Verb::Pubsub, inspection.tag, done, &inspection.write);
                }
            }
        }
    }

    /// Processes further slices until the time budget is exhausted. True: the command is
    /// finished.
    fn advance(&mut self, chain: &Chain, inspection: &mut Inspection) -> Result<bool, Refusal> {
        let connection = self.connection.id;
        let hub = self.services.hub.clone();
        // Each page of a listing is checked before the next one is read: what the client may not
        // see is not kept, and has no effect on whether the list is too large.
        loop {
            while inspection.done < inspection.names.len() {
                if self.is_budget_exhausted() {
                    return Ok(false);
                }
                inspection.look_at_slice(connection, chain, &hub)?;
                inspection.check_size(chain, &self.services)?;
            }
            let Some(listing) =
                inspection.listing.as_mut().filter(|listing| !listing.is_complete())
            else {
                break;
            };
            if self.is_budget_exhausted() && inspection.has_begun {
                return Ok(false);
            }
            inspection.has_begun = true;
            listing.advance(&hub)?;
            inspection.names = listing.take_names();
            inspection.done = 0;
        }
        let reply = match &inspection.found {
            Found::Counts { counts, .. } => Reply::Counts(&inspection.names, counts),
            Found::Channels(names) => Reply::Names(names),
        };
        inspection.write.write(inspection.tag, &reply, &mut self.replies);
        Ok(true)
    }
}

impl Inspection {
    /// How much memory its names and counts hold. What `listing` holds is counted by the hub.
    pub(super) fn heap_bytes(&self) -> usize {
        self.names.heap_bytes()
            + match &self.found {
                Found::Counts { counts, .. } => counts.capacity() * size_of::<u64>(),
                Found::Channels(names) => names.heap_bytes(),
            }
    }

    /// Checks how many channels are listed, where plugins decide about each.
    fn check_size(&self, chain: &Chain, services: &Services) -> Result<(), Refusal> {
        let names_max = services.limits.names_per_command_max();
        match &self.found {
            Found::Channels(names) if chain.has_access() && names.len() > names_max => {
                Err(Refusal::new(
                    LIMIT,
                    format!(
                        "more than {names_max} channels match that you may look at \
                         (limits.names_per_command_max): give a pattern that matches fewer"
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    fn look_at_slice(
        &mut self,
        connection: ConnectionId,
        chain: &Chain,
        hub: &Hub,
    ) -> Result<(), Refusal> {
        let end = self.names.len().min(self.done + SLICE_MAX);
        let slice: Vec<&[u8]> =
            (self.done..end).filter_map(|place| self.names.get(place)).collect();
        let shown = may_see(connection, chain, &slice)?;
        match &mut self.found {
            Found::Counts { space, counts } => {
                let visible = slice.iter().zip(&shown).filter(|(_, shown)| **shown);
                let names: Vec<&[u8]> = visible.map(|(name, _)| *name).collect();
                let mut found = hub.subscriber_counts(*space, &names)?.into_iter();
                counts.extend(shown.iter().map(|shown| match *shown {
                    true => found.next().unwrap_or(0),
                    false => 0,
                }));
            }
            Found::Channels(names) => {
                let mut hidden = 0;
                for (name, is_shown) in slice.iter().zip(&shown) {
                    match is_shown {
                        true => names.push(name),
                        false => hidden += Listing::bytes_of(name),
                    }
                }
                if let Some(listing) = &mut self.listing {
                    listing.release(hidden);
                }
            }
        }
        self.done = end;
        Ok(())
    }
}

/// Whether the connection may look at this: plugins with `access` decide.
pub(super) fn may_inspect(
    connection: ConnectionId,
    chain: &Chain,
    subject: Inspected<'_>,
) -> Result<(), Refusal> {
    let action = [(connection, Action::Inspect(subject))];
    chain.access_again(&action).into_iter().flatten().next().map_or(Ok(()), Err)
}

/// Which of these channels the connection may look at. An error: a plugin cannot decide.
fn may_see(connection: ConnectionId, chain: &Chain, names: &[&[u8]]) -> Result<Vec<bool>, Refusal> {
    if !chain.has_access() {
        return Ok(vec![true; names.len()]);
    }
    let mut may_see = vec![false; names.len()];
    // Plugins cannot decide about a name that is not UTF-8.
    let texts: Batch<(usize, &str)> = names
        .iter()
        .enumerate()
        .filter_map(|(place, name)| Some((place, publish::as_text(name).ok()?)))
        .collect();
    let actions: Vec<_> = texts
        .iter()
        .map(|(_, text)| (connection, Action::Inspect(Inspected::Channel(text))))
        .collect();
    for ((place, _), refusal) in texts.into_iter().zip(chain.access_again(&actions)) {
        match refusal {
            Some(refusal) if refusal.code == UNAVAILABLE => return Err(refusal),
            Some(_) => {}
            None => {
                if let Some(may_see) = may_see.get_mut(place) {
                    *may_see = true;
                }
            }
        }
    }
    Ok(may_see)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use anyhow::{Context, Result};

    use super::*;
    use crate::prepare::prepare;
    use crate::session::Framing;
    use switchyard_config::{Config, EngineSource};
    use switchyard_hub::encoding::Encoding;
    use switchyard_types::command::Request;

    /// Writes how many channels were counted.
    #[derive(Clone, Copy)]
    struct Count;

    impl WriteReply for Count {
        fn write(&self, _: Tag, reply: &Reply<'_>, output: &mut Vec<u8>) {
            if let Reply::Counts(names, _) = reply {
                output.extend(names.len().to_string().into_bytes());
            }
        }
    }

    #[tokio::test]
    async fn a_command_that_is_executed_in_parts_counts_as_held_until_it_is_answered() -> Result<()>
    {
        let mut config = Config::default();
        config.engine.source = EngineSource::Native;
        let services = prepare(&config)?.1;
        let added = services.hub.connections().add(Encoding::RESP2, ([127, 0, 0, 1], 1).into());
        let connection = added.ok().context("there is room")?;
        let mut session = Session::new(connection, services, Framing::None);
        let names: Vec<_> =
            (0..1_000).map(|number| format!("news.{number}").into_bytes().into()).collect();
        let command = Ok(Command::SubscriberCounts(Space::Channels, names));
        let long_ago = Instant::now().checked_sub(Duration::from_secs(60));
        session.start_budget(long_ago.context("the machine runs for longer")?);
        let request = Request { tag: Tag::InOrder, command };
        assert!(session.execute(std::iter::once(request), Count, false).is_none());
        assert!(session.has_pending() && !session.waits_for_another_task());
        assert!(session.held_bytes() > 1_000 * "news.0".len(), "{}", session.held_bytes());
        while session.has_pending() {
            session.start_budget(Instant::now());
            assert!(session.resume(Count).is_none());
        }
        assert_eq!(session.held_bytes(), 0);
        Ok(())
    }
}
