//! How much work one call may cost.
//!
//! Patterns are the client's, and some are dear to compare with a rule. The
//! host ends a call that takes too long and holds it against the plugin, so the
//! plugin stops first and refuses what it could not decide. One budget serves
//! one call, that is one connection: a client spends only its own.

/// The work was more than the budget held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooCostly;

/// What is left to spend, in steps of one or two nanoseconds.
#[derive(Debug)]
pub struct Budget {
    steps_left: usize,
}

impl Budget {
    /// A budget of this many steps.
    pub fn of(steps: usize) -> Self {
        Self { steps_left: steps }
    }

    /// Takes steps out of it. What could not be paid leaves nothing.
    pub fn spend(&mut self, steps: usize) -> Result<(), TooCostly> {
        let left = self.steps_left.checked_sub(steps);
        self.steps_left = left.unwrap_or(0);
        left.map(|_| ()).ok_or(TooCostly)
    }
}
