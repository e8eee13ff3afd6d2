//! The server as a whole: what it is, and the addresses of its doors.

use axum::Json;
use axum::extract::State;

use super::Admin;
use super::view::ServerView;

/// `GET /v1/server`
pub async fn show(State(admin): State<Admin>) -> Json<ServerView> {
    Json(ServerView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        websocket: admin.doors.websocket.first().cloned().unwrap_or_default(),
        resp: admin.doors.resp.first().cloned(),
        addresses: [&*admin.doors.websocket, &*admin.doors.resp].concat(),
    })
}
