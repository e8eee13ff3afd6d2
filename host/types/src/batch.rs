//! A list of items, most often of one.

use smallvec::SmallVec;

/// One item is stored inline; more of them on the heap.
pub type Batch<T> = SmallVec<[T; 1]>;
