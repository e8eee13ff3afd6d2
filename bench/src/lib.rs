//! Tools for measuring: a clock of processor time, the comparison of two sides in alternating
//! batches, a plugin to call, a table, and a description of the machine.
//!
//! What is measured is up to the programs in `src/bin`.

pub mod sides;

pub mod chain;

pub mod table;

pub mod machine;
