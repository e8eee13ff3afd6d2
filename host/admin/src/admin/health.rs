//! The health report, part by part.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Admin;
use super::view::{HealthView, PartView};
use switchyard_server::health::{Finding, Report, Status};

/// `GET /healthz`
pub async fn healthy(State(admin): State<Admin>) -> (StatusCode, Json<HealthView>) {
    let report = admin.health.report().await;
    answer(report.status() != Status::Unhealthy, &report)
}

/// `GET /readyz`
pub async fn ready(State(admin): State<Admin>) -> (StatusCode, Json<HealthView>) {
    let report = admin.health.report().await;
    answer(report.is_ready(), &report)
}

fn answer(is_good: bool, report: &Report) -> (StatusCode, Json<HealthView>) {
    let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(view(report)))
}

fn view(report: &Report) -> HealthView {
    HealthView {
        status: report.status(),
        ready: report.is_ready(),
        draining: report.is_draining,
        problems: report.problems(),
        age_ms: report.age.as_millis() as u64,
        took_us: report.took.as_micros() as u64,
        shards: report.shards.iter().map(part).collect(),
        plugins: report
            .plugins
            .iter()
            .map(|(slot, finding)| PartView { slot: Some(slot.clone()), ..part(finding) })
            .collect(),
        backplane: report.backplane.as_ref().map(part),
        log: part(&report.log),
        tasks: report.tasks.iter().map(part).collect(),
        memory: part(&report.memory),
    }
}

fn part(finding: &Finding) -> PartView {
    PartView { slot: None, status: finding.status, problem: finding.problem.clone() }
}
