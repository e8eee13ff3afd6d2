//! How much memory an allocation takes.
//!
//! mimalloc, as other allocators, has a size class for each multiple of 16 bytes up to 64, and then
//! four for each doubling.

/// How much memory an allocation of this many bytes takes.
#[inline]
pub(crate) const fn allocated(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..=8 => 8,
        9..=64 => bytes.next_multiple_of(16),
        _ => bytes.next_multiple_of(1 << ((bytes - 1).ilog2() - 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::allocated;

    #[test]
    fn an_allocation_takes_the_size_of_its_class() {
        let classes = [0, 8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384];
        for window in classes.windows(2) {
            assert_eq!(allocated(window[0] + 1), window[1]);
            assert_eq!(allocated(window[1]), window[1]);
        }
    }
}
