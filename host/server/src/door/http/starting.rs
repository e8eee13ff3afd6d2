//! Answers probes while the server starts, which may take seconds when plugins are compiled: it is
//! alive, and not ready. Everything else is answered 503.
//!
//! The bounds of the listener apply as they do after the start: how many connections there may be,
//! in total and of an address, and how long a request may take. Every connection here waits for its
//! client, so the oldest one can always be dropped for a new one.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{HeaderValue, RETRY_AFTER};
use http::{Request, StatusCode};
use hyper::body::Incoming as Body;
use tokio::task;

use super::handshake::{Answer, Route, TEXT, answer, bad_request, route, verdict};
use super::{exchange, head};
use crate::health::{Probe, Verdict};
use switchyard_config::Config;
use switchyard_net::listening::ListeningSocket;
use switchyard_net::slots::{OverShare, Slot, Slots};

/// How long not to accept after a failure.
const PAUSE: Duration = Duration::from_millis(100);
/// After how many seconds a client may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The bounds of a listener while the server starts. All its sockets share them.
pub struct Bounds {
    slots: Arc<Slots>,
    per_address_max: usize,
    is_unlimited: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
    /// How long a client may take to send its request and to read the response.
    time: Duration,
    head_bytes_max: usize,
}

impl Bounds {
    /// Those of the listener for clients.
    pub fn of_clients(config: &Config) -> Arc<Bounds> {
        let networks = config.limits.uncounted_networks.clone();
        let is_unlimited = move |address| networks.iter().any(|it| it.contains(address));
        Arc::new(Bounds {
            slots: Slots::new(config.http.handshakes_max, Duration::ZERO),
            per_address_max: config.limits.handshakes_per_address_max,
            is_unlimited: Box::new(is_unlimited),
            time: config.http.handshake_time,
            head_bytes_max: config.http.request_bytes_max,
        })
    }

    /// Those of the admin listener.
    pub fn of_admin(config: &Config) -> Arc<Bounds> {
        let proxies = config.proxies.clone();
        Arc::new(Bounds {
            slots: Slots::new(config.admin.connections_max, Duration::ZERO),
            per_address_max: config.admin.connections_per_address_max,
            is_unlimited: Box::new(move |address| proxies.contains(address)),
            time: config.admin.head_time,
            head_bytes_max: config.http.request_bytes_max,
        })
    }

    /// A slot for a connection from this address. The oldest one of an address that has its share,
    /// or of the address with the most, is dropped for it.
    async fn take(&self, address: IpAddr) -> Result<Slot, OverShare> {
        let share = (!(self.is_unlimited)(address)).then_some(self.per_address_max);
        let is_over = || share.is_some_and(|share| self.slots.held_by(address) >= share);
        // A connection that cannot be dropped yet waits for its client a moment later.
        while is_over() && !self.slots.drop_one(Some(address)) {
            task::yield_now().await;
        }
        while !self.slots.has_room() {
            task::yield_now().await;
        }
        self.slots.take(address, share).map(|(slot, _dropped)| slot)
    }
}

/// Accepts connections, and answers one request on each. When the future is dropped, connections
/// that were accepted are still served.
pub async fn answer_probes(socket: Arc<ListeningSocket>, bounds: Arc<Bounds>) {
    loop {
        let Ok((mut stream, remote)) = socket.accept().await else {
            // The server reports a lack of file descriptors when it has started.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(slot) = bounds.take(remote.ip()).await else { continue };
        let (id, bytes_max, time) = (slot.id(), bounds.head_bytes_max, bounds.time);
        let serving = tokio::spawn(async move {
            let answering = slot.waits(exchange::answer_one(&mut stream, bytes_max, respond));
            let _it_took_too_long = tokio::time::timeout(time, answering).await;
        });
        bounds.slots.attach(id, serving.abort_handle());
    }
}

fn respond(request: Request<Body>) -> BoxFuture<'static, Result<Answer, Infallible>> {
    async move {
        let (mut head, _body) = request.into_parts();
        if let Err(why) = head::check(&mut head) {
            return Ok(bad_request(why));
        }
        Ok(match route(&head.method, head.uri.path()) {
            Ok(Route::Probe(Probe::Alive)) => verdict(Verdict::alive()),
            _ => {
                let mut answer = answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "starting\n");
                answer.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
                answer
            }
        })
    }
    .boxed()
}
