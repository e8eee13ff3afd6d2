//! The bounds on the memory of several connections.

/// A bound on several connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// On the outboxes of all connections.
    Outboxes,
    /// On the outboxes of one address.
    OutboxesOfAddress,
    /// On partly received input of all connections.
    Input,
    /// On partly received input of one address.
    InputOfAddress,
}

impl Bound {
    /// All.
    pub const ALL: [Bound; 4] =
        [Bound::Outboxes, Bound::OutboxesOfAddress, Bound::Input, Bound::InputOfAddress];

    /// The setting.
    pub fn key(self) -> &'static str {
        match self {
            Bound::Outboxes => "limits.outbox_bytes_total_max",
            Bound::OutboxesOfAddress => "limits.outbox_bytes_per_address_max",
            Bound::Input => "limits.input_bytes_total_max",
            Bound::InputOfAddress => "limits.input_bytes_per_address_max",
        }
    }

    /// A stable label for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Outboxes => "outboxes",
            Bound::OutboxesOfAddress => "outboxes_of_address",
            Bound::Input => "input",
            Bound::InputOfAddress => "input_of_address",
        }
    }
}
