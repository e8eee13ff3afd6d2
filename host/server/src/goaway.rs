//! Notifies clients that the server is about to close their connections.

use std::time::Duration;

use switchyard_hub::connections::Connection;
use switchyard_types::close::CloseReason;

/// Closes a connection that did nothing wrong: soon, and with the protocol's way to say so. A
/// second call has no effect.
pub fn close_gracefully(connection: &Connection, reason: CloseReason) {
    goaway(connection, &reason, RECONNECT_WITHIN);
    connection.outbox.close(reason);
}

/// Notifies a client, if its protocol can do so, that it will be closed, and after which time it
/// should reconnect.
pub fn goaway(connection: &Connection, reason: &CloseReason, reconnect_within: [Duration; 2]) {
    let within_ms = reconnect_within.map(|time| time.as_millis() as u64);
    if let Some(goaway) = connection.encoding().encoder().goaway(&reason.text(), within_ms) {
        connection.outbox.push(goaway.into());
    }
}

/// The time over which clients should spread their reconnects, unless another one is given.
const RECONNECT_WITHIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];
