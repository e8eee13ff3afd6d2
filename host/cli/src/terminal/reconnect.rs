//! When a client reconnects after a connection is lost: as the close code says, and with a backoff
//! that doubles while that fails.

use std::time::Duration;

use rand::RngExt as _;

use super::client::Ended;
use super::wire::Refusal;

/// The longest first pause; each further one may be twice as long, ...
const PAUSE: Duration = Duration::from_secs(1);

/// ... up to this.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The time over which clients spread that reconnect at once.
const SOON: Duration = Duration::from_secs(2);

/// The longest delay that a server may ask for.
const GOAWAY_MAX: Duration = Duration::from_secs(600);

/// How often in a row a client failed to reconnect.
#[derive(Debug, Default)]
pub struct ReconnectBackoff {
    in_vain: u32,
    /// Whether the credentials may change: they are read again for each connection.
    has_fresh_credentials: bool,
    /// Whether the credentials were already read again because some were refused.
    was_refused: bool,
}

/// What the end of a connection implies for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Advice {
    Never,
    AfterAPause,
    Soon,
    /// With new credentials, because these were refused; once.
    WithOthers,
    /// With new credentials, because these expired.
    WithNew,
    /// At some time between the two.
    Within(Duration, Duration),
}

impl ReconnectBackoff {
    /// No failure yet. `has_fresh_credentials`: they are read again for each connection.
    pub fn new(has_fresh_credentials: bool) -> ReconnectBackoff {
        ReconnectBackoff { has_fresh_credentials, ..ReconnectBackoff::default() }
    }

    /// The connection was a success: the next failure is the first in a row.
    pub fn worked(&mut self) {
        self.in_vain = 0;
        self.was_refused = false;
    }

    /// How long to wait before the next try; none: the server does not want this client to
    /// reconnect.
    pub fn after(&mut self, ended: &Ended) -> Option<Duration> {
        let pause = match advice(ended) {
            Advice::Never => return None,
            // Clients that were closed at the same time reconnect at different times.
            Advice::Within(from, to) => rand::rng().random_range(from..=to),
            Advice::WithOthers | Advice::WithNew if !self.has_fresh_credentials => return None,
            Advice::WithOthers if std::mem::replace(&mut self.was_refused, true) => return None,
            Advice::WithOthers | Advice::WithNew if self.in_vain == 0 => Duration::ZERO,
            Advice::Soon if self.in_vain == 0 => rand::rng().random_range(Duration::ZERO..=SOON),
            Advice::Soon | Advice::WithOthers | Advice::WithNew | Advice::AfterAPause => {
                let longest = PAUSE.saturating_mul(1 << self.in_vain.min(16)).min(PAUSE_MAX);
                rand::rng().random_range(Duration::ZERO..=longest)
            }
        };
        self.in_vain = self.in_vain.saturating_add(1);
        Some(pause)
    }
}

fn advice(ended: &Ended) -> Advice {
    match ended {
        Ended::Closed { code, goaway, .. } => {
            let by_code = match code {
                Some(4200..4300) => Advice::Soon,
                Some(4001) => Advice::WithOthers,
                Some(4002) => Advice::WithNew,
                // Codes of RFC 6455 for errors that would occur again, and codes that the protocol
                // defines as permanent.
                Some(1000 | 1002 | 1003 | 1007..=1010 | 4000..4100) => Advice::Never,
                _ => Advice::AfterAPause,
            };
            match goaway {
                Some(goaway) if matches!(by_code, Advice::AfterAPause | Advice::Soon) => {
                    let [from, to] = [goaway.reconnect_within_ms.0, goaway.reconnect_within_ms.1]
                        .map(|bound| Duration::from_millis(bound).min(GOAWAY_MAX));
                    Advice::Within(from.min(to), to)
                }
                _ => by_code,
            }
        }
        Ended::Unupgraded { status: 408 | 429 | 500.., .. } => Advice::AfterAPause,
        Ended::Unupgraded { .. } | Ended::Foreign(_) | Ended::Untrusted(_) => Advice::Never,
        Ended::Refused(Refusal { code, .. }) => match &**code {
            "UNAVAILABLE" => Advice::AfterAPause,
            "EXPIRED" => Advice::WithNew,
            "NOAUTH" => Advice::WithOthers,
            _ => Advice::Never,
        },
        Ended::Lost(_) => Advice::AfterAPause,
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Goaway;
    use super::*;

    fn closed(code: u16, goaway: Option<(u64, u64)>) -> Ended {
        let goaway = goaway
            .map(|reconnect_within_ms| Goaway { reason: "r".to_owned(), reconnect_within_ms });
        Ended::Closed { code: Some(code), reason: String::new(), goaway }
    }

    #[test]
    fn the_close_code_says_whether_to_come_back() {
        let check = |code, expected| assert_eq!(advice(&closed(code, None)), expected, "{code}");
        check(4001, Advice::WithOthers);
        check(4002, Advice::WithNew);
        for code in [1000, 1002, 1003, 1007, 1009, 4000, 4003, 4009, 4099] {
            check(code, Advice::Never);
        }
        for code in [1001, 1006, 1011, 1012, 1013, 4100, 4101, 4102, 4107, 4199, 4300] {
            check(code, Advice::AfterAPause);
        }
        for code in [4200, 4201, 4202, 4299] {
            check(code, Advice::Soon);
        }
        let spread = Advice::Within(Duration::from_millis(500), Duration::from_secs(5));
        assert_eq!(advice(&closed(1001, Some((500, 5_000)))), spread);
        assert_eq!(advice(&closed(4003, Some((500, 5_000)))), Advice::Never);
    }

    #[test]
    fn coming_back_in_vain_becomes_rarer() {
        let mut reconnect = ReconnectBackoff::default();
        let slow = closed(4202, None);
        assert!(reconnect.after(&slow).unwrap() <= SOON);
        let mut longest = PAUSE;
        for _ in 0..20 {
            longest = (longest * 2).min(PAUSE_MAX);
            let pause = reconnect.after(&slow).unwrap();
            assert!(pause <= longest, "{pause:?} of {longest:?}");
        }
        assert_eq!(longest, PAUSE_MAX);
        reconnect.worked();
        assert!(reconnect.after(&slow).unwrap() <= SOON);
    }

    #[test]
    fn other_credentials_are_tried_where_they_can_be_had() {
        let (refused, expired) = (closed(4001, None), closed(4002, None));
        let mut reconnect = ReconnectBackoff::new(false);
        assert_eq!(reconnect.after(&refused), None);
        assert_eq!(reconnect.after(&expired), None);
        let mut reconnect = ReconnectBackoff::new(true);
        assert_eq!(reconnect.after(&expired), Some(Duration::ZERO));
        assert!(reconnect.after(&expired).is_some());
        assert!(reconnect.after(&refused).is_some());
        assert_eq!(reconnect.after(&refused), None, "once");
        reconnect.worked();
        assert_eq!(reconnect.after(&refused), Some(Duration::ZERO));
    }

    #[test]
    fn a_server_cannot_delay_a_client_without_limit() {
        let pause = ReconnectBackoff::default().after(&closed(4100, Some((u64::MAX, 0)))).unwrap();
        assert_eq!(pause, Duration::ZERO);
        let pause =
            ReconnectBackoff::default().after(&closed(4100, Some((u64::MAX, u64::MAX)))).unwrap();
        assert_eq!(pause, GOAWAY_MAX);
    }
}
