//! Counters of the backplane. Each message that was or may have been lost is counted in one of
//! them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the node started.
#[derive(Debug, Default)]
pub struct BackplaneStats {
    /// Publications that the backplane has accepted.
    pub sent: AtomicU64,
    /// Publications accepted for this node alone while the backplane was disconnected.
    pub unsent_away: AtomicU64,
    /// Publications accepted for this node alone because the queue to the backplane was full.
    pub unsent_full: AtomicU64,
    /// Publications that the backplane rejected, for missing rights for instance.
    pub unsent_refused: AtomicU64,
    /// Publications in flight when the connection failed. The backplane may have them; they are not
    /// sent again.
    pub uncertain: AtomicU64,
    /// Publications that were refused to their publishers because the backplane was not available.
    pub refused: AtomicU64,
    /// Messages received from other nodes.
    pub received: AtomicU64,
    /// Own messages and further copies that were received and dropped.
    pub echoes: AtomicU64,
    /// Messages from other nodes that were larger than this node's limits.
    pub oversized: AtomicU64,
    /// Messages on subjects that map to no channel.
    pub unmapped: AtomicU64,
    /// Messages from other nodes that were not delivered because of a plugin or a failing engine.
    pub undelivered: AtomicU64,
    /// Messages that the NATS client dropped because they were not read in time.
    pub overrun: AtomicU64,
    /// Names subscribed to, counted each time.
    pub joined: AtomicU64,
    /// Names unsubscribed from.
    pub left: AtomicU64,
    /// Names that cannot be subscribed to on this backplane.
    pub unlistenable: AtomicU64,
    /// Subscriptions acknowledged before the backplane had confirmed them.
    pub late_joins: AtomicU64,
    /// How often the backplane reconnected. What other nodes published in the meantime was not
    /// received here.
    pub reconnects: AtomicU64,
    /// Messages that were missed, and then read from the histories and delivered.
    pub caught_up: AtomicU64,
    /// How often messages of a channel were missed that are gone: its subscribers were closed.
    pub lost_streams: AtomicU64,
}

impl BackplaneStats {
    /// Publications accepted here that were certainly not sent to other nodes.
    pub fn unsent(&self) -> u64 {
        [&self.unsent_away, &self.unsent_full, &self.unsent_refused]
            .into_iter()
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }

    /// All counters with their names, for INFO.
    pub fn all(&self) -> [(&'static str, u64); 19] {
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
            ("backplane_caught_up", load(&self.caught_up)),
            ("backplane_lost_streams", load(&self.lost_streams)),
        ]
    }
}
