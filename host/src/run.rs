//! Starts the server, runs it, and shuts it down.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::free_memory;
use crate::listening::Sockets;
use crate::reader::Reader;
use crate::reload::{Refusals, Reloading};
use crate::watch::{Pending, watch};
use switchyard_admin::admin::{Admin, AdminListener, Doors};
use switchyard_config::Config;
use switchyard_hub::connections::expiries::expire;
use switchyard_hub::history::History;
use switchyard_hub::presence::Presence;
use switchyard_middleware::stats::Initiator;
use switchyard_net::listening::ListeningSocket;
use switchyard_server::connection_setup::{ConnectionSetup, is_local};
use switchyard_server::door::Door;
use switchyard_server::door::http::HttpDoor;
use switchyard_server::door::http::handshake::WEBSOCKET_PATH;
use switchyard_server::door::resp::RespDoor;
use switchyard_server::drain::drain;
use switchyard_server::engine_swap::EngineSwaps;
use switchyard_server::health::Health;
use switchyard_server::listener::Listener;
use switchyard_server::live_config::{DoorState, LiveConfig};
use switchyard_server::prepare::{prepare, prepare_by};
use switchyard_server::session::Services;
use switchyard_server::upkeep;
use switchyard_telemetry::supervise::Supervisor;

/// A server that can be run.
pub struct Server {
    config: Config,
    live: Arc<LiveConfig>,
    services: Services,
    health: Arc<Health>,
    engine: Arc<EngineSwaps>,
    http: Listening,
    resp: Option<Listening>,
    admin: Option<AdminListener>,
    /// Connects to the backplane.
    linking: Option<JoinHandle<()>>,
}

/// A command to the server, from a signal or a file change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The signal for a graceful shutdown.
    End {
        /// Whether balancers need time to notice that the server is not ready.
        has_grace: bool,
    },
    /// To reload configuration, certificates, plugins and engine.
    Reload,
}

impl Server {
    /// Binds the listeners, and loads engine and plugins.
    ///
    /// # Errors
    ///
    /// A certificate, the engine or a plugin is refused, other machines could connect and no
    /// plugin decides which clients may, or an address cannot be bound.
    pub async fn start(config: Config, supervisor: Arc<Supervisor>) -> anyhow::Result<Server> {
        let sockets = Sockets::bind(&config)?;
        let answering = sockets.answer_probes(&config);
        let loaded = Server::load(config, supervisor, sockets).await;
        stop(answering).await;
        loaded
    }

    /// Loads engine and plugins, and connects to the backplane.
    async fn load(
        config: Config,
        supervisor: Arc<Supervisor>,
        sockets: Sockets,
    ) -> anyhow::Result<Server> {
        let (live, services, engine) = prepare(&config)?;
        let services = Services { supervisor, ..services };
        let live = Arc::new(live);
        let health = Health::new(services.clone(), live.clone(), config.health);
        let http = Listening::new::<HttpDoor>(sockets.http, &live)?;
        let resp = match config.resp {
            Some(_) => Some(Listening::new::<RespDoor>(sockets.resp, &live)?),
            None => None,
        };
        let admin = match sockets.admin {
            off if off.is_empty() => None,
            sockets => Some(AdminListener::new(
                sockets,
                Admin::new(
                    config.admin.clone(),
                    services.clone(),
                    engine.clone(),
                    doors(&http, resp.as_ref())?,
                    live.clone(),
                    health.clone(),
                ),
            )),
        };
        let supervisor = &services.supervisor;
        let linking = services.backplane.clone().map(|backplane| {
            let services = services.clone();
            tokio::spawn(supervisor.clone().keep("backplane", move || {
                let Services { hub, middleware, supervisor, .. } = services.clone();
                backplane.clone().run(hub, middleware, supervisor)
            }))
        });
        if let (Some(backplane), Some(cluster)) = (&services.backplane, &config.cluster) {
            // It keeps trying, and the node serves its own clients meanwhile.
            backplane.ready(cluster.connect_time).await.map_err(anyhow::Error::msg)?;
        }
        if let Some(store) = &config.history_store {
            services.hub.open_history(store)?;
        }
        Ok(Server { config, live, services, health, engine, http, resp, admin, linking })
    }

    /// Loads everything that `start` loads, and binds nothing.
    ///
    /// # Errors
    ///
    /// As `start`, except for the addresses; also if a settings file in the plugin directory has no
    /// component.
    pub async fn check(config: &Config) -> anyhow::Result<()> {
        let (_, services, _) = prepare_by(config, &Initiator::Check)?;
        match services.middleware.orphans().into_iter().next() {
            Some(orphan) => Err(anyhow::Error::msg(orphan)),
            None => Ok(()),
        }
    }

    /// The addresses that clients connect to, and then that of the admin API, as URLs.
    ///
    /// # Errors
    ///
    /// The operating system does not report them.
    pub fn urls(&self) -> io::Result<Vec<String>> {
        let Doors { websocket, resp } = doors(&self.http, self.resp.as_ref())?;
        let admin = self.admin.iter().flat_map(AdminListener::sockets);
        let admin = admin.map(|socket| socket.url("http"));
        websocket.into_iter().chain(resp).map(Ok).chain(admin).collect()
    }

    /// Serves until it receives the order to end, and then shuts down gracefully: all clients
    /// are notified and have some time to receive what was queued.
    ///
    /// # Errors
    ///
    /// The histories are kept on disk, and were not written completely.
    pub async fn run(
        self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        reloading: Reloading,
    ) -> anyhow::Result<()> {
        let Server { config, live, services, health, engine, http, resp, admin, linking } = self;
        let config_file = reloading.overrides.file.clone();
        let config = Arc::new(config);
        let (served, mut all_served) = mpsc::channel::<()>(1);
        let (ending, is_ending) = watch_channel::channel(false);
        let supervisor = &services.supervisor;
        let mut consoles = admin.iter().flat_map(AdminListener::sockets).filter_map(|it| tcp(it));
        let console = consoles.find(|console| is_local(*console));
        let resp_address = resp.iter().flat_map(|resp| &resp.sockets).find_map(|it| tcp(it));
        let resp_door =
            Arc::new(RespDoor::new(&config, resp_address.map_or(0, |address| address.port())));
        let http_door = Arc::new(HttpDoor::new(
            config.clone(),
            health,
            resp_door.clone(),
            console.map(|console| console.port()),
        ));
        let setup = |state: &Arc<DoorState>| ConnectionSetup {
            config: config.clone(),
            services: services.clone(),
            live: live.clone(),
            door: state.clone(),
            is_ending: is_ending.clone(),
            served: served.downgrade(),
        };
        let http_accepting = accept(&http_door, http.sockets, setup(&http.state));
        let resp_accepting =
            resp.map(|Listening { sockets, state }| accept(&resp_door, sockets, setup(&state)));
        let admin = admin.map(Arc::new);
        let administering: Vec<_> = admin
            .iter()
            .flat_map(|admin| admin.sockets().iter().map(move |socket| (admin, socket)))
            .map(|(admin, socket)| {
                let (admin, socket) = (admin.clone(), socket.clone());
                let is_ending = ending.subscribe();
                let serving = move || admin.clone().serve(socket.clone(), is_ending.clone());
                tokio::spawn(supervisor.clone().keep("admin-listener", serving))
            })
            .collect();
        drop(admin);
        config.memory.log();
        config.channels.log_warnings();
        let upkeep = keep_up(&config, &services);
        let pending = Arc::<Pending>::default();
        let middleware = &services.middleware;
        let watching = watch(&live, middleware, config_file.as_deref(), &pending, supervisor);
        let reader = Reader {
            config,
            live: live.clone(),
            services: services.clone(),
            engine,
            reloading,
            pending: pending.clone(),
            refusals: Refusals::default(),
            was_protected: AtomicBool::new(true),
        };
        let reading = reader.start(supervisor);
        let reload = || {
            info!("configuration, certificates, plugins and engine are reloaded");
            pending.request_all();
        };
        let has_grace = loop {
            match orders.recv().await {
                Some(Order::Reload) => reload(),
                Some(Order::End { has_grace }) => break has_grace,
                None => break false,
            }
        };
        let connections = services.hub.connections();
        live.begin_grace();
        let grace = live.config().shutdown.grace;
        if has_grace && !grace.is_zero() && connections.count() > 0 {
            let (ms, connections) = (grace.as_millis() as u64, connections.count());
            info!(connections, ms, "the server is not ready any more, and will end");
            let is_over = tokio::time::sleep(grace);
            let mut is_over = std::pin::pin!(is_over);
            loop {
                tokio::select! {
                    () = &mut is_over => break,
                    Some(Order::Reload) = orders.recv() => reload(),
                }
            }
        }
        drop((reading, watching));
        // New WebSockets are answered 503, and /readyz is answered. Redis clients reconnect elsewhere
        // only if the connection is refused, so the RESP listener is closed.
        live.begin_draining();
        stop(resp_accepting.unwrap_or_default()).await;
        let shutdown = live.config().shutdown;
        info!(connections = connections.count(), "the server is ending");
        // If this fails, the shutdown continues.
        let draining = AssertUnwindSafe(drain(connections, &shutdown)).catch_unwind();
        let end = match draining.await {
            Ok(drained) => {
                let (connections, ms) = (drained.connections, drained.took.as_millis() as u64);
                info!(connections, ms, "connections were notified of the shutdown");
                drained.end
            }
            Err(_) => Instant::now() + shutdown.time,
        };
        // No client is admitted from here on. The HTTP listeners answer until the process ends.
        ending.send_replace(true);
        drop(served);
        // What remains has until `end`, and each of the three parts has some time in any case.
        let part = shutdown.time / 3;
        let until = |parts_after: u32| (end - part * parts_after).max(Instant::now() + part);
        if timeout_at(until(2), all_served.recv()).await.is_err() {
            // Connections leave the registry when their close begins, so that has fewer.
            let left = all_served.sender_strong_count();
            warn!(connections = left, "connections that did not close in time were aborted");
        }
        if timeout_at(until(1), services.middleware.all_disconnects_notified()).await.is_err() {
            warn!("plugins were not notified in time of closed connections");
        }
        if let Some(backplane) = &services.backplane {
            backplane.drain(until(0) - Instant::now()).await;
        }
        linking.iter().for_each(JoinHandle::abort);
        drop(upkeep);
        let closed = close_history(&services, until(0) - Instant::now()).await;
        stop(http_accepting).await;
        stop(administering).await;
        closed
    }
}

/// Writes the histories, if they are kept on disk. Publications are not retained any more.
async fn close_history(services: &Services, time: Duration) -> anyhow::Result<()> {
    let hub = services.hub.clone();
    let close = move || hub.history().store().map(|store| store.close(time));
    match tokio::task::spawn_blocking(close).await? {
        Some(closed) => closed.context(
            "the history was not written completely: the next start is as after a crash",
        )?,
        None => return Ok(()),
    }
    info!("the history was written");
    Ok(())
}

/// Starts the tasks for what is done periodically. They end when the set is dropped.
fn keep_up(config: &Arc<Config>, services: &Services) -> JoinSet<()> {
    let supervisor = &services.supervisor;
    let mut tasks = JoinSet::new();
    let (of, hub) = (config.clone(), services.hub.clone());
    let keep_alive = move || upkeep::keep_alive(of.clone(), hub.clone());
    tasks.spawn(supervisor.clone().keep("keep-alive", keep_alive));
    let connections = services.hub.connections().clone();
    let expire = move || expire(connections.clone());
    tasks.spawn(supervisor.clone().keep("expiries", expire));
    let (of, its) = (config.clone(), services.clone());
    let recheck = move || upkeep::recheck(&of, &its);
    tasks.spawn(supervisor.clone().keep("recheck", recheck));
    let memory = services.hub.connections().memory().clone();
    let bound = move || memory.clone().keep();
    tasks.spawn(supervisor.clone().keep("memory", bound));
    let hub = services.hub.clone();
    let keep_history = move || History::keep(hub.clone());
    tasks.spawn(supervisor.clone().keep("history", keep_history));
    let hub = services.hub.clone();
    let keep_presence = move || Presence::keep(hub.clone());
    tasks.spawn(supervisor.clone().keep("presence", keep_presence));
    tasks.spawn(supervisor.clone().keep("free-memory", free_memory::keep_returning));
    tasks
}

/// A door that listens.
struct Listening {
    sockets: Vec<Arc<ListeningSocket>>,
    state: Arc<DoorState>,
}

impl Listening {
    /// The door that accepts from these sockets.
    fn new<D: Door>(
        sockets: Vec<Arc<ListeningSocket>>,
        live: &LiveConfig,
    ) -> anyhow::Result<Listening> {
        let state = live.door(D::NAME).with_context(|| format!("no door is called {}", D::NAME))?;
        Ok(Listening { sockets, state })
    }

    /// Its addresses, as URLs. A Unix socket has no TLS. `path`: of the URL, or after the path of a
    /// Unix socket, such as `ws+unix:///run/x.sock:/ws`.
    fn urls(&self, plain: &str, tls: &str, path: &str) -> io::Result<Vec<String>> {
        let url = |socket: &Arc<ListeningSocket>| match &**socket {
            ListeningSocket::Unix(..) if path.is_empty() => socket.url(plain),
            ListeningSocket::Unix(..) => Ok(format!("{}:{path}", socket.url(plain)?)),
            ListeningSocket::Tcp(_) => {
                let scheme = if self.state.tls.is_some() { tls } else { plain };
                Ok(format!("{}{path}", socket.url(scheme)?))
            }
        };
        self.sockets.iter().map(url).collect()
    }
}

/// The address of a socket, if it is TCP.
fn tcp(socket: &ListeningSocket) -> Option<SocketAddr> {
    match socket {
        ListeningSocket::Tcp(listener) => listener.local_addr().ok(),
        ListeningSocket::Unix(..) => None,
    }
}

/// Accepts the connections of a door in a task for each socket. The sockets are kept, so that they
/// stay bound when a task is restarted.
fn accept<D: Door>(
    door: &Arc<D>,
    sockets: Vec<Arc<ListeningSocket>>,
    setup: ConnectionSetup,
) -> Vec<JoinHandle<()>> {
    let listener = Listener::new(door.clone(), setup);
    let accept = |socket: Arc<ListeningSocket>| {
        let listener = listener.clone();
        let name = format!("{}-listener", D::NAME);
        let supervisor = listener.supervisor();
        tokio::spawn(supervisor.keep(name, move || listener.clone().accept(socket.clone())))
    };
    sockets.into_iter().map(accept).collect()
}

/// Ends the tasks of a listener. Its sockets are closed, and files of Unix sockets removed, when
/// this returns.
async fn stop(accepting: Vec<JoinHandle<()>>) {
    for task in accepting {
        task.abort();
        let _it_listens_no_more = task.await;
    }
}

/// The addresses for clients, as URLs.
fn doors(http: &Listening, resp: Option<&Listening>) -> io::Result<Doors> {
    Ok(Doors {
        websocket: http.urls("ws", "wss", WEBSOCKET_PATH)?,
        resp: resp.map_or(Ok(Vec::new()), |resp| resp.urls("resp", "rediss", ""))?,
    })
}
