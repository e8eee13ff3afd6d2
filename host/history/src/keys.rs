//! The keys of publications, and the first answer to each.
//!
//! A key belongs to the channel as the publication names it. It is pending from its claim until the
//! publication is answered or refused; then its answer lives for a time, so that the same key again
//! gets the same answer and publishes nothing. The caller holds a lock for each call, not between
//! claim and answer: another claim of a pending key is made to wait by the caller.

use std::hash::BuildHasher;

use crate::names::Names;
use crate::size::allocated;
use crate::slots::Slots;
use switchyard_types::keyed_hash::KeyedHash;

/// No slot.
const NONE: u32 = u32::MAX;

/// How many keys a call forgets because there are too many; `expire` forgets the rest.
const FORGOTTEN_AT_ONCE_MAX: usize = 256;

/// How long and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLimits {
    /// How long an answer lives, from the publication on, in milliseconds.
    pub idempotency_ms: u64,
    /// How many keys there are; over it the oldest answers are forgotten.
    pub keys_max: usize,
}

/// The keys of all channels; `A` is the answer to a publication.
pub struct Keys<A> {
    limits: KeyLimits,
    slots: Slots<Key<A>>,
    names: Names,
    /// The key that was answered first, and the one answered last.
    oldest: u32,
    newest: u32,
    /// The first answer that is to be written to disk; those after it are, too.
    unwritten: u32,
    /// Whether answers are written to disk.
    is_recorded: bool,
    name_bytes: usize,
    forgotten: u64,
    /// How many claims there were.
    claims: u64,
    now_us: u64,
    hash: KeyedHash,
}

struct Key<A> {
    /// The channel, followed by the key.
    name: Box<[u8]>,
    channel_bytes: u32,
    /// The last claim that has this key, and where in it the key stands first.
    index: u32,
    claim: u64,
    answer: Option<Answer<A>>,
}

struct Answer<A> {
    answer: A,
    since_ms: u64,
    /// The key that was answered before.
    previous: u32,
    /// The key that was answered next.
    next: u32,
}

/// What became of a claim of several keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claims<A> {
    /// All are claimed, or known; one item for each of them, in their order.
    Claimed(Vec<Claim<A>>),
    /// One of them is pending, and none is claimed: the caller waits, and claims again.
    Pending,
}

/// What became of one key of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim<A> {
    /// The caller publishes, and calls `finish` or `release`.
    New,
    /// The answer to the first publication.
    Done(A),
    /// The same key of the same channel stands earlier in this claim, at this index.
    Duplicate(usize),
}

/// The key of a publication and its answer, as it is written to disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey<A> {
    /// The channel as the publication named it.
    pub channel: Box<[u8]>,
    /// The key.
    pub key: Box<[u8]>,
    /// The answer to the publication.
    pub answer: A,
    /// When it was answered, in milliseconds since 1970.
    pub since_ms: u64,
}

/// What a call of `expire` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeysExpired {
    /// How many answers were forgotten.
    pub work: usize,
    /// When the next call is useful, in microseconds since 1970: not after now if there is more to
    /// do at once. None: after the next answer.
    pub next_us: Option<u64>,
}

impl<A: Clone> Keys<A> {
    /// No keys.
    pub fn new(limits: KeyLimits) -> Keys<A> {
        Keys {
            limits,
            slots: Slots::new(),
            names: Names::new(),
            oldest: NONE,
            newest: NONE,
            unwritten: NONE,
            is_recorded: false,
            name_bytes: 0,
            forgotten: 0,
            claims: 0,
            now_us: 0,
            hash: KeyedHash::default(),
        }
    }

    /// Sets the limits. They hold at once for answers that exist, too.
    pub fn set_limits(&mut self, limits: KeyLimits) {
        self.limits = limits;
    }

    /// The current limits.
    pub fn limits(&self) -> KeyLimits {
        self.limits
    }

    /// Claims keys, each with its channel: all of them, or none if one is pending.
    pub fn claim(&mut self, keys: &[(&[u8], &[u8])], now_us: u64) -> Claims<A> {
        self.now_us = self.now_us.max(now_us);
        self.claims += 1;
        let mut claims = Vec::with_capacity(keys.len());
        let mut new = Vec::new();
        for (index, &(channel, key)) in keys.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let Some(slot) = self.find(channel, key) else {
                new.push(self.insert(channel, key, index));
                claims.push(Claim::New);
                continue;
            };
            let held = self.slots.at_mut(slot);
            if held.claim == self.claims {
                claims.push(Claim::Duplicate(held.index as usize));
                continue;
            }
            let Some(Answer { answer, .. }) = &held.answer else {
                for slot in new {
                    self.remove(slot);
                }
                return Claims::Pending;
            };
            claims.push(Claim::Done(answer.clone()));
            (held.claim, held.index) = (self.claims, index);
        }
        self.enforce(FORGOTTEN_AT_ONCE_MAX);
        Claims::Claimed(claims)
    }

    /// Records the answer to a publication. Without effect on a key that is not pending.
    pub fn finish(&mut self, channel: &[u8], key: &[u8], answer: A, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let since_ms = self.now_us / 1_000;
        let Some(slot) = self.find(channel, key) else { return };
        self.answer(slot, answer, since_ms);
        if self.is_recorded && self.unwritten == NONE && self.newest == slot {
            self.unwritten = slot;
        }
        self.enforce(FORGOTTEN_AT_ONCE_MAX);
    }

    /// From now on, answers are recorded for `unwritten`.
    pub fn record_answers(&mut self) {
        self.is_recorded = true;
    }

    /// Whether there are answers that `unwritten` has not returned.
    pub fn has_unwritten(&self) -> bool {
        self.unwritten != NONE
    }

    /// The next answers that are to be written to disk, up to `max` of them, the oldest first.
    pub fn unwritten(&mut self, max: usize) -> Vec<StoredKey<A>> {
        let mut answers = Vec::new();
        while answers.len() < max
            && let Some(key) = self.slots.get(self.unwritten)
            && let Some(answer) = &key.answer
        {
            let (channel, name) = key.parts();
            answers.push(StoredKey {
                channel: channel.into(),
                key: name.into(),
                answer: answer.answer.clone(),
                since_ms: answer.since_ms,
            });
            self.unwritten = answer.next;
        }
        answers
    }

    /// All answers are to be written again, because it is not known what is on disk.
    pub fn record_all(&mut self) {
        self.unwritten = if self.is_recorded { self.oldest } else { NONE };
    }

    /// Takes back an answer, unless it is over or the key is there. They are taken back in their
    /// order, before there are others.
    pub fn restore(&mut self, stored: StoredKey<A>, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let now_ms = self.now_us / 1_000;
        let StoredKey { channel, key, answer, since_ms } = stored;
        let since_ms = since_ms.min(now_ms);
        let is_over = now_ms >= since_ms.saturating_add(self.limits.idempotency_ms);
        if !is_over && self.find(&channel, &key).is_none() {
            let slot = self.insert(&channel, &key, 0);
            self.answer(slot, answer, since_ms);
            self.enforce(FORGOTTEN_AT_ONCE_MAX);
        }
    }

    fn answer(&mut self, slot: u32, answer: A, since_ms: u64) {
        let pending = &mut self.slots.at_mut(slot).answer;
        if pending.is_some() {
            return;
        }
        let previous = std::mem::replace(&mut self.newest, slot);
        *pending = Some(Answer { answer, since_ms, previous, next: NONE });
        match self.answer_mut(previous) {
            Some(previous) => previous.next = slot,
            None => self.oldest = slot,
        }
    }

    /// Forgets a pending key: its publication was refused. Without effect on one that is not
    /// pending.
    pub fn release(&mut self, channel: &[u8], key: &[u8]) {
        if let Some(slot) = self.find(channel, key)
            && self.slots.at(slot).answer.is_none()
        {
            self.remove(slot);
        }
    }

    /// Forgets answers that are too old or too many, up to `work_max` of them.
    pub fn expire(&mut self, now_us: u64, work_max: usize) -> KeysExpired {
        self.now_us = self.now_us.max(now_us);
        let mut work = self.enforce(work_max);
        while work < work_max && self.oldest != NONE && self.is_over(self.oldest) {
            self.remove(self.oldest);
            work += 1;
        }
        let next_us = match self.slots.get(self.oldest).and_then(|key| key.answer.as_ref()) {
            Some(_) if work >= work_max => Some(now_us),
            Some(answer) => {
                let over_ms = answer.since_ms.saturating_add(self.limits.idempotency_ms);
                Some(over_ms.saturating_mul(1_000))
            }
            None => None,
        };
        KeysExpired { work, next_us }
    }

    /// How many keys there are, pending ones included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many answers were forgotten early because there were too many.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// How much memory they take, without what the answers own.
    pub fn bytes(&self) -> usize {
        self.slots.bytes() + self.names.bytes() + self.name_bytes
    }

    /// The slot of a key that is pending, or whose answer still lives.
    fn find(&mut self, channel: &[u8], key: &[u8]) -> Option<u32> {
        let slot = self.names.find(self.hash_of(channel, key), |slot| {
            self.slots.at(slot).parts() == (channel, key)
        })?;
        if self.is_over(slot) {
            self.remove(slot);
            return None;
        }
        Some(slot)
    }

    fn insert(&mut self, channel: &[u8], key: &[u8], index: u32) -> u32 {
        let name: Box<[u8]> = [channel, key].concat().into();
        self.name_bytes += allocated(name.len());
        let channel_bytes = u32::try_from(channel.len()).expect("a name is below 4 GiB");
        let claim = self.claims;
        let slot = self.slots.insert(Key { name, channel_bytes, index, claim, answer: None });
        self.names.insert(self.hash_of(channel, key), slot);
        slot
    }

    fn remove(&mut self, slot: u32) {
        let (channel, key) = self.slots.at(slot).parts();
        self.names.remove(self.hash_of(channel, key), slot);
        let Some(key) = self.slots.remove(slot) else { return };
        self.name_bytes -= allocated(key.name.len());
        let Some(Answer { previous, next, .. }) = key.answer else { return };
        if self.unwritten == slot {
            self.unwritten = next;
        }
        match self.answer_mut(previous) {
            Some(answer) => answer.next = next,
            None => self.oldest = next,
        }
        match self.answer_mut(next) {
            Some(answer) => answer.previous = previous,
            None => self.newest = previous,
        }
    }

    fn answer_mut(&mut self, slot: u32) -> Option<&mut Answer<A>> {
        self.slots.get_mut(slot)?.answer.as_mut()
    }

    /// Forgets the oldest answers while there are too many keys, up to `max` of them.
    fn enforce(&mut self, max: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < max && self.len() > self.limits.keys_max && self.oldest != NONE {
            self.forgotten += u64::from(!self.is_over(self.oldest));
            self.remove(self.oldest);
            forgotten += 1;
        }
        forgotten
    }

    fn is_over(&self, slot: u32) -> bool {
        let now_ms = self.now_us / 1_000;
        self.slots.at(slot).answer.as_ref().is_some_and(|answer| {
            now_ms >= answer.since_ms.saturating_add(self.limits.idempotency_ms)
        })
    }

    fn hash_of(&self, channel: &[u8], key: &[u8]) -> u64 {
        self.hash.hash_one((channel, key))
    }
}

impl<A> Key<A> {
    /// The channel and the key.
    fn parts(&self) -> (&[u8], &[u8]) {
        self.name.split_at(self.channel_bytes as usize)
    }
}
