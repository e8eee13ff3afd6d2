//! The server's life: what it starts, how it keeps going, and how it ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::backplane::Backplane;
use crate::close::CloseReason;
use crate::config::{Config, EngineSource};
use crate::door;
use crate::engine::EngineCode;
use crate::entrance::{Entrance, Protocol};
use crate::handshake::WEBSOCKET_PATH;
use crate::hub::Hub;
use crate::hub::connections::{Connections, Pulse};
use crate::middleware::Middleware;
use crate::protocol::websocket;
use crate::session::Services;
use crate::wasm::Wasm;
use crate::watch::Watched;

/// A server that can be run.
pub struct Server {
    config: Config,
    wasm: Wasm,
    services: Services,
    http: TcpListener,
    resp: Option<TcpListener>,
    /// Looks for the backplane.
    linking: Option<JoinHandle<()>>,
}

/// Why the server was told to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// To end in good order.
    End,
    /// To read plugins and engine again.
    Reload,
}

impl Server {
    /// Loads engine and plugins, and binds the listener.
    ///
    /// # Errors
    ///
    /// The engine or a plugin is refused, or the address cannot be bound.
    pub async fn start(config: Config) -> anyhow::Result<Server> {
        let wasm =
            Wasm::new().map_err(|error| anyhow::anyhow!("cannot set up Wasmtime: {error:#}"))?;
        let code = EngineCode::load(&wasm, &config.engine)?;
        let connections = Connections::new(
            config.limits.connections_max,
            config.outbox,
            config.limits.attributes_bytes_max,
        );
        let hub = Hub::new(code, &config.engine, connections.clone())
            .map_err(|problem| anyhow::anyhow!("cannot instantiate the engine: {problem}"))?;
        let backplane =
            config.cluster.clone().map(|cluster| Backplane::new(cluster, config.limits));
        let hub = match &backplane {
            Some(backplane) => hub.with_interest(backplane.interest().clone()),
            None => hub,
        };
        let middleware = Middleware::new(
            wasm.clone(),
            config.plugins.clone(),
            config.limits.counters_max,
            connections,
            tokio::runtime::Handle::current(),
        );
        if let Some(error) = middleware.rescan().into_iter().next() {
            return Err(error.into());
        }
        let http = bind(config.http.listen).await?;
        let resp = match &config.resp {
            Some(resp) => Some(bind(resp.listen).await?),
            None => None,
        };
        let services = Services {
            hub: Arc::new(hub),
            middleware: Arc::new(middleware),
            stats: Arc::default(),
            limits: config.limits,
            backplane,
        };
        let linking = services.backplane.clone().map(|backplane| {
            tokio::spawn(backplane.run(services.hub.clone(), services.middleware.clone()))
        });
        if let (Some(backplane), Some(cluster)) = (&services.backplane, &config.cluster) {
            // It goes on looking, and the node serves who is there.
            backplane.ready(cluster.connect_time).await;
        }
        Ok(Server { config, wasm, services, http, resp, linking })
    }

    /// The addresses that clients connect to, as URLs.
    ///
    /// # Errors
    ///
    /// The operating system has forgotten them.
    pub fn urls(&self) -> io::Result<Vec<String>> {
        let mut urls = vec![format!("ws://{}{WEBSOCKET_PATH}", self.http.local_addr()?)];
        if let Some(resp) = &self.resp {
            urls.push(format!("resp://{}", resp.local_addr()?));
        }
        Ok(urls)
    }

    /// Serves until it is told to end, and then ends in good order: everyone is
    /// told, and has a while to take what was queued.
    pub async fn run(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let Server { config, wasm, services, http, resp, linking } = self;
        let config = Arc::new(config);
        let (served, mut all_served) = mpsc::channel::<()>(1);
        let (ending, is_ending) = watch::channel(false);
        let entrance =
            Entrance::new(config.clone(), services.clone(), resp.as_ref(), is_ending, served);
        let mut accepting = vec![tokio::spawn(entrance.clone().accept(http, Protocol::Http))];
        accepting.extend(resp.map(|resp| tokio::spawn(entrance.accept(resp, Protocol::Resp))));
        let keeping = tokio::spawn(keep_alive(config.clone(), services.hub.clone()));
        let (changed, changes) = mpsc::unbounded_channel();
        let watching = crate::watch::watch(&config, &changed);
        // What changed before the watch began is not missed.
        let _ = changed.send(Watched::Plugins);
        let reloading = tokio::spawn(reload(config.clone(), wasm, services.clone(), changes));
        while let Some(Order::Reload) = orders.recv().await {
            info!("plugins and engine are read again");
            // The task that receives it ends only after this.
            let _ = changed.send(Watched::Everything);
        }
        reloading.abort();
        drop(watching);
        accepting.iter().for_each(tokio::task::JoinHandle::abort);
        // Who is let in from here on is told by the entrance.
        ending.send_replace(true);
        for connection in services.hub.connections().opened_ones() {
            door::farewell(&connection);
        }
        info!(connections = services.hub.connections().count(), "the server is ending");
        if tokio::time::timeout(config.shutdown_time, all_served.recv()).await.is_err() {
            let left = services.hub.connections().count();
            warn!(connections = left, "connections that did not end in time were cut off");
        }
        if let Some(backplane) = &services.backplane {
            backplane.drain(config.shutdown_time).await;
        }
        linking.iter().for_each(JoinHandle::abort);
        keeping.abort();
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Reads again what changed, one after the other. Compiling takes a while, so it is
/// done where no connection waits for it.
async fn reload(
    config: Arc<Config>,
    wasm: Wasm,
    services: Services,
    mut changes: mpsc::UnboundedReceiver<Watched>,
) {
    while let Some(what) = changes.recv().await {
        let (config, wasm, services) = (config.clone(), wasm.clone(), services.clone());
        let reading = tokio::task::spawn_blocking(move || {
            if what != Watched::Plugins {
                swap_engine(&config, &wasm, &services.hub, what);
            }
            if what != Watched::Engine {
                if what == Watched::Everything {
                    services.middleware.look_again();
                }
                // What is refused has been logged where it was.
                services.middleware.rescan();
            }
        });
        if let Err(panic) = reading.await {
            error!(%panic, "reading plugins and engine again failed");
        }
    }
}

fn swap_engine(config: &Config, wasm: &Wasm, hub: &Hub, why: Watched) {
    let code = match EngineCode::load(wasm, &config.engine) {
        Ok(code) => code,
        Err(problem) => {
            error!(%problem, "the engine was not swapped: the one in use stays");
            return;
        }
    };
    // A file that was only touched is no reason for a pause; a person is.
    if why == Watched::Engine && code.version() == hub.engine_version() {
        return;
    }
    match hub.swap_engine(code) {
        Ok(swap) => info!(
            from = swap.from,
            to = swap.to,
            pause_us = swap.longest_pause.as_micros() as u64,
            from_snapshot = swap.from_snapshot,
            "the engine was swapped"
        ),
        Err(problem) => error!(problem, "the engine was not swapped: the one in use stays"),
    }
}

/// Pings connections that say nothing, closes those that do not answer, and
/// looks after what only time changes.
async fn keep_alive(config: Arc<Config>, hub: Arc<Hub>) {
    let websocket = &config.websocket;
    let shortest = websocket.ping_interval.min(websocket.pong_time).min(config.outbox.soft_time);
    let mut ticks = tokio::time::interval(
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)),
    );
    let was_ill = AtomicBool::new(false);
    loop {
        ticks.tick().await;
        let connections = hub.connections();
        for connection in connections.opened_ones() {
            connection.outbox.check();
            if !connection.encoding().is_framed() {
                // TCP keepalive sees to it, as in Redis.
                continue;
            }
            match connections.pulse(&connection, websocket.ping_interval, websocket.pong_time) {
                Pulse::Fine => {}
                Pulse::PingDue => connection.outbox.push(websocket::PING),
                // What it does not read it does not answer: that has a limit of its
                // own.
                Pulse::Lost if connection.outbox.is_congested() => {}
                Pulse::Lost => connection.outbox.close(CloseReason::PingTimeout),
            }
        }
        // A shard that was given up is tried again even if nobody asks.
        let is_ill = hub.tend() > 0;
        if was_ill.swap(is_ill, Ordering::Relaxed) && !is_ill {
            info!("the engine can be asked again");
        }
    }
}

/// Whether this engine can be replaced by replacing a file.
pub fn engine_file(config: &Config) -> Option<&std::path::Path> {
    match &config.engine.source {
        EngineSource::File(path) => Some(path),
        EngineSource::Embedded | EngineSource::Native => None,
    }
}
