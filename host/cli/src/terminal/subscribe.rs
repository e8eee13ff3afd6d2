//! `switchyard sub`: shows published messages until it receives a signal.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::Args;
use jiff::{Timestamp, ZonedDateTime};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::client::{Client, Ended};
use super::endpoint::EndpointArgs;
use super::output::{Audience, DIM, Output, OutputArgs, colour_of, harmless, styled};
use super::reconnect::ReconnectBackoff;
use super::wire::{Message, Said, Spelled, Unsubscribed};
use super::{end_requested, seconds};

/// The timeout for the connection and the replies to its first commands.
const OPEN_TIME: Duration = Duration::from_secs(10);

/// A connection that lasted this long was a success, even if no message arrived.
const USEFUL_TIME: Duration = Duration::from_secs(10);

/// The flags of `switchyard sub`.
#[derive(Debug, Args)]
pub struct SubArgs {
    /// What to subscribe to. A name with `*`, `?` or `[` is a pattern, any other a channel.
    #[arg(value_name = "NAME", required_unless_present_any = ["channels", "patterns"])]
    pub names: Vec<OsString>,

    /// A channel to subscribe to, even if its name has such characters.
    #[arg(long = "channel", value_name = "NAME")]
    pub channels: Vec<OsString>,

    /// A pattern to subscribe to, even if it has none of those characters.
    #[arg(long = "pattern", value_name = "PATTERN")]
    pub patterns: Vec<OsString>,

    /// Ends after this many messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Ends after this many seconds. With --count, it is a failure if fewer messages were received
    /// by then.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,

    /// Receives after a reconnect what was missed, on channels with history. It says so where that
    /// is not possible.
    #[arg(long)]
    pub resume: bool,

    /// Fails when the connection is lost, instead of reconnecting.
    #[arg(long, conflicts_with = "resume")]
    pub once: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub endpoint: EndpointArgs,
}

/// The names to subscribe to, by verb.
struct Names {
    channels: Vec<Spelled>,
    patterns: Vec<Spelled>,
}

impl SubArgs {
    fn listened_to(&self) -> Names {
        let is_pattern =
            |name: &&OsString| name.as_bytes().iter().any(|byte| b"*?[".contains(byte));
        let (globs, plain): (Vec<_>, Vec<_>) = self.names.iter().partition(is_pattern);
        let spell = |given: Vec<&OsString>, forced: &[OsString]| -> Vec<Spelled> {
            given.into_iter().chain(forced).map(|name| name.as_os_str().into()).collect()
        };
        Names { channels: spell(plain, &self.channels), patterns: spell(globs, &self.patterns) }
    }
}

/// Shows published messages until it receives a signal, or as the flags say.
///
/// # Errors
///
/// The first connection fails, the server refuses a subscription or a reconnect, standard output is
/// closed, or the time is over too early.
pub async fn run(args: SubArgs) -> anyhow::Result<()> {
    let names = args.listened_to();
    let mut screen = Screen {
        output: Output::new(args.output.audience()),
        positions: Positions::new(),
        shows_patterns: names.channels.len() + names.patterns.len() > 1,
        left: args.count,
    };
    let mut client = None;
    let result = tokio::select! {
        // Messages that have arrived already count.
        biased;
        result = listen(&args, &names, &mut client, &mut screen) => result,
        () = end_requested() => Ok(()),
        () = elapsed(args.timeout) => match screen.left {
            Some(left) => Err(anyhow::anyhow!("the time is over, and {left} messages did not come")),
            None => Ok(()),
        },
    };
    screen.output.flush()?;
    if let Some(client) = client {
        client.close().await;
    }
    result
}

async fn elapsed(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Runs over as many connections as needed, beginning with `client`. Ends when the requested number
/// of messages was received.
async fn listen(
    args: &SubArgs,
    names: &Names,
    client: &mut Option<Client>,
    screen: &mut Screen,
) -> anyhow::Result<()> {
    let mut reconnect = ReconnectBackoff::new(args.endpoint.token_file.is_some());
    let mut was_there = false;
    loop {
        let began = Instant::now();
        let resuming = args.resume.then_some(&screen.positions);
        let ended = match subscribe(&args.endpoint, names, resuming).await {
            Ok((connected, early)) => {
                note(if was_there { "listening again" } else { "listening" });
                was_there = true;
                match screen.show_all(client.insert(connected), early).await? {
                    Outcome::Enough => return Ok(()),
                    Outcome::Ended(ended) => ended,
                }
            }
            Err(ended) => ended,
        };
        *client = None;
        if began.elapsed() >= USEFUL_TIME {
            reconnect.worked();
        }
        // A server that was never reachable probably has a wrong address.
        let pause = reconnect.after(&ended).filter(|_| was_there && !args.once);
        let Some(pause) = pause else { return Err(ended.into()) };
        note(&format!("{ended}; coming back in {:.1} s", pause.as_secs_f64()));
        sleep(pause).await;
    }
}

/// A subscribed connection, and the messages that arrived before the acknowledgement.
///
/// `resuming`: the positions of the last messages, by channel; none: channels are not resumed.
async fn subscribe(
    endpoint: &EndpointArgs,
    names: &Names,
    resuming: Option<&Positions>,
) -> Result<(Client, Vec<Message>), Ended> {
    let deadline = Instant::now() + OPEN_TIME;
    let mut client = Client::open(endpoint, OPEN_TIME).await?;
    let mut early = Vec::new();
    let mut commands: Vec<(&str, Vec<Value>)> = Vec::new();
    let all = |names: &[Spelled]| names.iter().map(|name| json!(name)).collect::<Vec<_>>();
    match resuming {
        Some(positions) => {
            commands.extend(names.channels.iter().map(|channel| {
                let position = positions.iter().find(|(of, _)| of == channel);
                let position = position.map(|(_, position)| position);
                ("RESUME", vec![json!(channel), json!(position)])
            }));
        }
        None => commands.push(("SUBSCRIBE", all(&names.channels))),
    }
    commands.push(("PSUBSCRIBE", all(&names.patterns)));
    for (verb, arguments) in commands {
        if arguments.is_empty() {
            continue;
        }
        let id = client.say(verb, &arguments).await?;
        loop {
            let said = timeout_at(deadline, client.next()).await;
            match said.map_err(|_| Ended::Lost(format!("no answer to {verb} in time")))?? {
                Said::Answer(Some(answered), result) if answered == id => {
                    note_lost(&arguments, &result?);
                    break;
                }
                Said::Message(message) => early.push(message),
                Said::Unsubscribed(unsubscribed) => note_end(&unsubscribed),
                Said::Answer(..) | Said::Goaway(_) => {}
            }
        }
    }
    Ok((client, early))
}

/// A RESUME that did not recover what was missed.
fn note_lost(arguments: &[Value], resumed: &Value) {
    if let (Some(channel), Some(reason)) = (arguments.first(), resumed.get("reason")) {
        note(&format!("messages on {channel} may be missing: {reason}"));
    }
}

/// A notice for people, which a program need not read.
fn note(what: &str) {
    if std::io::stderr().is_terminal() {
        anstream::eprintln!("{}", styled(DIM, format_args!("({})", harmless(what))));
    } else {
        eprintln!("switchyard: {}", harmless(what));
    }
}

/// Names whose subscriptions the server has ended.
fn note_end(unsubscribed: &Unsubscribed) {
    let Unsubscribed { channels, patterns, refusal, .. } = unsubscribed;
    let names: Vec<_> = channels.iter().chain(patterns).map(Spelled::for_people).collect();
    note(&format!("no longer listening to {}: {refusal}", names.join(" ")));
}

/// Why the command ends.
enum Outcome {
    Enough,
    Ended(Ended),
}

/// The positions of the last messages, by channel. There are as few as names on a command line.
type Positions = Vec<(Spelled, String)>;

/// The output for messages.
struct Screen {
    output: Output,
    positions: Positions,
    shows_patterns: bool,
    /// How many messages are missing; none: there is no limit.
    left: Option<u64>,
}

/// A message as JSON.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    message: &'a Message,
}

impl Screen {
    /// Prints messages as they arrive, and those that arrived early before them.
    async fn show_all(
        &mut self,
        client: &mut Client,
        early: Vec<Message>,
    ) -> anyhow::Result<Outcome> {
        for message in early {
            if self.show(&message)? {
                return Ok(Outcome::Enough);
            }
        }
        loop {
            let said = match client.next_now() {
                Some(said) => said,
                None => {
                    // Flush before waiting, so that no complete line is delayed.
                    self.output.flush()?;
                    client.next().await
                }
            };
            match said {
                Ok(Said::Message(message)) => {
                    if self.show(&message)? {
                        return Ok(Outcome::Enough);
                    }
                }
                Ok(Said::Goaway(goaway)) => {
                    note(&format!("the server will close the connection: {}", goaway.reason));
                }
                Ok(Said::Unsubscribed(unsubscribed)) => {
                    self.output.flush()?;
                    note_end(&unsubscribed);
                    if unsubscribed.listening == 0 {
                        let refusal = unsubscribed.refusal;
                        return Ok(Outcome::Ended(Ended::Refused(refusal)));
                    }
                }
                Ok(Said::Answer(..)) => {}
                Err(ended) => return Ok(Outcome::Ended(ended)),
            }
        }
    }

    /// Prints one message. Returns whether it was the last one.
    fn show(&mut self, message: &Message) -> std::io::Result<bool> {
        match self.output.audience {
            Audience::Program => {
                let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
                self.output.json(&Line { time, message })?;
            }
            Audience::Person => {
                let time = ZonedDateTime::now().strftime("%H:%M:%S%.3f").to_string();
                let channel = message.channel.for_people();
                let channel = styled(colour_of(&channel), harmless(&channel));
                let pattern = message.pattern.as_ref().filter(|_| self.shows_patterns);
                let pattern = pattern.map_or(String::new(), |pattern| {
                    styled(DIM, format_args!(" ({})", harmless(&pattern.for_people()))).to_string()
                });
                let payload = message.payload.for_people();
                self.output.line(format_args!(
                    "{} {channel}{pattern} {}",
                    styled(DIM, time),
                    harmless(&payload)
                ))?;
            }
        }
        if let (None, Some(position)) = (&message.pattern, &message.position) {
            match self.positions.iter_mut().find(|(channel, _)| *channel == message.channel) {
                Some((_, last)) => last.clone_from(position),
                None => self.positions.push((message.channel.clone(), position.clone())),
            }
        }
        self.left = self.left.map(|left| left - 1);
        Ok(self.left == Some(0))
    }
}
