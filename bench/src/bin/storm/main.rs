//! What it costs when many clients reconnect at once and resume: 9,000 WebSocket clients that each
//! RESUME 20 channels with five missed messages.
//!
//! `make bench-storm` runs it. A storm without RESUME is measured before each storm with it, so that
//! the difference is what RESUME costs. Beside both, one subscriber measures how late messages on
//! another channel arrive. Clients and server share the machine.

mod clients;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench::machine;
use clap::Parser;

use clients::{Bystander, Storm};

/// Measures clients that reconnect and resume at once.
#[derive(Debug, Parser)]
struct Args {
    /// The server to measure.
    #[arg(long, default_value = "target/production/switchyard")]
    switchyard: PathBuf,
    /// Clients that reconnect.
    #[arg(long, default_value_t = 9_000)]
    clients: usize,
    /// Channels that each of them resumes.
    #[arg(long, default_value_t = 20)]
    channels: usize,
    /// Messages that each missed on each channel.
    #[arg(long, default_value_t = 5)]
    missed: usize,
    /// How often both storms are measured.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The address of a backplane; none: a single node.
    #[arg(long)]
    cluster: Option<String>,
}

/// How many channels there are.
const CHANNELS: usize = 1_000;

/// What one storm cost.
struct Cost {
    time: Duration,
    server: Duration,
    late: Duration,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let server = Server::start(&args)?;
    println!("{}", machine::facts());
    println!(
        "{} clients, {} channels each of {CHANNELS}, {} missed messages on each\n",
        args.clients, args.channels, args.missed
    );
    println!(
        "| storm | seconds until all are live | server's seconds of processor | bystander p99 ms |"
    );
    println!("|---|---|---|---|");
    let mut positions = clients::positions(server.address, CHANNELS)?;
    let mut per_resume = Vec::new();
    for _ in 0..args.runs {
        let before: Vec<String> = positions.clone();
        positions = clients::publish(server.address, CHANNELS, args.missed)?;
        let plain = Storm { resumed: 0, missed: 0, positions: &before };
        let plain = measure(&args, &server, &plain)?;
        show("without RESUME", &plain);
        let resuming = Storm { resumed: args.channels, missed: args.missed, positions: &before };
        let resuming = measure(&args, &server, &resuming)?;
        show("with RESUME", &resuming);
        let resumes = (args.clients * args.channels) as f64;
        let more = resuming.server.as_secs_f64() - plain.server.as_secs_f64();
        per_resume.push(more / resumes * 1e6);
    }
    per_resume.sort_by(f64::total_cmp);
    let median = per_resume.get(per_resume.len() / 2).copied().unwrap_or_default();
    println!("\nprocessor time of one RESUME with its messages: {median:.1} us (median)");
    Ok(())
}

fn show(what: &str, cost: &Cost) {
    println!(
        "| {what} | {:.2} | {:.2} | {:.1} |",
        cost.time.as_secs_f64(),
        cost.server.as_secs_f64(),
        cost.late.as_secs_f64() * 1e3
    );
}

fn measure(args: &Args, server: &Server, storm: &Storm<'_>) -> Result<Cost> {
    let bystander = Bystander::start(server.address)?;
    let used = server.processor_time()?;
    let began = Instant::now();
    let clients = storm.run(server.address, args.clients)?;
    let time = began.elapsed();
    let used = server.processor_time()? - used;
    let late = bystander.end()?;
    drop(clients);
    server.until_idle()?;
    Ok(Cost { time, server: used, late })
}

/// The server, as a process of its own.
struct Server {
    child: Child,
    address: SocketAddr,
    _home: tempfile::TempDir,
}

impl Server {
    fn start(args: &Args) -> Result<Server> {
        let home = tempfile::tempdir()?;
        let config = home.path().join("switchyard.toml");
        let mut file = fs::File::create(&config)?;
        // Those of the storm before may not all be gone.
        let connections = 2 * args.clients;
        write!(
            file,
            "limits.connections_max = {connections}\n\
             limits.connections_per_address_max = {connections}\n\
             limits.handshakes_per_address_max = {connections}\n\
             http.handshakes_max = {connections}\n\
             http.handshake_timeout_ms = 60000\n\
             admin.listen = \"off\"\n\
             [[channels]]\nmatch = \"storm.*\"\nhistory_messages = 100\nhistory_ms = \"1h\"\n"
        )?;
        let mut command = Command::new(&args.switchyard);
        command.args(["serve", "--http", "127.0.0.1:0", "--resp", "off", "--config"]).arg(&config);
        if let Some(cluster) = &args.cluster {
            command.args(["--cluster", cluster]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("{:?}", args.switchyard))?;
        let stdout = child.stdout.take().context("it has a standard output")?;
        let mut address = None;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            let of = line.strip_prefix("ws://").and_then(|rest| rest.strip_suffix("/ws"));
            if let Some(of) = of {
                address = Some(of.parse()?);
                break;
            }
        }
        let address = address.context("the server did not say where it listens")?;
        Ok(Server { child, address, _home: home })
    }

    /// The processor time that it has used.
    fn processor_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
        let ticks: u64 =
            fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap_or(0)).sum();
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }

    /// Waits until it has nothing more to do for connections that ended.
    fn until_idle(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let before = self.processor_time()?;
            std::thread::sleep(Duration::from_millis(300));
            if self.processor_time()? - before <= Duration::from_millis(10) {
                return Ok(());
            }
            ensure!(began.elapsed() < Duration::from_secs(60), "the server is still busy");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _may_have_ended = self.child.wait();
    }
}
