//! Random claims: `Keys` answers as a list of keys does.

use fastrand::Rng;

use super::{BEGIN_US, for_seeds};
use crate::{Claim, Claims, KeyLimits, Keys};

type Name = (Vec<u8>, Vec<u8>);

struct Model {
    limits: KeyLimits,
    pending: Vec<Name>,
    /// In the order of the answers, each with its time.
    done: Vec<(Name, u32, u64)>,
    forgotten: u64,
}

impl Model {
    fn advance(&mut self, now_us: u64) {
        let over_ms = self.limits.idempotency_ms;
        self.done.retain(|(_, _, since_ms)| now_us / 1_000 < since_ms + over_ms);
    }

    fn enforce(&mut self) {
        while self.pending.len() + self.done.len() > self.limits.keys_max && !self.done.is_empty() {
            self.done.remove(0);
            self.forgotten += 1;
        }
    }

    fn claim(&mut self, keys: &[Name]) -> Claims<u32> {
        if keys.iter().any(|key| self.pending.contains(key)) {
            return Claims::Pending;
        }
        let mut claims = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            let first = keys.iter().position(|other| other == key).unwrap();
            let done = self.done.iter().find(|(name, _, _)| name == key);
            claims.push(match done {
                _ if first < index => Claim::Duplicate(first),
                Some((_, answer, _)) => Claim::Done(*answer),
                None => {
                    self.pending.push(key.clone());
                    Claim::New
                }
            });
        }
        self.enforce();
        Claims::Claimed(claims)
    }
}

fn limits(rng: &mut Rng) -> KeyLimits {
    KeyLimits { idempotency_ms: rng.u64(1..200), keys_max: rng.usize(1..12) }
}

#[test]
fn random_claims_give_what_the_model_gives() {
    for_seeds(|_, rng| {
        let first = limits(rng);
        let mut keys: Keys<u32> = Keys::new(first);
        let mut model =
            Model { limits: first, pending: Vec::new(), done: Vec::new(), forgotten: 0 };
        let mut now_us = BEGIN_US;
        let names: Vec<Name> = [("a", "b"), ("ab", ""), ("", "ab"), ("a", "c"), ("x", "b")]
            .iter()
            .chain(&[("x", "1"), ("x", "2"), ("x", "3"), ("x", "4"), ("x", "5")])
            .map(|(channel, key)| (channel.as_bytes().to_vec(), key.as_bytes().to_vec()))
            .collect();
        for answer in 0..150 {
            now_us += rng.u64(..20_000);
            // What is over is not counted as forgotten, if it is removed in time.
            let mut expired = keys.expire(now_us, rng.usize(1..20));
            while expired.next_us.is_some_and(|next_us| next_us <= now_us) {
                expired = keys.expire(now_us, rng.usize(1..20));
            }
            model.advance(now_us);
            assert_eq!(keys.len(), model.pending.len() + model.done.len());
            match rng.u8(..10) {
                0..5 => {
                    let count = rng.usize(1..5);
                    let claimed: Vec<Name> =
                        (0..count).map(|_| rng.choice(&names).unwrap().clone()).collect();
                    let borrowed: Vec<(&[u8], &[u8])> =
                        claimed.iter().map(|(channel, key)| (&**channel, &**key)).collect();
                    assert_eq!(keys.claim(&borrowed, now_us), model.claim(&claimed));
                }
                5..8 => {
                    let (channel, key) = rng.choice(&names).unwrap();
                    keys.finish(channel, key, answer, now_us);
                    let name = (channel.clone(), key.clone());
                    if let Some(index) = model.pending.iter().position(|other| *other == name) {
                        model.pending.remove(index);
                        model.done.push((name, answer, now_us / 1_000));
                        model.enforce();
                    }
                }
                8 => {
                    let (channel, key) = rng.choice(&names).unwrap();
                    keys.release(channel, key);
                    model.pending.retain(|other| *other != (channel.clone(), key.clone()));
                }
                _ if rng.u8(..4) == 0 => {
                    model.limits = limits(rng);
                    keys.set_limits(model.limits);
                    model.advance(now_us);
                    model.enforce();
                    keys.expire(now_us, 100);
                }
                _ => {}
            }
            assert_eq!(keys.len(), model.pending.len() + model.done.len());
            assert_eq!(keys.forgotten(), model.forgotten);
        }
        for (channel, key) in model.pending {
            keys.release(&channel, &key);
        }
        while let Some(next_us) = keys.expire(now_us, 3).next_us {
            now_us = now_us.max(next_us);
        }
        assert!(keys.is_empty());
    });
}

#[test]
fn an_answer_that_is_over_is_not_given_even_before_it_is_removed() {
    let mut keys: Keys<u32> = Keys::new(KeyLimits { idempotency_ms: 100, keys_max: 10 });
    let both: [(&[u8], &[u8]); 2] = [(b"chat", b"1"), (b"chat", b"2")];
    assert_eq!(keys.claim(&both, BEGIN_US), Claims::Claimed(vec![Claim::New, Claim::New]));
    keys.finish(b"chat", b"1", 1, BEGIN_US);
    keys.finish(b"chat", b"2", 2, BEGIN_US + 50_000);
    let claimed = keys.claim(&both, BEGIN_US + 99_999);
    assert_eq!(claimed, Claims::Claimed(vec![Claim::Done(1), Claim::Done(2)]));
    // The second is removed before the first, which is older.
    assert_eq!(keys.claim(&both[1..], BEGIN_US + 150_000), Claims::Claimed(vec![Claim::New]));
    keys.finish(b"chat", b"2", 3, BEGIN_US + 150_000);
    let claimed = keys.claim(&both, BEGIN_US + 150_000);
    assert_eq!(claimed, Claims::Claimed(vec![Claim::New, Claim::Done(3)]));
}
