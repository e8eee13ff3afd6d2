//! What may change a publication between the engine and the outboxes.

use std::borrow::Cow;

use switchyard_types::command::Refusal;
use switchyard_types::history::PublishOptions;
use switchyard_types::ids::ConnectionId;
use switchyard_types::position::Position;

/// Edits or refuses deliveries. The chain of plugins is one.
pub trait DeliveryFilter {
    /// Whether `deliver` must be called at all.
    fn has_deliveries(&self) -> bool;

    /// Edits or refuses these deliveries, each with its publisher: one result for each, in order.
    /// The caller holds shard locks during the call.
    fn deliver(
        &self,
        deliveries: Vec<(ConnectionId, Delivery<'_>)>,
    ) -> Vec<Result<DeliveryEdit, Refusal>>;
}

/// A publication on its way out.
#[derive(Debug, Clone)]
pub struct Delivery<'a> {
    /// Its channel.
    pub channel: &'a [u8],
    /// The message, as the previous plugins left it.
    pub payload: Cow<'a, [u8]>,
    /// Its position in the history of its channel; none: it is not retained.
    pub position: Option<Position>,
    /// What it carries besides; none for most.
    pub extras: Option<Extras<'a>>,
    /// The receivers, in rising order.
    pub recipients: Vec<ConnectionId>,
}

/// What a publication carries besides its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extras<'a> {
    /// The key by which the server recognizes it when it is repeated.
    pub key: Option<&'a str>,
    /// The version of its value.
    pub version: Option<u64>,
    /// Its tags: a JSON object of texts.
    pub tags: Option<&'a [u8]>,
}

impl<'a> Extras<'a> {
    /// What a publication carries; none: nothing.
    pub fn of(options: Option<&'a PublishOptions>) -> Option<Extras<'a>> {
        let PublishOptions { key, version, tags, .. } = options?;
        let extras = Extras { key: key.as_deref(), version: *version, tags: tags.as_deref() };
        (extras != Extras { key: None, version: None, tags: None }).then_some(extras)
    }
}

impl Delivery<'_> {
    /// The size of the payload and of the list of receivers.
    pub fn bytes(&self) -> usize {
        self.payload.len() + self.recipients.len() * size_of::<ConnectionId>()
    }
}

/// A verdict on a publication on its way out.
#[derive(Debug, Default)]
pub struct DeliveryEdit {
    /// Another payload.
    pub payload: Option<Vec<u8>>,
    /// Only these receive it, in rising order.
    pub recipients: Option<Vec<ConnectionId>>,
}
