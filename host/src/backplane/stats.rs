//! What is counted of the backplane. Nothing is lost in silence: what may have
//! been lost stands in one of these.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the node began.
#[derive(Debug, Default)]
pub struct BackplaneStats {
    /// Publications that the backplane has.
    pub sent: AtomicU64,
    /// Publications accepted for this node alone while the backplane was away.
    pub unsent_away: AtomicU64,
    /// The same because too much waited for the backplane.
    pub unsent_full: AtomicU64,
    /// Publications that the backplane would not take: its rights, for instance.
    pub unsent_refused: AtomicU64,
    /// Publications under way when the connection broke. The backplane has them or
    /// not; they are not sent again.
    pub uncertain: AtomicU64,
    /// Publications refused to their publishers, for want of a backplane.
    pub refused: AtomicU64,
    /// Messages that came from elsewhere.
    pub received: AtomicU64,
    /// Own messages and further copies that came and were dropped.
    pub echoes: AtomicU64,
    /// Messages from elsewhere that were larger than this node's limits.
    pub oversized: AtomicU64,
    /// Messages on subjects that no channel is written as.
    pub unmapped: AtomicU64,
    /// Messages from elsewhere that a plugin or a failing engine kept from being
    /// delivered.
    pub undelivered: AtomicU64,
    /// Messages that the client of NATS dropped because they were not taken in
    /// time.
    pub overrun: AtomicU64,
    /// Names that were listened to, each time they were.
    pub joined: AtomicU64,
    /// Names that were given up.
    pub left: AtomicU64,
    /// Names that cannot be listened to on this backplane.
    pub unlistenable: AtomicU64,
    /// Subscriptions acknowledged before the backplane had confirmed them.
    pub late_joins: AtomicU64,
    /// How often the backplane came back. What was published elsewhere in the
    /// meantime did not come here.
    pub reconnects: AtomicU64,
}

impl BackplaneStats {
    /// Publications accepted here that are known not to have gone elsewhere.
    pub fn unsent(&self) -> u64 {
        [&self.unsent_away, &self.unsent_full, &self.unsent_refused]
            .into_iter()
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }

    /// All counters with their names, for INFO.
    pub fn all(&self) -> [(&'static str, u64); 17] {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("backplane_sent", load(&self.sent)),
            ("backplane_unsent_away", load(&self.unsent_away)),
            ("backplane_unsent_full", load(&self.unsent_full)),
            ("backplane_unsent_refused", load(&self.unsent_refused)),
            ("backplane_uncertain", load(&self.uncertain)),
            ("backplane_refused", load(&self.refused)),
            ("backplane_received", load(&self.received)),
            ("backplane_echoes", load(&self.echoes)),
            ("backplane_oversized", load(&self.oversized)),
            ("backplane_unmapped", load(&self.unmapped)),
            ("backplane_undelivered", load(&self.undelivered)),
            ("backplane_overrun", load(&self.overrun)),
            ("backplane_joined", load(&self.joined)),
            ("backplane_left", load(&self.left)),
            ("backplane_unlistenable", load(&self.unlistenable)),
            ("backplane_late_joins", load(&self.late_joins)),
            ("backplane_reconnects", load(&self.reconnects)),
        ]
    }
}
