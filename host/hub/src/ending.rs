//! Subscriptions that the server ends, because new rules refuse them.
//!
//! The connection is sent a notice in the order of its acknowledgements, and no message on
//! the names in it after that.

use super::connections::Connection;
use super::encoding::Ended;
use super::{Hub, Kind};
use switchyard_types::command::{Bytestring, Refusal};

/// A subscription that is to end, and why.
pub type Refused<'a> = (Bytestring<'a>, Refusal);

impl Hub {
    /// Ends those of these subscriptions that the connection still has, and sends it a notice.
    /// Returns how many ended. None: a subscription was acknowledged or an attribute changed since
    /// the connection had this `revision`, so the refusals may be outdated; then nothing has
    /// changed.
    pub fn end_refused(
        &self,
        connection: &Connection,
        kind: Kind,
        refused: &[Refused<'_>],
        revision: Option<u64>,
    ) -> Option<usize> {
        let names: Vec<_> = refused.iter().map(|(name, _)| name.clone()).collect();
        let by_shard = self.by_shard(kind, &names);
        let mut guards = self.lock(by_shard.iter().map(|(shard, _)| *shard));
        let mut subscriptions = connection.subscriptions();
        if revision.is_some_and(|revision| revision != connection.revision()) {
            return None;
        }
        let mut ended = Vec::with_capacity(refused.len());
        for (name, refusal) in refused {
            if self.forget(connection, &mut subscriptions, kind, name) {
                let count = subscriptions.counted_with(kind);
                ended.push(Ended { name: name.as_ref(), count, refusal });
            }
        }
        if ended.is_empty() {
            return Some(0);
        }
        // While the subscriptions are locked, as acknowledgements are queued.
        let mut notice = Vec::new();
        connection.encoding().encoder().ended(kind, &ended, &mut notice);
        connection.outbox.push(notice.into());
        drop(subscriptions);
        for ((_, shard), (_, names)) in guards.iter_mut().zip(&by_shard) {
            shard.unsubscribe(self, connection.id, kind, names);
        }
        Some(ended.len())
    }
}
