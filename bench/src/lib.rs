//! What measuring takes: a clock that a busy machine does not advance, two sides
//! that take turns, a plugin to ask, a table, and where the numbers come from.
//!
//! What is measured is up to the programs in `src/bin`.

pub mod sides;

pub mod chain;

pub mod table;

pub mod machine;
