//! Listing connections, and closing one.

use std::collections::BinaryHeap;
use std::time::SystemTime;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, extract};
use serde::Deserialize;
use tracing::info;

use super::error::ApiError;
use super::view::{ConnectionView, ConnectionsView, Name, NamesView, unix_ms};
use super::{Admin, blocking};
use switchyard_hub::connections::Connection;
use switchyard_middleware::stats::Initiator;
use switchyard_server::goaway::close_gracefully;
use switchyard_types::close::CloseReason;
use switchyard_types::ids::ConnectionId;

/// How many are shown at most in one response, and by default.
const PAGE_MAX: usize = 1_000;
const PAGE: usize = 100;
/// How many names of each kind are shown of one connection.
const NAMES_MAX: usize = 1_000;

/// The query parameters: which connections to list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Page {
    after: ConnectionId,
    limit: Option<usize>,
    /// Only connections with this id or port, or with this text in the address or the door.
    search: Option<String>,
}

/// `GET /v1/connections`
pub async fn list(
    State(admin): State<Admin>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<ConnectionsView>, ApiError> {
    let extract::Query(Page { after, limit, search }) =
        page.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit must be from 1 to {PAGE_MAX}")));
    }
    blocking(move || {
        let connections = admin.services.hub.connections();
        // The lowest ids behind `after`, and one more to know whether more follow.
        let mut page: BinaryHeap<ConnectionId> = BinaryHeap::with_capacity(limit + 2);
        let mut note = |id: ConnectionId| {
            page.push(id);
            if page.len() > limit + 1 {
                page.pop();
            }
        };
        match search.as_deref().filter(|search| !search.is_empty()) {
            None => connections.read().keys().filter(|id| **id > after).copied().for_each(note),
            // Searching all connections takes long, so the table's lock is not held for it.
            Some(search) => {
                let all = connections.opened_ones();
                all.iter()
                    .filter(|found| found.id > after && is_about(found, search))
                    .for_each(|found| note(found.id));
            }
        }
        let mut ids = page.into_sorted_vec();
        let has_more = ids.len() > limit;
        ids.truncate(limit);
        let next_after = ids.last().copied().filter(|_| has_more);
        let found = ids.into_iter().filter_map(|id| connections.get(id));
        Ok(Json(ConnectionsView {
            count: connections.count(),
            connections: found.map(|connection| view(&connection)).collect(),
            next_after,
        }))
    })
    .await
}

/// `GET /v1/connections/{connection}`
pub async fn show(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<ConnectionView>, ApiError> {
    let connection = find(&admin, &id)?;
    let subscriptions = connection.subscriptions();
    let names = |names: &std::collections::BTreeSet<Box<[u8]>>| {
        names.iter().take(NAMES_MAX).map(|name| Name::new(name)).collect()
    };
    let names = NamesView {
        channels: names(&subscriptions.channels),
        patterns: names(&subscriptions.patterns),
        shard_channels: names(&subscriptions.shard_channels),
    };
    drop(subscriptions);
    Ok(Json(ConnectionView { names: Some(names), ..view(&connection) }))
}

/// `DELETE /v1/connections/{connection}`
pub async fn close(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    Path(id): Path<String>,
) -> Result<Json<ConnectionView>, ApiError> {
    let connection = find(&admin, &id)?;
    let closed = view(&connection);
    close_gracefully(&connection, CloseReason::Operator);
    info!(connection = connection.id, by = %by.name(), "a connection was closed by an operator");
    Ok(Json(closed))
}

fn find(admin: &Admin, id: &str) -> Result<std::sync::Arc<Connection>, ApiError> {
    let id: ConnectionId =
        id.parse().map_err(|_| ApiError::bad_request("a connection's id is a number"))?;
    admin.services.hub.connections().get(id).ok_or_else(|| {
        let words = format!("there is no connection {id}");
        ApiError::new(StatusCode::NOT_FOUND, "no-such-connection", words)
    })
}

fn is_about(connection: &Connection, search: &str) -> bool {
    match search.parse::<u64>() {
        Ok(number) => connection.id == number || u64::from(connection.remote.port()) == number,
        Err(_) => {
            connection.remote.to_string().contains(search)
                || connection.encoding().encoder().name().contains(search)
        }
    }
}

fn view(connection: &Connection) -> ConnectionView {
    let subscriptions = connection.subscriptions();
    let [channels, patterns, shard_channels] =
        [&subscriptions.channels, &subscriptions.patterns, &subscriptions.shard_channels]
            .map(std::collections::BTreeSet::len);
    drop(subscriptions);
    let opened = SystemTime::now().checked_sub(connection.opened.elapsed());
    ConnectionView {
        id: connection.id,
        door: connection.encoding().encoder().name().to_owned(),
        address: connection.remote.to_string(),
        opened_ms: opened.map_or(0, unix_ms),
        channels,
        patterns,
        shard_channels,
        outbox_bytes: connection.outbox.bytes(),
        input_bytes: connection.input.accounted(),
        names: None,
    }
}
