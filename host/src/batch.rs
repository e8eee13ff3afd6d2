//! Items that come together, of which there is most often one.

use smallvec::SmallVec;

/// One item is kept in place; more need room on the heap.
pub type Batch<T> = SmallVec<[T; 1]>;
