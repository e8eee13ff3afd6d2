//! The bodies of requests: limits on size, time and content type.

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;

use super::Admin;
use super::error::ApiError;
use super::view::OfferBody;

/// A body that is JSON, or nothing where nothing is required.
pub struct JsonBody<T>(pub T);

/// An uploaded component.
pub struct OfferedComponent {
    /// The component.
    pub wasm: Arc<[u8]>,
    /// Where it was read from; none: it was uploaded.
    pub file: Option<PathBuf>,
    /// The settings for it.
    pub config: Option<String>,
    /// Whether it starts without its predecessor's state.
    pub is_fresh: bool,
    /// Its permit among the concurrent uploads: kept until the change is made, because the bytes
    /// are in memory for that time.
    pub place: OwnedSemaphorePermit,
}

const JSON: &str = "application/json";
const WASM: &str = "application/wasm";

impl<T: DeserializeOwned> FromRequest<Admin> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, admin: &Admin) -> Result<JsonBody<T>, ApiError> {
        let kind = content_type(request.headers());
        let bytes = read(request.into_body(), admin, admin.config.body_bytes_max).await?;
        // A page in a browser cannot send this content type without a preflight, unlike the default
        // one.
        if kind.as_deref() != Some(JSON) && !bytes.is_empty() {
            return Err(wrong_kind(JSON));
        }
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes)
            .map(JsonBody)
            .map_err(|error| ApiError::bad_request(format!("the body: {error}")))
    }
}

impl FromRequest<Admin> for OfferedComponent {
    type Rejection = ApiError;

    async fn from_request(request: Request, admin: &Admin) -> Result<OfferedComponent, ApiError> {
        let upload_bytes_max = admin.config.upload_bytes_max;
        let is_json = match content_type(request.headers()).as_deref() {
            Some(WASM) => false,
            Some(JSON) => true,
            _ => return Err(wrong_kind("application/wasm or application/json")),
        };
        let place = admin.uploads.clone().try_acquire_owned().map_err(|_| {
            let words = format!(
                "{} components are being uploaded or compiled (admin.uploads_max); try again later",
                admin.config.uploads_max
            );
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-uploads", words)
        })?;
        if !is_json {
            let bytes = read(request.into_body(), admin, upload_bytes_max).await?;
            let wasm = bytes.into();
            return Ok(OfferedComponent { wasm, file: None, config: None, is_fresh: false, place });
        }
        // Base64 encodes three bytes as four.
        let bytes_max = upload_bytes_max / 3 * 4 + admin.config.body_bytes_max;
        let bytes = read(request.into_body(), admin, bytes_max).await?;
        let OfferBody { path, wasm, config, fresh: is_fresh } = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::bad_request(format!("the body: {error}")))?;
        match (path, wasm) {
            (Some(path), None) => {
                let path = PathBuf::from(path);
                let reading = path.clone();
                let bytes =
                    tokio::task::spawn_blocking(move || read_file(&reading, upload_bytes_max))
                        .await
                        .map_err(|_| ApiError::internal())?;
                let bytes = bytes.map_err(|problem| {
                    let words = format!("cannot read {}: {problem}", path.display());
                    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "unreadable", words)
                })?;
                let file = Some(path);
                Ok(OfferedComponent { wasm: bytes.into(), file, config, is_fresh, place })
            }
            (None, Some(wasm)) => {
                let bytes = BASE64_STANDARD
                    .decode(wasm)
                    .map_err(|error| ApiError::bad_request(format!("wasm: {error}")))?;
                if bytes.len() > upload_bytes_max {
                    return Err(too_large(upload_bytes_max));
                }
                Ok(OfferedComponent { wasm: bytes.into(), file: None, config, is_fresh, place })
            }
            _ => Err(ApiError::bad_request("the body must have either \"path\" or \"wasm\"")),
        }
    }
}

fn read_file(path: &std::path::Path, bytes_max: usize) -> Result<Vec<u8>, String> {
    switchyard_config::file::read(path, bytes_max).map_err(|io| match io.kind() {
        std::io::ErrorKind::FileTooLarge => {
            format!("it is over {bytes_max} bytes (admin.upload_bytes_max)")
        }
        _ => io.to_string(),
    })
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = value.split(';').next().unwrap_or_default();
    Some(kind.trim().to_ascii_lowercase())
}

fn wrong_kind(right: &str) -> ApiError {
    let words = format!("the Content-Type must be {right}");
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong-kind", words)
}

fn too_large(bytes_max: usize) -> ApiError {
    let words = format!("the body is over {bytes_max} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", words)
}

async fn read(mut body: Body, admin: &Admin, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large(bytes_max));
    }
    let reading = async {
        let mut bytes = Vec::new();
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let frame = frame.map_err(|_| ApiError::bad_request("the body broke off"))?;
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > bytes_max {
                    return Err(too_large(bytes_max));
                }
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes)
    };
    let timed_out = |_| {
        let words = "the body took too long (admin.request_timeout_ms)";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", words)
    };
    tokio::time::timeout(admin.config.request_time, reading).await.map_err(timed_out)?
}
