//! What measuring takes: a clock that a busy machine does not advance, two sides
//! that take turns, a table, and where the numbers come from.
//!
//! It knows nothing of what is measured; the programs in `src/bin` do.

pub mod sides;

pub mod table;

pub mod machine;
