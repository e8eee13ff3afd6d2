//! All routes of the admin API.

use std::panic::AssertUnwindSafe;

use axum::Json;
use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, options, post, put};
use futures_util::FutureExt;

use super::error::ApiError;
use super::{
    Admin, connections, console, engine, guard, health, log, memory, metrics, plugins, pubsub,
    retained, server, stats, top, trace,
};

/// A route. Routes that need no token are in a separate table.
pub struct Route {
    /// Its method.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test holds the documentation to it"))]
    pub method: Method,
    /// Its path, as OpenAPI writes it.
    pub path: &'static str,
    handler: MethodRouter<Admin>,
}

/// The routes that need a token where there are tokens.
pub fn routes() -> Vec<Route> {
    let route = |method, path, handler| Route { method, path, handler };
    vec![
        route(Method::GET, "/v1/plugins", get(plugins::list)),
        route(Method::GET, "/v1/plugins/{plugin}", get(plugins::show)),
        route(Method::POST, "/v1/plugins/{plugin}", post(plugins::load)),
        route(Method::DELETE, "/v1/plugins/{plugin}", delete(plugins::remove)),
        route(Method::POST, "/v1/plugins/{plugin}/swap", post(plugins::swap)),
        route(Method::POST, "/v1/plugins/{plugin}/rollback", post(plugins::roll_back)),
        route(Method::POST, "/v1/plugins/{plugin}/move", post(plugins::move_to)),
        route(Method::POST, "/v1/plugins/{plugin}/reload", post(plugins::reload)),
        route(Method::GET, "/v1/engine", get(engine::show)),
        route(Method::POST, "/v1/engine/swap", post(engine::swap)),
        route(Method::POST, "/v1/engine/rollback", post(engine::roll_back)),
        route(Method::GET, "/v1/connections", get(connections::list)),
        route(Method::DELETE, "/v1/connections", delete(connections::close_all)),
        route(Method::GET, "/v1/connections/{connection}", get(connections::show)),
        route(Method::DELETE, "/v1/connections/{connection}", delete(connections::close)),
        route(Method::GET, "/v1/pubsub/channels", get(pubsub::channels)),
        route(Method::GET, "/v1/pubsub/numsub", get(pubsub::subscribers)),
        route(Method::GET, "/v1/pubsub/numpat", get(pubsub::patterns)),
        route(Method::GET, "/v1/pubsub/top", get(top::show)),
        route(Method::GET, "/v1/history", get(retained::histories)),
        route(Method::DELETE, "/v1/history", delete(retained::purge)),
        route(Method::GET, "/v1/presence", get(retained::rooms)),
        route(Method::GET, "/v1/presence/members", get(retained::members)),
        route(Method::GET, "/v1/server", get(server::show)),
        route(Method::GET, "/v1/stats", get(stats::show)),
        route(Method::GET, "/v1/memory", get(memory::show)),
        route(Method::GET, "/v1/trace", get(trace::stream)),
        route(Method::GET, "/v1/log", get(log::show)),
        route(Method::PUT, "/v1/log", put(log::change)),
        route(Method::GET, "/metrics", get(metrics::scrape)),
        route(Method::GET, "/v1/openapi.json", get(openapi)),
    ]
}

/// The routes that need none: supervisors and load balancers use them.
fn open_routes() -> Vec<Route> {
    let route = |method, path, handler| Route { method, path, handler };
    let probe = |handler: MethodRouter<Admin>| handler.options(health::options);
    vec![
        route(Method::GET, "/livez", probe(get(health::alive))),
        route(Method::GET, "/readyz", probe(get(health::ready))),
        route(Method::GET, "/healthz", probe(get(health::healthy))),
    ]
}

/// The whole API.
pub fn router(admin: Admin) -> Router {
    let guarded = routes()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.handler))
        .route_layer(from_fn_with_state(admin.clone(), guard::ask_for_token));
    // A slash at the end makes no difference to a probe. HAProxy's has the path `/` by default.
    let probes = open_routes()
        .into_iter()
        .fold(Router::new(), |router, route| {
            let with_slash = format!("{}/", route.path);
            router.route(route.path, route.handler.clone()).route(&with_slash, route.handler)
        })
        .route("/", options(health::options))
        .layer(from_fn_with_state(admin.clone(), guard::keep_pages_from_probes))
        .layer(from_fn(answer_panics));
    guarded
        .fallback(|| async {
            ApiError::new(
                StatusCode::NOT_FOUND,
                "not-found",
                "see /v1/openapi.json for what is here",
            )
        })
        .method_not_allowed_fallback(|| async {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            ApiError::new(status, "wrong-method", "see /v1/openapi.json for what is here")
        })
        .layer(from_fn_with_state(admin.clone(), guard::keep_out_other_origins))
        .layer(from_fn(answer_panics))
        // Static pages that contain nothing about this server, so they need no token and no
        // origin check.
        .merge(console::routes())
        .merge(probes)
        .with_state(admin)
}

/// The response when a handler panicked. Without it the connection would end without a response.
async fn answer_panics(request: Request, next: Next) -> Response {
    let answering = AssertUnwindSafe(next.run(request)).catch_unwind();
    answering.await.unwrap_or_else(|_| ApiError::internal().into_response())
}

/// The API, documented as OpenAPI 3.1.
const OPENAPI: &str = include_str!("openapi.json");

async fn openapi() -> impl IntoResponse {
    Json(serde_json::value::RawValue::from_string(OPENAPI.to_owned()).expect("a test parses it"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use anyhow::Result;
    use axum::body::Body;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use serde_json::Value;

    use super::*;

    #[tokio::test]
    async fn a_request_whose_handler_panics_is_answered() -> Result<()> {
        async fn fails() -> StatusCode {
            panic!("a defect");
        }
        let router = Router::new().route("/", get(fails)).layer(from_fn(answer_panics));
        let request = Request::builder().uri("/").body(Body::empty())?;
        let Ok(answer) = TowerToHyperService::new(router).call(request).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        Ok(())
    }

    #[test]
    fn every_route_is_documented_and_nothing_else() {
        let openapi: Value = serde_json::from_str(OPENAPI).expect("it is JSON");
        assert_eq!(openapi["openapi"], "3.1.0");
        let documented: BTreeSet<String> = openapi["paths"]
            .as_object()
            .expect("there are paths")
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().expect("there are methods").keys();
                methods
                    .filter(|key| *key != "parameters")
                    .map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        let served: BTreeSet<String> = routes()
            .iter()
            .chain(&open_routes())
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        assert_eq!(documented, served);
    }
}
