//! Code that several of the bundled plugins share: parsing globs, finding a client's token,
//! the users that a rule applies to, what the actions of a call come to, the names of its items, reading settings.
//!
//! It does not depend on the WIT contract, so that it is tested natively and a plugin may be
//! built for another version of it. A component that links it uses `guest-heap`.

use guest_heap as _;

pub mod declaration;
pub mod settings;

pub mod actions;
pub mod address;
pub mod credentials;
pub mod items;
pub mod notes;
pub mod refused;
pub mod user_selector;

pub mod cover;
pub mod glob;

pub mod budget;
