//! Limits how often the same warning is logged.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(10);

/// Allows a warning that may be due very often to be logged once in ten seconds.
#[derive(Debug, Default)]
pub struct Throttle {
    logged_at: Option<Instant>,
}

impl Throttle {
    /// Whether to log the warning now. True at most once in ten seconds.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.logged_at.is_none_or(|at| now.duration_since(at) >= INTERVAL);
        if is_due {
            self.logged_at = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_due_once_in_the_interval() {
        let mut throttle = Throttle::default();
        assert!(throttle.is_due());
        assert!(!throttle.is_due());
        throttle.logged_at = Instant::now().checked_sub(INTERVAL);
        assert!(throttle.is_due());
    }
}
