//! The connections of the admin listener: so many in all and from one address. Where
//! there are as many as there may be, an idle one is closed for the next: one that has
//! not sent a request, or not all of its body for a while. A request that is being
//! answered is never cut off, and neither is a stream.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::metrics::AdminConnections;
use crate::slots::{OverShare, Slot, Slots};
use crate::stats::{count, load};

/// How long a body may stand still before its connection counts as idle.
const BODY_PATIENCE: Duration = Duration::from_secs(1);
/// How often other tasks are let run before a connection is refused: those that have
/// just come may turn out to be idle.
const ATTEMPTS: usize = 4;

/// The places, and what is counted of them.
pub struct Places {
    slots: Arc<Slots>,
    per_address_max: usize,
    over_share: AtomicU64,
    dropped: AtomicU64,
}

impl Places {
    /// So many in all and for one address.
    pub fn new(max: usize, per_address_max: usize) -> Places {
        Places {
            // Who sends its request at once is not waited for.
            slots: Slots::new(max, Duration::ZERO),
            per_address_max,
            over_share: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// The places themselves.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// A place for a connection from this address; none: nothing of it is idle, and it
    /// has as many as it may.
    pub async fn take(&self, address: IpAddr) -> Option<Slot> {
        for _ in 0..ATTEMPTS {
            // Of those that wait to be accepted, the first must not wait for a place
            // longer than it takes to see who is idle.
            if !self.slots.has_room() {
                tokio::task::yield_now().await;
                continue;
            }
            match self.slots.take(address, Some(self.per_address_max)) {
                Ok((slot, dropped)) => {
                    if dropped.is_some() {
                        count(&self.dropped);
                    }
                    return Some(slot);
                }
                Err(OverShare) if self.slots.drop_one_of(address) => count(&self.dropped),
                Err(OverShare) => tokio::task::yield_now().await,
            }
        }
        count(&self.over_share);
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
