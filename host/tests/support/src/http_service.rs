//! An HTTP service on loopback, for plugins to ask: what it answers is up to the
//! test, and it remembers what it was asked.

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
pub struct Asked {
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
type Decide = dyn Fn(Asked) -> Answering + Send + Sync;

/// A service that runs as long as its test.
pub struct HttpService {
    /// Where it listens.
    pub address: SocketAddr,
    asked: Arc<watch::Sender<Vec<Asked>>>,
}

impl HttpService {
    /// Answers as `decide` says.
    pub async fn start<F>(
        decide: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Result<HttpService>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        HttpService::start_with(None, Arc::new(move |asked| Box::pin(decide(asked)))).await
    }

    /// The same over TLS.
    pub async fn start_tls<F>(
        acceptor: TlsAcceptor,
        decide: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Result<HttpService>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        HttpService::start_with(Some(acceptor), Arc::new(move |asked| Box::pin(decide(asked))))
            .await
    }

    async fn start_with(tls: Option<TlsAcceptor>, decide: Arc<Decide>) -> Result<HttpService> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let asked = Arc::new(watch::Sender::new(Vec::new()));
        let service = HttpService { address, asked: asked.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, asked, decide) = (tls.clone(), asked.clone(), decide.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, asked, decide).await,
                        // Who does not trust it goes away.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, asked, decide).await;
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

    /// What a plugin is granted to ask it.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.borrow().clone()
    }

    /// Waits until it was asked so often.
    pub async fn wait_for(&self, count: usize) -> Result<()> {
        let mut asked = self.asked.subscribe();
        let enough = asked.wait_for(|asked| asked.len() >= count);
        within(PATIENCE, format!("{count} requests"), enough).await?.context("it runs").map(|_| ())
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    asked: Arc<watch::Sender<Vec<Asked>>>,
    decide: Arc<Decide>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (asked, decide) = (asked.clone(), decide.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let request = Asked {
                path: parts.uri.to_string(),
                headers: parts.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
            };
            asked.send_modify(|asked| asked.push(request.clone()));
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
