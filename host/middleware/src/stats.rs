//! Counters of each plugin, and of each swap.
//!
//! A plugin's counters belong to its slot: they continue across swaps, as graphs of them need. All
//! are relaxed atomics that are read one by one, so a reading is not a consistent snapshot. This
//! module does not format them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use switchyard_telemetry::histogram::{Histogram, HistogramReading};

/// The hooks whose calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the contract documents them")]
pub enum Hook {
    OnConnect,
    OnAuthenticate,
    OnDisconnect,
    OnAccess,
    OnPublish,
    OnDeliver,
}

impl Hook {
    /// All, in the order in which a message passes them.
    pub const ALL: [Hook; 6] = [
        Hook::OnConnect,
        Hook::OnAuthenticate,
        Hook::OnDisconnect,
        Hook::OnAccess,
        Hook::OnPublish,
        Hook::OnDeliver,
    ];

    /// The name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Hook::OnConnect => "on-connect",
            Hook::OnAuthenticate => "on-authenticate",
            Hook::OnDisconnect => "on-disconnect",
            Hook::OnAccess => "on-access",
            Hook::OnPublish => "on-publish",
            Hook::OnDeliver => "on-deliver",
        }
    }
}

/// A plugin's decision about one item, as it is counted and traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It continues unchanged: continue, allowed, valid credentials.
    #[default]
    Pass,
    /// It continues changed.
    Replace,
    /// It is refused.
    Reject,
    /// It is dropped, and its publisher receives a success reply.
    Absorb,
    /// Fewer receive it.
    Narrow,
    /// The plugin does not decide: the credentials are not for it.
    Abstain,
    /// The plugin could not decide, and its policy refused the item.
    FailedClosed,
    /// The plugin could not decide, and its policy let the item pass.
    FailedOpen,
}

impl Verdict {
    /// All, in the order in which they are counted.
    pub const ALL: [Verdict; 8] = [
        Verdict::Pass,
        Verdict::Replace,
        Verdict::Reject,
        Verdict::Absorb,
        Verdict::Narrow,
        Verdict::Abstain,
        Verdict::FailedClosed,
        Verdict::FailedOpen,
    ];

    /// A stable label for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Replace => "replace",
            Verdict::Reject => "reject",
            Verdict::Absorb => "absorb",
            Verdict::Narrow => "narrow",
            Verdict::Abstain => "abstain",
            Verdict::FailedClosed => "failed-closed",
            Verdict::FailedOpen => "failed-open",
        }
    }
}

/// The counters of one hook of a plugin.
#[derive(Default)]
pub struct HookStats {
    /// Items in calls that returned or failed, and the number of these calls.
    calls: AtomicU64,
    items: AtomicU64,
    verdicts: [AtomicU64; Verdict::ALL.len()],
    faults: AtomicU64,
    /// The durations of its calls.
    pub time: Histogram,
}

impl HookStats {
    /// Records a call with this many items, and its duration.
    pub fn called(&self, items: usize, time: Duration) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.items.fetch_add(items as u64, Ordering::Relaxed);
        self.time.record(time);
    }

    /// Records a trap, a budget overrun, or a violation of the contract.
    pub fn failed(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Records this verdict for this many items.
    pub fn said(&self, verdict: Verdict, items: usize) {
        if items > 0
            && let Some(count) = self.verdicts.get(verdict as usize)
        {
            count.fetch_add(items as u64, Ordering::Relaxed);
        }
    }

    /// Records these verdicts.
    pub fn said_all(&self, verdicts: impl Iterator<Item = Verdict>) {
        let mut counts = [0_usize; Verdict::ALL.len()];
        for verdict in verdicts {
            if let Some(count) = counts.get_mut(verdict as usize) {
                *count += 1;
            }
        }
        Verdict::ALL.into_iter().zip(counts).for_each(|(verdict, count)| self.said(verdict, count));
    }

    /// Calls, items and faults so far.
    pub fn totals(&self) -> [u64; 3] {
        [&self.calls, &self.items, &self.faults].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// How often it returned each verdict.
    pub fn verdicts(&self) -> impl Iterator<Item = (Verdict, u64)> {
        Verdict::ALL
            .into_iter()
            .zip(&self.verdicts)
            .map(|(verdict, count)| (verdict, count.load(Ordering::Relaxed)))
    }
}

/// How many of the last failures of each plugin are kept.
const FAILURES_MAX: usize = 16;

/// The counters of the plugin in one slot.
#[derive(Default)]
pub struct PluginStats {
    hooks: [HookStats; Hook::ALL.len()],
    rebuilds: AtomicU64,
    rechecks: RecheckStats,
    items_retried: AtomicU64,
    isolations: AtomicU64,
    failures: Mutex<VecDeque<Failure>>,
}

/// Counters of the checks of existing subscriptions after a plugin was added or changed.
#[derive(Default)]
pub struct RecheckStats {
    running: AtomicU64,
    checked: AtomicU64,
    ended: AtomicU64,
    unanswered: AtomicU64,
}

/// The current values of these counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecheckReading {
    /// How many checks run now.
    pub running: u64,
    /// Subscriptions that were checked.
    pub checked: u64,
    /// Subscriptions that ended.
    pub ended: u64,
    /// Subscriptions that stay because the plugin could not decide.
    pub unanswered: u64,
}

impl RecheckStats {
    /// Counts a check that starts.
    pub fn began(&self) {
        self.running.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a check that has ended.
    pub fn is_over(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// Adds to the subscriptions that were checked, ended, or could not be checked.
    pub fn add(&self, checked: usize, ended: usize, unanswered: usize) {
        self.checked.fetch_add(checked as u64, Ordering::Relaxed);
        self.ended.fetch_add(ended as u64, Ordering::Relaxed);
        self.unanswered.fetch_add(unanswered as u64, Ordering::Relaxed);
    }

    /// The current values.
    pub fn read(&self) -> RecheckReading {
        RecheckReading {
            running: self.running.load(Ordering::Relaxed),
            checked: self.checked.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
            unanswered: self.unanswered.load(Ordering::Relaxed),
        }
    }
}

/// A recorded failure of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The time of the failure.
    pub at: SystemTime,
    /// The version, as in the refusal that the client received.
    pub plugin: Arc<str>,
    /// The hook or the step that failed.
    pub step: &'static str,
    /// Why.
    pub problem: String,
    /// The file concerned, if it was refused.
    pub file: Option<PathBuf>,
}

impl PluginStats {
    /// The counters of this hook.
    pub fn of(&self, hook: Hook) -> &HookStats {
        let stats = self.hooks.get(hook as usize);
        stats.expect("there is one for each hook")
    }

    /// Records a failure; one of a hook is also counted there.
    pub fn failed(&self, failure: Failure) {
        if let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.name() == failure.step) {
            self.of(hook).failed();
        }
        let mut failures = self.failures.lock();
        if failures.len() == FAILURES_MAX {
            failures.pop_front();
        }
        failures.push_back(failure);
    }

    /// Counts an instance that was rebuilt after a failure.
    pub fn rebuilt(&self) {
        self.rebuilds.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters of the checks of existing subscriptions.
    pub fn rechecks(&self) -> &RecheckStats {
        &self.rechecks
    }

    /// How often an instance was rebuilt.
    pub fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Ordering::Relaxed)
    }

    /// Counts items of a failed call that were retried.
    pub fn retried(&self, items: usize) {
        self.items_retried.fetch_add(items as u64, Ordering::Relaxed);
    }

    /// Counts an isolated connection.
    pub fn isolated(&self) {
        self.isolations.fetch_add(1, Ordering::Relaxed);
    }

    /// How many items were retried.
    pub fn items_retried(&self) -> u64 {
        self.items_retried.load(Ordering::Relaxed)
    }

    /// How often a connection was isolated.
    pub fn isolations(&self) -> u64 {
        self.isolations.load(Ordering::Relaxed)
    }

    /// The last failures, the latest last.
    pub fn failures(&self) -> Vec<Failure> {
        self.failures.lock().iter().cloned().collect()
    }
}

/// The initiator of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Initiator {
    /// The server, as it started.
    Start,
    /// `serve --check`.
    Check,
    /// A file that changed.
    File,
    /// SIGHUP.
    Signal,
    /// No initiator: the previous plugin had been parked.
    Parked,
    /// The admin API, by the token of this name.
    Token(Arc<str>),
    /// The admin API, where no token is required.
    Local,
}

impl Initiator {
    /// As written in the log and the API.
    pub fn name(&self) -> &str {
        match self {
            Initiator::Start => "start",
            Initiator::Check => "check",
            Initiator::File => "file",
            Initiator::Signal => "signal",
            Initiator::Parked => "parked",
            Initiator::Token(name) => name,
            Initiator::Local => "local",
        }
    }
}

/// The kind of a change of the chain or of the engine. It is counted by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// A plugin was added.
    Added,
    /// A plugin was replaced.
    Swapped,
    /// The previous version was restored.
    RolledBack,
    /// A plugin was moved.
    Moved,
    /// A plugin was removed.
    Removed,
    /// The engine was replaced.
    EngineSwapped,
    /// The previous engine was restored.
    EngineRolledBack,
}

impl ChangeKind {
    /// All, in the order in which they are counted.
    pub const ALL: [ChangeKind; 7] = [
        ChangeKind::Added,
        ChangeKind::Swapped,
        ChangeKind::RolledBack,
        ChangeKind::Moved,
        ChangeKind::Removed,
        ChangeKind::EngineSwapped,
        ChangeKind::EngineRolledBack,
    ];

    /// A stable label for metrics.
    pub fn name(self) -> &'static str {
        match self {
            ChangeKind::Added => "added",
            ChangeKind::Swapped => "swapped",
            ChangeKind::RolledBack => "rolled-back",
            ChangeKind::Moved => "moved",
            ChangeKind::Removed => "removed",
            ChangeKind::EngineSwapped => "engine-swapped",
            ChangeKind::EngineRolledBack => "engine-rolled-back",
        }
    }
}

/// One change, as it is logged and recorded.
#[derive(Debug, Clone)]
pub struct Swap {
    /// The time of the change.
    pub at: SystemTime,
    /// The initiator.
    pub by: Initiator,
    /// The kind.
    pub kind: ChangeKind,
    /// The slot concerned; none: the engine.
    pub slot: Option<String>,
    /// The previous version.
    pub from: Option<Arc<str>>,
    /// The new version.
    pub to: Option<Arc<str>>,
    /// For how long messages waited.
    pub pause: Duration,
}

/// How many changes are recorded.
const SWAPS_MAX: usize = 64;

/// The last changes, and how long messages waited for all of them.
#[derive(Default)]
pub struct Swaps {
    last: Mutex<VecDeque<Swap>>,
    pauses: [Histogram; ChangeKind::ALL.len()],
}

impl Swaps {
    /// Records a change.
    pub fn record(&self, swap: Swap) {
        if let Some(pauses) = self.pauses.get(swap.kind as usize) {
            pauses.record(swap.pause);
        }
        let mut last = self.last.lock();
        if last.len() == SWAPS_MAX {
            last.pop_front();
        }
        last.push_back(swap);
    }

    /// The pauses of all changes.
    pub fn pauses(&self) -> HistogramReading {
        self.pauses_by_kind().map(|(_, pauses)| pauses).sum()
    }

    /// The pauses of each kind of change.
    pub fn pauses_by_kind(&self) -> impl Iterator<Item = (ChangeKind, HistogramReading)> {
        ChangeKind::ALL.into_iter().zip(self.pauses.iter().map(Histogram::read))
    }

    /// The last changes, the latest last.
    pub fn last(&self) -> Vec<Swap> {
        self.last.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_a_limit() {
        let stats = PluginStats::default();
        let failure = |problem: usize| Failure {
            at: SystemTime::UNIX_EPOCH,
            plugin: "p@1".into(),
            step: "on-publish",
            problem: problem.to_string(),
            file: None,
        };
        (0..100).for_each(|number| stats.failed(failure(number)));
        let kept = stats.failures();
        assert_eq!(kept.len(), FAILURES_MAX);
        assert_eq!(kept.last(), Some(&failure(99)));
        assert_eq!(stats.of(Hook::OnPublish).totals()[2], 100);
    }
}
