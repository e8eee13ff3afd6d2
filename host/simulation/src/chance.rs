//! All chance of a simulation, drawn from one seed.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

/// A generator that the parts of a simulation share. They draw in the order in which they run,
/// which the seed determines.
#[derive(Clone)]
pub struct Chance(Arc<Mutex<fastrand::Rng>>);

impl Chance {
    /// The generator for this seed.
    pub fn new(seed: u64) -> Chance {
        Chance(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    /// A number in this range, which is not empty.
    pub fn number(&self, range: Range<usize>) -> usize {
        self.0.lock().usize(range)
    }

    /// True in one of `cases` cases; never: zero cases.
    pub fn one_in(&self, cases: usize) -> bool {
        cases > 0 && self.number(0..cases) == 0
    }

    /// One of these; none: there is none.
    pub fn pick<'a, T>(&self, among: &'a [T]) -> Option<&'a T> {
        (!among.is_empty()).then(|| self.number(0..among.len())).and_then(|index| among.get(index))
    }
}
