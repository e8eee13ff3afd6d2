//! The connections of the admin listener, limited in total and per address. At the limit, an idle
//! one is closed for a new one: one that has not sent a request, or not all of its body for a
//! while. A request that is being answered, or a stream, is never cut off. New connections are kept
//! for a moment in addition to the limit: otherwise a flood of connections would close a good one
//! before its request arrives.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::AdminConnections;
use switchyard_net::slots::{Slot, Slots};
use switchyard_telemetry::stats::{count, load};

/// How long a body may stall before its connection counts as idle.
const BODY_PATIENCE: Duration = Duration::from_secs(1);
/// How long a connection may be without a request before it may be closed for another. As many new
/// ones as the limit are kept in addition, because a real client sends its request within this
/// time.
const PATIENCE: Duration = Duration::from_millis(200);
const FRESH_MAX: usize = 512;
/// How often a request waits for another to end, and how long each time.
const ATTEMPTS: usize = 4;
const REQUEST_WAIT: Duration = Duration::from_millis(50);

/// The places, and their counters.
pub struct Places {
    slots: Arc<Slots>,
    max: usize,
    per_address_max: usize,
    /// All connections are busy, as many as there may be.
    requests: Arc<Semaphore>,
    over_share: AtomicU64,
    dropped: AtomicU64,
    unproxied: AtomicU64,
}

impl Places {
    /// The limits in total and for one address.
    pub fn new(max: usize, per_address_max: usize) -> Places {
        Places {
            slots: Slots::new(max, PATIENCE),
            max,
            per_address_max,
            requests: Arc::new(Semaphore::new(max)),
            over_share: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            unproxied: AtomicU64::new(0),
        }
    }

    /// The places themselves.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// A place for a connection from this address; an idle connection may be dropped for it.
    /// `is_limited`: the limit for one address applies. None: too many are busy.
    pub fn take(&self, address: IpAddr, is_limited: bool) -> Option<Slot> {
        if is_limited {
            self.make_room_for(address);
        }
        while self.slots.occupied() >= self.max && self.slots.drop_one(None) {
            count(&self.dropped);
        }
        if self.slots.occupied() >= self.max + FRESH_MAX {
            if !self.slots.drop_one_early() {
                count(&self.over_share);
                return None;
            }
            count(&self.dropped);
        }
        // The share of the address was enforced above.
        self.slots.take(address, None).ok().map(|(slot, _)| slot)
    }

    /// Counts a place for this address from now on: a proxy has said for which client it is.
    pub fn assign(&self, slot: &Slot, address: IpAddr) {
        self.make_room_for(address);
        // Its share was enforced above.
        let _ = slot.belongs_to(address, None);
    }

    /// Drops idle connections of an address that is at its limit.
    fn make_room_for(&self, address: IpAddr) {
        while self.slots.held_by(address) >= self.per_address_max
            && self.slots.drop_one(Some(address))
        {
            count(&self.dropped);
        }
    }

    /// Counts a connection that was closed because it has no PROXY protocol header.
    pub fn count_unproxied(&self) {
        count(&self.unproxied);
    }

    /// A permit to answer a request; none: as many are being answered as there may be, and none of
    /// them waits for its client.
    pub async fn request(&self) -> Option<OwnedSemaphorePermit> {
        for _ in 0..ATTEMPTS {
            let requests = self.requests.clone();
            if let Ok(permit) = requests.clone().try_acquire_owned() {
                return Some(permit);
            }
            if self.slots.drop_one(None) {
                count(&self.dropped);
            }
            let waiting = tokio::time::timeout(REQUEST_WAIT, requests.acquire_owned());
            if let Ok(Ok(permit)) = waiting.await {
                return Some(permit);
            }
        }
        None
    }

    /// The counters for metrics.
    pub fn counted(&self) -> AdminConnections {
        AdminConnections {
            open: self.slots.occupied(),
            over_share: load(&self.over_share),
            dropped: load(&self.dropped),
            unproxied: load(&self.unproxied),
        }
    }
}

/// A request's body: while it stalls, its connection may be closed for another.
pub struct RequestBody<B> {
    pub body: B,
    pub slot: Arc<Slot>,
}

/// A response's body: when it has been sent, the connection is idle again.
pub struct ResponseBody<B> {
    pub body: B,
    pub _permit: Option<OwnedSemaphorePermit>,
    pub slot: Arc<Slot>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match polled {
            Poll::Pending => self.slot.idles(BODY_PATIENCE),
            Poll::Ready(_) => self.slot.works(),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for ResponseBody<B> {
    fn drop(&mut self) {
        self.slot.idles(Duration::ZERO);
    }
}
