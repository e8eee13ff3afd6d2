//! Notifies clients that the server is about to close their connections.

use std::time::Duration;

use switchyard_hub::connections::Connection;
use switchyard_types::close::CloseReason;

/// Closes a connection that did nothing wrong: at once, and with the protocol's way to say so. A
/// second call has no effect.
pub fn close_gracefully(connection: &Connection, reason: CloseReason) {
    goaway(connection, &reason, RECONNECT_WITHIN, Duration::ZERO);
    connection.outbox.close(reason);
}

/// Whether the protocol of a client has a notice that its connection will be closed.
pub fn can_notify(connection: &Connection) -> bool {
    let encoder = connection.encoding().encoder();
    encoder.goaway("", [0, 0], 0).is_some()
}

/// Notifies a client, if its protocol can do so, that it will be closed, within which time it
/// should reconnect, and after which time at the earliest the connection is closed.
pub fn goaway(
    connection: &Connection,
    reason: &CloseReason,
    reconnect_within: [Duration; 2],
    closes_in: Duration,
) {
    let within_ms = reconnect_within.map(|time| time.as_millis() as u64);
    let closes_in_ms = closes_in.as_millis() as u64;
    let encoder = connection.encoding().encoder();
    if let Some(notice) = encoder.goaway(&reason.text(), within_ms, closes_in_ms) {
        connection.outbox.push(notice.into());
    }
}

/// The time over which clients should spread their reconnects, unless another one is given.
const RECONNECT_WITHIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];
