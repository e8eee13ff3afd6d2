//! The health report, part by part.

use axum::Json;
use axum::extract::State;
use axum::http::header::ALLOW;
use axum::http::{HeaderName, StatusCode};

use super::Admin;
use super::view::{AliveView, HealthView, PartView};
use switchyard_server::health::{Finding, Report, Status};

/// `GET /livez`
pub async fn alive() -> Json<AliveView> {
    Json(AliveView { status: Status::Ok })
}

/// `GET /readyz`
pub async fn ready(State(admin): State<Admin>) -> (StatusCode, Json<HealthView>) {
    let report = admin.health.report().await;
    answer(report.is_ready(), &report)
}

/// `GET /healthz`
pub async fn healthy(State(admin): State<Admin>) -> (StatusCode, Json<HealthView>) {
    let report = admin.health.report().await;
    answer(report.is_healthy(), &report)
}

/// `OPTIONS`, which HAProxy's health check sends by default, with the path `/`: readiness.
pub async fn options(State(admin): State<Admin>) -> (StatusCode, [(HeaderName, &'static str); 1]) {
    let is_ready = admin.health.report().await.is_ready();
    (status(is_ready), [(ALLOW, "GET, HEAD, OPTIONS")])
}

fn answer(is_good: bool, report: &Report) -> (StatusCode, Json<HealthView>) {
    (status(is_good), Json(view(report)))
}

fn status(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn view(report: &Report) -> HealthView {
    HealthView {
        status: report.status(),
        ready: report.is_ready(),
        draining: report.is_ending,
        problems: report.problems(),
        age_ms: report.age.as_millis() as u64,
        took_us: report.took.as_micros() as u64,
        shards: report.shards.iter().map(part).collect(),
        plugins: report
            .plugins
            .iter()
            .map(|(slot, finding)| PartView { slot: Some(slot.clone()), ..part(finding) })
            .collect(),
        guards: report.guards.iter().map(part).collect(),
        backplane: report.backplane.as_ref().map(part),
        log: part(&report.log),
        tasks: report.tasks.iter().map(part).collect(),
        memory: part(&report.memory),
    }
}

fn part(finding: &Finding) -> PartView {
    PartView { slot: None, status: finding.status, problem: finding.problem.clone() }
}
