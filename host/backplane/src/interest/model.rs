//! A seeded model of interest and of shared subscriptions: random commands of clients, rounds, and
//! connections to the backplane that fail at any point. After each round the link must have what
//! was requested, and in the end exactly the clients' subscriptions.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::shared::SharedSubscriptions;
use crate::subjects;
use switchyard_types::command::Space;

const STEPS: usize = 20_000;
const DELAY: Duration = Duration::from_millis(100);

/// Names that share wildcards, and a channel whose subject is that of a pattern.
const NAMES: [(Kind, &str); 12] = [
    (Kind::Channel, "a"),
    (Kind::Channel, "b.c"),
    (Kind::Channel, "news.1"),
    (Kind::Pattern, "a"),
    (Kind::Pattern, "a*"),
    (Kind::Pattern, "b*"),
    (Kind::Pattern, "*"),
    (Kind::Pattern, "news.*"),
    (Kind::Pattern, "news.1*"),
    (Kind::Pattern, "news.?"),
    (Kind::Shard, "a"),
    (Kind::Shard, "b"),
];

/// A linear congruential generator: the same numbers for the same seed everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 33) as usize) % limit
    }
}

/// The state of a link to NATS, without a NATS.
#[derive(Default)]
struct Link {
    shared: SharedSubscriptions<()>,
}

impl Link {
    fn listen(&mut self, name: &Name) {
        let subject = subject(name);
        if self.shared.join(&subject, name).is_none() {
            let id = self.shared.new_id();
            self.shared.add(subject, id, name, ());
        }
    }

    fn stop_listening(&mut self, name: &Name) {
        let left = self.shared.leave(&subject(name), name);
        assert!(left.is_some(), "{name:?} leaves and never joined");
    }

    fn names(&self) -> BTreeSet<(usize, Vec<u8>)> {
        self.shared.subjects().flat_map(|(_, names)| names).map(key).collect()
    }
}

fn subject(name: &Name) -> String {
    match name.kind {
        Kind::Channel => subjects::subject("", Space::Channels, &name.bytes),
        Kind::Shard => subjects::subject("", Space::ShardChannels, &name.bytes),
        Kind::Pattern => subjects::wildcard("", &name.bytes),
    }
}

fn key(name: &Name) -> (usize, Vec<u8>) {
    (name.kind as usize, name.bytes.to_vec())
}

struct World {
    random: Random,
    table: Table,
    now: Instant,
    link: Option<Link>,
    /// The round in progress: what is still to be done of it.
    under_way: Option<(u64, VecDeque<Name>, VecDeque<Name>)>,
    settled: u64,
    /// The number of listeners of each of `NAMES`.
    listeners: BTreeMap<usize, usize>,
}

impl World {
    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.join(),
            30..60 => self.leave(),
            // A hold that ends at once: a rejected SUBSCRIBE.
            60..70 => {
                let name = self.random.below(NAMES.len());
                self.join_name(name);
                self.leave_name(name);
            }
            70..80 => self.now += DELAY / 3,
            80..98 => self.work(),
            98 => self.disconnect(),
            _ => self.connect(),
        }
        self.check_leaving();
    }

    fn join(&mut self) {
        let name = self.random.below(NAMES.len());
        self.join_name(name);
    }

    fn join_name(&mut self, name: usize) {
        let (kind, text) = NAMES[name];
        self.table.join(kind, text.as_bytes());
        *self.listeners.entry(name).or_default() += 1;
    }

    fn leave(&mut self) {
        let name = self.random.below(NAMES.len());
        if self.listeners.get(&name).is_some_and(|listeners| *listeners > 0) {
            self.leave_name(name);
        }
    }

    fn leave_name(&mut self, name: usize) {
        let (kind, text) = NAMES[name];
        self.table.leave(kind, text.as_bytes(), self.now, DELAY);
        *self.listeners.entry(name).or_default() -= 1;
    }

    /// One step of a link: it reads a round, sends one name of it, or settles it.
    fn work(&mut self) {
        let Some(link) = &mut self.link else { return };
        let Some((number, leaves, joins)) = &mut self.under_way else {
            let Round { number, joins, leaves } = self.table.take_round(self.now, DELAY);
            self.under_way = Some((number, leaves.into(), joins.into()));
            return;
        };
        if let Some(name) = leaves.pop_front() {
            link.stop_listening(&name);
        } else if let Some(name) = joins.pop_front() {
            link.listen(&name);
        } else {
            self.settled = *number;
            self.under_way = None;
            self.check_settled();
        }
    }

    fn disconnect(&mut self) {
        if self.link.take().is_some() {
            self.under_way = None;
            self.table.disconnected();
        }
    }

    fn connect(&mut self) {
        if self.link.is_none() {
            self.link = Some(Link::default());
            self.table.connected();
        }
    }

    /// Compares the count of the names without listeners.
    fn check_leaving(&self) {
        let entries = self.table.entries.iter().flatten();
        let without = entries.filter(|(_, entry)| entry.listeners == 0);
        let expected: usize = without.map(|(name, _)| bytes(name)).sum();
        assert_eq!(self.table.leaving_bytes, expected);
    }

    /// A hold that was acknowledged because its round is settled has its subscription.
    fn check_settled(&mut self) {
        let Some(link) = &self.link else { return };
        let have = link.names();
        for (name, listeners) in &self.listeners {
            let (kind, text) = NAMES[*name];
            let entry = self.table.entries(kind).get(text.as_bytes());
            if *listeners > 0
                && let Some(round) = entry.and_then(|entry| entry.round)
                && round <= self.settled
            {
                let key = (kind as usize, text.as_bytes().to_vec());
                assert!(have.contains(&key), "{kind:?} {text} is settled and not there");
            }
        }
    }

    fn check_end(&mut self) {
        self.connect();
        self.now += DELAY * 2;
        for _ in 0..10_000 {
            self.work();
        }
        let expected: BTreeSet<(usize, Vec<u8>)> = self
            .listeners
            .iter()
            .filter(|(_, listeners)| **listeners > 0)
            .map(|(name, _)| (NAMES[*name].0 as usize, NAMES[*name].1.as_bytes().to_vec()))
            .collect();
        let link = self.link.as_ref().expect("it was connected above");
        assert_eq!(link.names(), expected);
        let subjects: BTreeSet<String> = link
            .shared
            .subjects()
            .map(|(subject, names)| {
                assert!(!names.is_empty(), "{subject} has no name");
                subject.to_owned()
            })
            .collect();
        let wanted = |name: usize| {
            let (kind, text) = NAMES[name];
            subject(&Name { kind, bytes: text.as_bytes().into() })
        };
        let listened = self.listeners.iter().filter(|(_, listeners)| **listeners > 0);
        let wanted: BTreeSet<String> = listened.map(|(name, _)| wanted(*name)).collect();
        assert_eq!(subjects, wanted);
    }
}

#[test]
fn names_that_leave_are_kept_only_where_the_backplane_has_them() {
    let interest = Interest::new(DELAY);
    let come_and_go = || {
        interest.join(Kind::Channel, b"a");
        interest.leave(Kind::Channel, b"a");
    };
    come_and_go();
    assert_eq!((interest.count(), interest.leaving_bytes()), (0, 0));
    interest.connected();
    come_and_go();
    assert_eq!((interest.count(), interest.leaving_bytes()), (1, 1 + ENTRY_BYTES));
    interest.disconnected();
    assert_eq!((interest.count(), interest.leaving_bytes()), (0, 0));
}

#[test]
fn names_that_take_much_leave_without_a_delay() {
    let mut table = Table::default();
    table.connected();
    let now = Instant::now();
    let name = |number: usize| format!("{number}:{}", "n".repeat(1024));
    let names = 2 * LEAVING_BYTES_MAX / 1024;
    for number in 0..names {
        table.join(Kind::Channel, name(number).as_bytes());
    }
    assert_eq!(table.take_round(now, DELAY).joins.len(), names);
    for number in 0..names {
        table.leave(Kind::Channel, name(number).as_bytes(), now, DELAY);
    }
    let leaves = table.take_round(now, DELAY).leaves.len();
    assert!((names / 2..names).contains(&leaves), "{leaves}");
    assert!(table.leaving_bytes <= LEAVING_BYTES_MAX);
    let rest = table.take_round(now + DELAY, DELAY).leaves.len();
    assert_eq!((leaves + rest, table.leaving_bytes), (names, 0));
}

#[test]
fn the_link_has_what_clients_listen_to() {
    let seeds = match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => {
            let fresh = crate::random();
            (1..=5).chain([fresh]).collect::<Vec<u64>>()
        }
    };
    for seed in seeds {
        // The test harness prints it when the test fails.
        println!("SEED={seed}");
        let mut world = World {
            random: Random(seed),
            table: Table::default(),
            now: Instant::now(),
            link: None,
            under_way: None,
            settled: 0,
            listeners: BTreeMap::new(),
        };
        for step in 0..STEPS {
            world.step();
            if step % 2_000 == 1_999 {
                world.check_end();
            }
        }
        world.check_end();
    }
}
