//! `switchyard top`: shows the activity of a running server.
//!
//! It polls the admin API, and computes rates between two responses. At a terminal it draws them;
//! otherwise it prints one JSON object for each poll.

mod draw;
mod reading;

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::interval;

use self::draw::View;
use self::reading::{Reading, Source};
use super::output::{Audience, Output, OutputArgs};
use super::{end_requested, seconds};
use crate::tls::TrustArgs;

/// How often keys are polled.
const KEYS_INTERVAL: Duration = Duration::from_millis(50);

/// The flags of `switchyard top`.
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// The admin API of the server. If it requires a token, set SWITCHYARD_ADMIN_TOKEN.
    #[arg(
        long,
        value_name = "URL",
        env = "SWITCHYARD_ADMIN",
        default_value = "http://127.0.0.1:8081"
    )]
    pub admin: String,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub trust: TrustArgs,

    /// The interval between two polls, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    pub interval: Duration,

    /// Ends after this many polls.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,
}

/// Shows the activity of the server until it receives a signal.
///
/// # Errors
///
/// The server does not respond: at the first poll, or with JSON output at any poll. Or the output
/// is closed.
pub async fn run(args: TopArgs) -> anyhow::Result<()> {
    let source =
        Source::new(&args.admin, &args.trust, std::env::var("SWITCHYARD_ADMIN_TOKEN").ok())?;
    let mut readings = readings(source, args.interval);
    let first = readings.recv().await.context("nothing is read")??;
    match args.output.audience() {
        Audience::Program => {
            let printing = print(first, &mut readings, args.count);
            tokio::select! {
                result = printing => result,
                () = end_requested() => Ok(()),
            }
        }
        Audience::Person => {
            let mut terminal = ratatui::try_init()?;
            let result = show(&mut terminal, &args, first, &mut readings).await;
            ratatui::try_restore()?;
            result
        }
    }
}

/// Polls the server once an interval. The polling thread ends when the receiver is dropped.
fn readings(source: Source, pause: Duration) -> mpsc::Receiver<anyhow::Result<Reading>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        while sender.blocking_send(source.read()).is_ok() {
            std::thread::sleep(pause);
        }
    });
    receiver
}

async fn print(
    first: Reading,
    readings: &mut mpsc::Receiver<anyhow::Result<Reading>>,
    count: Option<u64>,
) -> anyhow::Result<()> {
    let mut output = Output::new(Audience::Program);
    let mut reading = first;
    let mut before = None;
    let mut printed = 0;
    loop {
        output.json(&json!({
            "time": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
            "per_second": before.as_ref().map(|before| reading.rates_since(before)),
            "stats": reading.raw_stats,
            "plugins": reading.raw_plugins,
            "memory": reading.raw_memory,
        }))?;
        output.flush()?;
        printed += 1;
        if count == Some(printed) {
            return Ok(());
        }
        before = Some(reading);
        reading = readings.recv().await.context("nothing is read")??;
    }
}

async fn show(
    terminal: &mut DefaultTerminal,
    args: &TopArgs,
    first: Reading,
    readings: &mut mpsc::Receiver<anyhow::Result<Reading>>,
) -> anyhow::Result<()> {
    let mut view = View::new(&args.admin, first);
    let mut ticks = interval(KEYS_INTERVAL);
    let mut ending = std::pin::pin!(end_requested());
    let mut shown = 1;
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        if args.count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        // Draws again when there is a change.
        let mut is_new = false;
        while !is_new {
            tokio::select! {
                reading = readings.recv() => {
                    view.update(reading.context("nothing is read")?);
                    shown += 1;
                    is_new = true;
                }
                _ = ticks.tick() => {
                    while event::poll(Duration::ZERO)? {
                        match event::read()? {
                            Event::Key(key) if ends(key) => return Ok(()),
                            Event::Resize(..) => is_new = true,
                            _ => {}
                        }
                    }
                }
                () = &mut ending => return Ok(()),
            }
        }
    }
}

fn ends(key: KeyEvent) -> bool {
    let is_interrupt =
        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}
