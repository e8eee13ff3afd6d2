//! The engine: describing and replacing it.

use axum::extract::State;
use axum::{Extension, Json};

use super::body::{JsonBody, OfferedComponent};
use super::error::ApiError;
use super::view::{EmptyBody, EngineView, SwapView, unix_ms};
use super::{Admin, blocking};
use switchyard_middleware::stats::Initiator;

/// `GET /v1/engine`
pub async fn show(State(admin): State<Admin>) -> Result<Json<EngineView>, ApiError> {
    // A swap in progress is waited for.
    blocking(move || {
        let status = admin.engine.status();
        Ok(Json(EngineView {
            version: status.version,
            own_version: status.bytes.as_deref().and_then(switchyard_wasm::own_version),
            component_bytes: status.bytes.as_deref().map(<[u8]>::len),
            origin: status.origin,
            shards: admin.services.hub.spread(),
            since_ms: unix_ms(status.since),
            by: status.by.name().to_owned(),
            previous: status.before,
        }))
    })
    .await
}

/// `POST /v1/engine/swap`
pub async fn swap(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    OfferedComponent { wasm, file, config, is_fresh, place }: OfferedComponent,
) -> Result<Json<SwapView>, ApiError> {
    if config.is_some() {
        return Err(ApiError::bad_request("an engine has no config"));
    }
    if is_fresh {
        return Err(ApiError::bad_request("an engine always starts fresh: its state is replayed"));
    }
    blocking(move || {
        let _place = place;
        let swap = admin.engine.swap(wasm, file.as_deref(), &by)?;
        Ok(Json(SwapView::from(&swap)))
    })
    .await
}

/// `POST /v1/engine/rollback`
pub async fn roll_back(
    State(admin): State<Admin>,
    Extension(by): Extension<Initiator>,
    JsonBody(EmptyBody {}): JsonBody<EmptyBody>,
) -> Result<Json<SwapView>, ApiError> {
    blocking(move || {
        let swap = admin.engine.roll_back(&by)?;
        Ok(Json(SwapView::from(&swap)))
    })
    .await
}
