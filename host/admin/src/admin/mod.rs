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
mod router;
mod server;
mod stats;
mod top;
mod trace;
pub mod view;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tracing::debug;

use error::ApiError;
use places::{Places, RequestBody, ResponseBody};
use switchyard_config::AdminConfig;
use switchyard_net::descriptors::{ANSWER_TIME, Accepted, Acceptor};
use switchyard_net::slots::Slot;
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
            live,
            health,
            ending,
        }
    }
}

/// The addresses for clients, as URLs.
#[derive(Debug, Clone)]
pub struct Doors {
    /// The WebSocket.
    pub websocket: String,
    /// The door for Redis clients; none: it is closed.
    pub resp: Option<String>,
}

/// The listener of the admin API.
pub struct AdminListener {
    listener: Arc<TcpListener>,
    admin: Admin,
}

/// The largest head of a request: at least hyper's minimum, with room for the cookies of other
/// services on the same host.
const HEAD_BYTES_MAX: usize = 64 << 10;

impl AdminListener {
    /// Wraps a bound listener. It does not accept connections yet.
    pub fn new(listener: TcpListener, admin: Admin) -> AdminListener {
        AdminListener { listener: Arc::new(listener), admin }
    }

    /// Its address.
    ///
    /// # Errors
    ///
    /// The operating system does not report it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped, or `ending` becomes true.
    pub async fn serve(self: Arc<AdminListener>, ending: watch::Receiver<bool>) -> Ended {
        let admin = Admin { ending: ending.clone(), ..self.admin.clone() };
        let (config, places) = (admin.config.clone(), admin.places.clone());
        let stats = admin.services.stats.clone();
        let router = router::router(admin);
        let listener = self.listener.clone();
        let mut acceptor = Acceptor::new(listener, "admin", &self.admin.services.reserves);
        loop {
            let Accepted { stream, remote, is_on_reserve } =
                acceptor.accept(|| count(&stats.admin_not_accepted)).await;
            let Some(slot) = places.take(remote.ip()) else {
                debug!(%remote, "closed: admin.connections_per_address_max");
                continue;
            };
            let id = slot.id();
            let serving = serve(
                stream,
                router.clone(),
                config.clone(),
                (places.clone(), slot),
                ending.clone(),
            );
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

async fn serve(
    stream: TcpStream,
    router: axum::Router,
    config: Arc<AdminConfig>,
    (places, slot): (Arc<Places>, Slot),
    mut ending: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let _not_worth_a_word = stream.set_nodelay(true);
    // A client that does not read its response would keep its slot forever.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(config.request_time));
    let slot = Arc::new(slot);
    let router = TowerToHyperService::new(router);
    let serving = slot.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (slot, places) = (serving.clone(), places.clone());
        slot.works();
        let request = request.map(|body| RequestBody { body, slot: slot.clone() });
        let answering = router.call(request);
        async move {
            let permit = places.request().await;
            let response = match &permit {
                Some(_) => answering.await?,
                None => too_many_requests().into_response(),
            };
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
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        served = slot.waits(connection.as_mut()) => return served,
        _ = ending.wait_for(|ending| *ending) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}
