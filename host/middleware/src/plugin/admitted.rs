//! For which connections a plugin's `on-connect` was called, or will be.

use parking_lot::Mutex;

use switchyard_hub::connections::Connections;
use switchyard_types::ids::ConnectionId;

/// The connections that were not in the table when the plugin entered the chain. It is set while
/// the chain is locked for that.
#[derive(Debug)]
pub(super) struct Admitted(Mutex<From>);

#[derive(Debug, Clone)]
struct From {
    /// All from this id on.
    first: ConnectionId,
    /// Those before it that were accepted and not admitted yet, in rising order.
    earlier: Vec<ConnectionId>,
}

impl Default for Admitted {
    /// None.
    fn default() -> Admitted {
        Admitted(Mutex::new(From { first: ConnectionId::MAX, earlier: Vec::new() }))
    }
}

impl Admitted {
    /// All that are not in the table yet.
    pub(super) fn start(&self, connections: &Connections) {
        let (first, earlier) = connections.ids().upcoming();
        *self.0.lock() = From { first, earlier };
    }

    /// The same as those of another plugin.
    pub(super) fn copy(&self, other: &Admitted) {
        let from = other.0.lock().clone();
        *self.0.lock() = from;
    }

    /// Whether the connection is one of them.
    pub(super) fn has(&self, connection: ConnectionId) -> bool {
        let from = self.0.lock();
        from.first <= connection || from.earlier.binary_search(&connection).is_ok()
    }
}
