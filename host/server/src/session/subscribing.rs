//! SUBSCRIBE and its kind: permitted by the plugins, awaited at the backplane, done by the hub.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::{Session, Waiting, WriteReply, publish};
use switchyard_backplane::Hold;
use switchyard_hub::connections::holdings::{self, WaitingNames};
use switchyard_middleware::chain::Chain;
use switchyard_middleware::items::Action;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Bytestring, Kind, LIMIT, ListenVerb, Refusal, Reply, Tag};
use switchyard_types::ids::ConnectionId;

/// A SUBSCRIBE that was permitted and waits until the backplane has subscribed to its names,
/// too. Otherwise messages that other nodes publish right after the acknowledgement could be
/// lost.
pub(super) struct Joining {
    tag: Tag,
    kind: Kind,
    names: Vec<Bytestring<'static>>,
    /// The chain that permitted it.
    generation: u64,
    /// None: the wait is over.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Kept until the connection itself is subscribed.
    _hold: Arc<Hold>,
    _counted: WaitingNames,
}

impl Joining {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(context));
            self.waiting = None;
        }
        Poll::Ready(())
    }

    fn is_done(&self) -> bool {
        self.waiting.is_none()
    }
}

impl Session {
    pub(super) fn subscribe(
        &mut self,
        chain: &Chain,
        tag: Tag,
        kind: Kind,
        names: &[Bytestring<'_>],
        write: &impl WriteReply,
    ) -> Result<(), Refusal> {
        self.may_listen(chain, kind, names, action_of(kind), Chain::access)?;
        if let Some(backplane) = &self.services.backplane {
            let counted = self.services.hub.wait_for_backplane(&self.connection, kind, names)?;
            let hold = backplane.interest().hold(kind, names.iter().map(|name| &**name));
            if !hold.is_settled() {
                let names = names.iter().map(|name| name.clone().into_owned().into()).collect();
                let hold = Arc::new(hold);
                let waiting = Some(backplane.clone().joined(hold.clone()));
                let generation = chain.generation();
                self.waiting = Some(Waiting::Backplane(Box::new(Joining {
                    tag,
                    kind,
                    names,
                    generation,
                    waiting,
                    _hold: hold,
                    _counted: counted,
                })));
                return Ok(());
            }
        }
        self.listen(tag, kind, names, write)
    }

    /// Whether there is room for names, and all plugins permit the subscriptions.
    pub(super) fn may_listen<'a>(
        &self,
        chain: &Chain,
        kind: Kind,
        names: &'a [Bytestring<'_>],
        action: impl Fn(&'a str) -> Action<'a>,
        ask: impl Fn(&Chain, &[(ConnectionId, Action<'_>)]) -> Batch<Option<Refusal>>,
    ) -> Result<(), Refusal> {
        if chain.sees_names() {
            names.iter().try_for_each(|name| publish::as_text(name).map(|_| ()))?;
        }
        self.check_room(kind, names)?;
        self.may(chain, names, action, ask)
    }

    /// Whether all plugins permit an action for each of these names.
    pub(super) fn may<'a>(
        &self,
        chain: &Chain,
        names: &'a [Bytestring<'_>],
        action: impl Fn(&'a str) -> Action<'a>,
        ask: impl Fn(&Chain, &[(ConnectionId, Action<'_>)]) -> Batch<Option<Refusal>>,
    ) -> Result<(), Refusal> {
        let mut texts = Vec::new();
        if chain.sees_names() {
            for name in names {
                texts.push(publish::as_text(name)?);
            }
        }
        let id = self.connection.id;
        let actions: Vec<_> = texts.into_iter().map(|name| (id, action(name))).collect();
        match ask(chain, &actions).into_iter().flatten().next() {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
    }

    /// Subscribes to what was permitted.
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

    /// Subscribes to the names that waited for the backplane, if it has subscribed to them.
    pub(super) fn finish_joining(&mut self, write: &impl WriteReply) {
        let has_joined =
            |waiting: &mut Waiting| matches!(waiting, Waiting::Backplane(join) if join.is_done());
        if let Some(Waiting::Backplane(joining)) = self.waiting.take_if(has_joined) {
            let Joining { tag, kind, names, generation, waiting: _, _hold, _counted } = *joining;
            let middleware = self.services.middleware.clone();
            let chain = middleware.chain();
            let listens = match chain.generation() == generation {
                true => Ok(()),
                // The check of existing subscriptions did not include this one.
                false => {
                    let ask = Chain::access_again;
                    self.may_listen(&chain, kind, &names, action_of(kind), ask)
                }
            };
            let listens = listens.and_then(|()| self.listen(tag, kind, &names, write));
            drop(chain);
            self.is_done(ListenVerb::Subscribe(kind).into(), tag, listens, write);
        }
    }

    /// Only this session adds subscriptions of the connection. A recheck may remove some in the
    /// meantime, so there is at least as much room when the hub is called.
    fn check_room(&self, kind: Kind, names: &[Bytestring<'_>]) -> Result<(), Refusal> {
        let names_max = self.services.limits.subscriptions_max();
        let patterns_max = match kind {
            Kind::Pattern => self.services.limits.patterns_max(),
            Kind::Channel | Kind::Shard => usize::MAX,
        };
        let (held, patterns) = {
            let subscriptions = self.connection.subscriptions();
            (subscriptions.len(), subscriptions.patterns.len())
        };
        let fits =
            |new: usize| held + new <= names_max && patterns.saturating_add(new) <= patterns_max;
        if fits(names.len()) {
            return Ok(());
        }
        let new = holdings::new_names(&self.connection, kind, names).len();
        if fits(new) {
            return Ok(());
        }
        let message = match held + new > names_max {
            true => {
                format!("the connection listens to {held} names and may listen to {names_max}")
            }
            false => format!(
                "the connection listens to {patterns} patterns and may listen to {patterns_max}"
            ),
        };
        Err(Refusal::new(LIMIT, message))
    }
}

fn action_of<'a>(kind: Kind) -> fn(&'a str) -> Action<'a> {
    match kind {
        Kind::Pattern => Action::Psubscribe,
        Kind::Channel | Kind::Shard => Action::Subscribe,
    }
}
