//! Loads Switchyard and its peers with the same messages, on the same cores, one server after
//! the other, and prints what each takes.
//!
//! `make bench-peers` installs the peers and runs all of it; `--help` says how to
//! run a part. The servers' processor time for each message is the figure that
//! drifts least; absolute figures of different runs do not compare.

mod cost;
mod count;
mod fleet;
mod report;
mod scenarios;
mod server;
mod swaps;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use cost::{Builds, Rule};
use count::Counter;
use report::{Cell, Report};
use scenarios::Scenario;
use server::{KINDS, Kind, Places, Server};
use swaps::Part;

/// Loads publish/subscribe servers and compares them.
#[derive(Debug, Parser)]
struct Args {
    /// The repository, where components, tools and the server are.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// The server to measure.
    #[arg(long, default_value = "target/release/switchyard")]
    switchyard: PathBuf,
    /// Seconds that one run takes.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How many runs each server has in a scenario.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Servers by name, or parts of their names; all when there are none.
    #[arg(long)]
    server: Vec<String>,
    /// Scenarios by parts of their names; all when there are none.
    #[arg(long)]
    scenario: Vec<String>,
    /// The server has the first core and the load the second. Without it, both have
    /// all.
    #[arg(long)]
    pinned: bool,
    /// Writes the tables to this file, too.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Has perf record one run of one server in one scenario into this file.
    #[arg(long)]
    profile: Option<PathBuf>,
    /// Instead: swaps this so often under load, and prints the pauses.
    #[arg(long)]
    swap: Option<Part>,
    /// How often.
    #[arg(long, default_value_t = 1_000)]
    swaps: u32,
    /// Instead: compares what the server costs with another build, in the checkout at this path,
    /// and fails where it costs more than it may.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Pairs of runs of the two builds, for processor time.
    #[arg(long, default_value_t = 11)]
    pairs: usize,
    /// Runs of each build in which instructions are counted; 0: they are not counted.
    #[arg(long, default_value_t = 3)]
    counts: usize,
    /// By how much instructions may rise, in per cent.
    #[arg(long, default_value_t = 5.0)]
    instructions_percent_max: f64,
    /// By how much processor time may rise, in per cent.
    #[arg(long, default_value_t = 10.0)]
    cpu_percent_max: f64,
    /// One short run of one scenario of each kind against Switchyard: a check of the
    /// load itself.
    #[arg(long)]
    quick: bool,
}

const SCENARIOS: &[Scenario] = &[
    Scenario::Publish { publishers: 50, depth: 1, channels: 1, subscribers: 0 },
    Scenario::Publish { publishers: 4, depth: 16, channels: 1, subscribers: 0 },
    Scenario::Publish { publishers: 4, depth: 64, channels: 1, subscribers: 0 },
    Scenario::Publish { publishers: 50, depth: 1, channels: 1_000, subscribers: 1 },
    Scenario::Publish { publishers: 4, depth: 16, channels: 1_000, subscribers: 1 },
    Scenario::Publish { publishers: 4, depth: 64, channels: 1_000, subscribers: 1 },
    Scenario::FanOut { subscribers: 100, in_flight: 1 },
    Scenario::FanOut { subscribers: 1_000, in_flight: 1 },
    Scenario::FanOut { subscribers: 1_000, in_flight: 16 },
    Scenario::FanOut { subscribers: 10_000, in_flight: 1 },
    Scenario::Rate { subscribers: 1_000, messages_per_second: 20 },
    Scenario::Rising { subscribers: 1_000 },
    Scenario::Rooms { rooms: 10 },
    Scenario::Idle { connections: 9_000 },
    Scenario::Churn { at_a_time: 32 },
    Scenario::Patterns { patterns: 10, all_match: false },
    Scenario::Patterns { patterns: 100_000, all_match: false },
    Scenario::Patterns { patterns: 100, all_match: true },
];

const QUICK: &[Scenario] = &[
    Scenario::Publish { publishers: 4, depth: 16, channels: 10, subscribers: 1 },
    Scenario::FanOut { subscribers: 20, in_flight: 4 },
    Scenario::Rate { subscribers: 20, messages_per_second: 100 },
    Scenario::Rooms { rooms: 2 },
    Scenario::Idle { connections: 50 },
    Scenario::Churn { at_a_time: 4 },
    Scenario::Patterns { patterns: 100, all_match: false },
    Scenario::Patterns { patterns: 10, all_match: true },
];

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        args.server = vec!["switchyard/resp+plugin".to_owned(), "switchyard/ws+plugin".to_owned()];
        (args.runs, args.seconds) = (1, 0.2);
    }
    let root = args.root.canonicalize().context("--root")?;
    let switchyard = root.join(&args.switchyard).canonicalize().context("--switchyard")?;
    // It is built with the load.
    let floor = std::env::current_exe()?.with_file_name("floor");
    let places = Places::new(root, switchyard, floor.clone())?;
    let is_selected = |words: &[String], name: &str| {
        words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
    };
    let is_kind_selected = |kind: &Kind| match args.profile {
        None => is_selected(&args.server, kind.name),
        Some(_) => args.server.iter().any(|word| word == kind.name),
    };
    let kinds: Vec<Kind> = KINDS.iter().copied().filter(is_kind_selected).collect();
    ensure!(!kinds.is_empty(), "no server is called so: {:?}", args.server);
    if let Some(part) = args.swap {
        return swap(&args, &places, part);
    }
    let all = match (&args.against, args.quick) {
        (Some(_), _) => cost::SCENARIOS,
        (None, true) => QUICK,
        (None, false) => SCENARIOS,
    };
    let scenarios: Vec<Scenario> =
        all.iter().copied().filter(|s| is_selected(&args.scenario, &s.name())).collect();
    if let Some(checkout) = &args.against {
        let reference = Places::of_checkout(checkout, &args.switchyard, floor)?;
        let kinds: Vec<Kind> =
            kinds.into_iter().filter(|kind| kind.is_switchyard() && !kind.is_variant()).collect();
        let builds = Builds { measured: places, reference };
        return cost::compare(&builds, &kinds, &scenarios, args.rule());
    }
    if args.profile.is_some() {
        let selected = (kinds.len(), scenarios.len(), args.runs);
        ensure!(
            selected == (1, 1, 1),
            "--profile is for one server, one scenario and one run, not {selected:?}: {:?}, {:?}",
            kinds.iter().map(|kind| kind.name).collect::<Vec<_>>(),
            scenarios.iter().map(|scenario| scenario.name()).collect::<Vec<_>>(),
        );
    }
    let mut report = Report::begin(&args.title(), args.write.as_deref())?;
    let mut failed = Ok(());
    for scenario in scenarios {
        let mut cells: Vec<Cell> = kinds
            .iter()
            .copied()
            .filter(|kind| scenario.fits(*kind))
            .map(|kind| Cell { kind, runs: Vec::new(), failure: None })
            .collect();
        for round in 0..args.runs {
            // The first server of a round is at a disadvantage, so each round begins with
            // another one, as far as there are more servers than rounds.
            let first = round * cells.len() / args.runs;
            let (after, before) = cells.split_at_mut(first);
            for cell in before.iter_mut().chain(after) {
                match run(&args, &places, scenario, cell.kind) {
                    Ok(figures) => cell.runs.push(figures),
                    // Measure the other servers all the same.
                    Err(error) => cell.failure = Some(format!("{error:#}")),
                }
            }
        }
        report.scenario(scenario, &cells);
        let ours = cells.iter().find(|cell| cell.kind.is_switchyard());
        if let Some(Cell { failure: Some(failure), .. }) = ours {
            failed = Err(anyhow::anyhow!("{}: {failure}", scenario.name()));
            break;
        }
    }
    report.finish()?;
    failed
}

fn run(args: &Args, places: &Places, scenario: Scenario, kind: Kind) -> Result<scenarios::Figures> {
    // Fresh for each: what one scenario leaves behind is not paid for by the next.
    let server = Server::start(kind, places, args.pinned.then_some("0"), Counter::Off)?;
    let perf = args.profile.as_deref().map(|file| server.profile(file)).transpose()?;
    let figures = scenario.run(&server, kind.wire, Duration::from_secs_f64(args.seconds));
    drop(server);
    let figures = figures?;
    if let Some(mut perf) = perf {
        let status = perf.wait()?;
        ensure!(status.success(), "perf: {status}");
    }
    Ok(figures)
}

fn swap(args: &Args, places: &Places, part: Part) -> Result<()> {
    let kind =
        *KINDS.iter().find(|kind| kind.name == "switchyard/ws+plugin").context("it is there")?;
    let server = Server::start(kind, places, None, Counter::Off)?;
    let pauses = swaps::measure(&server, kind, part, args.swaps)?;
    println!(
        "{} swaps of the {}, pause in us: median {}, p99 {}, p99.9 {}, longest {}",
        pauses.len(),
        format!("{part:?}").to_lowercase(),
        pauses.value_at_quantile(0.5),
        pauses.value_at_quantile(0.99),
        pauses.value_at_quantile(0.999),
        pauses.max(),
    );
    Ok(())
}

impl Args {
    fn rule(&self) -> Rule {
        Rule {
            pairs: self.pairs,
            counts: self.counts,
            time: Duration::from_secs_f64(self.seconds),
            instructions_percent_max: self.instructions_percent_max,
            cpu_percent_max: self.cpu_percent_max,
            pinned: self.pinned,
        }
    }

    fn title(&self) -> String {
        let where_ = match self.pinned {
            true => "the server on the first core, the load on the second",
            false => "not pinned to cores",
        };
        format!(
            "{where_}; medians of {} interleaved runs of {} s, or as long as it takes to send {} messages by the clock",
            self.runs,
            self.seconds,
            scenarios::RATE_MESSAGES_MIN
        )
    }
}
