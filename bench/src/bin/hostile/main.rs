//! What hostile clients cost those that behave well: the latency of 50 clients beside ten kinds
//! of attack, one at a time and all together, against the server in a bounded control group and
//! against a control, a bare echo server that is pinned and attacked in the same way.
//!
//! `make bench-hostile` runs it. It fails where the server ends, is over the memory of its group,
//! or where the 99th percentile is above the control's by more than it may be.

mod attacks;
mod clients;
mod echo;
mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use bench::machine;
use clap::Parser;

use attacks::{ATTACKS, Attack};
use server::{Target, Under};

/// Measures well-behaved clients beside hostile ones.
#[derive(Debug, Parser)]
struct Args {
    /// The repository, where the components are.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// The server to measure.
    #[arg(long, default_value = "target/production/switchyard")]
    switchyard: PathBuf,
    /// Seconds that each run takes.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Attacks by parts of their names; each alone and then all together when there are none.
    #[arg(long)]
    attack: Vec<String>,
    /// The memory of the server's control group, in MiB; 0 runs it without one.
    #[arg(long, default_value_t = 512)]
    memory_mib: u64,
    /// Is the control: echoes on this port and prints nothing.
    #[arg(long, hide = true)]
    echo: Option<u16>,
}

/// By how much the clients' 99th percentile may be above the control's.
const OVER_CONTROL_MAX: Duration = Duration::from_millis(30);
/// Where the control stays below this, ...
const CALM_CONTROL_MAX: Duration = Duration::from_millis(20);
/// ... the clients' may not be above this.
const CALM_MAX: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(port) = args.echo {
        return echo::serve(port);
    }
    println!("{}", machine::facts());
    println!(
        "server and control on the first core, clients and attacks on the second; {} MiB; \
         {} clients, {} s each\n",
        args.memory_mib,
        clients::COUNT,
        args.seconds
    );
    println!(
        "| attack | control p99 ms, before and after | server p99 ms | answered | peak MiB | |"
    );
    println!("|---|---|---|---|---|---|");
    let mut failures = Vec::new();
    for (name, attacks) in runs(&args) {
        let before = measure(&args, Target::Echo, &attacks)?;
        let server = measure(&args, Target::Switchyard, &attacks)?;
        let after = measure(&args, Target::Echo, &attacks)?;
        let control = before.p99.max(after.p99);
        let calm = control <= CALM_CONTROL_MAX && server.p99 > CALM_MAX;
        let problem = match &server.ended {
            Some(end) => Some(format!("the server ended: {end}")),
            None if server.p99 > control + OVER_CONTROL_MAX || calm => Some("too late".to_owned()),
            None if server.unanswered > 0 => {
                Some(format!("{} clients were not answered", server.unanswered))
            }
            None => None,
        };
        println!(
            "| {name} | {:.1}, {:.1} | {:.1} | {} | {} | {} |",
            millis(before.p99),
            millis(after.p99),
            millis(server.p99),
            server.answers,
            server.peak_bytes >> 20,
            problem.as_deref().unwrap_or("holds"),
        );
        if let Some(problem) = problem {
            failures.push(format!("{name}: {problem}"));
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

/// What is measured: no attack, each attack alone, and all at once.
fn runs(args: &Args) -> Vec<(String, Vec<&'static Attack>)> {
    let is_selected =
        |name: &str| args.attack.is_empty() || args.attack.iter().any(|part| name.contains(part));
    let mut runs = vec![("none".to_owned(), Vec::new())];
    runs.extend(ATTACKS.iter().map(|attack| (attack.name.to_owned(), vec![attack])));
    runs.push(("all together".to_owned(), ATTACKS.iter().collect()));
    runs.retain(|(name, _)| is_selected(name));
    runs
}

struct Measured {
    p99: Duration,
    answers: u64,
    unanswered: usize,
    peak_bytes: u64,
    ended: Option<String>,
}

fn measure(args: &Args, target: Target, attacks: &[&'static Attack]) -> Result<Measured> {
    let is_tls = attacks.iter().any(|attack| attack.needs_tls);
    let mut server = Under::start(args, target, is_tls)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let ports = server.ports;
    let attackers: Vec<_> = attacks
        .iter()
        .enumerate()
        .map(|(number, attack)| {
            let is_over = is_over.clone();
            let run = attack.run;
            std::thread::spawn(move || run(&attacks::Field { ports, number, is_over }))
        })
        .collect();
    let time = Duration::from_secs_f64(args.seconds);
    let outcome = clients::run(target, ports, time);
    is_over.store(true, Ordering::Relaxed);
    for attacker in attackers {
        // An attack that met a closed socket has done what it could.
        let _ = attacker.join();
    }
    let clients::Outcome { latency_us, unanswered } = outcome?;
    let ended = server.has_ended()?;
    Ok(Measured {
        p99: Duration::from_micros(latency_us.value_at_quantile(0.99)),
        answers: latency_us.len(),
        unanswered,
        peak_bytes: server.peak_bytes(),
        ended,
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
