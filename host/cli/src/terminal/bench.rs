//! `switchyard bench`: puts a running server under load for a while, and prints the results.
//!
//! It is a quick test on one machine, which the load generator shares with the server. Each message
//! carries the time at which it was sent, so latency is from just before a publisher writes to just
//! after a subscriber has read.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::client::{Client, Ended};
use super::endpoint::EndpointArgs;
use super::output::{Audience, DIM, Output, OutputArgs, styled};
use super::wire::{Said, Spelled};
use super::{end_requested, seconds};

/// The timeout of each connection.
const OPEN_TIME: Duration = Duration::from_secs(10);

/// How many connections are opened at once, so that handshakes do not time out while they wait for
/// others.
const OPENING_MAX: usize = 64;

/// The timeout for outstanding deliveries at the end, since the last delivery.
const STRAGGLER_TIME: Duration = Duration::from_secs(2);

/// The longest latency that is distinguished from longer ones, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// The time in a message: nanoseconds in hexadecimal.
const STAMP_BYTES: usize = 16;

/// How late a publisher may be with a fixed rate before that counts as latency: timers are not more
/// exact.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// The flags of `switchyard bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// The number of subscribing connections, spread evenly over the channels; 1 to 10000.
    #[arg(long, value_name = "N", default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,

    /// The number of publishing connections; 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub publishers: u32,

    /// The number of channels; 1 to 10000.
    #[arg(long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub channels: u32,

    /// The size of a payload, in bytes; 16 to 16777216.
    #[arg(long, value_name = "N", default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=16 << 20))]
    pub payload_bytes: u32,

    /// The duration in seconds, at most an hour.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = an_hour_at_most)]
    pub duration: Duration,

    /// The number of publications per second of all publishers together; 1 to 10000000 [default: as
    /// many as the server replies to].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: Option<u32>,

    /// The number of publications of one publisher without a reply; 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub unanswered: u32,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub endpoint: EndpointArgs,
}

fn an_hour_at_most(text: &str) -> Result<Duration, String> {
    let wanted = "give seconds, more than 0 and at most 3600";
    seconds(text).ok().filter(|time| time.as_secs_f64() <= 3_600.0).ok_or_else(|| wanted.to_owned())
}

/// The counters of a run.
struct Counts {
    /// The base of the time stamps.
    epoch: Instant,
    publications: AtomicU64,
    /// According to the replies to PUBLISH.
    promised: AtomicU64,
    deliveries: AtomicU64,
    /// Several, so that subscribers rarely contend.
    latencies_ns: Vec<Mutex<Histogram<u64>>>,
}

impl Counts {
    fn new() -> Counts {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let histogram =
            || Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("these bounds are a range");
        Counts {
            epoch: Instant::now(),
            publications: AtomicU64::new(0),
            promised: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
            latencies_ns: (0..count).map(|_| Mutex::new(histogram())).collect(),
        }
    }

    fn stamp(&self, at: Instant) -> String {
        let since = at.saturating_duration_since(self.epoch).as_nanos() as u64;
        format!("{since:0STAMP_BYTES$x}")
    }

    fn latency_ns(&self, payload: &Spelled) -> Option<u64> {
        let Spelled::Text(payload) = payload else { return None };
        let sent = u64::from_str_radix(payload.get(..STAMP_BYTES)?, 16).ok()?;
        Some((self.epoch.elapsed().as_nanos() as u64).saturating_sub(sent))
    }
}

/// Puts a server under load, and prints the results.
///
/// # Errors
///
/// A connection cannot be made or is lost, a publication is refused, or promised deliveries were
/// not received.
pub async fn run(args: BenchArgs) -> anyhow::Result<()> {
    let mut end_requested = std::pin::pin!(end_requested());
    let counts = Arc::new(Counts::new());
    let args = Arc::new(args);
    let run = format!("{:08x}", rand::random::<u32>());
    let channels: Arc<[Spelled]> =
        (0..args.channels).map(|number| Spelled::Text(format!("bench.{run}.{number}"))).collect();
    let (ending, is_ending) = watch::channel(false);

    let opening = async {
        anyhow::Ok((
            open_all(&args, args.connections).await?,
            open_all(&args, args.publishers).await?,
        ))
    };
    let (listening, publishing) = tokio::select! {
        opened = opening => opened?,
        () = &mut end_requested => return Ok(()),
    };
    let mut listeners = JoinSet::new();
    let (listens, mut are_listening) = mpsc::channel(1);
    for (number, client) in listening.into_iter().enumerate() {
        let channel = channels.get(number % channels.len()).context("there is a channel")?.clone();
        let listener =
            Listener { number, channel, counts: counts.clone(), is_ending: is_ending.clone() };
        listeners.spawn(listener.listen(client, listens.clone()));
    }
    drop(listens);
    // Ends when all have reported, or one has ended.
    let _ = are_listening.recv().await;

    let began = Instant::now();
    let deadline = began + args.duration;
    let mut publishers = JoinSet::new();
    for (number, client) in publishing.into_iter().enumerate() {
        let publisher = Publisher {
            number,
            args: args.clone(),
            channels: channels.clone(),
            counts: counts.clone(),
            began,
            is_ending: is_ending.clone(),
        };
        publishers.spawn(publisher.publish(client, deadline));
    }
    let result = tokio::select! {
        result = all(&mut publishers) => result,
        lost = all(&mut listeners) => lost.and_then(|()| {
            Err(anyhow::anyhow!("all listeners have ended before the publishers"))
        }),
        () = &mut end_requested => Ok(()),
        () = show_progress(&counts, began, args.duration) => Ok(()),
    };
    ending.send_replace(true);
    // After ctrl-c they have pending publications.
    let result = result.and(all(&mut publishers).await);
    let took = began.elapsed();
    await_stragglers(&counts).await;
    listeners.shutdown().await;
    if std::io::stderr().is_terminal() {
        eprint!("\r\u{1b}[K");
    }
    let summary = Summary::new(&args, &counts, took);
    let mut output = Output::new(args.output.audience());
    match output.audience {
        Audience::Program => output.json(&summary.for_programs())?,
        Audience::Person => summary.show(&mut output)?,
    }
    output.flush()?;
    result?;
    ensure!(summary.lost == 0, "{} deliveries that were promised did not come", summary.lost);
    Ok(())
}

/// Waits for all tasks, or for the first that fails.
async fn all(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

async fn open_all(args: &Arc<BenchArgs>, count: u32) -> anyhow::Result<Vec<Client>> {
    let opening = Arc::new(Semaphore::new(OPENING_MAX));
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (args, opening) = (args.clone(), opening.clone());
        tasks.spawn(async move {
            let _permit = opening.acquire().await.expect("it is never closed");
            Client::open(&args.endpoint, OPEN_TIME).await
        });
    }
    let mut clients = Vec::new();
    while let Some(opened) = tasks.join_next().await {
        let problem = || format!("{} of {count} connections were opened", clients.len());
        clients.push(opened?.with_context(problem)?);
    }
    Ok(clients)
}

/// One subscribing connection.
struct Listener {
    number: usize,
    channel: Spelled,
    counts: Arc<Counts>,
    is_ending: watch::Receiver<bool>,
}

impl Listener {
    /// Counts messages. `listens` is dropped once the server has acknowledged the subscription.
    async fn listen(self, mut client: Client, listens: mpsc::Sender<()>) -> anyhow::Result<()> {
        let mut listens = Some(listens);
        client.say("SUBSCRIBE", &[&self.channel]).await?;
        let counts = &self.counts;
        let place = self.number % counts.latencies_ns.len();
        let latencies = counts.latencies_ns.get(place).context("there is a histogram")?;
        loop {
            match client.next().await {
                Ok(Said::Message(message)) => {
                    let latency = counts.latency_ns(&message.payload);
                    let latency = latency.context("a message is not one of ours")?;
                    latencies.lock().saturating_record(latency);
                    counts.deliveries.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Said::Answer(_, result)) => {
                    result.map_err(Ended::from)?;
                    drop(listens.take());
                }
                Ok(Said::Unsubscribed(unsubscribed)) => {
                    return Err(Ended::from(unsubscribed.refusal)).context("a listener");
                }
                Ok(Said::Goaway(_)) => {}
                Err(_) if *self.is_ending.borrow() => return Ok(()),
                Err(ended) => return Err(ended).context("a listener"),
            }
        }
    }
}

/// One publishing connection.
struct Publisher {
    number: usize,
    args: Arc<BenchArgs>,
    channels: Arc<[Spelled]>,
    counts: Arc<Counts>,
    began: Instant,
    is_ending: watch::Receiver<bool>,
}

impl Publisher {
    async fn publish(mut self, mut client: Client, deadline: Instant) -> anyhow::Result<()> {
        let args = &self.args;
        let filler = "x".repeat((args.payload_bytes as usize).saturating_sub(STAMP_BYTES));
        // The publishers share one schedule, round-robin.
        let pace = args.rate.map(|rate| Duration::from_secs_f64(1.0 / f64::from(rate)));
        let (mut sent, mut unanswered) = (0_u64, 0);
        loop {
            let due = pace.map(|pace| {
                let slot = sent * u64::from(args.publishers) + self.number as u64;
                self.began + pace.mul_f64(slot as f64)
            });
            let is_over = *self.is_ending.borrow()
                || Instant::now() >= deadline
                || due.is_some_and(|due| due >= deadline);
            if is_over && unanswered == 0 {
                return Ok(());
            }
            let may_send = !is_over && unanswered < args.unanswered;
            tokio::select! {
                // Sending has precedence; otherwise the replies would determine the rate.
                biased;
                () = until(due), if may_send => {
                    let slot = sent as usize + self.number;
                    let channel = self.channels.get(slot % self.channels.len());
                    let channel = channel.context("there is a channel")?;
                    let now = Instant::now();
                    // A message that is late is measured from when it was due.
                    let at = due.filter(|due| now - *due > TIMER_SLACK).unwrap_or(now);
                    let payload = Spelled::Text(self.counts.stamp(at) + &filler);
                    client.say("PUBLISH", &[channel, &payload]).await.context("a publisher")?;
                    sent += 1;
                    unanswered += 1;
                }
                said = client.next() => {
                    if let Said::Answer(_, result) = said.context("a publisher")? {
                        let promised = result.map_err(Ended::from)?.as_u64();
                        let promised = promised.context("the answer to PUBLISH is no number")?;
                        self.counts.promised.fetch_add(promised, Ordering::Relaxed);
                        self.counts.publications.fetch_add(1, Ordering::Relaxed);
                        unanswered -= 1;
                    }
                }
                // No more messages are sent; only outstanding replies are awaited.
                _ = self.is_ending.changed(), if !is_over => {}
                () = sleep_until(deadline), if !is_over => {}
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    if let Some(due) = due {
        sleep_until(due).await;
    }
}

/// Prints the progress to standard error, if that is a terminal. Never ends.
async fn show_progress(counts: &Counts, began: Instant, duration: Duration) {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let mut ticks = interval(Duration::from_millis(250));
    let (mut before, mut seen) = (began, [0, 0]);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let passed = (now - before).as_secs_f64();
        let totals = [&counts.publications, &counts.deliveries]
            .map(|counter| counter.load(Ordering::Relaxed));
        let rate = |now: u64, before: u64| grouped(((now - before) as f64 / passed) as u64);
        if passed > 0.1 {
            let line = format!(
                "{:.0} of {:.0} s   {} publications/s   {} deliveries/s",
                (now - began).as_secs_f64(),
                duration.as_secs_f64(),
                rate(totals[0], seen[0]),
                rate(totals[1], seen[1]),
            );
            anstream::eprint!("\r\u{1b}[K{}", styled(DIM, line));
            let _ = std::io::stderr().flush();
            (before, seen) = (now, totals);
        }
    }
}

/// Waits for the promised deliveries, while some still arrive.
async fn await_stragglers(counts: &Counts) {
    let has_all =
        || counts.deliveries.load(Ordering::Relaxed) >= counts.promised.load(Ordering::Relaxed);
    loop {
        let before = counts.deliveries.load(Ordering::Relaxed);
        let coming = async {
            let mut ticks = interval(Duration::from_millis(5));
            while !has_all() && counts.deliveries.load(Ordering::Relaxed) == before {
                ticks.tick().await;
            }
        };
        if timeout(STRAGGLER_TIME, coming).await.is_err() || has_all() {
            return;
        }
    }
}

/// The results.
struct Summary {
    args: Arc<BenchArgs>,
    took: Duration,
    publications: u64,
    deliveries: u64,
    lost: u64,
    latencies_ns: Histogram<u64>,
}

impl Summary {
    fn new(args: &Arc<BenchArgs>, counts: &Counts, took: Duration) -> Summary {
        let mut histograms = counts.latencies_ns.iter();
        let mut latencies_ns =
            histograms.next().expect("there is at least one processor").lock().clone();
        for other in histograms {
            latencies_ns += &*other.lock();
        }
        let deliveries = counts.deliveries.load(Ordering::Relaxed);
        Summary {
            args: args.clone(),
            took,
            publications: counts.publications.load(Ordering::Relaxed),
            deliveries,
            lost: counts.promised.load(Ordering::Relaxed).saturating_sub(deliveries),
            latencies_ns,
        }
    }

    fn per_second(&self, count: u64) -> f64 {
        (count as f64 / self.took.as_secs_f64()).round()
    }

    fn latency_us(&self, quantile: f64) -> f64 {
        self.latencies_ns.value_at_quantile(quantile) as f64 / 1_000.0
    }

    fn for_programs(&self) -> serde_json::Value {
        let args = &self.args;
        json!({
            "connections": args.connections,
            "publishers": args.publishers,
            "channels": args.channels,
            "payload_bytes": args.payload_bytes,
            "seconds": self.took.as_secs_f64(),
            "publications": self.publications,
            "publications_per_second": self.per_second(self.publications),
            "deliveries": self.deliveries,
            "deliveries_per_second": self.per_second(self.deliveries),
            "deliveries_lost": self.lost,
            "latency_us": {
                "p50": self.latency_us(0.5),
                "p90": self.latency_us(0.9),
                "p99": self.latency_us(0.99),
                "p999": self.latency_us(0.999),
                "max": self.latencies_ns.max() as f64 / 1_000.0,
            },
        })
    }

    fn show(&self, output: &mut Output) -> std::io::Result<()> {
        let args = &self.args;
        output.line(styled(
            DIM,
            format_args!(
                "{} connections on {} channels, {} publishers, {} bytes, {:.1} s",
                args.connections,
                args.channels,
                args.publishers,
                args.payload_bytes,
                self.took.as_secs_f64()
            ),
        ))?;
        let per_second = |count| grouped(self.per_second(count) as u64);
        output.line(format_args!("publications  {:>12}/s", per_second(self.publications)))?;
        let lost =
            if self.lost == 0 { "none lost".to_owned() } else { format!("{} lost", self.lost) };
        output.line(format_args!(
            "deliveries    {:>12}/s   {}, {lost}",
            per_second(self.deliveries),
            grouped(self.deliveries)
        ))?;
        let ms = |us: f64| format!("{:.2} ms", us / 1_000.0);
        output.line(format_args!(
            "latency       p50 {}   p99 {}   max {}",
            ms(self.latency_us(0.5)),
            ms(self.latency_us(0.99)),
            ms(self.latencies_ns.max() as f64 / 1_000.0)
        ))
    }
}

/// A number with commas between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let check = |number, expected| assert_eq!(grouped(number), expected);
        check(0, "0");
        check(999, "999");
        check(1_000, "1,000");
        check(1_234_567, "1,234,567");
    }

    #[test]
    fn a_message_carries_its_time() {
        let counts = Counts::new();
        let sent = Spelled::Text(counts.stamp(Instant::now()) + "xxxx");
        assert!(counts.latency_ns(&sent).is_some_and(|ns| ns < 10_000_000_000));
        for other in ["", "x", "000000000000000g", "ü00000000000000"] {
            assert_eq!(counts.latency_ns(&Spelled::Text(other.to_owned())), None, "{other}");
        }
    }
}
