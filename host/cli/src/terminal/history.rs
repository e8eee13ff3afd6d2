//! `switchyard history` and `switchyard presence`: print what a channel retains, and its members.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::Client;
use super::endpoint::EndpointArgs;
use super::output::{Audience, DIM, Output, OutputArgs, colour_of, harmless, styled};
use super::seconds;
use super::wire::Spelled;

/// The flags of `switchyard history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The channel.
    #[arg(value_name = "CHANNEL", required = true)]
    pub channel: Option<OsString>,

    /// Prints so many messages at most.
    #[arg(long, value_name = "N", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,

    /// Prints the newest message first. Without it, the oldest.
    #[arg(long)]
    pub reverse: bool,

    /// Prints only messages after this position, as a message or RESUME has it.
    #[arg(long, value_name = "POSITION")]
    pub after: Option<String>,

    /// The timeout of the connection and of each reply, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10")]
    pub timeout: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub endpoint: EndpointArgs,
}

/// The flags of `switchyard presence`.
#[derive(Debug, Args)]
pub struct PresenceArgs {
    /// The channel.
    #[arg(value_name = "CHANNEL")]
    pub channel: OsString,

    /// Prints the numbers of members and users only.
    #[arg(long)]
    pub count: bool,

    /// The timeout of the connection and of each reply, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10")]
    pub timeout: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub endpoint: EndpointArgs,
}

/// The reply to HISTORY.
#[derive(Deserialize)]
struct Page {
    messages: Vec<Retained>,
    next: Option<String>,
}

/// Position, payload, time, and tags if there are any.
#[derive(Deserialize)]
#[serde(untagged)]
enum Retained {
    Plain(String, Spelled, i64),
    Tagged(String, Spelled, i64, Value),
}

/// A message as JSON.
#[derive(Serialize)]
struct Line<'a> {
    position: &'a str,
    time: String,
    payload: &'a Spelled,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<&'a Value>,
}

/// Prints the messages that a channel retains.
///
/// # Errors
///
/// The connection cannot be made or is lost, the server refuses the command, or standard output is
/// closed.
pub async fn history(args: HistoryArgs) -> anyhow::Result<()> {
    let mut client = Client::open(&args.endpoint, args.timeout).await?;
    let mut output = Output::new(args.output.audience());
    let channel = Spelled::from(args.channel.as_deref().context("a channel is needed")?);
    let from = if args.reverse { "before" } else { "after" };
    let mut left = args.limit;
    let mut at: Option<String> = None;
    while left > 0 {
        let mut options = json!({
            "limit": left.min(100), "times": true, "reverse": args.reverse, "after": args.after,
        });
        if let (Some(at), Some(options)) = (&at, options.as_object_mut()) {
            options.insert(from.to_owned(), Value::from(&**at));
        }
        let arguments = [json!(channel), options];
        let asking = client.call("HISTORY", &arguments);
        let page = tokio::time::timeout(args.timeout, asking).await;
        let page = page.context("no answer to HISTORY in time")??;
        let page: Page = serde_json::from_value(page).context("an answer that is no history")?;
        for message in &page.messages {
            show(&mut output, message)?;
        }
        left = left.saturating_sub(page.messages.len() as u64);
        at = page.next;
        if at.is_none() {
            break;
        }
    }
    output.flush()?;
    client.close().await;
    Ok(())
}

fn show(output: &mut Output, message: &Retained) -> anyhow::Result<()> {
    let (position, payload, time, tags) = match message {
        Retained::Plain(position, payload, time) => (position, payload, time, None),
        Retained::Tagged(position, payload, time, more) => {
            (position, payload, time, more.get("tags"))
        }
    };
    let time = Timestamp::from_millisecond(*time).context("an answer with a wrong time")?;
    match output.audience {
        Audience::Program => {
            let time = time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
            output.json(&Line { position, time, payload, tags })?;
        }
        Audience::Person => {
            let time =
                ZonedDateTime::new(time, TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
            output.line(format_args!(
                "{} {}",
                styled(DIM, format_args!("{time} {}", harmless(position))),
                harmless(&payload.for_people())
            ))?;
        }
    }
    Ok(())
}

/// The reply to PRESENCE.
#[derive(Deserialize)]
struct Members {
    count: u64,
    users: u64,
    #[serde(default)]
    members: Vec<Member>,
    next: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Member {
    connection: String,
    user: Option<String>,
    data: Value,
}

/// Prints the members of a channel.
///
/// # Errors
///
/// As for `history`.
pub async fn presence(args: PresenceArgs) -> anyhow::Result<()> {
    let mut client = Client::open(&args.endpoint, args.timeout).await?;
    let mut output = Output::new(args.output.audience());
    let channel = Spelled::from(args.channel.as_os_str());
    let mut after: Option<String> = None;
    loop {
        let options = match args.count {
            true => json!({"count": true}),
            false => json!({"after": after}),
        };
        let arguments = [json!(channel), options];
        let asking = client.call("PRESENCE", &arguments);
        let members = tokio::time::timeout(args.timeout, asking).await;
        let members = members.context("no answer to PRESENCE in time")??;
        let members: Members =
            serde_json::from_value(members).context("an answer that is no presence")?;
        for member in &members.members {
            match output.audience {
                Audience::Program => output.json(member)?,
                Audience::Person => {
                    let user = member.user.as_deref().unwrap_or("-");
                    output.line(format_args!(
                        "{} {} {}",
                        styled(DIM, &member.connection),
                        styled(colour_of(user), harmless(user)),
                        harmless(&member.data.to_string())
                    ))?;
                }
            }
        }
        after = members.next;
        if after.is_none() {
            let (count, users) = (members.count, members.users);
            match output.audience {
                Audience::Program if args.count => {
                    output.json(&json!({"count": count, "users": users}))?;
                }
                Audience::Program => {}
                Audience::Person => {
                    output.line(styled(DIM, format_args!("{count} members, {users} users")))?;
                }
            }
            break;
        }
    }
    output.flush()?;
    client.close().await;
    Ok(())
}
