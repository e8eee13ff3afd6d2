//! The counters of the server.

use axum::Json;
use axum::extract::State;

use super::error::ApiError;
use super::view::{HistogramView, StatsView, SwapView};
use super::{Admin, blocking};
use switchyard_telemetry::stats::load;
use switchyard_types::command::Space;

/// `GET /v1/stats`
pub async fn show(State(admin): State<Admin>) -> Result<Json<StatsView>, ApiError> {
    // This calls the engine, which may be busy.
    blocking(move || Ok(Json(read(&admin)))).await
}

fn read(admin: &Admin) -> StatsView {
    let services = &admin.services;
    let (hub, stats, middleware) = (&services.hub, &services.stats, &services.middleware);
    let [commands, bytes_read, bytes_written] = stats.totals();
    StatsView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: stats.started.elapsed().as_millis() as u64,
        connections: hub.connections().count(),
        connections_total: stats.accepted_in_all(),
        connections_rejected: stats.refused_in_all(),
        outbox_overflows: load(&stats.outbox_overflows),
        commands,
        publications: hub.stats().publications(),
        deliveries: hub.stats().deliveries(),
        bytes_read,
        bytes_written,
        channels: hub.channel_count(Space::Channels).ok(),
        shard_channels: hub.channel_count(Space::ShardChannels).ok(),
        patterns: hub.pattern_count().ok(),
        engine: hub.engine_version(),
        plugins: middleware.chain().plugins().len(),
        traces: middleware.tracer().count(),
        swap_pauses: HistogramView::new(&middleware.swaps().pauses()),
        swaps: middleware.swaps().last().iter().map(SwapView::from).collect(),
    }
}
