//! One request: name resolution, connecting, TLS, and the response, each bounded.
//!
//! Redirects are returned like other responses: to follow one, the component sends another request,
//! which needs a permit for its host. No connection is reused.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, Sleep, timeout_at};
use tokio_rustls::TlsConnector;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::{Destination, HttpPolicy};

/// The maximum size of a response's head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The task of a connection, which ends with the request at the latest.
type Driving = Box<dyn Future<Output = Result<(), Error>> + Send>;

/// Sends a permitted request.
pub(super) async fn send(
    grant: &HttpPolicy,
    destination: &Destination,
    until: Instant,
    mut request: Request<WasiBody>,
    options: RequestOptions,
) -> Result<(Response<WasiBody>, Driving), Error> {
    let sooner =
        |limit: Option<Duration>| limit.map_or(until, |limit| until.min(Instant::now() + limit));
    let stream = timeout_at(sooner(options.connect_timeout), connect(grant, destination))
        .await
        .map_err(|_| Error::ConnectionTimeout)??;
    // The host is in the headers already; in the URL it would be for a proxy.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| Error::HttpRequestUriInvalid)?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| from_hyper(&error, until))?;
    // Aborted with the request: when its handle is dropped.
    let driving = wasmtime_wasi::runtime::spawn(timeout_at(until, connection));
    let response = timeout_at(sooner(options.first_byte_timeout), sender.send_request(request))
        .await
        .map_err(|_| Error::HttpResponseTimeout)?
        .map_err(|error| from_hyper(&error, until))?;
    let bytes_max = grant.limits.response_bytes_max;
    if response.body().size_hint().lower() > bytes_max as u64 {
        return Err(Error::HttpResponseBodySize(Some(bytes_max as u64)));
    }
    let response = response.map(|incoming| {
        Bounded {
            incoming,
            bytes_max,
            bytes: 0,
            end: Box::pin(tokio::time::sleep_until(until)),
            pause: options
                .between_bytes_timeout
                .map(|pause| (pause, Box::pin(tokio::time::sleep(pause)))),
        }
        .boxed_unsync()
    });
    let driving = async move {
        // The cause of its end is reported where the body is read.
        let _ = driving.await;
        Ok(())
    };
    Ok((response, Box::new(driving)))
}

/// The transport of a request.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(grant: &HttpPolicy, destination: &Destination) -> Result<Box<dyn Stream>, Error> {
    let Destination { is_tls, host, port } = destination;
    let addresses = lookup_host((host.as_str(), *port))
        .await
        .map_err(|error| Error::DnsError { rcode: Some(error.to_string()), info_code: None })?;
    let may_be_near = host.parse::<IpAddr>().is_ok() || is_localhost(host);
    let mut problem = Error::DestinationNotFound;
    for address in addresses {
        if !may_be_near && is_near(address.ip()) {
            problem = Error::DestinationIpProhibited;
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(|_| Error::ConnectionTerminated)?;
                return match (is_tls, &grant.connector) {
                    (false, _) => Ok(Box::new(stream)),
                    (true, Some(connector)) => {
                        let name = ServerName::try_from(host.clone())
                            .map_err(|_| Error::HttpRequestUriInvalid)?;
                        let stream = connector.connect(name, stream).await;
                        Ok(Box::new(stream.map_err(|error| from_tls(&error))?))
                    }
                    (true, None) => Err(Error::ConfigurationError),
                };
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                problem = Error::ConnectionRefused;
            }
            Err(_) => problem = Error::DestinationUnavailable,
        }
    }
    Err(problem)
}

fn is_localhost(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

/// Addresses that no name of another machine has: if one has, somebody wants requests that were
/// permitted for a name to reach the server's own machine.
fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_unspecified()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
        }
    }
}

/// A TLS connector with the system's root certificates. They are read once for each policy.
pub(super) fn tls_connector() -> Result<TlsConnector, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(format!(
            "http_allow names an https host, and this system trusts no certificate authority{why}"
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn from_tls(error: &io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
        _ => Error::TlsProtocolError,
    }
}

/// After the deadline, an aborted connection is a timeout.
fn from_hyper(error: &hyper::Error, until: Instant) -> Error {
    if Instant::now() >= until {
        Error::HttpResponseTimeout
    } else if error.is_incomplete_message() {
        Error::HttpResponseIncomplete
    } else if error.is_parse_too_large() {
        Error::HttpResponseHeaderSectionSize(Some(HEAD_BYTES_MAX as u32))
    } else {
        Error::HttpProtocolError
    }
}

/// The body of a response, with limits on size and time.
struct Bounded {
    incoming: Incoming,
    bytes_max: usize,
    bytes: usize,
    end: Pin<Box<Sleep>>,
    /// The longest pause that the requester accepts.
    pause: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) {
            if let Some((pause, sleep)) = &mut self.pause {
                let until = Instant::now() + *pause;
                sleep.as_mut().reset(until);
            }
            let bytes = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            };
            self.bytes += bytes;
            if self.bytes > self.bytes_max {
                let error = Error::HttpResponseBodySize(Some(self.bytes_max as u64));
                return Poll::Ready(Some(Err(error)));
            }
            let until = self.end.deadline();
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| from_hyper(&error, until))),
            );
        }
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Error::HttpResponseTimeout)));
        }
        if let Some((_, sleep)) = &mut self.pause
            && sleep.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(Error::ConnectionReadTimeout)));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_lead_to_the_servers_own_machine() {
        for near in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "169.254.169.254",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            assert!(is_near(near.parse().expect("an address")), "{near}");
        }
        for far in ["10.0.0.5", "192.168.1.1", "93.184.216.34", "fd00::1", "2606:2800::1"] {
            assert!(!is_near(far.parse().expect("an address")), "{far}");
        }
        assert!(is_localhost("localhost") && is_localhost("id.localhost"));
        assert!(!is_localhost("localhost.example.com") && !is_localhost("mylocalhost"));
    }
}
