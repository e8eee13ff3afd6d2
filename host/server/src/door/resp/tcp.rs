//! The door for Redis clients: Redis' protocol over TCP.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::info::ServerInfo;
use super::{Resp, Transport, rejection_reply};
use crate::connection_setup::ConnectionSetup;
use crate::door::{Door, Incoming};
use crate::live_config::RESP;
use crate::session::Framing;
use switchyard_config::Config;
use switchyard_config::proxies::ProxyProtocol;
use switchyard_middleware::bindings::{Client, Door as ClientDoor};
use switchyard_net::socket::{self, Stream};
use switchyard_protocol::resp::RequestLimits;
use switchyard_types::close::CloseReason;

/// Redis' `tcp-keepalive`.
const KEEPALIVE_TIME: Duration = Duration::from_secs(300);

/// How long to wait for a refused client to close, so that it reads the refusal.
const LEAVE_TIME: Duration = Duration::from_millis(20);

/// The door for Redis clients.
pub struct RespDoor {
    limits: RequestLimits,
    info: ServerInfo,
}

impl RespDoor {
    /// `port`: the port that INFO shows.
    pub fn new(config: &Arc<Config>, port: u16) -> RespDoor {
        let request_bytes_max = match &config.resp {
            Some(resp) => resp.request_bytes_max,
            None => config.websocket.message_bytes_max,
        };
        RespDoor {
            limits: RequestLimits {
                bulk_bytes_max: request_bytes_max.min(RequestLimits::default().bulk_bytes_max),
                request_bytes_max,
                ..RequestLimits::default()
            },
            info: ServerInfo::new(config, port, request_bytes_max),
        }
    }

    /// Decodes the requests of a new connection.
    pub fn decoder(&self, transport: Transport) -> Resp {
        Resp::new(transport, self.limits, self.info.clone())
    }
}

impl Door for RespDoor {
    const NAME: &'static str = RESP;

    /// As in Redis, there are no application-level pings on an idle connection.
    const TCP_KEEPALIVE: Option<Duration> = Some(KEEPALIVE_TIME);

    fn proxy_protocol(&self, config: &Config) -> ProxyProtocol {
        config.resp.as_ref().map_or(ProxyProtocol::Off, |resp| resp.proxy_protocol)
    }

    async fn open<S: Stream>(&self, incoming: Incoming<S>) {
        let client = Client {
            door: ClientDoor::Resp,
            remote: incoming.peer.remote.to_string(),
            path: String::new(),
            headers: Vec::new(),
        };
        let encoding = Resp::first_encoding(Transport::Stream);
        let admitted = incoming.admit(client, encoding, rejection_reply).await;
        if let Some((stream, connection, setup)) = admitted {
            let decoder = self.decoder(Transport::Stream);
            setup.serve(stream, connection, decoder, Vec::new(), Framing::None);
        }
    }

    async fn refuse_shortly<S: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        stream: &mut S,
        setup: &ConnectionSetup,
    ) {
        let reason = CloseReason::OverCapacity;
        setup.door.stats.record_refused((&reason).into());
        let reply = rejection_reply(&reason);
        let refusing = socket::write_and_close(stream, &reply);
        let _gone = tokio::time::timeout(LEAVE_TIME, refusing).await;
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use switchyard_config::listen::ListenAddress;
    use tokio::net::TcpStream;
    use tokio_util::either::Either;

    use super::*;
    use crate::listener::listen;

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn an_accepted_connection_has_the_socket_options_of_the_door() -> std::io::Result<()> {
        let free = ListenAddress::Tcp(([127, 0, 0, 1], 0).into());
        let listener = listen::<RespDoor>(&free, &[], &Config::default())?;
        let ListenAddress::Tcp(address) = listener.address()? else { unreachable!("it is TCP") };
        let _client = TcpStream::connect(address).await?;
        let (accepted, _) = listener.accept().await?;
        let Either::Left(accepted) = accepted else { unreachable!("it is TCP") };
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay()? && socket.keepalive()?);
        assert_eq!(socket.tcp_keepalive_time()?, KEEPALIVE_TIME);
        Ok(())
    }
}
