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
use switchyard_backplane::{Backplane, State as BackplaneState};
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
    Unhealthy,
}

/// What a probe asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// `/livez`: whether the process works at all. A supervisor restarts one that does not.
    Alive,
    /// `/readyz`: whether the server is ready for new connections. A balancer sends none to one
    /// that is not.
    Ready,
    /// `/healthz`: whether something is wrong that a person should look at.
    Healthy,
}

impl Probe {
    /// The probe with this path, without a slash at the end.
    pub fn of_path(path: &str) -> Option<Probe> {
        Some(match path {
            "/livez" => Probe::Alive,
            "/readyz" => Probe::Ready,
            "/healthz" => Probe::Healthy,
            _ => return None,
        })
    }
}

/// The answer to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the status is 200, and not 503.
    pub is_good: bool,
    /// A line of text.
    pub text: String,
}

impl Verdict {
    /// The answer to `/livez`: that there is one says it all.
    pub fn alive() -> Verdict {
        Verdict { is_good: true, text: "ok\n".to_owned() }
    }
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
    /// Plugins with a closed policy that have settings and no component.
    pub guards: Vec<Finding>,
    /// None: the node has no backplane.
    pub backplane: Option<Finding>,
    /// Whether the server is not ready because it is not connected to the backplane.
    pub lacks_backplane: bool,
    /// Whether log lines are written.
    pub log: Finding,
    /// The server's own tasks that do not run, or fail.
    pub tasks: Vec<Finding>,
    /// Whether a bound on the memory of all connections is near.
    pub memory: Finding,
    /// Whether the server is ending: it is not ready, and may still accept connections.
    pub is_ending: bool,
    /// Whether the server rejects new connections, because it is ending.
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

    /// Whether the server is ready for new connections. Without a backplane a node serves its own
    /// clients, so that does not count, unless `health.ready_needs_backplane` says so.
    pub fn is_ready(&self) -> bool {
        let plugins = self.plugins.iter().map(|(_, finding)| finding);
        let mut needed = self.shards.iter().chain(plugins).chain(&self.guards);
        !self.is_ending
            && !self.lacks_backplane
            && needed.all(|finding| finding.status != Status::Unhealthy)
    }

    /// Whether no part is unhealthy, and the server accepts connections.
    pub fn is_healthy(&self) -> bool {
        !self.is_draining && self.status() != Status::Unhealthy
    }

    /// The answer to a probe.
    pub fn verdict(&self, probe: Probe) -> Verdict {
        let (is_good, is_ending) = match probe {
            Probe::Alive => return Verdict::alive(),
            Probe::Ready => (self.is_ready(), self.is_ending),
            Probe::Healthy => (self.is_healthy(), self.is_draining),
        };
        let problems = self.problems().join("; ");
        let text = match (is_good, problems.is_empty()) {
            (false, _) if is_ending => "draining\n".to_owned(),
            (false, _) => format!("unhealthy: {problems}\n"),
            (true, true) => "ok\n".to_owned(),
            (true, false) => format!("degraded: {problems}\n"),
        };
        Verdict { is_good, text }
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

    fn findings(&self) -> impl Iterator<Item = &Finding> {
        let plugins = self.plugins.iter().map(|(_, finding)| finding);
        self.shards
            .iter()
            .chain(plugins)
            .chain(&self.guards)
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

    /// Answers a probe.
    pub async fn verdict(&self, probe: Probe) -> Verdict {
        match probe {
            Probe::Alive => Verdict::alive(),
            Probe::Ready | Probe::Healthy => self.report().await.verdict(probe),
        }
    }

    /// Checks all parts.
    pub async fn report(&self) -> Report {
        let Probed { at, took, shards } = self.probed().await;
        Report {
            shards,
            age: at.elapsed(),
            took,
            plugins: self.plugins(),
            guards: self
                .services
                .middleware
                .absent_guards()
                .into_iter()
                .map(Finding::unhealthy)
                .collect(),
            backplane: self.services.backplane.as_deref().map(backplane),
            lacks_backplane: self.config.ready_needs_backplane
                && self
                    .services
                    .backplane
                    .as_ref()
                    .is_some_and(|backplane| backplane.state() != BackplaneState::Ready),
            log: log::problem().map_or(Finding::OK, Finding::degraded),
            tasks: self.tasks(),
            memory: match self.services.hub.connections().memory().problems() {
                problems if problems.is_empty() => Finding::OK,
                problems => Finding::degraded(problems.join("; ")),
            },
            is_ending: self.live.is_ending(),
            is_draining: self.live.is_draining(),
        }
    }

    /// Tasks that do not run, and histories that are not written: clients are served in any case.
    fn tasks(&self) -> Vec<Finding> {
        let tasks = self.services.supervisor.problems().into_iter();
        let store = self.services.hub.history().store();
        let unwritten = store.and_then(|store| store.status().problem);
        let unwritten = unwritten.map(|it| format!("the history is not written to disk: {it}"));
        tasks.chain(unwritten).map(Finding::degraded).collect()
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

/// The state of the connection to the backplane. Without it a node serves its own clients, if it is
/// configured to accept publications then.
fn backplane(backplane: &Backplane) -> Finding {
    match backplane.state() {
        BackplaneState::Ready => match backplane.problem() {
            None => Finding::OK,
            Some(problem) => Finding::degraded(problem),
        },
        BackplaneState::Restoring => {
            Finding::degraded("the subscriptions are being sent to the backplane")
        }
        BackplaneState::Disconnected => match backplane.missing_right() {
            Some(right) => Finding::unhealthy(format!(
                "the backplane is disconnected: its user lacks the right to {right}"
            )),
            None if backplane.refuses_while_disconnected() => {
                Finding::unhealthy("the backplane is disconnected, and publications are refused")
            }
            None => Finding::degraded("the backplane is disconnected"),
        },
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
            guards: Vec::new(),
            backplane: None,
            lacks_backplane: false,
            log: Finding::OK,
            tasks: Vec::new(),
            memory: Finding::OK,
            is_ending: false,
            is_draining: false,
        }
    }

    /// Checks the answers of `/readyz` and `/healthz`.
    fn check(report: &Report, ready: (bool, &str), healthy: (bool, &str)) {
        for (probe, (is_good, text)) in [(Probe::Ready, ready), (Probe::Healthy, healthy)] {
            let expected = Verdict { is_good, text: text.to_owned() };
            assert_eq!(report.verdict(probe), expected, "{probe:?}");
        }
        assert_eq!(report.verdict(Probe::Alive), Verdict::alive());
    }

    #[test]
    fn the_whole_is_as_its_worst_part_and_says_so() {
        let mut report = report();
        check(&report, (true, "ok\n"), (true, "ok\n"));
        report.log = Finding::degraded("no log");
        report.tasks = vec![Finding::degraded("no task")];
        let text = "degraded: no log; no task\n";
        check(&report, (true, text), (true, text));
        report.shards = [Finding::unhealthy("engine"), Finding::unhealthy("engine")].into();
        let text = "unhealthy: engine; no log; no task\n";
        check(&report, (false, text), (false, text));
    }

    #[test]
    fn a_guard_that_is_absent_or_parked_makes_the_server_unready() {
        let text = "unhealthy: guard\n";
        let absent = Report { guards: vec![Finding::unhealthy("guard")], ..report() };
        check(&absent, (false, text), (false, text));
        let plugins = vec![("10-acl".to_owned(), Finding::unhealthy("guard"))];
        check(&Report { plugins, ..report() }, (false, text), (false, text));
    }

    #[test]
    fn the_backplane_makes_the_server_unready_only_if_it_is_needed() {
        let away = Report { backplane: Some(Finding::degraded("away")), ..report() };
        check(&away, (true, "degraded: away\n"), (true, "degraded: away\n"));
        let refused = Report { backplane: Some(Finding::unhealthy("away")), ..report() };
        check(&refused, (true, "degraded: away\n"), (false, "unhealthy: away\n"));
        let needed = Report { lacks_backplane: true, ..away };
        check(&needed, (false, "unhealthy: away\n"), (true, "degraded: away\n"));
    }

    #[test]
    fn a_server_that_ends_is_first_unready_and_then_unhealthy() {
        let grace = Report { is_ending: true, ..report() };
        check(&grace, (false, "draining\n"), (true, "ok\n"));
        let draining = Report { is_draining: true, ..grace };
        check(&draining, (false, "draining\n"), (false, "draining\n"));
    }
}
