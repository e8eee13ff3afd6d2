//! The console: a page that uses the API.
//!
//! These are plain files inside the binary that contain nothing about this server. They request all
//! data from the API, with the token where one is required. They load nothing from elsewhere, and
//! no other page may show them in a frame.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::routing::get;

use super::Admin;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the console, by its path.
macro_rules! file {
    ($path:literal, $kind:expr, $name:literal) => {
        ($path, $kind, include_str!(concat!("console/", $name)))
    };
}

const FILES: [(&str, &str, &str); 13] = [
    file!("/", HTML, "console.html"),
    file!("/console/console.css", CSS, "console.css"),
    file!("/console/console.js", JS, "console.js"),
    file!("/console/api.js", JS, "api.js"),
    file!("/console/dom.js", JS, "dom.js"),
    file!("/console/plot.js", JS, "plot.js"),
    file!("/console/overview.js", JS, "overview.js"),
    file!("/console/plugins.js", JS, "plugins.js"),
    file!("/console/connections.js", JS, "connections.js"),
    file!("/console/channels.js", JS, "channels.js"),
    file!("/console/trace.js", JS, "trace.js"),
    file!("/console/client.js", JS, "client.js"),
    file!("/console/icon.svg", SVG, "icon.svg"),
];

/// Scripts and styles from this origin only, and nothing that makes either from text. The
/// client in the page may connect to any WebSocket URL that the user enters, such as that of
/// a proxy.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// The routes of the console, which require no token.
pub fn routes() -> Router<Admin> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        let headers = [
            (CONTENT_TYPE, kind),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
            // They belong to exactly this version of the server.
            (CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(move || async move { (headers, text) }))
    })
}
