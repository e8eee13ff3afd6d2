//! Listing connections, and closing them: one, or those of a user.

use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, extract};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::error::ApiError;
use super::view::{ClosedView, ConnectionView, ConnectionsView, Name, NamesView, unix_ms};
use super::{Admin, blocking};
use switchyard_config::networks::Network;
use switchyard_hub::connections::Connection;
use switchyard_hub::connections::attributes::USER;
use switchyard_middleware::stats::Initiator;
use switchyard_server::goaway::close_gracefully;
use switchyard_types::close::{CloseReason, clip};
use switchyard_types::ids::ConnectionId;

/// How many are shown or closed at most by one request.
const PAGE_MAX: usize = 1_000;
/// How many are shown by default.
const PAGE: usize = 100;
/// How many names of each kind are shown of one connection.
const NAMES_MAX: usize = 1_000;
/// How many attributes are shown of one connection, and how much of each value.
const ATTRIBUTES_MAX: usize = 100;
const VALUE_BYTES_MAX: usize = 1 << 10;
/// The values of attributes with one of these in their key are not shown.
const SECRET_KEYS: [&str; 6] =
    ["token", "secret", "password", "credential", "cookie", "authorization"];
const NOT_SHOWN: &str = "(not shown)";

/// The query parameters: which connections to list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Page {
    after: ConnectionId,
    limit: Option<usize>,
    /// Only connections with this id or port, or with this text in the address, the door, the user
    /// or the client's name.
    search: Option<String>,
    user: Option<String>,
    address: Option<String>,
    name: Option<String>,
}

/// The query parameters: which connections to close.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Closing {
    limit: Option<usize>,
    user: Option<String>,
    address: Option<String>,
    name: Option<String>,
}

/// Which connections are meant: those that meet all conditions.
#[derive(Debug, Default)]
struct Filter {
    /// The attribute `user`.
    user: Option<String>,
    network: Option<Network>,
    /// The name by CLIENT SETNAME.
    name: Option<String>,
    /// Matched in several fields.
    search: Option<String>,
}

impl Filter {
    fn new(
        user: Option<String>,
        address: Option<String>,
        name: Option<String>,
    ) -> Result<Filter, ApiError> {
        let network = address.map(|address| {
            address.parse::<Network>().map_err(|()| {
                ApiError::bad_request(format!(
                    "address is \"{}\": it must be an IP address such as 192.0.2.1, or a network \
                     such as 192.0.2.0/24",
                    clip(&address, 100)
                ))
            })
        });
        Ok(Filter { user, network: network.transpose()?, name, search: None })
    }

    fn is_empty(&self) -> bool {
        self.user.is_none() && self.network.is_none() && self.name.is_none() && !self.searches()
    }

    fn searches(&self) -> bool {
        self.search.as_ref().is_some_and(|search| !search.is_empty())
    }

    fn has(&self, connection: &Connection) -> bool {
        let address: IpAddr = connection.remote.ip();
        self.network.is_none_or(|network| network.contains(address))
            && self.user.as_ref().is_none_or(|user| connection.has_attribute(USER, user))
            && self.name.as_ref().is_none_or(|name| {
                connection.client_name().is_some_and(|current| *current == **name)
            })
            && self.search.as_ref().is_none_or(|search| is_about(connection, search))
    }
}

/// Spaces requests that close many connections: one at a time, with a pause after each, so that
/// their clients do not all reconnect at once.
#[derive(Debug, Default)]
pub struct ClosePace(Mutex<Option<Instant>>);

/// The pause.
const CLOSE_PAUSE: Duration = Duration::from_millis(100);

/// `GET /v1/connections`
pub async fn list(
    State(admin): State<Admin>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<ConnectionsView>, ApiError> {
    let extract::Query(Page { after, limit, search, user, address, name }) =
        page.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = checked_limit(limit, PAGE)?;
    let filter = Filter { search, ..Filter::new(user, address, name)? };
    blocking(move || {
        let connections = admin.services.hub.connections();
        let (found, has_more) = match filter.is_empty() {
            true => {
                let mut page = Lowest::new(limit);
                connections.read().keys().filter(|id| **id > after).for_each(|id| page.note(*id));
                page.found(|id| connections.get(id))
            }
            // Searching all connections takes long, so the table's lock is not held for it.
            false => {
                let all = connections.opened_ones();
                let mut page = Lowest::new(limit);
                all.iter()
                    .filter(|one| one.id > after && filter.has(one))
                    .for_each(|one| page.note(one.id));
                page.found(|id| connections.get(id))
            }
        };
        let next_after = found.last().map(|last| last.id).filter(|_| has_more);
        Ok(Json(ConnectionsView {
            count: connections.count(),
            connections: found.iter().map(|connection| view(connection)).collect(),
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
    let attributes = Some(shown(connection.attributes()));
    Ok(Json(ConnectionView { names: Some(names), attributes, ..view(&connection) }))
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

/// `DELETE /v1/connections`
pub async fn close_all(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    which: Result<Query<Closing>, QueryRejection>,
) -> Result<Json<ClosedView>, ApiError> {
    let extract::Query(Closing { limit, user, address, name }) =
        which.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = checked_limit(limit, PAGE_MAX)?;
    let filter = Filter::new(user, address, name)?;
    if filter.is_empty() {
        let words = "user, address or name must say which connections are closed";
        return Err(ApiError::bad_request(words));
    }
    let pace = admin.close_pace.clone();
    let mut next = pace.0.lock().await;
    if let Some(next) = *next {
        sleep_until(next).await;
    }
    let closed = blocking(move || {
        let all = admin.services.hub.connections().opened_ones();
        let mut page = Lowest::new(limit);
        all.iter()
            .filter(|one| !one.outbox.is_closing() && filter.has(one))
            .for_each(|one| page.note(one.id));
        let (found, has_more) = page.found(|id| admin.services.hub.connections().get(id));
        for connection in &found {
            close_gracefully(connection, CloseReason::Operator);
        }
        info!(
            closed = found.len(), has_more, user = filter.user, client_name = filter.name,
            by = %by.name(), "connections were closed by an operator"
        );
        Ok(Json(ClosedView { closed: found.len(), has_more }))
    })
    .await;
    *next = Some(Instant::now() + CLOSE_PAUSE);
    closed
}

fn checked_limit(limit: Option<usize>, default: usize) -> Result<usize, ApiError> {
    let limit = limit.unwrap_or(default);
    match (1..=PAGE_MAX).contains(&limit) {
        true => Ok(limit),
        false => Err(ApiError::bad_request(format!("limit must be from 1 to {PAGE_MAX}"))),
    }
}

/// The lowest ids of many, and one more to know whether more follow.
struct Lowest {
    ids: BinaryHeap<ConnectionId>,
    limit: usize,
}

impl Lowest {
    fn new(limit: usize) -> Lowest {
        Lowest { ids: BinaryHeap::with_capacity(limit + 2), limit }
    }

    fn note(&mut self, id: ConnectionId) {
        self.ids.push(id);
        if self.ids.len() > self.limit + 1 {
            self.ids.pop();
        }
    }

    /// The connections by rising id, and whether there are more.
    fn found(
        self,
        get: impl Fn(ConnectionId) -> Option<Arc<Connection>>,
    ) -> (Vec<Arc<Connection>>, bool) {
        let mut ids = self.ids.into_sorted_vec();
        let has_more = ids.len() > self.limit;
        ids.truncate(self.limit);
        (ids.into_iter().filter_map(get).collect(), has_more)
    }
}

fn find(admin: &Admin, id: &str) -> Result<Arc<Connection>, ApiError> {
    let id: ConnectionId =
        id.parse().map_err(|_| ApiError::bad_request("a connection's id is a number"))?;
    admin.services.hub.connections().get(id).ok_or_else(|| {
        let words = format!("there is no connection {id}");
        ApiError::new(StatusCode::NOT_FOUND, "no-such-connection", words)
    })
}

fn is_about(connection: &Connection, search: &str) -> bool {
    let has = |text: Option<&str>| text.is_some_and(|text| contains(text, search));
    if let Ok(number) = search.parse::<u64>()
        && (connection.id == number || u64::from(connection.remote.port()) == number)
    {
        return true;
    }
    // A number is not looked for in the digits of addresses.
    let is_number = search.bytes().all(|byte| byte.is_ascii_digit());
    has(connection.attribute(USER).as_deref())
        || has(connection.client_name().as_deref())
        || (!is_number
            && (contains(&connection.remote.to_string(), search)
                || contains(connection.encoding().encoder().name(), search)))
}

/// Whether a text contains another, regardless of case.
fn contains(text: &str, part: &str) -> bool {
    text.contains(part) || text.to_lowercase().contains(&part.to_lowercase())
}

/// Attributes as an operator sees them.
fn shown(attributes: BTreeMap<String, String>) -> BTreeMap<String, String> {
    attributes
        .into_iter()
        .take(ATTRIBUTES_MAX)
        .map(|(key, value)| {
            let lower = key.to_ascii_lowercase();
            let value = match SECRET_KEYS.iter().any(|secret| lower.contains(secret)) {
                true => NOT_SHOWN.to_owned(),
                false => clip(&value, VALUE_BYTES_MAX).to_owned(),
            };
            (key, value)
        })
        .collect()
}

fn view(connection: &Connection) -> ConnectionView {
    let subscriptions = connection.subscriptions();
    let [channels, patterns, shard_channels] =
        [&subscriptions.channels, &subscriptions.patterns, &subscriptions.shard_channels]
            .map(std::collections::BTreeSet::len);
    drop(subscriptions);
    let opened = SystemTime::now().checked_sub(connection.opened.elapsed());
    let user = connection.attribute(USER);
    ConnectionView {
        id: connection.id,
        door: connection.encoding().encoder().name().to_owned(),
        address: connection.remote.to_string(),
        user: user.map(|user| clip(&user, VALUE_BYTES_MAX).to_owned()),
        name: connection.client_name().map(|name| clip(&name, VALUE_BYTES_MAX).to_owned()),
        opened_ms: opened.map_or(0, unix_ms),
        channels,
        patterns,
        shard_channels,
        outbox_bytes: connection.outbox.bytes(),
        input_bytes: connection.input.accounted(),
        attributes: None,
        names: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown_and_values_are_bounded() {
        let long = "é".repeat(VALUE_BYTES_MAX);
        let pairs = [("Api-Token", "a"), ("user", "ann"), ("long", long.as_str())];
        let attributes = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let shown = shown(attributes);
        assert_eq!(shown.get("Api-Token").map(String::as_str), Some(NOT_SHOWN));
        assert_eq!(shown.get("user").map(String::as_str), Some("ann"));
        assert!(shown.get("long").is_some_and(|value| value.len() <= VALUE_BYTES_MAX));
        let many = (0..2 * ATTRIBUTES_MAX).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(super::shown(many).len(), ATTRIBUTES_MAX);
    }

    #[test]
    fn the_lowest_ids_are_kept() {
        let mut page = Lowest::new(2);
        [5, 3, 9, 4].into_iter().for_each(|id| page.note(id));
        assert_eq!(page.ids.into_sorted_vec(), [3, 4, 5]);
    }
}
