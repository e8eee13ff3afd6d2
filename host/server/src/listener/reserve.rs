//! Connections for which there is no file descriptor. Each is accepted with the reserved descriptor
//! of its listener and answered, one at a time: a health probe with the state of the server,
//! everything else with a refusal.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::http::StatusCode;

use super::{Listener, Protocol};
use crate::door::resp;
use crate::handshake::{self, Asked};
use switchyard_net::descriptors::ANSWER_TIME;
use switchyard_net::socket;
use switchyard_net::tls::Tls;
use switchyard_types::close::CloseReason;

/// How long to wait for a refused client to close, so that it reads the refusal.
const LEAVE_TIME: Duration = Duration::from_millis(20);

impl Listener {
    /// Answers a connection for which there is no other descriptor, and closes it.
    pub(super) async fn serve_on_reserve(&self, stream: TcpStream, protocol: Protocol) {
        let answering = self.answer_shortly(stream, protocol);
        let _it_took_too_long = tokio::time::timeout(ANSWER_TIME, answering).await;
    }

    async fn answer_shortly(&self, mut stream: TcpStream, protocol: Protocol) {
        let tls = match protocol {
            Protocol::Http => &self.live.http_tls,
            Protocol::Resp => &self.live.resp_tls,
        };
        match tls.as_ref().map(Tls::acceptor) {
            None => self.answer_in(&mut stream, protocol).await,
            Some(acceptor) => {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    self.answer_in(&mut stream, protocol).await;
                }
            }
        }
    }

    async fn answer_in<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        protocol: Protocol,
    ) {
        let reason = CloseReason::OverCapacity;
        match protocol {
            Protocol::Http => {
                match handshake::read(stream, self.config.http.request_bytes_max).await {
                    Ok(Asked::Health(question)) => {
                        let report = self.health.report().await;
                        let _gone = handshake::answer_health(stream, question, &report).await;
                    }
                    Ok(Asked::Upgrade(_)) => {
                        self.services.stats.refused(protocol.into(), (&reason).into());
                        let status = StatusCode::SERVICE_UNAVAILABLE;
                        let why = "the server has no file descriptors left; try again later\n";
                        let _gone = handshake::answer(stream, status, handshake::TEXT, why).await;
                    }
                    Ok(Asked::Answered(_)) | Err(_) => {}
                }
            }
            Protocol::Resp => {
                self.services.stats.refused(protocol.into(), (&reason).into());
                let refusing = async {
                    stream.write_all(&resp::rejection_reply(&reason)).await?;
                    stream.shutdown().await?;
                    socket::discard_input(stream).await
                };
                let _gone = tokio::time::timeout(LEAVE_TIME, refusing).await;
            }
        }
    }
}
