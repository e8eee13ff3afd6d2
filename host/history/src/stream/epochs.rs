//! The positions of a stream: its epoch, and those that it had before.
//!
//! A stream that was read from disk after an unclean stop has a new epoch: publications of the old
//! one may be lost. What was kept stays before it, at the positions that it had. The numbers of a
//! stream go on through its epochs; in each epoch the offsets begin at 1.

use std::cmp::Ordering;

use crate::stream::Stream;
use switchyard_types::position::Position;

/// An epoch of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// The epoch of the positions.
    pub epoch: u64,
    /// The number of the last publication before it: the publication with the next number has the
    /// offset 1.
    pub base: u64,
}

/// The epochs of a stream before the present one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Earlier {
    /// The first epoch that the stream ever had.
    id: u64,
    /// Those of which something was kept, the oldest first.
    epochs: Vec<Epoch>,
    /// That of the present epoch.
    base: u64,
}

impl Stream {
    /// What identifies the stream as long as it exists, whatever its epoch is.
    pub fn id(&self) -> u64 {
        self.earlier.as_ref().map_or(self.epoch, |earlier| earlier.id)
    }

    /// Its epochs, the oldest first; the last one is the present one.
    pub fn epochs(&self) -> Vec<Epoch> {
        let mut epochs = self.earlier.as_ref().map_or_else(Vec::new, |it| it.epochs.clone());
        epochs.push(Epoch { epoch: self.epoch, base: self.base() });
        epochs
    }

    /// Sets what identifies it, and its epochs, of which it has at least one.
    pub fn set_epochs(&mut self, id: u64, mut epochs: Vec<Epoch>) {
        let Some(Epoch { epoch, base }) = epochs.pop() else { return };
        self.epoch = epoch;
        let is_first = id == epoch && base == 0 && epochs.is_empty();
        self.earlier = (!is_first).then(|| Box::new(Earlier { id, epochs, base }));
    }

    /// The position of the last publication of the present epoch, or its beginning.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.last() - self.base() }
    }

    /// The position of the publication with this number.
    #[inline]
    pub fn at(&self, number: u64) -> Position {
        match &self.earlier {
            Some(earlier) if number <= earlier.base => earlier.at(number),
            _ => Position { epoch: self.epoch, offset: number - self.base() },
        }
    }

    /// The number of a position of the present epoch. None: it is of another one, or from the future.
    pub fn number(&self, position: Position) -> Option<u64> {
        let number = position.offset.saturating_add(self.base());
        (position.epoch == self.epoch && number <= self.last()).then_some(number)
    }

    /// The lowest number that is not below a position (`more` 0), or that is above it (1).
    pub(crate) fn first_from(&self, position: Position, more: u64) -> u64 {
        match position.epoch.cmp(&self.epoch) {
            Ordering::Less => match &self.earlier {
                Some(earlier) => earlier.first_from(position, more),
                None => 0,
            },
            Ordering::Equal => number_from(position.offset, more, self.base()),
            Ordering::Greater => u64::MAX,
        }
    }

    #[inline]
    fn base(&self) -> u64 {
        self.earlier.as_ref().map_or(0, |earlier| earlier.base)
    }
}

impl Earlier {
    /// The position of a number up to `base`.
    fn at(&self, number: u64) -> Position {
        let of = self.epochs.iter().rev().find(|epoch| epoch.base < number);
        match of.or(self.epochs.first()) {
            Some(&Epoch { epoch, base }) => Position { epoch, offset: number.saturating_sub(base) },
            None => Position { epoch: self.id, offset: 0 },
        }
    }

    /// As that of the stream, for a position below the present epoch.
    fn first_from(&self, position: Position, more: u64) -> u64 {
        let index = self.epochs.partition_point(|epoch| epoch.epoch < position.epoch);
        let end = |index: usize| self.epochs.get(index + 1).map_or(self.base, |next| next.base);
        match self.epochs.get(index) {
            Some(&Epoch { epoch, base }) if epoch == position.epoch => {
                number_from(position.offset, more, base).min(end(index) + 1)
            }
            Some(&Epoch { base, .. }) => base + 1,
            None => self.base + 1,
        }
    }
}

/// The lowest number of an epoch whose offset is at least this one. Before the offset 1 is another
/// epoch.
fn number_from(offset: u64, more: u64, base: u64) -> u64 {
    offset.saturating_add(more).max(1).saturating_add(base)
}
