//! Admission of a client by the chain, slot by slot: when it connects, authenticates or disconnects.
//! Plugins are called on the data path or off it.
//!
//! The chain is locked during calls on the data path, but not during calls off it. So it may have
//! changed when the admission goes on: a plugin that was called is not called again, even if it was
//! swapped or moved, and a plugin that was added since is not called for this client.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Middleware;
use super::bindings::Client;
use super::chain::{Chain, failed};
use super::declaration::TrapPolicy;
use super::plugin::Plugin;
use super::stats::{Hook, PluginStats, Verdict};
use super::trace::{Call, Seen, Tracer};
use switchyard_hub::connections::{Connection, Connections};
use switchyard_types::command::{Credentials, NOAUTH, Refusal};
use switchyard_types::ids::ConnectionId;

/// How far the admission of one client has come. The chain may change before it continues.
#[derive(Default)]
pub struct AdmissionProgress {
    /// The counters of their slots, by which they are recognized when they are swapped or moved.
    met: Vec<Arc<PluginStats>>,
}

/// The result of calling the chain.
pub enum Step<T> {
    /// The result.
    Settled(T),
    /// The next plugin is called off the data path, while the chain is not locked. The caller calls
    /// it, and `meet`s it before it continues with the rest of the chain.
    Apart(Arc<Plugin>),
}

impl AdmissionProgress {
    /// Records that the plugin was called and has not refused.
    pub fn meet(&mut self, plugin: &Plugin) {
        self.met.push(plugin.stats.clone());
    }

    fn has_met(&self, plugin: &Plugin) -> bool {
        self.met.iter().any(|met| Arc::ptr_eq(met, &plugin.stats))
    }

    /// Whether the plugin was called already, or was added when the connection had its id
    /// already: then it is not notified of the connection's end either.
    fn is_past(&self, plugin: &Plugin, connection: ConnectionId) -> bool {
        !self.met.is_empty() && (self.has_met(plugin) || !plugin.admitted(connection))
    }
}

/// The verdict of one plugin on a client that wants to connect. The outer error: it could not
/// decide.
///
/// # Errors
///
/// It is refused.
pub fn may_connect(
    plugin: &Plugin,
    answer: Result<Result<(), Refusal>, Refusal>,
) -> Result<(), Refusal> {
    let verdict = match &answer {
        Ok(Ok(())) => Verdict::Pass,
        Ok(Err(_)) => Verdict::Reject,
        Err(_) => failed(plugin),
    };
    plugin.stats.of(Hook::OnConnect).said(verdict, 1);
    match (answer, plugin.policy) {
        (Ok(Ok(())), _) | (Err(_), TrapPolicy::Open) => Ok(()),
        (Ok(Err(refusal)), _) => Err(plugin.signed(refusal)),
        (Err(unavailable), TrapPolicy::Closed) => Err(unavailable),
    }
}

/// The verdict of one plugin on credentials. None: the next plugin decides. The outer error: it
/// was not available.
pub fn are_good(
    tracer: Option<&Tracer>,
    plugin: &Plugin,
    connection: ConnectionId,
    answer: Result<Result<bool, Refusal>, Refusal>,
    took: Duration,
) -> Option<Result<(), Refusal>> {
    let verdict = match &answer {
        Ok(Ok(true)) => Verdict::Pass,
        Ok(Ok(false)) => Verdict::Abstain,
        Ok(Err(_)) => Verdict::Reject,
        Err(_) => failed(plugin),
    };
    plugin.stats.of(Hook::OnAuthenticate).said(verdict, 1);
    if let Some(tracer) = tracer {
        let refusal = match &answer {
            Ok(Err(refusal)) => Some(refusal),
            _ => None,
        };
        let seen = Seen { action: "authenticate", verdict, refusal, ..Seen::default() };
        let call = Call { plugin: &plugin.identity, hook: Hook::OnAuthenticate, took, items: 1 };
        if tracer.is_wanted(connection, [None, None]) {
            call.show(tracer, connection, seen);
        }
    }
    match (answer, plugin.policy) {
        (Ok(Ok(true)), _) => Some(Ok(())),
        (Ok(Ok(false)), _) | (Err(_), TrapPolicy::Open) => None,
        (Ok(Err(refusal)), _) => Some(Err(plugin.signed(refusal))),
        (Err(unavailable), TrapPolicy::Closed) => Some(Err(unavailable)),
    }
}

impl Chain {
    /// May this client connect? Calls the remaining plugins that are called on the data path. When
    /// one refuses, the caller must call `let_go`.
    pub fn connect(
        &self,
        connection: ConnectionId,
        client: &Client,
        progress: &mut AdmissionProgress,
    ) -> Step<Result<(), Refusal>> {
        for plugin in self.with(|hooks| hooks.admission) {
            if progress.is_past(plugin, connection) {
                continue;
            }
            if plugin.pool().is_some() {
                return Step::Apart(plugin.clone());
            }
            let (answer, _) = plugin.call(Hook::OnConnect, 1, connection, |instance| {
                instance.on_connect(connection, client)
            });
            let answer = answer.ok_or_else(|| plugin.unavailable());
            if let Err(refusal) = may_connect(plugin, answer) {
                return Step::Settled(Err(refusal));
            }
            progress.meet(plugin);
        }
        Step::Settled(Ok(()))
    }

    /// Notifies the plugins that admitted a client of its end, after another plugin has refused it.
    /// Returns the plugins that must be notified off the data path.
    pub fn let_go(
        &self,
        connection: ConnectionId,
        progress: &AdmissionProgress,
    ) -> Vec<Arc<Plugin>> {
        self.say_gone(connection, |plugin| progress.has_met(plugin))
    }

    /// Are these credentials valid? Calls the remaining plugins that are called on the data path.
    /// Also refuses when no plugin accepts the credentials.
    pub fn authenticate(
        &self,
        connection: ConnectionId,
        credentials: &Credentials,
        progress: &mut AdmissionProgress,
    ) -> Step<Result<(), Refusal>> {
        if !self.has_admission() {
            return Step::Settled(Err(Refusal::new(
                NOAUTH,
                "no authentication plugin is in the chain, so there is nothing to authenticate for",
            )));
        }
        for plugin in self.with(|hooks| hooks.admission) {
            if progress.has_met(plugin) {
                continue;
            }
            if plugin.pool().is_some() {
                return Step::Apart(plugin.clone());
            }
            let (answer, took) = plugin.call(Hook::OnAuthenticate, 1, connection, |instance| {
                instance.on_authenticate(connection, credentials)
            });
            let answer = answer.ok_or_else(|| plugin.unavailable());
            if let Some(settled) = are_good(self.tracer(), plugin, connection, answer, took) {
                return Step::Settled(settled);
            }
            progress.meet(plugin);
        }
        Step::Settled(Err(Refusal::new(NOAUTH, "no plugin knows these credentials")))
    }

    /// Notifies the plugins that admitted the connection of its end. Returns the plugins that must
    /// be notified off the data path.
    pub fn disconnect(&self, connection: ConnectionId) -> Vec<Arc<Plugin>> {
        self.say_gone(connection, |plugin| plugin.admitted(connection))
    }

    fn say_gone(
        &self,
        connection: ConnectionId,
        let_it_in: impl Fn(&Plugin) -> bool,
    ) -> Vec<Arc<Plugin>> {
        let mut apart = Vec::new();
        for plugin in self.with(|hooks| hooks.admission).filter(|plugin| let_it_in(plugin)) {
            if plugin.pool().is_some_and(|pool| !pool.is_outside()) {
                apart.push(plugin.clone());
            } else {
                plugin.call(Hook::OnDisconnect, 1, connection, |instance| {
                    instance.on_disconnect(connection)
                });
            }
        }
        apart
    }
}

impl Middleware {
    /// Calls this plugin, and those after it, to decide whether the client may connect. If one
    /// of them refuses, or the future is dropped, the connection is removed, and the plugins
    /// that admitted it are notified of its end.
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub async fn admit(
        self: Arc<Self>,
        connection: Arc<Connection>,
        client: Client,
        progress: AdmissionProgress,
        mut plugin: Arc<Plugin>,
    ) -> Result<Arc<Connection>, Refusal> {
        let id = connection.id;
        let client = Arc::new(client);
        let mut pending =
            PendingAdmission { middleware: self.clone(), connection: Some(connection), progress };
        loop {
            let offered = client.clone();
            let (answer, _) = plugin
                .call_off_data_path(Hook::OnConnect, id, move |instance| {
                    instance.on_connect(id, &offered)
                })
                .await;
            may_connect(&plugin, answer)?;
            pending.progress.meet(&plugin);
            let step = self.chain().connect(id, &client, &mut pending.progress);
            match step {
                Step::Apart(next) => plugin = next,
                Step::Settled(settled) => {
                    settled?;
                    return Ok(pending.connection.take().expect("it is returned once"));
                }
            }
        }
    }

    /// Calls this plugin and the remaining ones to check the credentials.
    ///
    /// # Errors
    ///
    /// The first refusal; also when no plugin accepts the credentials.
    pub async fn authenticate(
        self: Arc<Self>,
        connection: ConnectionId,
        credentials: Credentials,
        mut progress: AdmissionProgress,
        mut plugin: Arc<Plugin>,
    ) -> Result<(), Refusal> {
        let credentials = Arc::new(credentials);
        loop {
            let offered = credentials.clone();
            let (answer, took) = plugin
                .call_off_data_path(Hook::OnAuthenticate, connection, move |instance| {
                    instance.on_authenticate(connection, &offered)
                })
                .await;
            let tracer = Some(&**self.tracer()).filter(|tracer| tracer.is_used());
            if let Some(settled) = are_good(tracer, &plugin, connection, answer, took) {
                return settled;
            }
            progress.meet(&plugin);
            let step = self.chain().authenticate(connection, &credentials, &mut progress);
            match step {
                Step::Apart(next) => plugin = next,
                Step::Settled(settled) => return settled,
            }
        }
    }
}

impl Middleware {
    /// Notifies these plugins of the end of a connection, and then removes it: until they are
    /// notified, they can read its attributes.
    pub fn forget(&self, connection: Arc<Connection>, plugins: Vec<Arc<Plugin>>) {
        let connections = self.context.connections.clone();
        if plugins.is_empty() {
            return connections.remove(connection.id);
        }
        let underway = self.disconnect_notices.clone();
        underway.send_modify(|count| *count += 1);
        let notice = DisconnectNotice { connections, id: connection.id, underway };
        self.context.runtime.spawn(async move {
            let id = notice.id;
            for plugin in plugins {
                let _answer_is_nothing = plugin
                    .call_off_data_path(Hook::OnDisconnect, id, move |instance| {
                        instance.on_disconnect(id)
                    })
                    .await;
            }
        });
    }

    /// Waits until the plugins have been notified of the end of all closed connections.
    pub async fn all_disconnects_notified(&self) {
        let mut underway = self.disconnect_notices.subscribe();
        let _ = underway.wait_for(|count| *count == 0).await;
    }
}

/// A connection whose end plugins are being notified of. It is removed when this is dropped, also
/// by a panic.
struct DisconnectNotice {
    connections: Arc<Connections>,
    id: ConnectionId,
    underway: watch::Sender<usize>,
}

impl Drop for DisconnectNotice {
    fn drop(&mut self) {
        self.connections.remove(self.id);
        self.underway.send_modify(|count| *count -= 1);
    }
}

/// A connection that is not admitted yet.
struct PendingAdmission {
    middleware: Arc<Middleware>,
    connection: Option<Arc<Connection>>,
    progress: AdmissionProgress,
}

impl Drop for PendingAdmission {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let plugins = self.middleware.chain().let_go(connection.id, &self.progress);
            self.middleware.forget(connection, plugins);
        }
    }
}
