//! Compares what two builds of the server cost: user-space instructions and processor time for
//! each operation.
//!
//! Instructions are counted by `perf stat` where the machine has the counter, and by callgrind
//! elsewhere, in a stretch of a run that is bounded in time. Processor time is measured in pairs
//! of alternating runs, one of each build, because a machine's speed drifts. The medians are
//! compared, and an interval around each says how far the runs disagree.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bench::machine;

use crate::count::Counter;
use crate::scenarios::{Figures, Scenario};
use crate::server::{Kind, Places, Server};

/// How the two builds are compared.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// How many pairs of runs there are for processor time.
    pub pairs: usize,
    /// How many runs of each build there are for instructions; 0: they are not counted.
    pub counts: usize,
    /// How long each run takes.
    pub time: Duration,
    /// By how much instructions may rise, in per cent.
    pub instructions_percent_max: f64,
    /// By how much processor time may rise, in per cent.
    pub cpu_percent_max: f64,
    /// Whether the server has the first core to itself.
    pub pinned: bool,
}

/// The build that is measured, and the one that it is compared with.
pub struct Builds {
    pub measured: Places,
    pub reference: Places,
}

/// Scenarios whose cost for an operation does not depend on the clock.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::Publish { publishers: 50, depth: 1, channels: 1, subscribers: 0 },
    Scenario::Publish { publishers: 4, depth: 16, channels: 1, subscribers: 0 },
    Scenario::Publish { publishers: 4, depth: 64, channels: 1, subscribers: 0 },
    Scenario::Publish { publishers: 50, depth: 1, channels: 1_000, subscribers: 1 },
    Scenario::Publish { publishers: 4, depth: 64, channels: 1_000, subscribers: 1 },
    Scenario::FanOut { subscribers: 100, in_flight: 1 },
    Scenario::FanOut { subscribers: 1_000, in_flight: 16 },
    Scenario::Rooms { rooms: 10 },
    Scenario::Churn { at_a_time: 32 },
    Scenario::Patterns { patterns: 10_000, all_match: false },
];

/// A median, and the interval that the runs span around it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl Spread {
    /// The median of these, and an interval that holds the true median with a probability of 95 %
    /// or more: the second smallest to the second largest of 9 or more, the smallest to the
    /// largest of fewer. None where there are none.
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let cut = usize::from(values.len() >= 9);
        let median = *values.get(values.len() / 2)?;
        let low = *values.get(cut)?;
        let high = *values.get(values.len().checked_sub(1 + cut)?)?;
        Some(Spread { low, median, high })
    }

    fn percent(self) -> String {
        let percent = |ratio: f64| 100.0 * (ratio - 1.0);
        format!(
            "{:+.1} % [{:+.1}, {:+.1}]",
            percent(self.median),
            percent(self.low),
            percent(self.high)
        )
    }

    /// Whether the ratio is above `1 + percent / 100` in all of the interval.
    fn exceeds(self, percent: f64) -> bool {
        self.low > 1.0 + percent / 100.0
    }
}

/// How much longer than others a run under callgrind is.
const CALLGRIND_TIMES_LONGER: u32 = 8;

/// Prints a table with a row for each scenario and server.
///
/// # Errors
///
/// A run failed, or a figure is above what the rule allows.
pub fn compare(builds: &Builds, kinds: &[Kind], scenarios: &[Scenario], rule: Rule) -> Result<()> {
    let counter = Counter::available()?;
    println!("{}", machine::facts());
    println!(
        "measured {}, reference {}; instructions by {}, median of {}; processor time as the median \
         of {} pairs of {} s\n",
        builds.measured.switchyard.display(),
        builds.reference.switchyard.display(),
        counter.name(),
        rule.counts,
        rule.pairs,
        rule.time.as_secs_f64(),
    );
    println!(
        "| scenario | server | instructions, reference | change | CPU µs, reference | change |"
    );
    println!("|---|---|---|---|---|---|");
    let mut above = Vec::new();
    let (mut instruction_ratios, mut cpu_ratios) = (Vec::new(), Vec::new());
    for scenario in scenarios {
        for kind in kinds.iter().copied().filter(|kind| scenario.fits(*kind)) {
            let row = Row::measure(builds, kind, *scenario, counter, rule)
                .with_context(|| format!("{}, {}", scenario.name(), kind.name))?;
            let (count, count_ratio) = row.instructions.unzip();
            println!(
                "| {} | {} | {} | {} | {:.3} | {} |",
                scenario.name(),
                kind.name,
                count.map_or("-".to_owned(), |count| format!("{count:.0}")),
                count_ratio.map_or("-".to_owned(), Spread::percent),
                row.cpu_us,
                row.cpu_ratio.percent(),
            );
            instruction_ratios.extend(count_ratio.map(|ratio| ratio.median));
            cpu_ratios.push(row.cpu_ratio.median);
            for (what, ratio, percent_max) in [
                ("instructions", count_ratio, rule.instructions_percent_max),
                ("processor time", Some(row.cpu_ratio), rule.cpu_percent_max),
            ] {
                if let Some(ratio) = ratio
                    && ratio.exceeds(percent_max)
                {
                    above.push(format!(
                        "{}, {}: {what} {}",
                        scenario.name(),
                        kind.name,
                        ratio.percent()
                    ));
                }
            }
        }
    }
    let cpu = 100.0 * (mean(&cpu_ratios)? - 1.0);
    if rule.counts == 0 {
        println!("\nall scenarios, geometric mean: processor time {cpu:+.1} %");
    } else {
        let instructions = 100.0 * (mean(&instruction_ratios)? - 1.0);
        println!(
            "\nall scenarios, geometric mean: instructions {instructions:+.1} %, processor time \
             {cpu:+.1} %"
        );
        if instructions > rule.instructions_percent_max {
            above.push("the mean of instructions".to_owned());
        }
    }
    if !above.is_empty() {
        bail!(
            "above +{} % of instructions or +{} % of processor time: {}",
            rule.instructions_percent_max,
            rule.cpu_percent_max,
            above.join("; ")
        );
    }
    Ok(())
}

fn mean(ratios: &[f64]) -> Result<f64> {
    ensure!(!ratios.is_empty(), "no scenario fits");
    Ok((ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp())
}

struct Row {
    /// Of the reference, and the ratio; none: they were not counted.
    instructions: Option<(f64, Spread)>,
    cpu_us: f64,
    cpu_ratio: Spread,
}

impl Row {
    fn measure(
        builds: &Builds,
        kind: Kind,
        scenario: Scenario,
        counter: Counter,
        rule: Rule,
    ) -> Result<Row> {
        let both = |counter, run: usize| -> Result<(Figures, Figures)> {
            let measured = || run_once(&builds.measured, kind, scenario, counter, rule);
            let reference = || run_once(&builds.reference, kind, scenario, counter, rule);
            // The first of a pair alternates, because it may find the machine in another state.
            if run.is_multiple_of(2) {
                let measured = measured()?;
                Ok((measured, reference()?))
            } else {
                let reference = reference()?;
                Ok((measured()?, reference))
            }
        };
        let (mut counted, mut count_ratios) = (Vec::new(), Vec::new());
        for run in 0..rule.counts {
            let (measured, reference) = both(counter, run)?;
            let each = |figures: &Figures| -> Result<f64> {
                let instructions = figures.instructions.context("nothing was counted")?;
                Ok(instructions as f64 / figures.count)
            };
            counted.push(each(&reference)?);
            count_ratios.push(each(&measured)? / each(&reference)?);
        }
        let (mut timed, mut time_ratios) = (Vec::new(), Vec::new());
        for run in 0..rule.pairs {
            let (measured, reference) = both(Counter::Off, run)?;
            let each = |figures: &Figures| 1e6 * figures.cpu_seconds / figures.count;
            timed.push(each(&reference));
            time_ratios.push(each(&measured) / each(&reference));
        }
        let spread = |values| Spread::of(values).context("no run");
        Ok(Row {
            instructions: Spread::of(counted)
                .map(|counted| counted.median)
                .zip(Spread::of(count_ratios)),
            cpu_us: spread(timed)?.median,
            cpu_ratio: spread(time_ratios)?,
        })
    }
}

fn run_once(
    places: &Places,
    kind: Kind,
    scenario: Scenario,
    counter: Counter,
    rule: Rule,
) -> Result<Figures> {
    let server = Server::start(kind, places, rule.pinned.then_some("0"), counter)?;
    let time = match counter {
        Counter::Off | Counter::Perf => rule.time,
        // Few operations are done under callgrind. Among those of a short run, what a server does
        // once a second, or for a new connection, would be a tenth of what is counted.
        Counter::Callgrind => CALLGRIND_TIMES_LONGER * rule.time,
    };
    scenario.run(&server, kind.wire, time)
}

impl Places {
    /// A build in another checkout.
    ///
    /// # Errors
    ///
    /// There is no such checkout, or no server in it.
    pub fn of_checkout(root: &PathBuf, switchyard: &PathBuf, floor: PathBuf) -> Result<Places> {
        let root = root.canonicalize().with_context(|| format!("no checkout at {root:?}"))?;
        let switchyard = root.join(switchyard);
        let switchyard =
            switchyard.canonicalize().with_context(|| format!("no server at {switchyard:?}"))?;
        Places::new(root, switchyard, floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_leaves_one_run_out_at_each_end_of_many() {
        let spread = Spread::of((0..11).rev().map(f64::from).collect());
        assert_eq!(spread, Some(Spread { low: 1.0, median: 5.0, high: 9.0 }));
        let spread = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!(spread, Some(Spread { low: 1.0, median: 2.0, high: 3.0 }));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn a_ratio_is_above_the_bound_only_with_its_whole_interval() {
        let check = |low, expected: bool| {
            assert_eq!(Spread { low, median: 1.2, high: 1.3 }.exceeds(10.0), expected);
        };
        check(1.11, true);
        check(1.09, false);
    }
}
