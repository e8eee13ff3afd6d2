//! The memory of all connections, kept within its budgets.

mod keeper;
mod survey;

pub use keeper::{Holding, Memory, Reading};
