//! What may change a publication between the engine and the outboxes.

use std::borrow::Cow;

use switchyard_types::command::Refusal;
use switchyard_types::ids::ConnectionId;

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
    /// The receivers, in rising order.
    pub recipients: Vec<ConnectionId>,
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
