//! Two sides that do the same, measured in alternating batches.
//!
//! On a shared machine an absolute number says little: a disturbance must affect both sides
//! alike. So batches of the two sides alternate. The result is the thread's processor time in
//! the median batch.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How many batches each side does. Odd, so that there is one in the middle.
pub const BATCHES: usize = 61;

/// Batches before those that count: caches, branch predictors, memory to grow into.
const WARM_UP_BATCHES: usize = 3;

/// What one thing costs on both sides, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// Without a sandbox.
    pub native: f64,
    /// In one.
    pub component: f64,
    /// How far apart the ends of the middle half of all batches are, as a share of
    /// the median, on the side where it is more. A tenth is a quiet machine's.
    pub spread: f64,
}

impl Comparison {
    /// How many times what the native side takes.
    pub fn ratio(&self) -> f64 {
        self.component / self.native
    }

    /// What the sandbox adds.
    pub fn difference(&self) -> f64 {
        self.component - self.native
    }

    /// The same, in shares of which each of its things has `count`.
    pub fn shared_by(&self, count: usize) -> Comparison {
        let count = count as f64;
        Comparison { native: self.native / count, component: self.component / count, ..*self }
    }
}

/// Runs batches of the native side and of the component alternately. `batch` receives a side
/// and returns the processor time that it took (see `time`); `things` is the number of
/// operations in a batch, and the result is for one of them.
///
/// # Errors
///
/// The first error of a batch.
pub fn compare<S, E>(
    [native, component]: [&mut S; 2],
    things: usize,
    mut batch: impl FnMut(&mut S) -> Result<Duration, E>,
) -> Result<Comparison, E>
where
    S: ?Sized,
{
    let mut native_times = Vec::with_capacity(BATCHES);
    let mut component_times = Vec::with_capacity(BATCHES);
    for number in 0..WARM_UP_BATCHES + BATCHES {
        // The first side finds the caches as the other left them, so the order alternates.
        let (of_native, of_component);
        if number % 2 == 0 {
            of_native = batch(native)?;
            of_component = batch(component)?;
        } else {
            of_component = batch(component)?;
            of_native = batch(native)?;
        }
        if number >= WARM_UP_BATCHES {
            native_times.push(of_native);
            component_times.push(of_component);
        }
    }
    let [native, component] = [native_times, component_times].map(Quartiles::of);
    Ok(Comparison {
        native: native.median / things as f64,
        component: component.median / things as f64,
        spread: native.spread().max(component.spread()),
    })
}

/// What the thread took of the processor for this.
///
/// # Errors
///
/// Its own.
pub fn time<E>(work: impl FnOnce() -> Result<(), E>) -> Result<Duration, E> {
    let started = thread_cpu_time();
    work()?;
    Ok(thread_cpu_time() - started)
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.max(0) as u32)
}

/// Of the times of batches, in nanoseconds.
struct Quartiles {
    first: f64,
    median: f64,
    third: f64,
}

impl Quartiles {
    fn of(mut times: Vec<Duration>) -> Quartiles {
        times.sort_unstable();
        let at = |position: usize| times.get(position).map_or(0.0, |time| time.as_nanos() as f64);
        let last = times.len().saturating_sub(1);
        Quartiles { first: at(last / 4), median: at(last / 2), third: at(last - last / 4) }
    }

    fn spread(&self) -> f64 {
        (self.third - self.first) / self.median
    }
}
