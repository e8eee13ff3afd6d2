//! The expiry times of connections' credentials, in order.
//!
//! A connection without an expiry has no entry and costs nothing; one task waits for the earliest
//! expiry.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::connections::{Connection, Connections};
use switchyard_telemetry::supervise::Ended;
use switchyard_types::close::CloseReason;
use switchyard_types::ids::ConnectionId;

/// How long before the expiry a client is notified of it.
const NOTICE_MS: u64 = 30_000;
/// The longest single wait, so that a change of the system clock is noticed.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How many connections are checked before other tasks run.
const SLICE_MAX: usize = 256;

/// When the host checks the expiry of one connection next.
#[derive(Debug, Default)]
pub struct Deadline {
    /// Whether the connection was admitted; until then it has no entry.
    is_open: bool,
    /// Its entry, in milliseconds since 1970.
    due_ms: Option<u64>,
}

/// The connections whose credentials expire, by the time of their next check.
#[derive(Default)]
pub struct Expiries {
    queue: Mutex<BTreeSet<(u64, ConnectionId)>>,
    /// Notified when there is an earlier first entry.
    changed: Notify,
}

impl Expiries {
    fn put(&self, deadline: &mut Deadline, connection: ConnectionId, due_ms: u64) {
        let mut queue = self.queue.lock();
        if let Some(old) = deadline.due_ms.replace(due_ms) {
            queue.remove(&(old, connection));
        }
        queue.insert((due_ms, connection));
        let is_first = queue.first() == Some(&(due_ms, connection));
        drop(queue);
        if is_first {
            self.changed.notify_one();
        }
    }

    fn take_out(&self, deadline: &mut Deadline, connection: ConnectionId) {
        if let Some(old) = deadline.due_ms.take() {
            self.queue.lock().remove(&(old, connection));
        }
    }

    fn first(&self) -> Option<u64> {
        self.queue.lock().first().map(|(due_ms, _)| *due_ms)
    }

    /// Removes the due entries, up to this many.
    fn due(&self, now_ms: u64) -> Vec<ConnectionId> {
        let mut queue = self.queue.lock();
        let mut due = Vec::new();
        while due.len() < SLICE_MAX
            && let Some((at, connection)) = queue.first().copied()
            && at <= now_ms
        {
            queue.pop_first();
            due.push(connection);
        }
        due
    }
}

/// Milliseconds since 1970, by the system clock.
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The close reason for a client whose credentials expired.
pub fn expired() -> CloseReason {
    CloseReason::Expired("the credentials expired".to_owned())
}

impl Connection {
    /// In how many milliseconds its credentials expire; none: they do not.
    pub fn expires_in_ms(&self) -> Option<u64> {
        Some(self.attributes.expires_at_ms()?.saturating_sub(unix_ms()))
    }

    /// Whether its credentials have expired.
    pub fn is_expired(&self) -> bool {
        self.expires_in_ms() == Some(0)
    }

    /// Adds a connection, whose expiry is checked from now on.
    pub(super) fn begin_expiring(&self) {
        self.attributes.with_deadline(|deadline, expires_at| {
            deadline.is_open = true;
            self.reschedule(deadline, expires_at);
        });
    }

    /// Removes a connection.
    pub(super) fn end_expiring(&self) {
        self.attributes.with_deadline(|deadline, _| {
            deadline.is_open = false;
            self.expiries.take_out(deadline, self.id);
        });
    }

    /// Updates the entry after the expiry changed. The attributes are locked.
    pub(super) fn reschedule(&self, deadline: &mut Deadline, expires_at: Option<u64>) {
        match expires_at {
            Some(at) if deadline.is_open => {
                let has_notice = self.encoding().encoder().expiring(NOTICE_MS).is_some();
                let notice = if has_notice { NOTICE_MS } else { 0 };
                self.expiries.put(deadline, self.id, at.saturating_sub(notice));
            }
            _ => self.expiries.take_out(deadline, self.id),
        }
    }

    /// Notifies the client that its credentials expire soon, or closes the connection if they have
    /// expired.
    fn look_at_expiry(&self, now_ms: u64) {
        self.attributes.with_deadline(|deadline, expires_at| {
            deadline.due_ms = None;
            let Some(at) = expires_at.filter(|_| deadline.is_open) else { return };
            if at <= now_ms {
                return self.outbox.close(expired());
            }
            self.expiries.put(deadline, self.id, at);
            if let Some(notice) = self.encoding().encoder().expiring(at - now_ms) {
                self.outbox.push(notice.into());
            }
        });
    }
}

/// Notifies clients whose credentials expire soon, and closes the connections of those whose
/// credentials have expired.
pub async fn expire(connections: Arc<Connections>) -> Ended {
    let expiries = connections.expiries();
    loop {
        match expiries.first() {
            None => expiries.changed.notified().await,
            Some(due_ms) => {
                let wait = Duration::from_millis(due_ms.saturating_sub(unix_ms()));
                let _ = tokio::time::timeout(wait.min(WAIT_MAX), expiries.changed.notified()).await;
            }
        }
        loop {
            let now_ms = unix_ms();
            let due = expiries.due(now_ms);
            if due.is_empty() {
                break;
            }
            for connection in due.into_iter().filter_map(|id| connections.get(id)) {
                connection.look_at_expiry(now_ms);
            }
            tokio::task::yield_now().await;
        }
    }
}
