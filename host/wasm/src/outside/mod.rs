//! HTTP requests of components: which are permitted, and when.
//!
//! A component that imports `wasi:http` is linked like any other; the permit of its store during a
//! call decides. Without a permit, requests are denied and the call may not wait, as on the data
//! path. With one, requests go only to the hosts that were permitted by name, and the call may wait
//! for them, with a timeout. Such calls block their thread, so each has one of its own.

mod destination;
mod send;

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use tokio::runtime::Handle;
use tokio::time::Instant;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::LinkOptions;
use wasmtime_wasi_http::p2::bindings::http::{outgoing_handler, types};
use wasmtime_wasi_http::p2::types::{HostFutureIncomingResponse, HostOutgoingRequest};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttp, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks,
    WasiHttpView,
};

use crate::StoreState;
pub use destination::Destination;

/// How long a call may go on waiting after all its requests have timed out, so that the plugin
/// can handle the timeout. A call that waits longer is interrupted.
const GRACE: Duration = Duration::from_millis(250);

/// How much of an outgoing body is read at once.
const BODY_CHUNK_BYTES_MAX: usize = 64 << 10;

/// The destinations that a plugin may send HTTP requests to, and the limits for them.
pub struct HttpPolicy {
    destinations: Vec<Destination>,
    limits: OutsideLimits,
    connector: Option<tokio_rustls::TlsConnector>,
    runtime: Handle,
}

/// The limits of one call's HTTP requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutsideLimits {
    /// How long it may take, from when the call is requested.
    pub time: Duration,
    /// The largest body of one response.
    pub response_bytes_max: usize,
    /// The maximum number of requests.
    pub requests_max: usize,
    /// How many calls may run at once.
    pub calls_max: usize,
}

impl HttpPolicy {
    /// Permits requests to these hosts and no other. Requests are sent on `runtime`.
    ///
    /// # Errors
    ///
    /// A destination needs TLS, and the system has no root certificates.
    pub fn new(
        destinations: Vec<Destination>,
        limits: OutsideLimits,
        runtime: Handle,
    ) -> Result<HttpPolicy, String> {
        let connector = match destinations.iter().any(|destination| destination.is_tls) {
            true => Some(send::tls_connector()?),
            false => None,
        };
        Ok(HttpPolicy { destinations, limits, connector, runtime })
    }

    /// The limits of one call's HTTP requests.
    pub fn limits(&self) -> &OutsideLimits {
        &self.limits
    }

    /// The runtime that sends the requests.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

/// A permit for one call.
pub struct HttpPermit {
    grant: Arc<HttpPolicy>,
    until: Instant,
    requests_left: usize,
}

impl HttpPermit {
    /// A permit for requests that must end by `until`.
    pub fn new(grant: Arc<HttpPolicy>, until: Instant) -> HttpPermit {
        let requests_left = grant.limits.requests_max;
        HttpPermit { grant, until, requests_left }
    }

    /// Blocks this thread, but not for longer than the call may take.
    pub(crate) fn wait<F: Future>(&self, future: F) -> Result<F::Output, wasmtime::Error> {
        let waiting = async { tokio::time::timeout_at(self.until + GRACE, future).await };
        self.grant.runtime.block_on(waiting).map_err(|_| {
            wasmtime::format_err!(
                "it went on waiting after the {} ms that it had for the outside world",
                self.grant.limits.time.as_millis()
            )
        })
    }
}

/// The state of a store for `wasi:http`.
pub(crate) struct HttpState {
    context: WasiHttpCtx,
    hooks: Hooks,
}

struct Hooks {
    leave: Option<HttpPermit>,
}

impl Default for HttpState {
    fn default() -> HttpState {
        HttpState { context: WasiHttpCtx::new(), hooks: Hooks { leave: None } }
    }
}

impl HttpState {
    pub fn leave(&self) -> Option<&HttpPermit> {
        self.hooks.leave.as_ref()
    }

    pub fn set_http_permit(&mut self, leave: Option<HttpPermit>) {
        self.hooks.leave = leave;
    }
}

impl WasiHttpView for StoreState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outside.hooks,
            table: &mut self.table,
            ctx: &mut self.outside.context,
        }
    }
}

/// The interfaces that need a permit.
pub const INTERFACES: &[&str] = &["wasi:http/outgoing-handler", "wasi:http/types"];

/// Links `INTERFACES`.
///
/// # Errors
///
/// Two interfaces have the same name: a bug in this function.
pub fn add_to_linker(linker: &mut Linker<StoreState>) -> Result<(), wasmtime::Error> {
    let options = LinkOptions::default();
    types::add_to_linker::<_, WasiHttp>(linker, &(&options).into(), StoreState::http)?;
    // Defined here, because an error that ends a body early has a code, too, which the linked
    // implementation does not find.
    linker.allow_shadowing(true);
    linker.instance(TYPES)?.func_wrap(
        "http-error-code",
        |store: StoreContextMut<'_, StoreState>, (error,): (Resource<types::IoError>,)| {
            let error = store.data().table.get(&error)?;
            let code = error.downcast_ref::<types::ErrorCode>().cloned();
            Ok((code.or_else(|| error.downcast_ref().map(code_of_body)),))
        },
    )?;
    linker.allow_shadowing(false);
    let mut outgoing_handler = linker.instance(OUTGOING_HANDLER)?;
    // Defined here, because without a permit the request must be denied without waiting.
    outgoing_handler.func_wrap("handle", |mut store: StoreContextMut<'_, StoreState>, arguments| {
        let (request, options): (Resource<HostOutgoingRequest>, _) = arguments;
        let state = store.data_mut();
        if state.outside.leave().is_none() {
            state.table.delete(request)?;
            return Ok((Err(types::ErrorCode::HttpRequestDenied),));
        }
        let options: Option<Resource<RequestOptions>> = options;
        let mut view = state.http();
        let future: Result<Resource<HostFutureIncomingResponse>, _> =
            match outgoing_handler::Host::handle(&mut view, request, options) {
                Ok(future) => Ok(future),
                Err(error) => Err(error.downcast()?),
            };
        Ok((future,))
    })
}

/// The name in the linked version of WASI; a linker treats earlier versions as the same.
const OUTGOING_HANDLER: &str = "wasi:http/outgoing-handler@0.2.12";
const TYPES: &str = "wasi:http/types@0.2.12";

/// Why the body of a response ended early: the errors of `send`.
fn code_of_body(error: &Error) -> types::ErrorCode {
    use types::ErrorCode;
    match error {
        Error::HttpResponseBodySize(size) => ErrorCode::HttpResponseBodySize(*size),
        Error::HttpResponseTimeout => ErrorCode::HttpResponseTimeout,
        Error::ConnectionReadTimeout => ErrorCode::ConnectionReadTimeout,
        Error::HttpResponseIncomplete => ErrorCode::HttpResponseIncomplete,
        _ => ErrorCode::HttpProtocolError,
    }
}

type Sending = dyn Future<
        Output = Result<
            (Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>),
            Error,
        >,
    > + Send;

impl Hooks {
    /// The destination of the request, if it is permitted.
    fn admit(
        &mut self,
        request: &Request<WasiBody>,
    ) -> Result<(Arc<HttpPolicy>, Destination, Instant), Error> {
        let leave = self.leave.as_mut().ok_or(Error::HttpRequestDenied)?;
        let uri = request.uri();
        let is_tls = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let destination = uri
            .authority()
            .and_then(|authority| Destination::new(is_tls, authority.as_str()))
            .filter(|destination| leave.grant.destinations.contains(destination))
            .ok_or(Error::HttpRequestDenied)?;
        if *request.method() == Method::CONNECT {
            return Err(Error::HttpRequestMethodInvalid);
        }
        leave.requests_left =
            leave.requests_left.checked_sub(1).ok_or(Error::ConnectionLimitReached)?;
        Ok((leave.grant.clone(), destination, leave.until))
    }
}

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<Sending> {
        let admitted = self.admit(&request);
        Box::new(async move {
            let (grant, destination, until) = admitted?;
            send::send(&grant, &destination, until, request, options.unwrap_or_default()).await
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES_MAX
    }
}
