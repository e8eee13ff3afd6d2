//! Limits how often a client may fail to authenticate, for each connection and for each address.
//!
//! Only failures count, so that many clients behind one address can connect at the same time. If a
//! plugin cannot decide, that is not the client's failure.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use switchyard_config::limits::LiveLimits;
use switchyard_hub::connections::Connection;
use switchyard_net::address_buckets::{AddressBuckets, Refill};
use switchyard_types::command::{EXPIRED, LIMIT, Refusal, TOOLARGE, UNAVAILABLE};

/// How many addresses have a bucket of their own: about 6 MiB.
const ADDRESSES_MAX: usize = 65_536;

/// Counts failures to authenticate.
pub struct AuthAttempts {
    limits: Arc<LiveLimits>,
    addresses: AddressBuckets,
    failed: AtomicU64,
    refused: AtomicU64,
}

/// One attempt, until it is settled. If it is dropped before that, it counts as a failure: a client
/// must not save its tokens by disconnecting.
pub struct Attempt {
    attempts: Arc<AuthAttempts>,
    connection: Arc<Connection>,
    is_settled: bool,
}

impl AuthAttempts {
    /// Uses these limits.
    pub fn new(limits: Arc<LiveLimits>) -> AuthAttempts {
        AuthAttempts {
            limits,
            addresses: AddressBuckets::new(ADDRESSES_MAX),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Attempts that failed, and those that were refused because too many had failed.
    pub fn counts(&self) -> [u64; 2] {
        [&self.failed, &self.refused].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Whether another client may connect from this address: not too many attempts from it have
    /// failed.
    pub fn may_connect(&self, connection: &Connection) -> bool {
        let address = connection.counted_address();
        let may = address.is_none_or(|address| self.has_token(address));
        if !may {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    /// Counts a client that was refused when it connected.
    pub fn connect_refused(&self, connection: &Connection, refusal: &Refusal) {
        if refusal.code == switchyard_types::command::NOAUTH {
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.take(connection.counted_address());
        }
    }

    /// Begins an attempt. None: too many have failed.
    pub fn begin(self: &Arc<Self>, connection: &Arc<Connection>) -> Option<Attempt> {
        let has_token = connection.auth_bucket().has_token(self.refill(), Instant::now());
        let address = connection.counted_address();
        if !has_token || address.is_some_and(|address| !self.has_token(address)) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let connection = connection.clone();
        Some(Attempt { attempts: self.clone(), connection, is_settled: false })
    }

    fn refill(&self) -> Refill {
        Refill::per_minute(self.limits.auth_attempts_per_minute_max())
    }

    fn has_token(&self, address: IpAddr) -> bool {
        self.addresses.has_token(address, self.refill(), Instant::now())
    }

    fn take(&self, address: Option<IpAddr>) {
        if let Some(address) = address {
            self.addresses.take(address, self.refill(), Instant::now());
        }
    }
}

impl Attempt {
    /// Settles the attempt with its result.
    pub fn settled(mut self, answer: &Result<(), Refusal>) {
        self.is_settled = true;
        let Err(Refusal { code, .. }) = answer else { return };
        match &**code {
            UNAVAILABLE | LIMIT | TOOLARGE => {}
            // Not a guess: the credentials were valid once. Many clients of one address may have
            // been suspended while their tokens expired.
            EXPIRED => self.failed(None),
            _ => self.failed(self.connection.counted_address()),
        }
    }

    fn failed(&self, address: Option<IpAddr>) {
        let attempts = &self.attempts;
        attempts.failed.fetch_add(1, Ordering::Relaxed);
        self.connection.auth_bucket().take(attempts.refill(), Instant::now());
        attempts.take(address);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_settled {
            self.failed(self.connection.counted_address());
        }
    }
}
