//! Reading and changing the log filter.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use tracing::info;

use super::Admin;
use super::body::JsonBody;
use super::error::ApiError;
use super::view::{LogBody, LogView};
use switchyard_middleware::stats::Initiator;
use switchyard_telemetry::log::LogFormat;
use switchyard_telemetry::log::{self, FOLLOWED_MAX, Log};

/// `GET /v1/log`
pub async fn show(State(_): State<Admin>) -> Result<Json<LogView>, ApiError> {
    Ok(Json(view(current()?)))
}

/// `PUT /v1/log`
pub async fn change(
    State(_): State<Admin>,
    Extension(by): Extension<Initiator>,
    JsonBody(LogBody { filter, follow, unfollow }): JsonBody<LogBody>,
) -> Result<Json<LogView>, ApiError> {
    let log = current()?;
    // All or nothing: the filter may be invalid.
    if let Some(filter) = &filter {
        log::parse(filter).map_err(ApiError::bad_request)?;
    }
    if !log::change_followed(&follow, &unfollow) {
        let words = format!("{FOLLOWED_MAX} connections may be followed at once");
        return Err(ApiError::bad_request(words));
    }
    if let Some(filter) = &filter {
        log.set_filter(filter).map_err(ApiError::bad_request)?;
    }
    let view = view(log);
    info!(filter = view.filter, followed = ?view.followed, by = %by.name(), "the log was changed");
    Ok(Json(view))
}

fn current() -> Result<&'static Log, ApiError> {
    let none = || ApiError::new(StatusCode::CONFLICT, "no-log", "nothing is logged here");
    Log::current().ok_or_else(none)
}

fn view(log: &Log) -> LogView {
    LogView {
        filter: log.filter(),
        format: match log.format() {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
        .to_owned(),
        followed: log::followed(),
        lines_lost: log.lines_lost(),
        problem: log.problem(),
    }
}
