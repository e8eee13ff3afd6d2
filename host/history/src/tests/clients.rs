//! Simulated subscribers that lose their connection and come back with their last position: each
//! receives a message at most once, in order, and without a gap where it is recovered.

use std::sync::Arc;

use fastrand::Rng;

use super::{BEGIN_US, for_seeds};
use crate::{Entry, HistoryRule, Limits, Position, Published, Resolver, Resume, Streams};

const CHANNEL: &[u8] = b"chat";

#[derive(Default)]
struct Client {
    is_connected: bool,
    position: Option<Position>,
    /// The number of the last message that it received.
    last: Option<u64>,
    /// Whether every message since `last` has reached it or will: recovered, or connected all the time.
    is_complete: bool,
}

impl Client {
    fn receive(&mut self, number: u64, position: Option<Position>) {
        if let Some(last) = self.last {
            assert!(number > last, "{number} comes after {last}");
            assert!(!self.is_complete || number == last + 1, "{number} follows {last}");
        }
        self.last = Some(number);
        self.is_complete = true;
        self.position = position.or(self.position);
    }
}

#[test]
fn subscribers_miss_nothing_where_they_are_recovered() {
    for_seeds(|_, rng| {
        let limits = Limits {
            bytes_max: rng.usize(1_000..20_000),
            channels_max: rng.usize(1..4),
            resume_messages_max: rng.usize(1..30),
            resume_bytes_max: rng.usize(50..2_000),
        };
        let mut streams = Streams::new(limits, resolver(rng, false));
        let mut clients: Vec<Client> = (0..4).map(|_| Client::default()).collect();
        let (mut now_us, mut number) = (BEGIN_US, 0_u64);
        for _ in 0..200 {
            now_us += rng.u64(..20_000);
            match rng.u8(..100) {
                0..60 => {
                    number += 1;
                    let payload = format!("{number}{}", " ".repeat(rng.usize(..40)));
                    let entry = Entry::new(payload.as_bytes(), 7, None, None);
                    let listeners = listeners(&clients);
                    let position = match streams.publish(CHANNEL, entry, || listeners, now_us) {
                        Published::Kept(position) => Some(position),
                        _ => None,
                    };
                    for client in clients.iter_mut().filter(|client| client.is_connected) {
                        client.receive(number, position);
                    }
                }
                60..80 => {
                    let index = rng.usize(..clients.len());
                    match clients[index].is_connected {
                        true => {
                            clients[index].is_connected = false;
                            streams.listening(CHANNEL, -1, now_us);
                        }
                        false => resume(&mut streams, &mut clients, index, rng, now_us),
                    }
                }
                80..84 => {
                    streams.set_rules(resolver(rng, true), now_us);
                }
                84..88 => {
                    streams.apply_rules(now_us, rng.usize(1..200));
                }
                88..92 => {
                    streams.expire(now_us, rng.usize(1..200));
                }
                92..96 => {
                    // Others take its memory.
                    let name = format!("other.{}", rng.u8(..4));
                    let entry = Entry::new(&vec![0; rng.usize(..2_000)], 7, None, None);
                    streams.publish(name.as_bytes(), entry, || 0, now_us);
                }
                96..97 => {
                    streams.purge(CHANNEL, now_us);
                }
                _ => now_us += rng.u64(..1_000_000),
            }
        }
    });
}

fn resume(streams: &mut Streams, clients: &mut [Client], index: usize, rng: &mut Rng, now_us: u64) {
    let listeners = listeners(clients);
    let client = &mut clients[index];
    let last = rng.bool().then(|| rng.usize(1..10));
    let resume = Resume { position: client.position, last, ..Resume::default() };
    client.is_connected = true;
    let Some(resumed) = streams.resume(CHANNEL, &resume, || listeners, now_us) else {
        // It subscribes without history, and may have missed anything.
        client.is_complete = false;
        return;
    };
    streams.listening(CHANNEL, 1, now_us);
    // What it received while the channel had no history had no position: it can come again.
    client.is_complete &= resumed.recovered;
    if !resumed.recovered {
        client.position = None;
    }
    let taken = match rng.u8(..4) {
        0 => rng.usize(..resumed.messages.len() + 1),
        _ => resumed.messages.len(),
    };
    for message in resumed.messages.iter().take(taken) {
        let payload = std::str::from_utf8(message.entry.payload()).expect("text");
        let number = payload.trim_end().parse().expect("a number");
        client.receive(number, Some(message.position));
    }
    match taken == resumed.messages.len() {
        true => client.position = Some(resumed.position),
        false => {
            // The connection ends while the messages are being sent.
            client.is_connected = false;
            streams.listening(CHANNEL, -1, now_us);
        }
    }
}

fn listeners(clients: &[Client]) -> u32 {
    clients.iter().filter(|client| client.is_connected).count() as u32
}

fn resolver(rng: &mut Rng, is_other: bool) -> Resolver {
    let age_ms = [50, 1_000, 100_000][rng.usize(..3)];
    let rule = HistoryRule { messages: rng.usize(1..60), age_ms, idle_ms: 2 * age_ms };
    let has_history = !is_other || rng.u8(..6) != 0;
    Arc::new(move |_| has_history.then_some(rule))
}
