//! The stamp of the build: eight digits that a test can change in the compiled
//! component, to have another version of it without compiling one.
//!
//! In the component's file the bytes `@@stamp:00000000` stand exactly once.

use std::hint::black_box;

static STAMP: [u8; 16] = *b"@@stamp:00000000";

/// The digits.
pub fn digits() -> &'static [u8] {
    // The black box makes the compiler read them where they stand. Without it,
    // it would put copies of the digits where they are used.
    let [_, _, _, _, _, _, _, _, digits @ ..] = black_box(&STAMP);
    digits
}
