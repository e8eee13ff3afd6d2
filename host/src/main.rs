//! `switchyard`: reads what it is told, and does it.
//!
//! Exit codes: 0 done, 1 failed, 64 bad arguments or configuration.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::info;

use switchyard::cli::{Cli, Command, Plugins, ServeArgs};
use switchyard::config::{Config, ConfigError};
use switchyard::log::Log;
use switchyard::operator::{self, OperatorError};
use switchyard::reload::Reloading;
use switchyard::server::{Order, Server};
use switchyard::terminal;

/// The exit code for bad arguments or configuration (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap, but not to who asked.
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
            Err(error) => {
                eprintln!("switchyard: {error}");
                ExitCode::from(if error.is_usage() { USAGE } else { 1 })
            }
        },
        Command::Plugin(Plugins::Operate(command)) => code(operator::plugin(command)),
        Command::Engine(command) => code(operator::engine(command)),
        Command::Connections(args) => code(operator::connections(&args)),
        Command::Pubsub(command) => code(operator::pubsub(command)),
        Command::Log(args) => code(operator::log(&args)),
        Command::Sub(args) => terminal::run(terminal::subscribe::run(args)),
        Command::Pub(args) => terminal::run(terminal::publish::run(args)),
        Command::Top(args) => terminal::run(terminal::top::run(args)),
        Command::Bench(args) => terminal::run(terminal::bench::run(args)),
        Command::Health(args) => terminal::code(terminal::health::run(&args)),
        Command::Completions(args) => {
            terminal::code(terminal::generate::completions(&args, Cli::command()))
        }
        Command::Man(args) => terminal::code(terminal::generate::man(&args, Cli::command())),
    }
}

/// What a command that speaks to a running server ends with.
fn code(done: Result<(), OperatorError>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("switchyard: {error}");
            ExitCode::from(if error.is_usage() { USAGE } else { 1 })
        }
    }
}

/// One task in so many is taken from the queue that all threads share, the others from the
/// thread's own. A thread's own holds 256; what is woken beyond that goes to the shared one, and
/// publishers among it waited for 30 ms with tokio's own choice, 10 ms with this (p99 of the
/// answers, 1,000 channels with a subscriber each at depth 64, when each subscriber was woken).
/// With still smaller ones a delivery took more processor time: fewer messages met in a write.
const GLOBAL_QUEUE_INTERVAL: u32 = 6;
/// After so many turns a thread looks at sockets and timers, if it has not run out of tasks
/// before, as it mostly has: those who have something to say meanwhile come after those who are
/// owed something. With 256 ten rooms of ten took 8 % more processor time for each delivery over
/// RESP, and a fifth more over WebSocket; with tokio's 61 the same few publishers speak again and
/// again. Who keeps the queue from running out waits for a look by itself
/// (`READS_IN_A_ROW_MAX`).
const EVENT_INTERVAL: u32 = 512;

fn serve(args: &ServeArgs) -> ExitCode {
    let started = Config::load(args).map_err(anyhow::Error::from).and_then(|config| {
        let log = Log::start(&config.log_filter, config.log_format).map_err(anyhow::Error::msg)?;
        Ok((config, log))
    });
    let (config, log) = match started {
        Ok(started) => started,
        Err(error) => return complain(&error, USAGE),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .global_queue_interval(GLOBAL_QUEUE_INTERVAL)
        .event_interval(EVENT_INTERVAL)
        .build()
        .expect("threads can be started");
    if args.check {
        // What a plugin does on a timer is not waited for.
        return match runtime.block_on(Server::check(&config)) {
            Ok(()) => {
                eprintln!("switchyard: the configuration is good");
                ExitCode::SUCCESS
            }
            Err(error) => complain(&error, USAGE),
        };
    }
    let result = runtime.block_on(run(config, Reloading { args: args.clone(), log }));
    // What still runs was given its time, and ends with the process. Shut down before it, the
    // runtime would have plugins panic that ask the outside world on threads of their own.
    std::mem::forget(runtime);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigError>() => complain(&error, USAGE),
        Err(error) => complain(&error, 1),
    }
}

fn complain(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("switchyard: {error:#}");
    ExitCode::from(code)
}

async fn run(config: Config, reloading: Reloading) -> anyhow::Result<()> {
    let (orders, received) = mpsc::unbounded_channel();
    listen_to_signals(orders)?;
    let server = Server::start(config).await?;
    let mut stdout = std::io::stdout().lock();
    for url in server.urls()? {
        writeln!(stdout, "{url}")?;
    }
    stdout.flush()?;
    drop(stdout);
    info!(version = env!("CARGO_PKG_VERSION"), "the server is ready");
    server.run(received, reloading).await;
    Ok(())
}

/// Ctrl-c and SIGTERM end the server, the second time at once; SIGHUP has it read
/// its files again.
fn listen_to_signals(orders: mpsc::UnboundedSender<Order>) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut was_told = false;
        loop {
            let order = tokio::select! {
                _ = interrupt.recv() => Order::End,
                _ = terminate.recv() => Order::End,
                _ = hangup.recv() => Order::Reload,
            };
            if order == Order::End && was_told {
                std::process::exit(1);
            }
            was_told |= order == Order::End;
            // When nobody receives it, the server has ended already.
            let _ = orders.send(order);
        }
    });
    Ok(())
}
