//! An HTTP service on loopback, for the requests of plugins: the test decides
//! what it answers, and it keeps the requests that it received.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::{PATIENCE, within};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct ReceivedRequest {
    /// The path and query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: String,
}

/// What it answers.
pub type Answer = Response<BoxBody<Bytes, Infallible>>;

type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;
type Decide = dyn Fn(ReceivedRequest) -> Answering + Send + Sync;

/// A service that runs as long as its test.
pub struct HttpService {
    /// Where it listens.
    pub address: SocketAddr,
    requests: Arc<watch::Sender<Vec<ReceivedRequest>>>,
}

impl HttpService {
    /// Answers as `decide` says.
    pub async fn start<F>(
        decide: impl Fn(ReceivedRequest) -> F + Send + Sync + 'static,
    ) -> Result<HttpService>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        HttpService::start_with(None, Arc::new(move |request| Box::pin(decide(request)))).await
    }

    /// The same over TLS.
    pub async fn start_tls<F>(
        acceptor: TlsAcceptor,
        decide: impl Fn(ReceivedRequest) -> F + Send + Sync + 'static,
    ) -> Result<HttpService>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        HttpService::start_with(Some(acceptor), Arc::new(move |request| Box::pin(decide(request))))
            .await
    }

    async fn start_with(tls: Option<TlsAcceptor>, decide: Arc<Decide>) -> Result<HttpService> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let requests = Arc::new(watch::Sender::new(Vec::new()));
        let service = HttpService { address, requests: requests.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, requests, decide) = (tls.clone(), requests.clone(), decide.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, requests, decide).await,
                        // A client that does not trust it disconnects.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, requests, decide).await;
                            }
                        }
                    }
                });
            }
        });
        Ok(service)
    }

    /// Its URL with this path.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin())
    }

    /// What a plugin must be granted to send it requests.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests that it received so far.
    pub fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.borrow().clone()
    }

    /// Waits until it received so many requests.
    pub async fn wait_for(&self, count: usize) -> Result<()> {
        let mut requests = self.requests.subscribe();
        let enough = requests.wait_for(|requests| requests.len() >= count);
        within(PATIENCE, format!("{count} requests"), enough).await?.context("it runs").map(|_| ())
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    requests: Arc<watch::Sender<Vec<ReceivedRequest>>>,
    decide: Arc<Decide>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (requests, decide) = (requests.clone(), decide.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let request = ReceivedRequest {
                path: parts.uri.to_string(),
                headers: parts.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
            };
            requests.send_modify(|requests| requests.push(request.clone()));
            Ok::<_, hyper::Error>(decide(request).await)
        }
    });
    // The client may close the connection early.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// An answer of this status with this body.
pub fn answer(status: u16, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = status.try_into().expect("a test knows its statuses");
    answer
}

/// An answer of these pieces, whose length is not said before; then nothing, and no
/// end, if it is not to end.
pub fn in_pieces(pieces: Vec<Bytes>, ends: bool) -> Answer {
    use futures_util::stream::{self, StreamExt};
    let pieces = stream::iter(pieces).map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let body = match ends {
        true => BodyExt::boxed(StreamBody::new(pieces)),
        false => BodyExt::boxed(StreamBody::new(pieces.chain(stream::pending()))),
    };
    Response::new(body)
}
