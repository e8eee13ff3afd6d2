//! Random sequences of publications, lost connections to the backplane, and subscribers that come
//! and go, against a stream that is a list. Each subscriber receives each message after the position
//! that it was told once and in order, or is closed.
//!
//! `SWITCHYARD_TAILS_SEED` repeats one sequence, `SWITCHYARD_TAILS_RUNS` changes how many.

use std::collections::VecDeque;

use fastrand::Rng;

use super::{Arrival, Bounds, Meeting, Tails};
use switchyard_history::{Entry, Message};
use switchyard_types::history::StreamPlace;
use switchyard_types::position::Position;

const CHANNEL: &[u8] = b"c";
const RUNS: u64 = 2_000;

struct Run {
    rng: Rng,
    tails: Tails,
    /// The stream: its epoch, its last offset, and how many of its messages are retained.
    head: Position,
    retained: u64,
    /// What is on the way to the node.
    live: VecDeque<StreamPlace>,
    is_linked: bool,
    subscribers: Vec<Subscriber>,
    resuming: Vec<Resuming>,
    next_id: u64,
    seed: u64,
}

struct Subscriber {
    id: u64,
    last: Position,
}

struct Resuming {
    id: u64,
    begun: u64,
    from: Option<Position>,
    /// What was read; none: nothing yet.
    found: Option<Found>,
}

struct Found {
    head: Position,
    is_recovered: bool,
    messages: Vec<Position>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let retained = [3, 20, 1_000][rng.usize(..3)];
        Run {
            rng,
            tails: Tails::new(Bounds { messages: 30, bytes: 1 << 20 }),
            head: Position { epoch: 1, offset: 0 },
            retained,
            live: VecDeque::new(),
            is_linked: true,
            subscribers: Vec::new(),
            resuming: Vec::new(),
            next_id: 1,
            seed,
        }
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..30 => self.publish(),
            30..60 => self.receive(),
            60..63 => self.lose_link(),
            63..70 => self.link(),
            70..80 => self.catch_up(),
            80..85 => self.begin_resume(),
            85..90 => self.read(),
            90..95 => self.finish_resume(),
            95..99 => self.disconnect(),
            _ if self.rng.u32(..5) == 0 => {
                // The backplane is started again without its data.
                self.head = Position { epoch: self.head.epoch + 1, offset: 0 };
                self.lose_link();
            }
            _ => {}
        }
    }

    fn publish(&mut self) {
        self.head.offset += 1;
        let place = self.place(self.head, false);
        if self.is_linked {
            self.live.push_back(place);
        }
    }

    fn place(&self, position: Position, is_read: bool) -> StreamPlace {
        StreamPlace { position, previous: position.offset - 1, unix_ms: 1, is_read }
    }

    fn receive(&mut self) {
        if let Some(place) = self.live.pop_front() {
            self.arrive(place);
        }
    }

    fn arrive(&mut self, place: StreamPlace) {
        let entry = || Entry::new(b"x", 0, None, None);
        let Arrival::Delivered { except } = self.tails.arrive(CHANNEL, &place, entry) else {
            return;
        };
        let seed = self.seed;
        for subscriber in &mut self.subscribers {
            if !except.contains(&subscriber.id) {
                subscriber.take(place.position, seed);
            }
        }
    }

    fn lose_link(&mut self) {
        if std::mem::replace(&mut self.is_linked, false) {
            self.live.clear();
            self.tails.lose_link();
        }
    }

    fn link(&mut self) {
        if !std::mem::replace(&mut self.is_linked, true) {
            self.tails.doubt(10);
        }
    }

    /// The messages after a position; none: some of them are gone.
    fn after(&self, from: Position) -> Option<Vec<Position>> {
        let first = self.head.offset.saturating_sub(self.retained) + 1;
        let is_there = from.epoch == self.head.epoch
            && from.offset <= self.head.offset
            && from.offset + 1 >= first;
        let at = |offset| Position { offset, ..self.head };
        is_there.then(|| (from.offset + 1..=self.head.offset).map(at).collect())
    }

    fn catch_up(&mut self) {
        if !self.is_linked {
            return;
        }
        let holes = self.tails.take_holes(10);
        if self.rng.u32(..10) == 0 {
            // The connection is lost while they are being read.
            return self.lose_link();
        }
        for (channel, base) in holes {
            match self.after(base) {
                None => {
                    self.tails.give_up(&channel, self.head);
                    self.subscribers.clear();
                }
                Some(messages) => {
                    let head = self.head;
                    for position in messages {
                        self.arrive(self.place(position, true));
                        // Others are published, and arrive, in the meantime.
                        if self.rng.u32(..4) == 0 {
                            self.publish();
                            self.receive();
                        }
                    }
                    if !self.tails.caught_up(&channel, head) {
                        self.tails.not_caught_up(&channel);
                    }
                }
            }
        }
    }

    fn begin_resume(&mut self) {
        let from = match self.rng.u32(..3) {
            0 => None,
            _ => {
                let offset = self.rng.u64(..self.head.offset + 1);
                Some(Position { offset, ..self.head })
            }
        };
        let begun = self.tails.begin_resume(CHANNEL);
        self.resuming.push(Resuming { id: self.next_id, begun, from, found: None });
        self.next_id += 1;
    }

    fn read(&mut self) {
        if !self.is_linked || self.resuming.is_empty() {
            return;
        }
        let place = self.rng.usize(..self.resuming.len());
        let from = self.resuming[place].from;
        let messages = from.and_then(|from| self.after(from));
        let head = self.head;
        let found = Found {
            head,
            is_recovered: messages.is_some(),
            messages: messages.unwrap_or_default(),
        };
        self.resuming[place].found = Some(found);
    }

    fn finish_resume(&mut self) {
        let Some(place) = self.resuming.iter().position(|it| it.found.is_some()) else { return };
        let Resuming { id, begun, from, found } = self.resuming.swap_remove(place);
        let Some(found) = found else { return };
        let Meeting { position, between } =
            self.tails.meet(CHANNEL, (id, begun), found.head, |_| true);
        self.tails.end_resume(CHANNEL);
        let mut subscriber = Subscriber { id, last: position };
        if let (Ok(later), true) = (between, found.is_recovered) {
            subscriber.last = from.expect("it was recovered from there");
            let later = later.into_iter().map(|Message { position, .. }| position);
            for position in found.messages.into_iter().chain(later) {
                subscriber.take(position, self.seed);
            }
            assert_eq!(subscriber.last, position, "the position of {id}, seed {}", self.seed);
        }
        self.subscribers.push(subscriber);
    }

    fn disconnect(&mut self) {
        if !self.subscribers.is_empty() {
            let place = self.rng.usize(..self.subscribers.len());
            self.subscribers.swap_remove(place);
        }
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            self.link();
            self.receive();
            self.catch_up();
        }
        // What comes last shows any hole before it.
        self.link();
        self.publish();
        for _ in 0..1_000 {
            self.link();
            self.receive();
            self.catch_up();
        }
        for Subscriber { id, last } in &self.subscribers {
            assert_eq!(*last, self.head, "subscriber {id}, seed {}", self.seed);
        }
    }
}

impl Subscriber {
    fn take(&mut self, position: Position, seed: u64) {
        let follows = match position.epoch == self.last.epoch {
            true => position.offset == self.last.offset + 1,
            false => position.epoch > self.last.epoch && position.offset == 1,
        };
        assert!(follows, "{position} after {} for {}, seed {seed}", self.last, self.id);
        self.last = position;
    }
}

#[test]
fn subscribers_receive_everything_once_and_in_order() {
    let number = |name: &str| -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().expect("a number"))
    };
    let runs = number("SWITCHYARD_TAILS_RUNS").unwrap_or(RUNS);
    let seeds: Vec<u64> = match number("SWITCHYARD_TAILS_SEED") {
        Some(seed) => vec![seed],
        None => (0..runs).map(|_| fastrand::u64(..)).collect(),
    };
    for seed in seeds {
        let mut run = Run::new(seed);
        for _ in 0..500 {
            run.step();
        }
        run.settle();
    }
}
