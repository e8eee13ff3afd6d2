//! The health of the server, and which part of it is unhealthy.
//!
//! The engine is tested with a message that takes the path of all messages: into each shard,
//! through its engine, into the outbox of a hidden connection. No other connection receives
//! it. No plugin is called for it: a plugin that refuses an unknown client is not unhealthy.
//! Plugins and backplane report their own health. A result is reused for `health.reuse_ms`,
//! so that frequent requests cost nothing, and a check takes at most `health.timeout_ms`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::live_config::LiveConfig;
use crate::session::Services;
use switchyard_backplane::State as BackplaneState;
use switchyard_config::HealthConfig;
use switchyard_middleware::declaration::TrapPolicy;
use switchyard_middleware::plugin;
use switchyard_telemetry::log;

/// The state of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It works.
    Ok,
    /// It does not work, and the server serves without it.
    Degraded,
    /// It does not work, and clients are refused because of it.
    #[serde(rename = "ill")]
    Unhealthy,
}

/// The state of the server at a moment.
#[derive(Debug, Clone)]
pub struct Report {
    /// The shards, by number; the second half is for shard channels.
    pub shards: Arc<[Finding]>,
    /// The age of the shard findings.
    pub age: Duration,
    /// How long the shard probe took.
    pub took: Duration,
    /// The plugins, by slot, in the order of the chain.
    pub plugins: Vec<(String, Finding)>,
    /// None: the node has no backplane.
    pub backplane: Option<Finding>,
    /// Whether log lines are written.
    pub log: Finding,
    /// The server's own tasks that do not run.
    pub tasks: Vec<Finding>,
    /// Whether a bound on the memory of all connections is near.
    pub memory: Finding,
    /// Whether the server is ending.
    pub is_draining: bool,
}

/// The state of a part, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The state.
    pub status: Status,
    /// What is wrong; none: nothing.
    pub problem: Option<String>,
}

impl Finding {
    const OK: Finding = Finding { status: Status::Ok, problem: None };

    fn degraded(problem: impl Into<String>) -> Finding {
        Finding { status: Status::Degraded, problem: Some(problem.into()) }
    }

    fn unhealthy(problem: impl Into<String>) -> Finding {
        Finding { status: Status::Unhealthy, problem: Some(problem.into()) }
    }
}

impl Report {
    /// The state of the whole: that of its worst part.
    pub fn status(&self) -> Status {
        self.findings().map(|finding| finding.status).max().unwrap_or(Status::Ok)
    }

    /// Whether the server is ready for new connections.
    pub fn is_ready(&self) -> bool {
        !self.is_draining && self.status() != Status::Unhealthy
    }

    /// What is wrong, the worst first.
    pub fn problems(&self) -> Vec<String> {
        let mut wrong: Vec<&Finding> = self.findings().collect();
        wrong.sort_by_key(|finding| std::cmp::Reverse(finding.status));
        let mut problems: Vec<String> =
            wrong.into_iter().filter_map(|finding| finding.problem.clone()).collect();
        // Several shards may have the same problem.
        problems.dedup();
        problems
    }

    /// The report as a few lines of text.
    pub fn text(&self) -> String {
        let problems = self.problems();
        let words = match self.status() {
            Status::Ok => "ok",
            Status::Degraded => "ok, but",
            Status::Unhealthy => "ill",
        };
        if problems.is_empty() {
            return format!("{words}\n");
        }
        format!("{words}: {}\n", problems.join("; "))
    }

    fn findings(&self) -> impl Iterator<Item = &Finding> {
        let plugins = self.plugins.iter().map(|(_, finding)| finding);
        self.shards
            .iter()
            .chain(plugins)
            .chain(&self.backplane)
            .chain([&self.log, &self.memory])
            .chain(&self.tasks)
    }
}

/// Checks the health of the server.
pub struct Health {
    services: Services,
    live: Arc<LiveConfig>,
    config: HealthConfig,
    /// Locked during a probe: a request that arrives then waits for its result.
    last: Mutex<Option<Probed>>,
    /// Whether a probe is running.
    is_probing: Arc<AtomicBool>,
}

/// The result of a probe, and when it was made.
#[derive(Clone)]
struct Probed {
    at: Instant,
    took: Duration,
    shards: Arc<[Finding]>,
}

impl Health {
    /// The health of a server with these parts. Nothing is probed yet.
    pub fn new(services: Services, live: Arc<LiveConfig>, config: HealthConfig) -> Arc<Health> {
        let is_probing = Arc::default();
        Arc::new(Health { services, live, config, last: Mutex::new(None), is_probing })
    }

    /// The services that it checks.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The live configuration, which also says whether the server is draining.
    pub fn live(&self) -> &Arc<LiveConfig> {
        &self.live
    }

    /// Checks all parts.
    pub async fn report(&self) -> Report {
        let Probed { at, took, shards } = self.probed().await;
        Report {
            shards,
            age: at.elapsed(),
            took,
            plugins: self.plugins(),
            backplane: self.services.backplane.as_ref().map(|backplane| match backplane.state() {
                BackplaneState::Ready => match backplane.problem() {
                    None => Finding::OK,
                    Some(problem) => Finding::degraded(problem),
                },
                BackplaneState::Restoring => {
                    Finding::unhealthy("the subscriptions are being sent to the backplane")
                }
                BackplaneState::Disconnected => {
                    Finding::unhealthy(match backplane.missing_right() {
                        None => "the backplane is disconnected".to_owned(),
                        Some(right) => {
                            format!(
                                "the backplane is disconnected: its user lacks the right to {right}"
                            )
                        }
                    })
                }
            }),
            log: log::problem().map_or(Finding::OK, Finding::degraded),
            tasks: self.services.supervisor.problems().into_iter().map(Finding::degraded).collect(),
            memory: match self.services.hub.connections().memory().problems() {
                problems if problems.is_empty() => Finding::OK,
                problems => Finding::degraded(problems.join("; ")),
            },
            is_draining: self.live.is_draining(),
        }
    }

    fn plugins(&self) -> Vec<(String, Finding)> {
        let Some(chain) = self.services.middleware.chain_within(Duration::ZERO) else {
            // The chain is being changed: do not wait for it.
            return Vec::new();
        };
        let plugins = chain.plugins().to_vec();
        drop(chain);
        let missing = self.services.middleware.missing_files();
        let unreadable = self.services.middleware.unreadable_directory();
        let finding = |plugin: &Arc<plugin::Plugin>| {
            let slot = plugin.slot();
            let finding = match (plugin.state(), plugin.policy) {
                (plugin::State::Running, _) => match (missing.get(&slot), &unreadable) {
                    (Some(_), _) => Finding::degraded(format!(
                        "a file of the plugin {slot} is gone, and the plugin is in force without it"
                    )),
                    (None, Some(problem)) => {
                        Finding::degraded(format!("the plugin directory cannot be read: {problem}"))
                    }
                    (None, None) => Finding::OK,
                },
                (plugin::State::Rebuilding { .. }, _) => {
                    Finding::degraded(format!("the plugin {slot} failed and is rebuilt"))
                }
                (plugin::State::Parked { .. }, TrapPolicy::Open) => Finding::degraded(format!(
                    "the plugin {slot} failed too often, is parked, and is skipped"
                )),
                (plugin::State::Parked { .. }, TrapPolicy::Closed) => Finding::unhealthy(format!(
                    "the plugin {slot} failed too often, is parked, and what it guards is refused"
                )),
            };
            (slot, finding)
        };
        plugins.iter().map(finding).collect()
    }

    async fn probed(&self) -> Probed {
        let mut last = self.last.lock().await;
        if let Some(last) = &*last
            && last.at.elapsed() < self.config.reuse_time
        {
            return last.clone();
        }
        let began = Instant::now();
        let shards = self.probe().await;
        let probed = Probed { at: Instant::now(), took: began.elapsed(), shards };
        *last = Some(probed.clone());
        probed
    }

    async fn probe(&self) -> Arc<[Finding]> {
        let all = |finding: Finding| vec![finding; 2 * self.services.hub.spread()].into();
        let patience = self.config.time;
        let ms = patience.as_millis();
        // A probe that does not return blocks one thread, not one each second.
        if self.is_probing.swap(true, Ordering::AcqRel) {
            return all(Finding::unhealthy(format!(
                "the engine has not answered for more than {ms} ms"
            )));
        }
        // Reset also if the thread cannot be started.
        let done = Done(self.is_probing.clone());
        let services = self.services.clone();
        let probing = tokio::task::spawn_blocking(move || {
            let _done = done;
            // Wait for locks for half of the time only, so that the report can name the lock that
            // is held.
            let until = Instant::now() + patience / 2;
            let is_chain_free = services.middleware.chain_within(patience / 2).is_some();
            (is_chain_free, services.hub.probe(until))
        });
        match tokio::time::timeout(patience, probing).await {
            Ok(Ok((true, shards))) => shards
                .into_iter()
                .map(|found| {
                    found.map_or_else(|fault| Finding::unhealthy(fault.words()), |()| Finding::OK)
                })
                .collect(),
            Ok(Ok((false, _))) => all(Finding::unhealthy(format!(
                "the plugins have been held for more than {} ms",
                ms / 2
            ))),
            Ok(Err(_)) => all(Finding::unhealthy("the engine probe failed; see the log")),
            Err(_) => all(Finding::unhealthy(format!("the engine does not answer within {ms} ms"))),
        }
    }
}

/// Records that the probe has ended, in whichever way.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            shards: [Finding::OK, Finding::OK].into(),
            age: Duration::ZERO,
            took: Duration::ZERO,
            plugins: vec![("10-acl".to_owned(), Finding::OK)],
            backplane: None,
            log: Finding::OK,
            tasks: Vec::new(),
            memory: Finding::OK,
            is_draining: false,
        }
    }

    #[test]
    fn the_whole_is_as_its_worst_part_and_says_so() {
        let mut report = report();
        assert_eq!((report.status(), report.is_ready()), (Status::Ok, true));
        assert_eq!(report.text(), "ok\n");
        report.log = Finding::degraded("no log");
        report.tasks = vec![Finding::degraded("no task")];
        assert_eq!((report.status(), report.is_ready()), (Status::Degraded, true));
        assert_eq!(report.text(), "ok, but: no log; no task\n");
        report.shards = [Finding::unhealthy("engine"), Finding::unhealthy("engine")].into();
        assert_eq!((report.status(), report.is_ready()), (Status::Unhealthy, false));
        assert_eq!(report.text(), "ill: engine; no log; no task\n");
    }

    #[test]
    fn a_draining_server_is_healthy_but_not_ready() {
        let report = Report { is_draining: true, ..report() };
        assert_eq!((report.status(), report.is_ready()), (Status::Ok, false));
    }
}
