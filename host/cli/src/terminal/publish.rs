//! `switchyard pub`: publishes messages.

use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::client::{Client, Ended};
use super::endpoint::EndpointArgs;
use super::output::{Audience, Output, OutputArgs, colour_of, harmless, styled};
use super::seconds;
use super::wire::{Said, Spelled};

/// How many publications may be pending.
const UNDER_WAY_MAX: usize = 128;

/// The flags of `switchyard pub`.
#[derive(Debug, Args)]
pub struct PubArgs {
    /// The channel to publish on.
    #[arg(value_name = "CHANNEL")]
    pub channel: OsString,

    /// The messages. A single `-` reads one message from standard input.
    #[arg(value_name = "PAYLOAD", required_unless_present = "lines")]
    pub payloads: Vec<OsString>,

    /// Publishes each line of standard input as soon as it is read.
    #[arg(long, conflicts_with = "payloads")]
    pub lines: bool,

    /// The timeout of the connection, and of the reply to a message, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10")]
    pub timeout: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub endpoint: EndpointArgs,
}

/// Publishes the messages, and prints the number of deliveries.
///
/// # Errors
///
/// The connection cannot be made or is lost, or the server refuses a message; the ones before it
/// were published.
pub async fn run(args: PubArgs) -> anyhow::Result<()> {
    let mut client = Client::open(&args.endpoint, args.timeout).await?;
    let hello = tokio::time::timeout(args.timeout, client.call::<Value>("HELLO", &[])).await;
    let hello = hello.context("no answer to HELLO in time")??;
    let bytes_max = hello.pointer("/limits/payload_bytes_max").and_then(Value::as_u64);
    let payloads = payloads(&args, bytes_max.context("HELLO does not say how much is too much")?);

    let mut output = Output::new(args.output.audience());
    let mut publisher = Publisher {
        channel: args.channel.as_os_str().into(),
        time: args.timeout,
        published: 0,
        deliveries: 0,
    };
    let result = publisher.publish_all(&mut client, payloads, &mut output).await;
    if output.audience == Audience::Person && (result.is_ok() || publisher.published > 0) {
        let channel = publisher.channel.for_people();
        output.line(format_args!(
            "{} on {}: {}",
            counted(publisher.published, "message", "messages"),
            styled(colour_of(&channel), harmless(&channel)),
            counted(publisher.deliveries, "delivery", "deliveries"),
        ))?;
    }
    output.flush()?;
    result?;
    client.close().await;
    Ok(())
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The messages to publish, one by one. None is longer than the server accepts, so that a file of
/// any size needs little memory.
fn payloads(args: &PubArgs, bytes_max: u64) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(UNDER_WAY_MAX);
    let is_whole_input = args.payloads.len() == 1 && args.payloads.iter().all(|only| only == "-");
    let (lines, payloads) = (args.lines, args.payloads.clone());
    // Reading standard input blocks a thread, possibly forever.
    std::thread::spawn(move || {
        let mut send = |payload: io::Result<Vec<u8>>| sender.blocking_send(payload).is_ok();
        if lines {
            each_line(io::stdin().lock(), bytes_max, &mut send);
        } else if is_whole_input {
            let mut payload = Vec::new();
            let read = io::stdin().lock().take(bytes_max + 1).read_to_end(&mut payload);
            send(read.and_then(|_| not_too_long(payload, bytes_max)));
        } else {
            for payload in payloads {
                if !send(not_too_long(payload.as_bytes().to_vec(), bytes_max)) {
                    break;
                }
            }
        }
    });
    receiver
}

fn each_line(
    mut input: impl BufRead,
    bytes_max: u64,
    send: &mut impl FnMut(io::Result<Vec<u8>>) -> bool,
) {
    loop {
        let mut line = Vec::new();
        // One more byte for the end of the line, and one to detect that it is too long.
        let read = input.by_ref().take(bytes_max + 2).read_until(b'\n', &mut line);
        let is_over = matches!(read, Ok(0) | Err(_));
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        let is_sent = match read {
            Ok(0) => false,
            Ok(_) => send(not_too_long(line, bytes_max)),
            Err(error) => send(Err(error)),
        };
        if is_over || !is_sent {
            return;
        }
    }
}

fn not_too_long(payload: Vec<u8>, bytes_max: u64) -> io::Result<Vec<u8>> {
    if payload.len() as u64 > bytes_max {
        let why = format!("a payload is longer than the {bytes_max} bytes that the server takes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(payload)
}

/// The channel, and the results.
struct Publisher {
    channel: Spelled,
    time: Duration,
    published: u64,
    deliveries: u64,
}

impl Publisher {
    async fn publish_all(
        &mut self,
        client: &mut Client,
        mut payloads: mpsc::Receiver<io::Result<Vec<u8>>>,
        output: &mut Output,
    ) -> anyhow::Result<()> {
        let mut under_way = 0;
        let mut are_all_read = false;
        let mut deadline = Instant::now() + self.time;
        while !are_all_read || under_way > 0 {
            tokio::select! {
                said = client.next() => {
                    let Said::Answer(_, result) = said? else { continue };
                    let deliveries = result.map_err(Ended::from)?.as_u64();
                    self.published += 1;
                    under_way -= 1;
                    deadline = Instant::now() + self.time;
                    let deliveries = deliveries.context("the answer to PUBLISH is no number")?;
                    self.deliveries += deliveries;
                    if output.audience == Audience::Program {
                        let channel = &self.channel;
                        output.json(&json!({ "channel": channel, "deliveries": deliveries }))?;
                        output.flush()?;
                    }
                }
                payload = payloads.recv(), if !are_all_read && under_way < UNDER_WAY_MAX => {
                    let Some(payload) = payload else {
                        are_all_read = true;
                        continue;
                    };
                    if under_way == 0 {
                        deadline = Instant::now() + self.time;
                    }
                    let payload = Spelled::from(&*payload.context("nothing to publish")?);
                    client.say("PUBLISH", &[&self.channel, &payload]).await?;
                    under_way += 1;
                }
                () = sleep_until(deadline), if under_way > 0 => {
                    ensure!(under_way == 0, "no answer from the server within {:?}", self.time);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_one_by_one() {
        let lines = |input: &[u8]| {
            let mut lines = Vec::new();
            each_line(input, 3, &mut |line| {
                let goes_on = line.is_ok();
                lines.push(line.map_err(|error| error.kind()));
                goes_on
            });
            lines
        };
        let ok = |line: &str| Ok(line.as_bytes().to_vec());
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"a\n\nabc\nb"), [ok("a"), ok(""), ok("abc"), ok("b")]);
        let too_long = Err(io::ErrorKind::FileTooLarge);
        assert_eq!(lines(b"a\nabcd\nb\n"), [ok("a"), too_long.clone()]);
        assert_eq!(lines(b"abcdefgh"), [too_long]);
    }
}
