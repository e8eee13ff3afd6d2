//! The publications of this node that wait for the backplane, in order, in a queue that is bounded
//! in entries and bytes.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use switchyard_types::command::{Publication, Space};

/// A publication that is to be sent.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub space: Space,
    pub channel: Bytes,
    pub payload: Bytes,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        self.channel.len() + self.payload.len()
    }
}

/// The queue.
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
    emptied: Notify,
    messages_max: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Outgoing>,
    /// Including reserved entries that are not filled yet, and those in flight.
    messages: usize,
    bytes: usize,
    /// How many messages and bytes are in flight.
    in_flight: (usize, usize),
}

impl Queue {
    pub fn new(messages_max: usize, bytes_max: usize) -> Queue {
        Queue {
            waiting: Mutex::default(),
            changed: Notify::new(),
            emptied: Notify::new(),
            messages_max,
            bytes_max,
        }
    }

    /// Reserves room; false: there is none. A single publication always fits into an empty queue.
    pub fn reserve(&self, publication: &Publication<'_>) -> bool {
        let bytes = publication.bytes();
        let mut waiting = self.waiting.lock();
        let fits = waiting.messages < self.messages_max
            && (waiting.messages == 0 || waiting.bytes + bytes <= self.bytes_max);
        if fits {
            waiting.messages += 1;
            waiting.bytes += bytes;
        }
        fits
    }

    /// Releases the reserved room of this many publications with this many bytes.
    pub fn withdraw(&self, publications: usize, bytes: usize) {
        let mut waiting = self.waiting.lock();
        waiting.messages -= publications;
        waiting.bytes -= bytes;
        if waiting.messages == 0 {
            // `take` may be waiting, and would not notify those that wait in `empty`.
            self.emptied.notify_waiters();
        }
    }

    /// Fills reserved room.
    pub fn push(&self, publication: Publication<'_>) {
        let Publication { space, channel, payload, options: _ } = publication;
        let [channel, payload] = [channel, payload].map(|bytes| Bytes::from(bytes.into_owned()));
        self.waiting.lock().queue.push_back(Outgoing { space, channel, payload });
        self.changed.notify_one();
    }

    /// The next batch; waits until there is one. The previous batch is done with, whatever became
    /// of it.
    pub async fn take(&self, messages_max: usize, bytes_max: usize) -> Vec<Outgoing> {
        loop {
            {
                let mut waiting = self.waiting.lock();
                let (messages, bytes) = std::mem::take(&mut waiting.in_flight);
                waiting.messages -= messages;
                waiting.bytes -= bytes;
                let mut batch = Vec::new();
                let mut bytes = 0;
                while batch.len() < messages_max
                    && let Some(next) = waiting.queue.front()
                    && (batch.is_empty() || bytes + next.bytes() <= bytes_max)
                {
                    bytes += next.bytes();
                    batch.extend(waiting.queue.pop_front());
                }
                if !batch.is_empty() {
                    waiting.in_flight = (batch.len(), bytes);
                    return batch;
                }
                if waiting.messages == 0 {
                    self.emptied.notify_waiters();
                }
            }
            self.changed.notified().await;
        }
    }

    /// How many are queued or in flight.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().messages
    }

    /// Waits until none are.
    pub async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.waiting() == 0 {
                return;
            }
            // Wake the consumer: it checks the queue again and notifies `emptied`.
            self.changed.notify_one();
            emptied.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(payload: &'static [u8]) -> Publication<'static> {
        Publication::new(Space::Channels, b"c".as_slice().into(), payload.into())
    }

    #[tokio::test]
    async fn there_is_room_for_so_much_until_it_is_sent() {
        let queue = Queue::new(2, 10);
        for payload in [b"1", b"2"] {
            assert!(queue.reserve(&publication(payload)));
            queue.push(publication(payload));
        }
        assert!(!queue.reserve(&publication(b"3")), "two are the most");
        assert_eq!(queue.take(1, 100).await.len(), 1);
        assert!(!queue.reserve(&publication(b"3")), "one is under way");
        assert_eq!(queue.take(1, 100).await.first().map(|it| it.payload.clone()), Some("2".into()));
        assert!(!queue.reserve(&publication(b"0123456789")), "too many bytes with the other one");
        assert!(queue.reserve(&publication(b"3")));
        queue.withdraw(1, publication(b"3").bytes());
        assert_eq!(queue.waiting(), 1);
    }

    #[tokio::test]
    async fn a_batch_has_so_many_bytes_or_one_publication() {
        let queue = Queue::new(10, 1_000);
        for payload in [&b"0123456789"[..], b"1", b"2"] {
            assert!(queue.reserve(&publication(payload)));
            queue.push(publication(payload));
        }
        assert_eq!(queue.take(10, 5).await.len(), 1);
        assert_eq!(queue.take(10, 5).await.len(), 2);
    }
}
