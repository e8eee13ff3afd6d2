//! API errors: `{code, message, step, plugin, file}`.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::WWW_AUTHENTICATE;
use axum::response::{IntoResponse, Response};

use super::view::ErrorView;
use switchyard_engine::EngineError;
use switchyard_middleware::PluginError;
use switchyard_middleware::changes::ChangeError;
use switchyard_server::engine_swap::EngineSwapError;

/// A request that failed.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    view: Box<ErrorView>,
}

impl ApiError {
    /// An error without further fields. The code is stable.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> ApiError {
        let view =
            ErrorView { code: code.to_owned(), message: message.into(), ..ErrorView::default() };
        ApiError { status, view: Box::new(view) }
    }

    /// The request is not valid.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad-request", message)
    }

    /// The response when a handler panics or is aborted.
    pub fn internal() -> ApiError {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "internal", "the server failed; its log says how")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.view)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, "Bearer".parse().expect("it is text"));
        }
        response
    }
}

impl From<PluginError> for ApiError {
    fn from(error: PluginError) -> ApiError {
        let PluginError { plugin, file, step, problem } = error;
        let status = match step {
            "write" => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        let view = ErrorView {
            code: "refused".to_owned(),
            message: problem,
            step: Some(step.to_owned()),
            plugin: Some(plugin),
            file: Some(file.display().to_string()),
        };
        ApiError { status, view: Box::new(view) }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> ApiError {
        let (status, code) = match error {
            ChangeError::Refused(refused) => return refused.into(),
            ChangeError::NoSuchPlugin(_) => (StatusCode::NOT_FOUND, "no-such-plugin"),
            ChangeError::Ambiguous(_) => (StatusCode::CONFLICT, "ambiguous"),
            ChangeError::SlotOccupied(_) => (StatusCode::CONFLICT, "slot-taken"),
            ChangeError::Superseded(_) => (StatusCode::CONFLICT, "superseded"),
            ChangeError::Cancelled(_) => (StatusCode::NOT_FOUND, "no-such-plugin"),
            ChangeError::NothingBefore(_) => (StatusCode::CONFLICT, "nothing-before"),
            ChangeError::BadSlot(_) | ChangeError::OtherName { .. } => {
                (StatusCode::BAD_REQUEST, "bad-request")
            }
            ChangeError::NoPlace(_) => (StatusCode::CONFLICT, "no-place"),
        };
        ApiError::new(status, code, error.to_string())
    }
}

impl From<EngineSwapError> for ApiError {
    fn from(error: EngineSwapError) -> ApiError {
        let (status, code) = match &error {
            EngineSwapError::NothingBefore => (StatusCode::CONFLICT, "nothing-before"),
            EngineSwapError::Superseded => (StatusCode::CONFLICT, "superseded"),
            EngineSwapError::Unwritable { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "refused"),
            EngineSwapError::Refused(_) | EngineSwapError::Failed(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "refused")
            }
        };
        let (message, step, file) = match error {
            EngineSwapError::Refused(EngineError::Refused { step, path, problem }) => {
                (problem, Some(step), Some(path))
            }
            EngineSwapError::Refused(EngineError::Unreadable { path, source }) => {
                (source.to_string(), Some("read"), Some(path))
            }
            EngineSwapError::Failed(problem) => (problem, Some("swap"), None),
            EngineSwapError::Unwritable { path, source } => {
                (source.to_string(), Some("write"), Some(path))
            }
            EngineSwapError::NothingBefore | EngineSwapError::Superseded => {
                (error.to_string(), None, None)
            }
        };
        let view = ErrorView {
            code: code.to_owned(),
            message,
            step: step.map(str::to_owned),
            plugin: None,
            file: file.map(|file| file.display().to_string()),
        };
        ApiError { status, view: Box::new(view) }
    }
}
