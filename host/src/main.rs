//! `switchyard`: parses the command line and runs the command.
//!
//! Exit codes: 0 done, 1 failed, 64 bad arguments or configuration.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

use switchyard::reload::Reloading;
use switchyard::run::{Order, Server};
use switchyard_cli::channels;
use switchyard_cli::cli::{ChannelsCommand, Cli, Command, HistoryLine, Plugins, ServeArgs};
use switchyard_cli::operator::{self, OperatorError};
use switchyard_cli::terminal;
use switchyard_config::{Config, ConfigError};
use switchyard_net::descriptors;
use switchyard_telemetry::log::{self, Log};
use switchyard_telemetry::panics;
use switchyard_telemetry::process;
use switchyard_telemetry::supervise::Supervisor;

/// The exit code for bad arguments or configuration (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap, but not to the user.
            let is_failure = error.use_stderr();
            let _ = error.print();
            return if is_failure { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Serve(args) => serve(&args),
        Command::Plugin(Plugins::Author(command)) => match command.run() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => complain(&error, if error.is_usage() { USAGE } else { 1 }),
        },
        Command::Plugin(Plugins::Operate(command)) => code(operator::plugin(command)),
        Command::Engine(command) => code(operator::engine(command)),
        Command::Connections(args) => code(operator::connections(&args)),
        Command::Disconnect(args) => code(operator::disconnect(&args)),
        Command::Pubsub(command) => code(operator::pubsub(command)),
        Command::Log(args) => code(operator::log(&args)),
        Command::Sub(args) => terminal::run(terminal::subscribe::run(args)),
        Command::Pub(args) => terminal::run(terminal::publish::run(args)),
        Command::History(HistoryLine { command: Some(command), .. }) => {
            code(operator::history(command))
        }
        Command::History(HistoryLine { command: None, args }) => {
            terminal::run(terminal::history::history(args))
        }
        Command::Presence(args) => terminal::run(terminal::history::presence(args)),
        Command::Top(args) => terminal::run(terminal::top::run(args)),
        Command::Bench(args) => terminal::run(terminal::bench::run(args)),
        Command::Health(args) => terminal::code(terminal::health::run(&args)),
        Command::Config(args) => printed(terminal::generate::config(&args)),
        Command::Channels(ChannelsCommand::Explain(args)) => printed(channels::explain(&args)),
        Command::Channels(ChannelsCommand::Top(args)) => code(operator::channels_top(&args)),
        Command::Completions(args) => {
            terminal::code(terminal::generate::completions(&args, Cli::command()))
        }
        Command::Man(args) => terminal::code(terminal::generate::man(&args, Cli::command())),
    }
}

/// The result of a command that prints something about the configuration.
fn printed(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Err(error) if error.is::<ConfigError>() => complain(format_args!("{error:#}"), USAGE),
        printed => terminal::code(printed),
    }
}

/// The result of a command that uses a running server.
fn code(done: Result<(), OperatorError>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, if error.is_usage() { USAGE } else { 1 }),
    }
}

/// A worker takes one in this many tasks from the global queue, the others from its own. Its own
/// queue holds 256 tasks; further wakes go to the global queue. Publishers in it waited for 30 ms
/// with tokio's default, 10 ms with this (p99 of the replies, 1,000 channels with a subscriber each
/// at depth 64, when each subscriber was woken). With smaller values a delivery took more processor
/// time: fewer messages shared a write.
const GLOBAL_QUEUE_INTERVAL: u32 = 6;
/// A worker polls the I/O driver and timers after this many task polls, or earlier when its run
/// queue is empty, which is the usual case: tasks that are ready run before new input is read.
/// With 256, ten rooms of ten took 8 % more processor time for each delivery over RESP, and a
/// fifth more over WebSocket; with tokio's default of 61, the same few publishers were served
/// again and again. A connection that keeps the run queue from emptying waits for the I/O driver
/// by itself (`READS_IN_A_ROW_MAX`).
const EVENT_INTERVAL: u32 = 512;

fn serve(args: &ServeArgs) -> ExitCode {
    let loaded = Config::load(&args.settings.overrides());
    let started = loaded.map_err(anyhow::Error::from).and_then(|config| {
        let log = Log::start(&config.log).map_err(anyhow::Error::msg)?;
        Ok((config, log))
    });
    let (config, log) = match started {
        Ok(started) => started,
        Err(error) => return complain(format_args!("{error:#}"), USAGE),
    };
    let flush_time = config.log.flush_time;
    panics::install_hook();
    descriptors::raise_limit(&config);
    process::prepare();
    let ended = panics::contain(|| serve_with(args, config, log));
    // A panic here is in the log.
    let code = ended.unwrap_or_else(|| {
        log.write("switchyard: the server failed");
        ExitCode::FAILURE
    });
    // Standard error may be stalled: the process ends anyway.
    let _whether_or_not = log.flush(flush_time);
    code
}

fn serve_with(args: &ServeArgs, config: Config, log: &'static Log) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .global_queue_interval(GLOBAL_QUEUE_INTERVAL)
        .event_interval(EVENT_INTERVAL)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(log, &anyhow::Error::from(error).context("no threads"), 1),
    };
    if args.check {
        // What a start would log, such as that a plugin was added, is not true of a check.
        if args.settings.log.is_none()
            && let Err(problem) = log.set_filter("warn")
        {
            warn!(problem, "the log filter was not changed");
        }
        // Plugin calls on a timer are not waited for.
        return match runtime.block_on(Server::check(&config)) {
            Ok(()) => {
                for warning in config.channels.warnings() {
                    log.write(&format!("switchyard: warning: {warning}"));
                }
                log.write(&format!("switchyard: memory: {}", config.memory.summary()));
                log.write("switchyard: the configuration is good");
                ExitCode::SUCCESS
            }
            Err(error) => fail(log, &error, USAGE),
        };
    }
    let reloading = Reloading { overrides: args.settings.overrides(), log };
    let result = runtime.block_on(run(config, reloading));
    // The remaining tasks had their time, and end with the process. Dropping the runtime first
    // would cause panics in plugins that still send HTTP requests from blocking threads.
    std::mem::forget(runtime);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigError>() => fail(log, &error, USAGE),
        Err(error) => fail(log, &error, 1),
    }
}

/// Writes why the server ends, after what it logged.
fn fail(log: &Log, error: &anyhow::Error, code: u8) -> ExitCode {
    log.write(&format!("switchyard: {error:#}"));
    ExitCode::from(code)
}

/// How long writing the reason of an exit to standard error may take, while nothing is logged.
const COMPLAINT_TIME: Duration = Duration::from_secs(1);

/// Writes why a command ends, if standard error accepts it.
fn complain(error: impl Display, code: u8) -> ExitCode {
    log::write_without_log(format!("switchyard: {error}"), COMPLAINT_TIME);
    ExitCode::from(code)
}

async fn run(config: Config, reloading: Reloading) -> anyhow::Result<()> {
    let (orders, received) = mpsc::unbounded_channel();
    let supervisor = Arc::<Supervisor>::default();
    listen_to_signals(orders, reloading.log, &supervisor)?;
    let server = Server::start(config, supervisor).await?;
    print_addresses(server.urls()?)?;
    info!(version = env!("CARGO_PKG_VERSION"), "the server is ready");
    server.run(received, reloading).await
}

/// Prints the addresses, one per line. The server continues if standard output is closed, and does
/// not wait if it is stalled.
fn print_addresses(urls: Vec<String>) -> anyhow::Result<()> {
    let printing = move || {
        let mut stdout = io::stdout().lock();
        let lines = urls.iter().try_for_each(|url| writeln!(stdout, "{url}"));
        if let Err(error) = lines.and_then(|()| stdout.flush()) {
            let addresses = urls.join(" ");
            warn!(%error, addresses, "the addresses could not be printed to standard output");
        }
    };
    std::thread::Builder::new().name("addresses".to_owned()).spawn(printing)?;
    Ok(())
}

/// How long the log may take at a second SIGTERM or ctrl-c, which ends the process at once.
const LAST_FLUSH_TIME: Duration = Duration::from_millis(100);

/// Ctrl-c and SIGTERM shut the server down, the second time at once; SIGHUP has it reload its
/// files.
fn listen_to_signals(
    orders: mpsc::UnboundedSender<Order>,
    log: &'static Log,
    supervisor: &Arc<Supervisor>,
) -> anyhow::Result<()> {
    // From now on, none of them ends the process by itself.
    let mut first = Some(Signals::new()?);
    let was_end_requested = Arc::new(AtomicBool::new(false));
    tokio::spawn(supervisor.clone().keep("signals", move || {
        let signals = first.take().map_or_else(Signals::new, Ok);
        let (orders, was_end_requested) = (orders.clone(), was_end_requested.clone());
        async move {
            let mut signals = signals.map_err(|error| error.to_string())?;
            loop {
                let order = signals.next().await;
                let is_end = matches!(order, Order::End { .. });
                if is_end && was_end_requested.swap(true, Ordering::Relaxed) {
                    let _whether_or_not = log.flush(LAST_FLUSH_TIME);
                    std::process::exit(1);
                }
                // The receiver is dropped when the server has ended already.
                let _ = orders.send(order);
            }
        }
    }));
    Ok(())
}

/// The signals that the server acts on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// Writing the log beyond RLIMIT_FSIZE fails instead of ending the process.
    _file_size: Signal,
}

/// Its number on Linux, on all architectures of Rust's tiers 1 and 2 except MIPS.
const SIGXFSZ: i32 = 25;

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            _file_size: signal(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    /// The signal received last decides what happens next.
    async fn next(&mut self) -> Order {
        tokio::select! {
            // No balancer is notified of a person's ctrl-c.
            _ = self.interrupt.recv() => Order::End { has_grace: false },
            _ = self.terminate.recv() => Order::End { has_grace: true },
            _ = self.hangup.recv() => Order::Reload,
        }
    }
}
