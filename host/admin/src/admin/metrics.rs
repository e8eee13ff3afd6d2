//! The metrics page for Prometheus.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::{Admin, blocking};
use crate::metrics::{Format, Metrics};

/// `GET /metrics`
pub async fn scrape(State(admin): State<Admin>, headers: HeaderMap) -> Result<Response, ApiError> {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = match accepted.flat_map(|list| list.split(',')).any(is_open_metrics) {
        true => Format::OpenMetrics,
        false => Format::Prometheus,
    };
    let metrics = Metrics {
        services: admin.services.clone(),
        admin: admin.places.counted(),
        doors: admin.live.doors(),
        handshakes_max: admin.live.handshakes_max,
        is_draining: admin.live.is_ending(),
    };
    // This locks shards and plugin instances, which may be busy.
    let written = blocking(move || Ok(metrics.scrape(format))).await?;
    let headers = [(CONTENT_TYPE, format.content_type()), (CACHE_CONTROL, "no-store")];
    Ok((headers, written).into_response())
}

/// Whether this entry of `Accept` is OpenMetrics with a weight above zero. The weight is not
/// compared with those of other entries: scrapers use it to order versions of the format.
fn is_open_metrics(media_type: &str) -> bool {
    let (name, parameters) = media_type.split_once(';').unwrap_or((media_type, ""));
    let is_unwanted = |parameter: &str| {
        parameter.trim().strip_prefix("q=").is_some_and(|q| q.parse::<f32>() == Ok(0.0))
    };
    name.trim().eq_ignore_ascii_case("application/openmetrics-text")
        && !parameters.split(';').any(is_unwanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_needs_an_accept_header_that_names_it() {
        assert!(is_open_metrics("application/openmetrics-text;version=1.0.0;q=0.5"));
        assert!(is_open_metrics(" Application/OpenMetrics-Text"));
        assert!(!is_open_metrics("application/openmetrics-text; q=0"));
        assert!(!is_open_metrics("text/plain;version=0.0.4;q=0.3"));
        assert!(!is_open_metrics("*/*"));
    }
}
