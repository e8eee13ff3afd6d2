//! What the backplane is given to keep.

use std::time::Duration;

use switchyard_types::command::Publication;
use switchyard_types::history::SharedRule;

/// A publication for the backplane.
pub struct Append {
    /// The publication.
    pub publication: Publication<'static>,
    /// The rule of its channel; none: it is only published.
    pub rule: Option<SharedRule>,
    /// How many deliveries it has on this node.
    pub deliveries: u64,
    /// How long its key is remembered.
    pub key_time: Duration,
}

/// A channel with history, and its rule.
pub type Ruled<'a> = (&'a [u8], SharedRule);
