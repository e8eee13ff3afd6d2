//! The connections of the admin listener: so many in all and from one address. Where
//! there are as many as there may be, an idle one is closed for the next: one that has
//! not sent a request, or not all of its body for a while. A request that is being
//! answered is never cut off, and neither is a stream. Those that have just come are
//! kept a moment beside the others: a flood of connections would close a good one before
//! its request is here.

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
use crate::slots::{Slot, Slots};
use crate::stats::{count, load};

/// How long a body may stand still before its connection counts as idle.
const BODY_PATIENCE: Duration = Duration::from_secs(1);
/// How long a connection may be without a request before it may be closed for another.
/// So many that have just come are kept beside those that there may be, because a client
/// that means to ask does so within this time.
const PATIENCE: Duration = Duration::from_millis(200);
const FRESH_MAX: usize = 512;
/// How often a request waits for another to end, and how long each time.
const ATTEMPTS: usize = 4;
const REQUEST_WAIT: Duration = Duration::from_millis(50);

/// The places, and what is counted of them.
pub struct Places {
    slots: Arc<Slots>,
    max: usize,
    per_address_max: usize,
    /// As many requests are at work as there may be connections.
    requests: Arc<Semaphore>,
    over_share: AtomicU64,
    dropped: AtomicU64,
}

impl Places {
    /// So many in all and for one address.
    pub fn new(max: usize, per_address_max: usize) -> Places {
        Places {
            slots: Slots::new(max, PATIENCE),
            max,
            per_address_max,
            requests: Arc::new(Semaphore::new(max)),
            over_share: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// The places themselves.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// A place for a connection from this address, for which idle ones give way; none:
    /// too many are at work.
    pub fn take(&self, address: IpAddr) -> Option<Slot> {
        while self.slots.held_by(address) >= self.per_address_max
            && self.slots.drop_one(Some(address))
        {
            count(&self.dropped);
        }
        while self.slots.taken() >= self.max && self.slots.drop_one(None) {
            count(&self.dropped);
        }
        if self.slots.taken() >= self.max + FRESH_MAX {
            if !self.slots.drop_one_early() {
                count(&self.over_share);
                return None;
            }
            count(&self.dropped);
        }
        // The loops above have seen to the share of an address.
        self.slots.take(address, None).ok().map(|(slot, _)| slot)
    }

    /// Leave for a request to be answered; none: as many are being answered as there may
    /// be, and none of them waits for its client.
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

    /// What metrics say of them.
    pub fn counted(&self) -> AdminConnections {
        AdminConnections {
            open: self.slots.taken(),
            over_share: load(&self.over_share),
            dropped: load(&self.dropped),
        }
    }
}

/// A request's body: while it stands still, its connection may be closed for another.
pub struct RequestBody<B> {
    pub body: B,
    pub slot: Arc<Slot>,
}

/// A response's body: when it is handed over, the connection is idle again.
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
