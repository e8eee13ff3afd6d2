//! The doors: each is a protocol with its listener.
//!
//! A `Door` performs the handshake of a connection, has the plugins admit the client, and gives the
//! connection a [`Decoder`](crate::decoder::Decoder), which decodes the client's bytes into the
//! commands of a session. What clients receive without a request is written by the door's
//! [`Encoder`](switchyard_hub::encoding::Encoder). A new door is a folder here; to have it opened,
//! it needs settings, and an entry in the start of the server.

pub mod http;
pub mod resp;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::connection_setup::{ConnectionSetup, Peer};
use switchyard_config::Config;
use switchyard_config::proxies::ProxyProtocol;
use switchyard_hub::connections::Connection;
use switchyard_hub::encoding::Encoding;
use switchyard_middleware::bindings::Client;
use switchyard_net::slots::Slot;
use switchyard_net::socket::Stream;
use switchyard_types::close::CloseReason;

/// A protocol with its listener.
pub trait Door: Send + Sync + 'static {
    /// Its name, in metrics, in the log and in `LiveConfig`.
    const NAME: &'static str;

    /// After how much silence TCP probes whether a client is still there; none: the protocol does
    /// it.
    const TCP_KEEPALIVE: Option<Duration> = None;

    /// Whether its clients send before they receive. Otherwise only those with TLS do.
    const CLIENT_SENDS_FIRST: bool = false;

    /// Whether its connections begin with a PROXY protocol header.
    fn proxy_protocol(&self, _: &Config) -> ProxyProtocol {
        ProxyProtocol::Off
    }

    /// Performs the handshake of a connection, has the plugins admit the client and serves it; or
    /// rejects it.
    fn open<S: Stream>(&self, incoming: Incoming<S>) -> impl Future<Output = ()> + Send;

    /// Answers a connection that cannot be served because there is no file descriptor for it. The
    /// caller closes it when the time for that is over.
    fn refuse_shortly<S: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        stream: &mut S,
        setup: &ConnectionSetup,
    ) -> impl Future<Output = ()> + Send;
}

/// A connection before its handshake.
pub struct Incoming<S> {
    /// Its bytes, decrypted.
    pub stream: S,
    /// The client, as far as the connection itself shows it.
    pub peer: Peer,
    /// The handshake that is counted until this is dropped.
    pub handshaking: Slot,
    /// Admits and serves it.
    pub setup: ConnectionSetup,
}

impl<S: Stream> Incoming<S> {
    /// Has the plugins admit a client whose protocol has no handshake of its own. None: it was rejected,
    /// with the bytes that `rejection` makes of the reason.
    pub async fn admit(
        self,
        client: Client,
        encoding: Encoding,
        rejection: impl Fn(&CloseReason) -> Bytes + Send,
    ) -> Option<(S, Arc<Connection>, ConnectionSetup)> {
        let Incoming { stream, peer, handshaking, setup } = self;
        // The plugin calls are part of the handshake. While it waits for them, it only uses a slot
        // of its own address.
        handshaking.counts_for_address();
        let admitted = setup.unless_ending(setup.admit(client, &peer, encoding)).await;
        match admitted.unwrap_or(Err(CloseReason::Draining)) {
            Ok(connection) => Some((stream, connection, setup)),
            Err(reason) => {
                handshaking.counts_again();
                setup.reject(stream, &peer, &reason, rejection(&reason)).await;
                None
            }
        }
    }
}
