//! Admission of a client by the chain, slot by slot, where plugins are called off the data path.
//!
//! The chain is locked during calls on the data path, but not during calls off it. So it may have
//! changed when the admission goes on: a plugin that was called is not called again, even if it was
//! swapped or moved, and a plugin that was added since is not called for this client.

use std::sync::Arc;

use tokio::sync::watch;

use super::Middleware;
use super::bindings::Client;
use super::chain::{self, AdmissionProgress, Step};
use super::plugin::Plugin;
use super::stats::Hook;
use switchyard_hub::connections::{Connection, Connections};
use switchyard_types::command::{Credentials, Refusal};
use switchyard_types::ids::ConnectionId;

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
            chain::may_connect(&plugin, answer)?;
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
            if let Some(settled) = chain::are_good(tracer, &plugin, connection, answer, took) {
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
