//! The listening sockets. All are bound before anything is compiled, so that a port that is in use
//! is reported at once. Until the server accepts, probes are answered, and Redis clients wait in the
//! backlog.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use tokio::task::JoinHandle;

use switchyard_config::Config;
use switchyard_config::listen::ListenAddress;
use switchyard_config::proxies::ProxyProtocol;
use switchyard_net::listening::ListeningSocket;
use switchyard_server::door::http::HttpDoor;
use switchyard_server::door::http::starting::{Bounds, answer_probes};
use switchyard_server::door::resp::RespDoor;
use switchyard_server::listener::listen;

/// The sockets of each listener, in the order of its addresses.
pub(crate) struct Sockets {
    pub(crate) http: Vec<Arc<ListeningSocket>>,
    /// None: the door is closed.
    pub(crate) resp: Vec<Arc<ListeningSocket>>,
    /// None: the API is off.
    pub(crate) admin: Vec<Arc<ListeningSocket>>,
}

impl Sockets {
    /// Binds them.
    ///
    /// # Errors
    ///
    /// An address cannot be bound. The error names the listener, its setting and its flag.
    pub(crate) fn bind(config: &Config) -> anyhow::Result<Sockets> {
        const HTTP: Purpose = Purpose("the HTTP and WebSocket listener", "http.listen, --http");
        const RESP: Purpose = Purpose("the listener for Redis clients", "resp.listen, --resp");
        const ADMIN: Purpose = Purpose("the admin listener", "admin.listen, --admin");
        let resp = config.resp.as_ref().map_or_else(Default::default, |resp| &*resp.listen);
        Ok(Sockets {
            http: HTTP.bind(&config.http.listen, config, listen::<HttpDoor>)?,
            resp: RESP.bind(resp, config, listen::<RespDoor>)?,
            admin: ADMIN.bind(&config.admin.listen, config, |address, all, config| {
                ListeningSocket::open(address, all, config, |_| Ok(()))
            })?,
        })
    }

    /// Answers probes on the listeners for HTTP, in tasks, until they are aborted. A listener with
    /// TLS or the PROXY protocol answers when the server has started.
    pub(crate) fn answer_probes(&self, config: &Config) -> Vec<JoinHandle<()>> {
        let is_plain = |protocol| protocol == ProxyProtocol::Off;
        let http = config.http.tls.is_none() && is_plain(config.http.proxy_protocol);
        let admin = is_plain(config.admin.proxy_protocol);
        let http = (http, &self.http, Bounds::of_clients(config));
        let admin = (admin, &self.admin, Bounds::of_admin(config));
        let mut answering = Vec::new();
        for (is_plain, sockets, bounds) in [http, admin] {
            let sockets = sockets.iter().filter(|_| is_plain);
            answering.extend(
                sockets.map(|socket| tokio::spawn(answer_probes(socket.clone(), bounds.clone()))),
            );
        }
        answering
    }
}

/// What a listener is for, and the names of its setting and its flag.
struct Purpose(&'static str, &'static str);

impl Purpose {
    /// Binds all addresses. The error says which listener failed, and what to do.
    fn bind(
        &self,
        addresses: &[ListenAddress],
        config: &Config,
        open: impl Fn(&ListenAddress, &[ListenAddress], &Config) -> io::Result<ListeningSocket>,
    ) -> anyhow::Result<Vec<Arc<ListeningSocket>>> {
        let Purpose(listener, settings) = self;
        let bind = |address: &ListenAddress| {
            open(address, addresses, config).map(Arc::new).map_err(|error| {
                let advice = match (error.kind(), address) {
                    (ErrorKind::AddrInUse, ListenAddress::Tcp(_)) => {
                        "; another process uses this port: stop it, or choose another port"
                    }
                    (ErrorKind::AddrInUse, ListenAddress::Unix(_)) => {
                        "; stop it, remove the file, or choose another path"
                    }
                    (ErrorKind::AddrNotAvailable, _) => "; this machine has no such address",
                    (ErrorKind::PermissionDenied, ListenAddress::Tcp(_)) => {
                        "; ports below 1024 need the capability CAP_NET_BIND_SERVICE"
                    }
                    _ => "",
                };
                let problem =
                    format!("cannot listen on {address}, {listener} ({settings}): {error}{advice}");
                anyhow::Error::msg(problem)
            })
        };
        addresses.iter().map(bind).collect()
    }
}
