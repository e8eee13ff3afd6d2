//! The admin API, which operates a running server.
//!
//! It has a listener of its own, apart from those of clients. `router` has all routes, each other
//! file the handlers of one subject, and `view` the response types. Handlers call the middleware,
//! the engine and the hub, as the file watch and signals do.

mod body;
mod connections;
mod console;
mod engine;
mod error;
mod guard;
mod health;
mod log;
mod memory;
mod metrics;
mod places;
mod plugins;
mod pubsub;
mod retained;
mod router;
mod server;
mod stats;
mod top;
mod trace;
pub mod view;

use std::io;
use std::sync::Arc;

use axum::http::StatusCode;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tokio_util::either::Either;
use tracing::debug;

use error::ApiError;
use places::{Places, RequestBody, ResponseBody};
use switchyard_config::AdminConfig;
use switchyard_config::proxies::ProxyProtocol;
use switchyard_net::descriptors::{ANSWER_TIME, Accepted, Acceptor};
use switchyard_net::listening::{Connection, ListeningSocket};
use switchyard_net::proxy_protocol;
use switchyard_net::slots::Slot;
use switchyard_server::door::http::head::{self, HEADERS_MAX};
use switchyard_server::engine_swap::EngineSwaps;
use switchyard_server::health::Health;
use switchyard_server::live_config::LiveConfig;
use switchyard_server::session::Services;
use switchyard_telemetry::stats::count;
use switchyard_telemetry::supervise::Ended;

/// The state of the handlers.
#[derive(Clone)]
pub struct Admin {
    config: Arc<AdminConfig>,
    services: Services,
    engine: Arc<EngineSwaps>,
    doors: Arc<Doors>,
    top_channels: top::TopChannelsCache,
    close_pace: Arc<connections::ClosePace>,
    live: Arc<LiveConfig>,
    health: Arc<Health>,
    places: Arc<Places>,
    /// One permit for each component that may be uploaded at the same time.
    uploads: Arc<Semaphore>,
    /// Becomes true when the server shuts down; set by the listener.
    ending: watch::Receiver<bool>,
}

impl Admin {
    /// The API of a server with these parts.
    pub fn new(
        config: AdminConfig,
        services: Services,
        engine: Arc<EngineSwaps>,
        doors: Doors,
        live: Arc<LiveConfig>,
        health: Arc<Health>,
    ) -> Admin {
        let (_never, ending) = watch::channel(false);
        let places = Places::new(config.connections_max, config.connections_per_address_max);
        Admin {
            places: Arc::new(places),
            uploads: Arc::new(Semaphore::new(config.uploads_max)),
            config: Arc::new(config),
            services,
            engine,
            doors: Arc::new(doors),
            top_channels: top::TopChannelsCache::default(),
            close_pace: Arc::default(),
            live,
            health,
            ending,
        }
    }
}

/// The addresses for clients, as URLs.
#[derive(Debug, Clone)]
pub struct Doors {
    /// Those of the WebSocket: at least one.
    pub websocket: Vec<String>,
    /// Those of the door for Redis clients; none: it is closed.
    pub resp: Vec<String>,
}

/// The listener of the admin API.
pub struct AdminListener {
    sockets: Vec<Arc<ListeningSocket>>,
    admin: Admin,
}

/// The largest head of a request: at least hyper's minimum, with room for the cookies of other
/// services on the same host.
const HEAD_BYTES_MAX: usize = 64 << 10;

impl AdminListener {
    /// Wraps bound sockets. It does not accept connections yet.
    pub fn new(sockets: Vec<Arc<ListeningSocket>>, admin: Admin) -> AdminListener {
        AdminListener { sockets, admin }
    }

    /// Its sockets.
    pub fn sockets(&self) -> &[Arc<ListeningSocket>] {
        &self.sockets
    }

    /// Serves the connections of one of its sockets until it is dropped. When `ending` becomes true,
    /// streams end, and each connection is closed after the next response.
    pub async fn serve(
        self: Arc<AdminListener>,
        listener: Arc<ListeningSocket>,
        ending: watch::Receiver<bool>,
    ) -> Ended {
        let admin = Admin { ending: ending.clone(), ..self.admin.clone() };
        let (config, places) = (admin.config.clone(), admin.places.clone());
        let stats = admin.services.stats.clone();
        let router = router::router(admin);
        let mut acceptor = Acceptor::new(listener, "admin", &self.admin.services.reserves);
        loop {
            let Accepted { stream, remote, is_on_reserve } =
                acceptor.accept(|| count(&stats.admin_not_accepted)).await;
            let proxies = &self.admin.live.config().proxies;
            let header_bytes_max = match config.proxy_protocol {
                ProxyProtocol::Off => None,
                ProxyProtocol::Required if proxies.may_send_header(remote.ip()) => {
                    Some(proxies.header_bytes_max)
                }
                ProxyProtocol::Required => {
                    places.count_unproxied();
                    debug!(%remote, "closed: it is not in security.trusted_proxies");
                    continue;
                }
            };
            let is_limited = header_bytes_max.is_none() && !proxies.contains(remote.ip());
            let Some(slot) = places.take(remote.ip(), is_limited) else {
                debug!(%remote, "closed: admin.connections_per_address_max");
                continue;
            };
            let id = slot.id();
            let (router, config) = (router.clone(), config.clone());
            let (places_of_it, ending) = (places.clone(), ending.clone());
            let serving = async move {
                let mut stream = stream;
                if let Some(bytes_max) = header_bytes_max {
                    let reading = read_proxy_header(&mut stream, bytes_max, &places_of_it, &slot);
                    let read = tokio::time::timeout(config.head_time, reading).await;
                    let read = read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                    if let Err(error) = read {
                        places_of_it.count_unproxied();
                        debug!(%remote, %error, "closed: no PROXY protocol header");
                        return Ok(());
                    }
                }
                serve(stream, router, config, (places_of_it, slot), ending).await
            };
            if is_on_reserve {
                let _it_took_too_long = tokio::time::timeout(ANSWER_TIME, serving).await;
                continue;
            }
            let serving = tokio::spawn(async move {
                if let Err(error) = serving.await {
                    debug!(%remote, %error, "admin connection lost");
                }
            });
            places.slots().attach(id, serving.abort_handle());
        }
    }
}

/// Runs a long operation on a blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    // A panic in there has been logged by the panic hook.
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ApiError::internal()))
}

fn too_many_requests() -> ApiError {
    let words = "as many requests are being answered as admin.connections_max allows";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-requests", words)
}

/// Reads the PROXY protocol header. The connection counts for the address in it from then on.
async fn read_proxy_header(
    stream: &mut Connection,
    bytes_max: usize,
    places: &Places,
    slot: &Slot,
) -> io::Result<()> {
    if let Some(client) = slot.waits(proxy_protocol::read(stream, bytes_max)).await? {
        places.assign(slot, client.ip());
    }
    Ok(())
}

async fn serve(
    stream: Connection,
    router: axum::Router,
    config: Arc<AdminConfig>,
    (places, slot): (Arc<Places>, Slot),
    ending: watch::Receiver<bool>,
) -> hyper::Result<()> {
    if let Either::Left(stream) = &stream {
        let _it_is_slower_then = stream.set_nodelay(true);
    }
    // A client that does not read its response would keep its slot forever.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(config.request_time));
    let slot = Arc::new(slot);
    let router = TowerToHyperService::new(router);
    let serving = slot.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (slot, places, ending) = (serving.clone(), places.clone(), ending.clone());
        slot.works();
        let (mut head, body) = request.into_parts();
        let checked = head::check(&mut head);
        let body = RequestBody { body, slot: slot.clone() };
        let answering = router.call(hyper::Request::from_parts(head, body));
        async move {
            let permit = places.request().await;
            let mut response = match (checked, &permit) {
                (Err(why), _) => ApiError::bad_request(why).into_response(),
                (Ok(()), Some(_)) => answering.await?,
                (Ok(()), None) => too_many_requests().into_response(),
            };
            if *ending.borrow() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            slot.works();
            Ok::<_, std::convert::Infallible>(response.map(|body| ResponseBody {
                body,
                _permit: permit,
                slot,
            }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Also the time for which an idle connection is kept.
        .header_read_timeout(config.head_time)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    slot.waits(connection).await
}
