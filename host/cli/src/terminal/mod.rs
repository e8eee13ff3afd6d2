//! The client commands of `switchyard`. They connect to a running server, as any client does.
//!
//! Each command has a file with its flags and its implementation. They know the protocol and its
//! addresses, and nothing of the server in this program.

mod endpoint;
mod wire;

mod client;
mod reconnect;

mod http;
pub mod output;

pub mod history;
pub mod publish;
pub mod subscribe;

pub mod bench;
pub mod health;
pub mod top;

pub mod generate;

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Runs a command. Returns the program's exit code, as [`code`] does.
pub fn run(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("threads can be started");
    let result = runtime.block_on(command);
    // A thread that reads standard input may never return.
    runtime.shutdown_background();
    code(result)
}

/// The program's exit code: 0 for success, 1 for a failure, which is printed to standard error.
pub fn code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Err(error) if !output::is_closed_pipe(&error) => {
            eprintln!("switchyard: {}", output::harmless(&format!("{error:#}")));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Resolves on SIGINT or SIGTERM. The handlers are installed by this call, before the future is
/// polled.
fn end_requested() -> impl Future<Output = ()> {
    let signals = [signal(SignalKind::interrupt()), signal(SignalKind::terminate())];
    async move {
        let [Ok(mut interrupt), Ok(mut terminate)] = signals else {
            // Then the signals have their default action.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// A flag's time in seconds, such as `2.5`; more than zero and at most a day.
fn seconds(text: &str) -> Result<Duration, String> {
    const DAY: f64 = 86_400.0;
    let wanted = || format!("give seconds, more than 0 and at most {DAY}");
    let seconds: f64 = text.parse().map_err(|_| wanted())?;
    if seconds > 0.0 && seconds <= DAY {
        // Values below a nanosecond are rounded to zero, which is not valid here.
        Ok(Duration::from_secs_f64(seconds).max(Duration::from_nanos(1)))
    } else {
        Err(wanted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_within_a_day() {
        let check = |text, expected| assert_eq!(seconds(text).ok(), expected, "{text}");
        check("2.5", Some(Duration::from_millis(2_500)));
        check("86400", Some(Duration::from_secs(86_400)));
        check("86401", None);
        check("0", None);
        check("-1", None);
        check("NaN", None);
        check("inf", None);
        check("soon", None);
    }
}
