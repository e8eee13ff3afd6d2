//! `switchyard`: reads what it is told, and does it.
//!
//! Exit codes: 0 done, 1 failed, 64 bad arguments or configuration.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::info;
use tracing_subscriber::EnvFilter;

use switchyard::cli::{Cli, Command, ServeArgs};
use switchyard::config::{Config, LogFormat};
use switchyard::server::{Order, Server};
use switchyard::terminal;

/// The exit code for bad arguments or configuration (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

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

fn serve(args: &ServeArgs) -> ExitCode {
    let checked = Config::load(args).map_err(anyhow::Error::from).and_then(|config| {
        let filter =
            EnvFilter::builder().parse(own_targets(&config.log_filter)).map_err(|problem| {
                anyhow::anyhow!("log.filter is \"{}\": {problem}", config.log_filter)
            })?;
        Ok((config, filter))
    });
    let (config, filter) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            eprintln!("switchyard: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    if args.check {
        eprintln!("switchyard: the configuration is good");
        return ExitCode::SUCCESS;
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("threads can be started");
    let result = runtime.block_on(run(config));
    // What still runs was given its time.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("switchyard: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A level alone is meant for the server and its plugins: what the libraries
/// under it have to say at `debug` would bury them.
fn own_targets(filter: &str) -> String {
    match filter.parse::<tracing::Level>() {
        Ok(level) => format!("warn,switchyard={level},plugin={level}"),
        Err(_) => filter.to_owned(),
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
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
    server.run(received).await;
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
