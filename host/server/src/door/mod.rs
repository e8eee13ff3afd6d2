//! The doors: each is a protocol with its listener.
//!
//! A `Door` performs the handshake of a connection, has the plugins admit the client, and gives the
//! connection a `Decoder`, which turns the client's bytes into the commands of a session. What
//! clients receive without a request is written by the door's
//! [`Encoder`](switchyard_hub::encoding::Encoder). A new door is a folder here; to have it
//! opened, it needs a setting, an entry in `LiveConfig::new`, and one in the start of the server.

pub mod http;
pub mod resp;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::connection_setup::ConnectionSetup;
use crate::session::Session;
use switchyard_hub::connections::Connection;
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

    /// Performs the handshake of a connection, has the plugins admit the client and serves it; or
    /// rejects it. Ends early when the server shuts down.
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

/// The client at the other end, as far as the connection itself shows it.
#[derive(Debug)]
pub struct Peer {
    /// Its address.
    pub remote: SocketAddr,
    /// The subject of its client certificate.
    pub subject: Option<String>,
}

/// How many bytes a decoder has processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes have been processed.
    pub bytes: usize,
    /// Whether the time budget was exhausted: processing continues where it stopped, even if
    /// no more bytes arrive.
    pub is_unfinished: bool,
}

/// The interface between a connection's bytes and its session.
pub trait Decoder {
    /// Executes the complete commands that `bytes` begins with. The rest is passed again with the
    /// bytes that follow it. When the connection must be closed, this closes its outbox.
    fn decode(&mut self, bytes: &mut [u8], session: &mut Session) -> Progress;

    /// Whether a request or message of the client was completed since the last call; `processed`
    /// bytes have been processed.
    fn has_progressed(&mut self, processed: usize) -> bool {
        processed > 0
    }

    /// How much memory it holds for a message that was received in part, besides the bytes that it
    /// has not processed.
    fn unfinished_bytes(&self) -> usize {
        0
    }

    /// Frees that memory: the connection is closing.
    fn forget_unfinished(&mut self) {}

    /// The reason to close with when the client ends its input; none: the client should have closed
    /// properly.
    fn end_of_input(&self) -> Option<CloseReason>;

    /// The last bytes that are sent to the client; may be empty.
    fn goodbye(&self, reason: &CloseReason) -> Bytes;
}

/// Closes a connection that did nothing wrong: soon, and with the protocol's way to say so. A
/// second call has no effect.
pub fn close_gracefully(connection: &Connection, reason: CloseReason) {
    goaway(connection, &reason, RECONNECT_WITHIN);
    connection.outbox.close(reason);
}

/// Notifies a client, if its protocol can do so, that it will be closed, and after which time it
/// should reconnect.
pub fn goaway(connection: &Connection, reason: &CloseReason, reconnect_within: [Duration; 2]) {
    let within_ms = reconnect_within.map(|time| time.as_millis() as u64);
    if let Some(goaway) = connection.encoding().encoder().goaway(&reason.text(), within_ms) {
        connection.outbox.push(goaway.into());
    }
}

/// The time over which clients should spread their reconnects, unless another one is given.
const RECONNECT_WITHIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];
