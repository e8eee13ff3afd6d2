//! How much memory is used for each purpose, and what uses the most.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::error::ApiError;
use super::view::{BoundView, BudgetView, HolderView, MemoryView};
use super::{Admin, blocking};
use switchyard_hub::connections::memory::Holding;
use switchyard_server::memory_usage::usage;
use switchyard_telemetry::process::Status;
use switchyard_types::bound::Bound;

/// How many connections and addresses are shown at most, and by default.
const SHOWN_MAX: usize = 100;
const SHOWN: usize = 10;

/// The query parameters: how many to show.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parameters {
    limit: Option<usize>,
}

/// `GET /v1/memory`
pub async fn show(
    State(admin): State<Admin>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Json<MemoryView>, ApiError> {
    let Query(Parameters { limit }) =
        query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = limit.unwrap_or(SHOWN);
    if !(1..=SHOWN_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit must be from 1 to {SHOWN_MAX}")));
    }
    blocking(move || {
        let services = &admin.services;
        let usage = usage(services, limit);
        let memory = services.hub.connections().memory();
        let settings = memory.settings();
        Ok(Json(MemoryView {
            resident_bytes: Status::read().resident_bytes().unwrap_or(0),
            bytes_max: settings.as_ref().map(|settings| settings.budget.bytes_max),
            source: settings.map(|settings| settings.source),
            budgets: usage
                .budgets
                .iter()
                .map(|reading| BudgetView {
                    budget: reading.name.to_owned(),
                    used_bytes: reading.used,
                    limit_bytes: reading.limit,
                })
                .collect(),
            closed: Bound::ALL
                .into_iter()
                .map(|bound| BoundView {
                    setting: bound.key().to_owned(),
                    closed: memory.closed(bound),
                })
                .collect(),
            connections: usage.connections.iter().map(holder).collect(),
            addresses: usage.addresses.iter().map(holder).collect(),
        }))
    })
    .await
}

fn holder(holding: &Holding) -> HolderView {
    HolderView {
        connection: holding.connection,
        address: holding.address.clone(),
        outbox_bytes: holding.outbox,
        input_bytes: holding.input,
        name_bytes: holding.names,
        stalled_ms: holding.stalled.map(|stalled| stalled.as_millis() as u64),
    }
}
