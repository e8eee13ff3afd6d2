//! The attributes that plugins store for a connection, and what the host itself derives from them:
//! whether the connection must authenticate, and when its credentials expire.
//!
//! Both are kept next to the attributes as atomics and updated with them, so that a command reads
//! them without a lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::expiries::Deadline;

/// While this attribute is set, the connection must authenticate before anything else.
pub const AUTH_REQUIRED: &str = "auth-required";

/// When the connection's credentials expire, in seconds since 1970.
pub const EXPIRES_AT: &str = "expires-at";

/// The user of the connection.
pub const USER: &str = "user";

/// Credentials that do not expire.
const NEVER: u64 = u64::MAX;

/// The attributes of one connection.
pub struct Attributes {
    notes: Mutex<Notes>,
    bytes_max: usize,
    is_auth_required: AtomicBool,
    /// In milliseconds since 1970.
    expires_at_ms: AtomicU64,
}

#[derive(Default)]
struct Notes {
    now: BTreeMap<String, String>,
    /// As they were before the client first authenticated.
    before: Option<BTreeMap<String, String>>,
    /// Whether `auth-required` was set since credentials were shown last.
    is_auth_required_again: bool,
    /// When the host checks the expiry next.
    deadline: Deadline,
}

impl Attributes {
    /// No attributes, with room for this many bytes of keys and values.
    pub fn new(bytes_max: usize) -> Attributes {
        Attributes {
            notes: Mutex::default(),
            bytes_max,
            is_auth_required: AtomicBool::new(false),
            expires_at_ms: AtomicU64::new(NEVER),
        }
    }

    /// The attribute under this key.
    pub fn get(&self, key: &str) -> Option<String> {
        self.notes.lock().now.get(key).cloned()
    }

    /// All attributes, in the order of their keys.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.notes.lock().now.clone()
    }

    /// Whether the attribute under this key has this value.
    pub fn has(&self, key: &str, value: &str) -> bool {
        self.notes.lock().now.get(key).is_some_and(|current| current == value)
    }

    /// Sets an attribute; none removes it. False: there is no room for it. `reschedule` is called
    /// with the expiry when it may have changed.
    pub fn set(
        &self,
        key: &str,
        value: Option<String>,
        reschedule: impl FnOnce(&mut Deadline, Option<u64>),
    ) -> bool {
        let mut notes = self.notes.lock();
        let notes = &mut *notes;
        let Some(value) = value else {
            if notes.now.remove(key).is_some() {
                self.keep_in_step(notes, key, reschedule);
            }
            return true;
        };
        let others: usize = notes
            .now
            .iter()
            .filter(|(other, _)| *other != key)
            .map(|(other, value)| other.len() + value.len())
            .sum();
        if others + key.len() + value.len() > self.bytes_max {
            return false;
        }
        notes.now.insert(key.to_owned(), value);
        notes.is_auth_required_again |= key == AUTH_REQUIRED;
        self.keep_in_step(notes, key, reschedule);
        true
    }

    fn keep_in_step(
        &self,
        notes: &mut Notes,
        key: &str,
        reschedule: impl FnOnce(&mut Deadline, Option<u64>),
    ) {
        match key {
            AUTH_REQUIRED => {
                let is_set = notes.now.contains_key(AUTH_REQUIRED);
                self.is_auth_required.store(is_set, Ordering::Relaxed);
            }
            EXPIRES_AT => {
                let expires_at = notes.now.get(EXPIRES_AT).map(|text| read_expiry(text));
                self.expires_at_ms.store(expires_at.unwrap_or(NEVER), Ordering::Relaxed);
                reschedule(&mut notes.deadline, expires_at);
            }
            _ => {}
        }
    }

    /// Called before credentials are passed to the plugins. The first time, it saves the
    /// attributes.
    pub fn begin_authenticating(&self) {
        let mut notes = self.notes.lock();
        notes.is_auth_required_again = false;
        if notes.before.is_none() {
            notes.before = Some(notes.now.clone());
        }
    }

    /// The plugins accepted the credentials: the connection is authenticated, unless a plugin
    /// has required authentication again since.
    pub fn accept_credentials(&self) {
        let mut notes = self.notes.lock();
        let notes = &mut *notes;
        if !notes.is_auth_required_again && notes.now.remove(AUTH_REQUIRED).is_some() {
            self.keep_in_step(notes, AUTH_REQUIRED, |_, _| {});
        }
    }

    /// Restores the attributes to what they were before the client first authenticated.
    pub fn restore(&self, reschedule: impl FnOnce(&mut Deadline, Option<u64>)) {
        let mut notes = self.notes.lock();
        let notes = &mut *notes;
        if let Some(before) = notes.before.take() {
            notes.now = before;
            self.keep_in_step(notes, AUTH_REQUIRED, |_, _| {});
            self.keep_in_step(notes, EXPIRES_AT, reschedule);
        }
    }

    /// Whether the connection must authenticate before it may do anything else.
    pub fn is_auth_required(&self) -> bool {
        self.is_auth_required.load(Ordering::Relaxed)
    }

    /// When the credentials expire, in milliseconds since 1970; none: they do not.
    pub fn expires_at_ms(&self) -> Option<u64> {
        Some(self.expires_at_ms.load(Ordering::Relaxed)).filter(|at| *at != NEVER)
    }

    /// Changes when the host checks the expiry next. Holds the lock of the attributes.
    pub fn with_deadline<T>(&self, change: impl FnOnce(&mut Deadline, Option<u64>) -> T) -> T {
        let mut notes = self.notes.lock();
        let expires_at = self.expires_at_ms();
        change(&mut notes.deadline, expires_at)
    }
}

/// Converts seconds since 1970 to milliseconds. An invalid number has expired already: otherwise a
/// plugin's mistake would let its clients stay forever.
fn read_expiry(text: &str) -> u64 {
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => Some(seconds),
        // As a JSON number may be written.
        Err(_) => text.parse::<f64>().ok().filter(|at| *at >= 0.0).map(|at| at as u64),
    };
    match seconds {
        Some(seconds) => seconds.saturating_mul(1_000).min(NEVER - 1),
        None => {
            tracing::warn!("a plugin set the attribute `expires-at` to a text that is no number");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(attributes: &Attributes, key: &str, value: Option<&str>) -> bool {
        attributes.set(key, value.map(str::to_owned), |_, _| {})
    }

    #[test]
    fn the_flag_follows_the_note() {
        let attributes = Attributes::new(100);
        assert!(!attributes.is_auth_required());
        assert!(set(&attributes, AUTH_REQUIRED, Some("")));
        assert!(attributes.is_auth_required());
        attributes.begin_authenticating();
        attributes.accept_credentials();
        assert!(!attributes.is_auth_required());
        assert_eq!(attributes.get(AUTH_REQUIRED), None);
        // RESET restores what was decided at connect.
        attributes.restore(|_, _| {});
        assert!(attributes.is_auth_required());
        assert!(set(&attributes, AUTH_REQUIRED, None));
        assert!(!attributes.is_auth_required());
    }

    #[test]
    fn a_plugin_may_ask_for_credentials_again() {
        let attributes = Attributes::new(100);
        assert!(set(&attributes, AUTH_REQUIRED, Some("1")));
        attributes.begin_authenticating();
        assert!(set(&attributes, AUTH_REQUIRED, Some("2")));
        attributes.accept_credentials();
        assert!(attributes.is_auth_required());
        attributes.begin_authenticating();
        attributes.accept_credentials();
        assert!(!attributes.is_auth_required());
    }

    #[test]
    fn a_note_without_room_changes_nothing() {
        let attributes = Attributes::new(20);
        assert!(set(&attributes, AUTH_REQUIRED, Some("1234567")));
        assert!(!set(&attributes, EXPIRES_AT, Some("1")));
        assert_eq!(attributes.expires_at_ms(), None);
        assert!(!set(&attributes, AUTH_REQUIRED, Some("12345678")));
        assert_eq!(attributes.get(AUTH_REQUIRED).as_deref(), Some("1234567"));
    }

    #[test]
    fn an_expiry_is_a_number_of_seconds() {
        let check = |text: &str, expected: u64| assert_eq!(read_expiry(text), expected, "{text}");
        check("0", 0);
        check("1764340000", 1_764_340_000_000);
        check("1764340000.9", 1_764_340_000_000);
        check("1.5e3", 1_500_000);
        check("18446744073709551615", NEVER - 1);
        for none in ["", "-1", "soon", "NaN", "2026-01-01"] {
            check(none, 0);
        }
    }
}
