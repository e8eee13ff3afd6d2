//! What follows which names have subscribers on this node.

use switchyard_types::command::Kind;

/// Is notified when a name gets its first subscriber and loses its last one. The backplane is one.
/// Both are called under the lock of the name's shard, so they must be short and take no lock that
/// comes before it.
pub trait SubscriptionObserver: Send + Sync {
    /// The name has a subscriber.
    fn join(&self, kind: Kind, name: &[u8]);

    /// The name has no subscriber any more.
    fn leave(&self, kind: Kind, name: &[u8]);

    /// How much memory is held for names without subscribers.
    fn leaving_bytes(&self) -> usize;
}
