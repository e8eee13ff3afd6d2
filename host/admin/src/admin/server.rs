//! The server as a whole: what it is, and the addresses of its doors.

use axum::Json;
use axum::extract::State;

use super::Admin;
use super::view::ServerView;

/// `GET /v1/server`
pub async fn show(State(admin): State<Admin>) -> Json<ServerView> {
    Json(ServerView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        websocket: admin.doors.websocket.clone(),
        resp: admin.doors.resp.clone(),
    })
}
