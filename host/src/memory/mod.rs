//! The memory of all connections, kept within its budgets.

pub mod account;
pub mod input;
mod keeper;
mod survey;

pub use keeper::{Holding, Memory, Reading};
