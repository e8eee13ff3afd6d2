//! Starts the server, runs it, and shuts it down.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use parking_lot::Mutex as PlainMutex;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, watch as watch_channel};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::reload::{self, Reloading, Unread};
use crate::watch::{self, Watched};
use switchyard_admin::admin::{Admin, AdminListener, Doors};
use switchyard_config::Config;
use switchyard_hub::connections::expiries::expire;
use switchyard_middleware::stats::Initiator;
use switchyard_server::connection_setup::{ConnectionSetup, is_local};
use switchyard_server::door::Door;
use switchyard_server::door::http::HttpDoor;
use switchyard_server::door::http::handshake::WEBSOCKET_PATH;
use switchyard_server::door::resp::RespDoor;
use switchyard_server::drain::drain;
use switchyard_server::engine_swap::EngineSwaps;
use switchyard_server::health::Health;
use switchyard_server::listener::{self, Listener};
use switchyard_server::live_config::{DoorState, LiveConfig};
use switchyard_server::prepare::{check_protection, prepare};
use switchyard_server::session::Services;
use switchyard_server::upkeep;
use switchyard_telemetry::supervise::{Ended, Supervisor};

/// How long after a failure to read a changed file it is read again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

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
    End,
    /// To reload configuration, certificates, plugins and engine.
    Reload,
}

impl Server {
    /// Loads engine and plugins, and binds the listener.
    ///
    /// # Errors
    ///
    /// A certificate, the engine or a plugin is refused, other machines could connect and no
    /// plugin decides which clients may, or an address cannot be bound.
    pub async fn start(config: Config, supervisor: Arc<Supervisor>) -> anyhow::Result<Server> {
        let (live, services, engine) = prepare(&config)?;
        let services = Services { supervisor, ..services };
        let live = Arc::new(live);
        let health = Health::new(services.clone(), live.clone(), config.health);
        let http = listen::<HttpDoor>(config.http.listen, &live)?;
        let resp = match &config.resp {
            Some(resp) => Some(listen::<RespDoor>(resp.listen, &live)?),
            None => None,
        };
        let admin = match config.admin.listen {
            Some(address) => Some(AdminListener::new(
                TcpListener::bind(address).await.with_context(|| cannot_listen(address))?,
                Admin::new(
                    config.admin.clone(),
                    services.clone(),
                    engine.clone(),
                    doors(&http, resp.as_ref())?,
                    live.clone(),
                    health.clone(),
                ),
            )),
            None => None,
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
            backplane.ready(cluster.connect_time).await;
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
        let (_, services, _) = prepare(config)?;
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
        let mut urls: Vec<String> = [websocket].into_iter().chain(resp).collect();
        if let Some(admin) = &self.admin {
            urls.push(format!("http://{}", admin.local_addr()?));
        }
        Ok(urls)
    }

    /// Serves until it receives the order to end, and then shuts down gracefully: all clients
    /// are notified and have some time to receive what was queued.
    pub async fn run(self, mut orders: mpsc::UnboundedReceiver<Order>, reloading: Reloading) {
        let Server { config, live, services, health, engine, http, resp, admin, linking } = self;
        let config_file = reloading.overrides.file.clone();
        let config = Arc::new(config);
        let (served, mut all_served) = mpsc::channel::<()>(1);
        let (ending, is_ending) = watch_channel::channel(false);
        let supervisor = &services.supervisor;
        let console = admin.as_ref().and_then(|admin| admin.local_addr().ok());
        let resp_address = resp.as_ref().and_then(|resp| resp.socket.local_addr().ok());
        let resp_door =
            Arc::new(RespDoor::new(&config, resp_address.map_or(0, |address| address.port())));
        let http_door = Arc::new(HttpDoor::new(
            config.clone(),
            health,
            resp_door.clone(),
            console.filter(|console| is_local(*console)).map(|console| console.port()),
        ));
        let setup = |state: &Arc<DoorState>| ConnectionSetup {
            config: config.clone(),
            services: services.clone(),
            live: live.clone(),
            door: state.clone(),
            is_ending: is_ending.clone(),
            served: served.clone(),
        };
        let mut accepting = vec![accept(http_door, http.socket, setup(&http.state))];
        if let Some(Listening { socket, state }) = resp {
            accepting.push(accept(resp_door, socket, setup(&state)));
        }
        drop(served);
        let administering = admin.map(|admin| {
            let (admin, is_ending) = (Arc::new(admin), ending.subscribe());
            let serving = move || admin.clone().serve(is_ending.clone());
            tokio::spawn(supervisor.clone().keep("admin-listener", serving))
        });
        let (of, hub) = (config.clone(), services.hub.clone());
        let keeping = move || upkeep::keep_alive(of.clone(), hub.clone());
        let keeping = tokio::spawn(supervisor.clone().keep("keep-alive", keeping));
        let of = services.hub.connections().clone();
        let expiring = move || {
            let connections = of.clone();
            async move {
                expire(connections).await;
                Err("it ended".to_owned())
            }
        };
        let expiring = tokio::spawn(supervisor.clone().keep("expiries", expiring));
        let (of, its) = (config.clone(), services.clone());
        let rechecking = move || {
            let checking = upkeep::recheck(&of, &its);
            async move {
                checking.await;
                Err("it ended".to_owned())
            }
        };
        let rechecking = tokio::spawn(supervisor.clone().keep("recheck", rechecking));
        config.memory.log();
        let of = services.hub.connections().memory().clone();
        let bounding = move || {
            let memory = of.clone();
            async move {
                memory.keep().await;
                Err("it ended".to_owned())
            }
        };
        let bounding = tokio::spawn(supervisor.clone().keep("memory", bounding));
        let (changed, changes) = mpsc::unbounded_channel();
        let watching = watch::watch(&config, config_file.as_deref(), &changed, supervisor);
        let (of, time, to) =
            (services.middleware.clone(), config.plugins.poll_time, changed.clone());
        let polling = move || {
            let looking = watch::poll_plugins(of.clone(), time, to.clone());
            async move {
                looking.await;
                Err("it ended".to_owned())
            }
        };
        let polling = tokio::spawn(supervisor.clone().keep("plugin-directory", polling));
        let reader = Reader {
            config,
            live: live.clone(),
            services: services.clone(),
            engine,
            reloading,
            was_protected: AtomicBool::new(true),
            unread: PlainMutex::default(),
        };
        let (reader, changes) = (Arc::new(reader), Arc::new(Mutex::new(changes)));
        let reading = move || reader.clone().read(changes.clone());
        let reading = tokio::spawn(supervisor.clone().keep("reload", reading));
        while let Some(Order::Reload) = orders.recv().await {
            info!("configuration, certificates, plugins and engine are reloaded");
            // The task that receives it ends only after this.
            let _ = changed.send(Watched::Everything);
        }
        reading.abort();
        polling.abort();
        drop(watching);
        // New HTTP connections are rejected with a reason, and /readyz is answered. Redis clients
        // reconnect elsewhere only if the connection is refused, so the RESP listener is closed.
        live.begin_draining();
        for resp in accepting.drain(1..) {
            resp.abort();
            let _it_listens_no_more = resp.await;
        }
        let shutdown = live.config().shutdown;
        let connections = services.hub.connections();
        info!(connections = connections.count(), "the server is ending");
        // If this fails, the shutdown continues.
        let draining = AssertUnwindSafe(drain(connections, &shutdown)).catch_unwind();
        if let Ok((drained, took)) = draining.await {
            let ms = took.as_millis() as u64;
            info!(connections = drained, ms, "connections were notified of the shutdown");
        }
        accepting.iter().for_each(tokio::task::JoinHandle::abort);
        // The listener closes connections that are admitted from here on.
        ending.send_replace(true);
        if tokio::time::timeout(shutdown.time, all_served.recv()).await.is_err() {
            let left = connections.count();
            warn!(connections = left, "connections that did not close in time were aborted");
        }
        if tokio::time::timeout(shutdown.time, services.middleware.all_disconnects_notified())
            .await
            .is_err()
        {
            warn!("plugins were not notified in time of closed connections");
        }
        if let Some(backplane) = &services.backplane {
            backplane.drain(shutdown.time).await;
        }
        linking.iter().for_each(JoinHandle::abort);
        keeping.abort();
        expiring.abort();
        rechecking.abort();
        bounding.abort();
        if let Some(administering) = administering {
            administering.abort();
        }
    }
}

/// A door that listens.
struct Listening {
    socket: TcpListener,
    state: Arc<DoorState>,
}

impl Listening {
    /// Its address, as a URL.
    fn url(&self, plain: &str, tls: &str, path: &str) -> io::Result<String> {
        let scheme = if self.state.tls.is_some() { tls } else { plain };
        Ok(format!("{scheme}://{}{path}", self.socket.local_addr()?))
    }
}

fn cannot_listen(address: SocketAddr) -> String {
    format!("cannot listen on {address}")
}

/// Opens the listening socket of a door.
fn listen<D: Door>(address: SocketAddr, live: &LiveConfig) -> anyhow::Result<Listening> {
    let state = live.door(D::NAME).with_context(|| format!("no door is called {}", D::NAME))?;
    let socket = listener::listen::<D>(address).with_context(|| cannot_listen(address))?;
    Ok(Listening { socket, state })
}

/// Accepts the connections of a door in a task. The socket is kept, so that the port stays bound
/// when the task is restarted.
fn accept<D: Door>(door: Arc<D>, socket: TcpListener, setup: ConnectionSetup) -> JoinHandle<()> {
    let supervisor = setup.services.supervisor.clone();
    let (listener, socket) = (Listener::new(door, setup), Arc::new(socket));
    let name = format!("{}-listener", D::NAME);
    tokio::spawn(supervisor.keep(name, move || listener.clone().accept(socket.clone())))
}

/// The addresses for clients, as URLs.
fn doors(http: &Listening, resp: Option<&Listening>) -> io::Result<Doors> {
    Ok(Doors {
        websocket: http.url("ws", "wss", WEBSOCKET_PATH)?,
        resp: resp.map(|resp| resp.url("resp", "rediss", "")).transpose()?,
    })
}

/// Reloads what changed.
struct Reader {
    /// The configuration at start.
    config: Arc<Config>,
    live: Arc<LiveConfig>,
    services: Services,
    engine: Arc<EngineSwaps>,
    reloading: Reloading,
    /// Whether a plugin decided which clients may connect, at the last check: plugins are also
    /// changed by the admin API.
    was_protected: AtomicBool,
    /// What could not be read and must be reloaded.
    unread: PlainMutex<Vec<Watched>>,
}

impl Reader {
    /// One change at a time. Compiling takes long, so it runs on a blocking thread.
    async fn read(
        self: Arc<Reader>,
        changes: Arc<Mutex<mpsc::UnboundedReceiver<Watched>>>,
    ) -> Ended {
        let mut changes = changes.lock().await;
        loop {
            let unread = self.unread.lock().last().copied();
            let middleware = &self.services.middleware;
            let what = tokio::select! {
                Some(what) = changes.recv() => Some(what),
                () = middleware.parked() => None,
                () = tokio::time::sleep(READ_AGAIN_AFTER), if unread.is_some() => {
                    self.unread.lock().pop();
                    unread
                }
            };
            let is_again = unread.is_some() && what == unread;
            let reader = self.clone();
            let reading = tokio::task::spawn_blocking(move || match what {
                Some(what) => reader.read_again(what),
                None => {
                    reader.services.middleware.put_back();
                    Ok(())
                }
            });
            match reading.await {
                Ok(Ok(())) => {}
                Ok(Err(_)) if is_again => {}
                Ok(Err(Unread(problem))) => {
                    warn!(problem, "a changed file could not be read; reading it again");
                }
                Err(panic) => error!(%panic, "reading the changed files failed"),
            }
        }
    }

    /// # Errors
    ///
    /// Something must be reloaded, and is in `unread`.
    fn read_again(&self, what: Watched) -> Result<(), Unread> {
        let Reader { config, live, services, engine, reloading, was_protected, unread } = self;
        let mut read = Ok(());
        let mut must_be_read = |what: Watched, problem: Unread| {
            let mut unread = unread.lock();
            if !unread.contains(&what) {
                unread.push(what);
            }
            read = Err(problem);
        };
        let is_requested = what == Watched::Everything;
        let by = if is_requested { Initiator::Signal } else { Initiator::File };
        if (is_requested || what == Watched::Config)
            && let Err(problem) = reload::reload(reloading, live, services)
        {
            must_be_read(Watched::Config, problem);
        }
        if (is_requested || matches!(what, Watched::Config | Watched::Certificates))
            && let Err(problem) = reload::reload_certificates(live)
        {
            must_be_read(Watched::Certificates, problem);
        }
        if is_requested || what == Watched::Engine {
            engine.reload(&by, is_requested);
        }
        if is_requested || what == Watched::Plugins {
            if is_requested {
                services.middleware.look_again();
            }
            // A refusal has been logged already.
            services.middleware.rescan(&by);
            let checked = check_protection(config, &services.middleware);
            let was_protected = was_protected.swap(checked.is_ok(), Ordering::Relaxed);
            if let (true, Err(problem)) = (was_protected, checked) {
                warn!(%problem, "connections from other machines are rejected");
            }
        }
        read
    }
}
