//! The model of rooms and clients, and the random sequences.

pub mod client;
pub mod room;
pub mod run;
