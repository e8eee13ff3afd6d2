//! Counters of the shards and their engines.
//!
//! Each shard has its own counters and writes them while its lock is held, so that there is one
//! writer at a time. Readers take no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::engine::EngineFault;
use switchyard_telemetry::histogram::{Histogram, HistogramReading};
use switchyard_telemetry::stats::{count, load};

/// A function of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the contract documents them")]
pub enum EngineCall {
    Subscribe,
    Unsubscribe,
    Psubscribe,
    Punsubscribe,
    Route,
    Channels,
    SubscriberCounts,
    ChannelCount,
    PatternCount,
    /// Creating an instance.
    Instantiate,
}

impl EngineCall {
    /// All, in the order in which they are counted.
    pub const ALL: [EngineCall; 10] = [
        EngineCall::Subscribe,
        EngineCall::Unsubscribe,
        EngineCall::Psubscribe,
        EngineCall::Punsubscribe,
        EngineCall::Route,
        EngineCall::Channels,
        EngineCall::SubscriberCounts,
        EngineCall::ChannelCount,
        EngineCall::PatternCount,
        EngineCall::Instantiate,
    ];

    /// The name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            EngineCall::Subscribe => "subscribe",
            EngineCall::Unsubscribe => "unsubscribe",
            EngineCall::Psubscribe => "psubscribe",
            EngineCall::Punsubscribe => "punsubscribe",
            EngineCall::Route => "route",
            EngineCall::Channels => "channels",
            EngineCall::SubscriberCounts => "subscriber-counts",
            EngineCall::ChannelCount => "channel-count",
            EngineCall::PatternCount => "pattern-count",
            EngineCall::Instantiate => "instantiate",
        }
    }
}

/// The counters of one function.
#[derive(Default)]
struct CallStats {
    time: Histogram,
    faults: AtomicU64,
}

/// The counters of one shard.
pub struct ShardStats {
    calls: [CallStats; EngineCall::ALL.len()],
    publications: AtomicU64,
    deliveries: AtomicU64,
    rebuilds: Histogram,
    is_up: AtomicBool,
}

impl Default for ShardStats {
    fn default() -> ShardStats {
        ShardStats {
            calls: Default::default(),
            publications: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
            rebuilds: Histogram::default(),
            is_up: AtomicBool::new(true),
        }
    }
}

impl ShardStats {
    /// Records a call of its engine, which took `time`.
    pub fn called(&self, call: EngineCall, time: Duration) {
        if let Some(calls) = self.calls.get(call as usize) {
            calls.time.record(time);
        }
    }

    /// Records that its engine failed and was dropped.
    pub fn failed(&self, fault: &EngineFault) {
        self.is_up.store(false, Ordering::Relaxed);
        let calls = EngineCall::ALL.into_iter().zip(&self.calls);
        for (_, calls) in calls.filter(|(call, _)| call.name() == fault.call) {
            count(&calls.faults);
        }
    }

    /// Records that its engine was rebuilt from the ground state in this `time`.
    pub fn rebuilt(&self, time: Duration) {
        self.rebuilds.record(time);
        self.is_up();
    }

    /// Records that it has an engine.
    pub fn is_up(&self) {
        self.is_up.store(true, Ordering::Relaxed);
    }

    /// Records publications and their deliveries.
    pub fn delivered(&self, publications: u64, deliveries: u64) {
        self.publications.fetch_add(publications, Ordering::Relaxed);
        self.deliveries.fetch_add(deliveries, Ordering::Relaxed);
    }
}

/// The counters of all shards.
pub struct HubStats {
    shards: Box<[Arc<ShardStats>]>,
}

impl HubStats {
    /// For this many shards.
    pub fn new(shards: usize) -> HubStats {
        HubStats { shards: (0..shards).map(|_| Arc::default()).collect() }
    }

    /// The counters of one shard.
    pub fn of(&self, number: usize) -> Arc<ShardStats> {
        self.shards.get(number).cloned().unwrap_or_default()
    }

    /// Publications that were delivered to subscribers on this node.
    pub fn publications(&self) -> u64 {
        self.shards.iter().map(|shard| load(&shard.publications)).sum()
    }

    /// Deliveries that they made.
    pub fn deliveries(&self) -> u64 {
        self.shards.iter().map(|shard| load(&shard.deliveries)).sum()
    }

    /// The durations of calls of each function, and how many of them failed.
    pub fn calls(&self) -> impl Iterator<Item = (EngineCall, HistogramReading, u64)> {
        EngineCall::ALL.into_iter().map(|call| {
            let of = || self.shards.iter().filter_map(move |shard| shard.calls.get(call as usize));
            let time = of().map(|calls| calls.time.read()).sum();
            (call, time, of().map(|calls| load(&calls.faults)).sum())
        })
    }

    /// The durations of rebuilds.
    pub fn rebuilds(&self) -> HistogramReading {
        self.shards.iter().map(|shard| shard.rebuilds.read()).sum()
    }

    /// For each shard, whether it has an engine.
    pub fn shards_up(&self) -> impl Iterator<Item = bool> {
        self.shards.iter().map(|shard| shard.is_up.load(Ordering::Relaxed))
    }
}
