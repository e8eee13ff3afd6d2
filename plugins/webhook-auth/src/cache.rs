//! What the service said, for a while: of each instance, and in its memory only.
//!
//! It stores a hash of the credentials only. Refusals are not cached, so that credentials that
//! have just become valid are accepted at once.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::answer::Granted;

type Key = [u8; 32];

/// A bounded memory that forgets.
pub struct Cache {
    time: Duration,
    entries_max: usize,
    entries: HashMap<Key, (Instant, Granted)>,
    /// The oldest first, each once.
    ages: VecDeque<(Instant, Key)>,
}

impl Cache {
    /// Remembers so many answers, each for so long.
    pub fn new(time: Duration, entries_max: usize) -> Cache {
        Cache { time, entries_max, entries: HashMap::new(), ages: VecDeque::new() }
    }

    /// What was said, unless it is too long ago.
    pub fn get(&mut self, key: &Key) -> Option<Granted> {
        self.get_at(key, Instant::now())
    }

    /// Remembers an answer, in place of the oldest if there is no room.
    pub fn put(&mut self, key: Key, granted: Granted) {
        self.put_at(key, granted, Instant::now());
    }

    fn get_at(&mut self, key: &Key, now: Instant) -> Option<Granted> {
        self.forget(now);
        self.entries.get(key).map(|(_, granted)| granted.clone())
    }

    fn put_at(&mut self, key: Key, granted: Granted, now: Instant) {
        self.forget(now);
        if self.entries.contains_key(&key) {
            self.ages.retain(|(_, other)| *other != key);
        } else if self.entries.len() >= self.entries_max
            && let Some((_, oldest)) = self.ages.pop_front()
        {
            self.entries.remove(&oldest);
        }
        self.entries.insert(key, (now, granted));
        self.ages.push_back((now, key));
    }

    fn forget(&mut self, now: Instant) {
        while let Some((since, key)) = self.ages.front().copied()
            && now.saturating_duration_since(since) >= self.time
        {
            self.ages.pop_front();
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Granted {
        Granted { user: Some(name.to_owned()), ..Granted::default() }
    }

    #[test]
    fn it_forgets_what_is_old_and_what_it_has_no_room_for() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut cache = Cache::new(Duration::from_secs(10), 2);
        cache.put_at([1; 32], user("a"), at(0));
        cache.put_at([2; 32], user("b"), at(5));
        assert_eq!(cache.get_at(&[1; 32], at(9)), Some(user("a")));
        assert_eq!(cache.get_at(&[1; 32], at(10)), None);
        // Said again, it is as good as new.
        cache.put_at([2; 32], user("c"), at(12));
        assert_eq!(cache.get_at(&[2; 32], at(20)), Some(user("c")));
        cache.put_at([3; 32], user("d"), at(21));
        cache.put_at([4; 32], user("e"), at(21));
        assert_eq!(cache.get_at(&[2; 32], at(21)), None, "the oldest had to go");
        assert_eq!(cache.get_at(&[3; 32], at(21)), Some(user("d")));
        assert_eq!((cache.entries.len(), cache.ages.len()), (2, 2));
        assert_eq!(cache.get_at(&[3; 32], at(100)), None);
        assert_eq!((cache.entries.len(), cache.ages.len()), (0, 0));
    }
}
