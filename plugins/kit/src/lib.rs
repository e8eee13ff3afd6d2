//! What several of the plugins that ship need, and none is about: globs taken
//! apart, where a client shows a token, whom a rule speaks of, how settings are
//! read.
//!
//! It knows nothing of the contract, so that it is tested natively and a plugin
//! may be built on another version of it. A component that links it has `guest-heap`.

use guest_heap as _;

pub mod declaration;
pub mod settings;

pub mod address;
pub mod credentials;
pub mod notes;
pub mod refused;
pub mod who;

pub mod cover;
pub mod glob;

pub mod budget;
