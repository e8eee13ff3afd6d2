//! Whether a glob covers another: whether it matches every name that the other
//! matches.
//!
//! The other glob is walked state by state, and beside each of its states
//! stands the set of states in which this one may be after the same bytes. The
//! answer is no as soon as the other can be at its end and this one cannot.
//! Bytes that this glob cannot distinguish are tried once. Sets of states are
//! bits of one `u128`, so a glob of more than 128 states covers nothing; that is
//! the safe side to be wrong on.

use std::collections::BTreeSet;

use crate::budget::{Budget, TooCostly};
use crate::glob::{ByteSet, Glob, State};

/// What one step in the walk costs, in steps of the budget.
const WALK_STEP_COST: usize = 80;

/// How many pairs of a state there and a set of states here one question may
/// lead through. Few patterns have more than one pair for each of their bytes.
const PAIRS_MAX: usize = 2048;

/// A glob prepared for checks of what it covers.
#[derive(Clone, Debug)]
pub struct Cover {
    glob: Glob,
    /// None for a glob with too many states.
    machine: Option<Machine>,
}

impl Cover {
    /// Makes a glob ready.
    pub fn new(glob: Glob) -> Self {
        let machine = Machine::new(&glob);
        Self { glob, machine }
    }

    /// The glob itself.
    pub fn glob(&self) -> &Glob {
        &self.glob
    }

    /// Whether every name that `other` matches is matched by this. Exact,
    /// except that a glob of more than 128 states is said to cover nothing.
    pub fn covers(&self, other: &Glob, budget: &mut Budget) -> Result<bool, TooCostly> {
        if other.matches_nothing() {
            return Ok(true);
        }
        if other.is_blank() {
            return Ok(self.glob.is_blank());
        }
        match &self.machine {
            Some(machine) => machine.covers(other, budget),
            None => Ok(false),
        }
    }
}

/// A set of states: bit n stands for the state n.
type States = u128;

/// A glob that is in several of its states at once.
#[derive(Clone, Debug)]
struct Machine {
    /// The bytes, sorted by where they lead.
    kinds: Vec<Kind>,
    /// The states with a star.
    stars: States,
    /// The last state.
    end: States,
}

/// Bytes that a glob cannot distinguish.
#[derive(Clone, Debug)]
struct Kind {
    bytes: ByteSet,
    /// The states that they lead to from the state before.
    enters: States,
}

impl Machine {
    fn new(glob: &Glob) -> Option<Self> {
        let states = glob.states();
        let end = 1_u128.checked_shl(u32::try_from(states.len()).ok()? - 1)?;
        let bits = || (0..u128::BITS).map(|bit| 1_u128 << bit);
        let stars = states.iter().zip(bits()).filter(|(state, _)| state.star);
        let kinds = kinds(glob).into_iter().map(|bytes| {
            let entered = states.iter().zip(bits());
            let entered = entered.filter(|(state, _)| state.entered_by.intersects(bytes));
            Kind { bytes, enters: entered.map(|(_, bit)| bit).sum() }
        });
        Some(Self { kinds: kinds.collect(), stars: stars.map(|(_, bit)| bit).sum(), end })
    }

    /// `other` matches something, and not the empty name.
    fn covers(&self, other: &Glob, budget: &mut Budget) -> Result<bool, TooCostly> {
        let first: States = 1;
        let mut seen = BTreeSet::new();
        let mut pending = vec![(0, first)];
        while let Some((position, here)) = pending.pop() {
            for (position, bytes) in moves(other.states(), position) {
                let other_at_end = position + 1 == other.states().len();
                let kinds = self.kinds.iter();
                for kind in kinds.filter(|kind| kind.bytes.intersects(bytes)) {
                    budget.spend(WALK_STEP_COST)?;
                    let there = self.step(here, kind);
                    if there & self.end & self.stars != 0 {
                        continue; // Matches whatever else comes.
                    }
                    // From wherever it is, `other` can reach its end: all its
                    // sets of bytes have members.
                    if there == 0 || (other_at_end && there & self.end == 0) {
                        return Ok(false);
                    }
                    if seen.len() == PAIRS_MAX {
                        return Err(TooCostly);
                    }
                    if seen.insert((position, there)) {
                        pending.push((position, there));
                    }
                }
            }
        }
        Ok(true)
    }

    /// The states after one byte of this kind.
    fn step(&self, states: States, kind: &Kind) -> States {
        let next = (states & self.stars) | ((states << 1) & kind.enters);
        // Whatever is matched from a state before a star is matched from the
        // star as well, so the last star makes the states before it redundant.
        // That keeps the sets few.
        match (next & self.stars).checked_ilog2() {
            Some(last_star) => next & (!0 << last_star),
            None => next,
        }
    }
}

/// Where one byte leads from the state at this position, and which bytes do.
fn moves(states: &[State], position: usize) -> impl Iterator<Item = (usize, ByteSet)> {
    let stays = states.get(position).filter(|state| state.star);
    let steps_on = states.get(position + 1);
    let stays = stays.map(|_| (position, ByteSet::ALL));
    stays.into_iter().chain(steps_on.map(|state| (position + 1, state.entered_by)))
}

/// Splits all bytes into those that the glob cannot distinguish.
fn kinds(glob: &Glob) -> Vec<ByteSet> {
    let sets: BTreeSet<_> = glob.states().iter().map(|state| state.entered_by).collect();
    sets.into_iter().fold(vec![ByteSet::ALL], |kinds, set| {
        let halves = |kind: ByteSet| [kind.and(set), kind.and(set.complement())];
        let split = kinds.into_iter().flat_map(halves);
        split.filter(|kind| !kind.is_empty()).collect()
    })
}
