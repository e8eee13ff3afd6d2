//! What is measured. Every run is bounded in time, and ends only when all that was
//! owed has come, and not a byte more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::count::Counting;
use crate::fleet::{Fleet, is_closed};
use crate::server::{Kind, Server};
use crate::wire::{Wire, ask};

/// 128 bytes.
const PAYLOAD_BYTES: usize = 128;

/// A scenario, with its numbers.
#[derive(Clone, Copy, Debug)]
pub enum Scenario {
    /// So many publishers, each with so many publications under way; channels
    /// without subscribers, or with one each. Latency is of answers, or of deliveries.
    Publish { publishers: usize, depth: usize, channels: usize, subscribers: usize },
    /// One publisher; the next batch when all subscribers have the last.
    FanOut { subscribers: usize, in_flight: usize },
    /// So many messages a second to so many subscribers, whatever comes back.
    Rate { subscribers: usize, messages_per_second: usize },
    /// The most deliveries a second before the last messages are late.
    Rising { subscribers: usize },
    /// Rooms of ten connections that all subscribe and publish, one after the other.
    Rooms { rooms: usize },
    /// Connections with a subscription that say nothing.
    Idle { connections: usize },
    /// Connect, subscribe to ten, leave; so many at a time.
    Churn { at_a_time: usize },
    /// Publishing while so many patterns are listened to, all of which match, or
    /// none.
    Patterns { patterns: usize, all_match: bool },
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Figures {
    /// How many there were of what the scenario counts.
    pub count: f64,
    /// In how many seconds.
    pub seconds: f64,
    /// The server's processor time, in seconds.
    pub cpu_seconds: f64,
    /// How long each took, in microseconds; empty where that says nothing.
    pub latency_us: Option<Histogram<u64>>,
    /// How long publishers waited for their answers, where it is deliveries that are counted.
    pub answer_us: Option<Histogram<u64>>,
    /// Resident memory for each connection.
    pub bytes_each: Option<f64>,
    /// The server's user-space instructions, where they were counted.
    pub instructions: Option<u64>,
}

impl Scenario {
    /// What a figure counts.
    pub fn counts(self) -> &'static str {
        match self {
            Scenario::Publish { subscribers: 0, .. }
            | Scenario::Patterns { all_match: false, .. } => "accepted publications",
            Scenario::Idle { .. } => "connections",
            Scenario::Churn { .. } => "cycles",
            _ => "deliveries",
        }
    }

    /// A name for the table.
    pub fn name(self) -> String {
        match self {
            Scenario::Publish { publishers, depth, subscribers: 0, .. } => {
                format!("publish, {publishers} publishers, depth {depth}, no subscriber")
            }
            Scenario::Publish { publishers, depth, channels, .. } => format!(
                "publish, {publishers} publishers, depth {depth}, {channels} channels with one subscriber each"
            ),
            Scenario::FanOut { subscribers, in_flight: 1 } => {
                format!("fan-out 1→{subscribers}, one at a time")
            }
            Scenario::FanOut { subscribers, in_flight } => {
                format!("fan-out 1→{subscribers}, {in_flight} in flight")
            }
            Scenario::Rate { subscribers, messages_per_second } => {
                format!("fan-out 1→{subscribers}, {messages_per_second} messages/s")
            }
            Scenario::Rising { subscribers } => {
                format!("fan-out 1→{subscribers}, rising rate, most before it falls behind")
            }
            Scenario::Rooms { rooms } => format!("{rooms} rooms of 10, all speak"),
            Scenario::Idle { connections } => format!("{connections} idle connections"),
            Scenario::Churn { at_a_time } => {
                format!("connect, subscribe to 10, leave; {at_a_time} at a time")
            }
            Scenario::Patterns { patterns, all_match: false } => {
                format!("publish, depth 64, {patterns} patterns that do not match")
            }
            Scenario::Patterns { patterns, .. } => {
                format!("publish, depth 64, {patterns} patterns that match")
            }
        }
    }

    /// Whether it can be run against this kind of server.
    pub fn fits(self, kind: Kind) -> bool {
        match self {
            Scenario::Publish { .. } | Scenario::FanOut { .. } => true,
            _ if kind.name == "floor" => false,
            Scenario::Patterns { .. } => kind.is_switchyard() || kind.name == "redis-server",
            // What Switchyard is compared with itself for is not seen here, and they take long.
            Scenario::Rate { .. } | Scenario::Rising { .. } => !kind.is_variant(),
            _ => true,
        }
    }

    /// Runs it for so long.
    pub fn run(self, server: &Server, wire: Wire, time: Duration) -> Result<Figures> {
        match self {
            Scenario::Publish { publishers, depth, channels, subscribers } => {
                let load = Publishing { publishers, depth, channels, subscribers };
                load.run(server, wire, time)
            }
            Scenario::FanOut { subscribers, in_flight } => {
                fan_out(server, wire, subscribers, in_flight, time)
            }
            Scenario::Rate { subscribers, messages_per_second } => {
                let pace = Duration::from_secs(1) / u32::try_from(messages_per_second)?;
                let time = time.max(pace * RATE_MESSAGES_MIN);
                let (figures, owed) =
                    rate(server, wire, subscribers, messages_per_second, usize::MAX, time)?;
                ensure!(owed.for_good == 0, "the server does not come to an end");
                Ok(figures)
            }
            Scenario::Rising { subscribers } => rising(server, wire, subscribers, time),
            Scenario::Rooms { rooms } => speak(server, wire, rooms, time),
            Scenario::Idle { connections } => idle(server, wire, connections),
            Scenario::Churn { at_a_time } => churn(server, wire, at_a_time, time),
            Scenario::Patterns { patterns, all_match } => {
                publish_beside_patterns(server, wire, patterns, all_match, time)
            }
        }
    }
}

fn payload() -> String {
    "x".repeat(PAYLOAD_BYTES)
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

fn micros(since: Instant, now: Instant) -> u64 {
    u64::try_from((now - since).as_micros()).unwrap_or(u64::MAX).max(1)
}

/// A stretch of time in which the server's processor time is counted.
struct Stretch {
    started: Instant,
    cpu_seconds: f64,
    counting: Counting,
}

impl Stretch {
    fn begin(server: &Server) -> Result<Stretch> {
        let counting = server.begin_count()?;
        Ok(Stretch { cpu_seconds: server.cpu_seconds()?, started: Instant::now(), counting })
    }

    fn end(self, server: &Server, count: usize) -> Result<Figures> {
        Ok(Figures {
            count: count as f64,
            seconds: self.started.elapsed().as_secs_f64(),
            cpu_seconds: server.cpu_seconds()? - self.cpu_seconds,
            instructions: self.counting.end(server.home.path())?,
            ..Figures::default()
        })
    }
}

/// Takes `count` subscribers of one channel.
fn take_audience(
    fleet: &mut Fleet,
    server: &Server,
    wire: Wire,
    channel: &str,
    count: usize,
) -> Result<()> {
    let subscribe = wire.subscribe(&[channel.to_owned()], 1);
    for _ in 0..count {
        let mut stream = wire.connect(server.port)?;
        ask(&mut stream, &subscribe)?;
        fleet.take(stream)?;
    }
    Ok(())
}

struct Publishing {
    publishers: usize,
    depth: usize,
    channels: usize,
    subscribers: usize,
}

impl Publishing {
    fn run(&self, server: &Server, wire: Wire, time: Duration) -> Result<Figures> {
        let mut fleet = Fleet::new(wire)?;
        let channels: Vec<String> =
            (0..self.channels).map(|number| format!("channel:{number:06}")).collect();
        for channel in channels.iter().filter(|_| self.subscribers > 0) {
            take_audience(&mut fleet, server, wire, channel, self.subscribers)?;
        }
        let first_publisher = fleet.len();
        for _ in 0..self.publishers {
            fleet.take(wire.connect(server.port)?)?;
        }
        let payload = payload();
        let publications: Vec<Vec<u8>> =
            channels.iter().map(|channel| wire.publish(channel, &payload)).collect();
        // All names are of one length.
        let message_len = channels.first().map_or(0, |name| wire.message_len(name, &payload));
        let reply_len = wire.reply_len(self.depth, self.subscribers);
        let mut owed = vec![0_usize; self.publishers];
        let mut sent_at = vec![Instant::now(); self.publishers];
        let mut next_channel = 0;
        let mut batch = Vec::new();
        let mut send = |fleet: &mut Fleet, post: &mut Post, publisher: usize, now: Instant| {
            batch.clear();
            for _ in 0..self.depth {
                batch.extend_from_slice(publications.get(next_channel).map_or(&[], Vec::as_slice));
                post.sent(next_channel, now);
                next_channel = (next_channel + 1) % self.channels;
            }
            batch.extend_from_slice(wire.after_batch());
            fleet.send(first_publisher + publisher, &batch)
        };
        let mut answered = histogram()?;
        let mut post = Post::new(self.channels, self.subscribers, message_len)?;
        let stretch = Stretch::begin(server)?;
        for (publisher, (owed, sent)) in owed.iter_mut().zip(&mut sent_at).enumerate() {
            *owed = reply_len;
            *sent = Instant::now();
            send(&mut fleet, &mut post, publisher, *sent)?;
        }
        let (mut batches, mut delivered) = (self.publishers, 0);
        let mut under_way = self.publishers;
        let all = |batches: usize| batches * self.depth * self.subscribers * message_len;
        while under_way > 0 || delivered < all(batches) {
            fleet.poll_owed()?;
            let now = Instant::now();
            let goes_on = stretch.started.elapsed() < time;
            for (number, length) in std::mem::take(&mut fleet.came) {
                let Some(publisher) = number.checked_sub(first_publisher) else {
                    delivered += length;
                    post.record_received(number, length, now);
                    continue;
                };
                let (Some(owed), Some(sent)) =
                    (owed.get_mut(publisher), sent_at.get_mut(publisher))
                else {
                    continue;
                };
                ensure!(length <= *owed, "a publisher received more replies than it has requests");
                *owed -= length;
                if *owed > 0 {
                    continue;
                }
                answered.saturating_record(micros(*sent, now));
                if goes_on {
                    *owed = reply_len;
                    *sent = now;
                    batches += 1;
                    send(&mut fleet, &mut post, publisher, now)?;
                } else {
                    under_way -= 1;
                }
            }
        }
        ensure!(delivered == all(batches), "{delivered} bytes came, not {}", all(batches));
        let count = batches * self.depth * self.subscribers.max(1);
        let figures = stretch.end(server, count)?;
        if self.subscribers == 0 {
            return Ok(Figures { latency_us: Some(answered), ..figures });
        }
        Ok(Figures {
            latency_us: Some(post.latencies(count)?),
            answer_us: Some(answered),
            ..figures
        })
    }
}

/// What subscribers of one channel have of what was published there.
struct Audience {
    message_len: usize,
    bytes: Vec<usize>,
}

impl Audience {
    /// Counts what came to one, and answers how many messages are whole now that
    /// were not.
    fn record_received(&mut self, number: usize, length: usize) -> std::ops::Range<usize> {
        let Some(bytes) = self.bytes.get_mut(number) else { return 0..0 };
        let before = *bytes / self.message_len;
        *bytes += length;
        before..*bytes / self.message_len
    }
}

/// Messages on channels with so many subscribers each, which are numbered channel by channel:
/// when they were sent, and how long they took. Of several publishers on one channel it is not
/// known whose message came first: it is counted as the one that was sent first.
struct Post {
    subscribers: usize,
    audience: Audience,
    sent_at: Vec<Vec<Instant>>,
    latency: Histogram<u64>,
}

impl Post {
    fn new(channels: usize, subscribers: usize, message_len: usize) -> Result<Post> {
        let audience = Audience { message_len, bytes: vec![0; channels * subscribers] };
        let sent_at = vec![Vec::new(); channels];
        Ok(Post { subscribers, audience, sent_at, latency: histogram()? })
    }

    fn sent(&mut self, channel: usize, at: Instant) {
        if self.subscribers > 0
            && let Some(sent_at) = self.sent_at.get_mut(channel)
        {
            sent_at.push(at);
        }
    }

    /// Counts what came to a subscriber, and answers how many messages are whole now that were
    /// not.
    fn record_received(&mut self, number: usize, length: usize, now: Instant) -> usize {
        let whole = self.audience.record_received(number, length);
        let sent_at = self.sent_at.get(number / self.subscribers).map_or(&[][..], Vec::as_slice);
        for at in sent_at.get(whole.clone()).unwrap_or_default() {
            self.latency.saturating_record(micros(*at, now));
        }
        whole.len()
    }

    /// What they took, of as many as there must have been.
    fn latencies(self, count: usize) -> Result<Histogram<u64>> {
        let known = self.latency.len();
        ensure!(known == count as u64, "{known} deliveries are known, of {count}");
        Ok(self.latency)
    }
}

fn fan_out(
    server: &Server,
    wire: Wire,
    subscribers: usize,
    in_flight: usize,
    time: Duration,
) -> Result<Figures> {
    let mut fleet = Fleet::new(wire)?;
    take_audience(&mut fleet, server, wire, "news", subscribers)?;
    let publisher = fleet.take(wire.connect(server.port)?)?;
    let payload = payload();
    let mut batch = wire.publish("news", &payload).repeat(in_flight);
    batch.extend_from_slice(wire.after_batch());
    let reply_len = wire.reply_len(in_flight, subscribers);
    let message_len = wire.message_len("news", &payload);
    let mut audience = Audience { message_len, bytes: vec![0; subscribers] };
    let (mut latency, mut answered) = (histogram()?, histogram()?);
    let mut round = |latency: &mut Histogram<u64>, answered: &mut Histogram<u64>| -> Result<()> {
        let (mut replied, mut received) = (0, 0);
        let sent = Instant::now();
        fleet.send(publisher, &batch)?;
        while replied < reply_len || received < subscribers * in_flight {
            fleet.poll_owed()?;
            let now = Instant::now();
            for &(number, length) in &fleet.came {
                if number == publisher {
                    replied += length;
                    if replied >= reply_len {
                        answered.saturating_record(micros(sent, now));
                    }
                    continue;
                }
                let whole = audience.record_received(number, length).len();
                received += whole;
                latency.saturating_record_n(micros(sent, now), whole as u64);
            }
        }
        let owed = subscribers * in_flight;
        ensure!((replied, received) == (reply_len, owed), "more came than was owed");
        Ok(())
    };
    // The first is not counted: whatever is made once is made then.
    round(&mut latency, &mut answered)?;
    latency.reset();
    answered.reset();
    let stretch = Stretch::begin(server)?;
    let mut rounds = 0;
    while rounds == 0 || stretch.started.elapsed() < time {
        round(&mut latency, &mut answered)?;
        rounds += 1;
    }
    let figures = stretch.end(server, rounds * subscribers * in_flight)?;
    Ok(Figures { latency_us: Some(latency), answer_us: Some(answered), ..figures })
}

/// How many deliveries a server owed.
struct Owed {
    /// When the time was over.
    at_end: usize,
    /// After `DRAIN_MAX`, too, unless it was not worth waiting for: a server that keeps
    /// its limits closes a connection that reads too slowly.
    for_good: usize,
}

/// Publishes by the clock. When more than `late_max` deliveries are owed at the end, they are
/// not waited for.
fn rate(
    server: &Server,
    wire: Wire,
    subscribers: usize,
    messages_per_second: usize,
    late_max: usize,
    time: Duration,
) -> Result<(Figures, Owed)> {
    let mut fleet = Fleet::new(wire)?;
    take_audience(&mut fleet, server, wire, "news", subscribers)?;
    let publisher = fleet.take(wire.connect(server.port)?)?;
    let payload = payload();
    let mut batch = wire.publish("news", &payload);
    batch.extend_from_slice(wire.after_batch());
    let message_len = wire.message_len("news", &payload);
    let mut post = Post::new(1, subscribers, message_len)?;
    let pace = Duration::from_secs(1) / u32::try_from(messages_per_second)?;
    let messages = (time.as_nanos() / pace.as_nanos()).max(1) as usize;
    let (mut sent, mut received) = (0, 0);
    let mut owed_at_end = None;
    let stretch = Stretch::begin(server)?;
    while received < messages * subscribers {
        let now = Instant::now();
        // All that are due by now: a late generator must not make the server look
        // better.
        while sent < messages {
            let at = stretch.started + pace * u32::try_from(sent)?;
            if at > now {
                break;
            }
            post.sent(0, at);
            sent += 1;
            fleet.send(publisher, &batch)?;
        }
        if sent == messages && owed_at_end.is_none() && now - stretch.started >= time {
            owed_at_end = Some(messages * subscribers - received);
        }
        if owed_at_end.is_some_and(|owed| owed > late_max) {
            break;
        }
        let next = stretch.started + pace * u32::try_from(sent)?;
        let wait = match sent < messages {
            true => next.saturating_duration_since(now),
            false => Duration::from_millis(100),
        };
        if now - stretch.started >= time + DRAIN_MAX {
            break;
        }
        fleet.poll(wait)?;
        let now = Instant::now();
        for &(number, length) in &fleet.came {
            received += post.record_received(number, length, now);
        }
    }
    let figures = stretch.end(server, received)?;
    let for_good =
        (messages * subscribers).checked_sub(received).context("more came than was owed")?;
    let owed = Owed { at_end: owed_at_end.unwrap_or(for_good), for_good };
    Ok((Figures { latency_us: Some(post.latency), ..figures }, owed))
}

/// How many messages are sent by the clock at least: one that the machine made wait must not
/// be one in a hundred.
pub const RATE_MESSAGES_MIN: u32 = 120;

/// How long after its time what was sent by the clock may still arrive.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Messages a second in the first step.
const FIRST_RATE: f64 = 100.0;

/// How much faster each step is: twice as fast until it is too fast, then from the last
/// that was not, a little.
const RISES: [f64; 2] = [2.0, 1.15];

/// No server comes here.
const RATE_MAX: f64 = 1e6;

/// How long each step lasts at least. In less, a server that only queues does not
/// fall behind by the amount that counts as behind.
const STEP_TIME_MIN: Duration = Duration::from_secs(1);

fn rising(server: &Server, wire: Wire, subscribers: usize, time: Duration) -> Result<Figures> {
    let time = time.max(STEP_TIME_MIN);
    let mut best = None;
    for rise in RISES {
        settle(server)?;
        loop {
            let step = best.as_ref().map_or(FIRST_RATE, |(step, _)| step * rise);
            let messages_per_second = step as usize;
            // Behind: a tenth of a second's deliveries or more are missing at the end.
            let late_max = messages_per_second * subscribers / 10;
            let (figures, owed) =
                match rate(server, wire, subscribers, messages_per_second, late_max, time) {
                    Ok(run) => run,
                    // A server that closes a slow connection is behind, too.
                    Err(error) if is_closed(&error) => break,
                    Err(error) => return Err(error),
                };
            if owed.for_good > 0 || owed.at_end > late_max || step > RATE_MAX {
                break;
            }
            best = Some((step, figures));
        }
    }
    best.map(|(_, figures)| figures).context("behind at the first step")
}

/// Waits until a server has worked off what it was sent.
fn settle(server: &Server) -> Result<()> {
    const LOOK_AFTER: Duration = Duration::from_millis(100);
    let started = Instant::now();
    let mut before = server.cpu_seconds()?;
    while started.elapsed() < DRAIN_MAX {
        std::thread::sleep(LOOK_AFTER);
        let now = server.cpu_seconds()?;
        if now - before < LOOK_AFTER.as_secs_f64() / 20.0 {
            break;
        }
        before = now;
    }
    Ok(())
}

fn speak(server: &Server, wire: Wire, rooms: usize, time: Duration) -> Result<Figures> {
    const MEMBERS: usize = 10;
    let mut fleet = Fleet::new(wire)?;
    let names: Vec<String> = (0..rooms).map(|room| format!("room:{room:04}")).collect();
    for name in &names {
        take_audience(&mut fleet, server, wire, name, MEMBERS)?;
    }
    let listeners = fleet.len();
    // In RESP2 a subscribed connection cannot publish, so each publishes on a second one.
    for _ in 0..listeners {
        fleet.take(wire.connect(server.port)?)?;
    }
    let payload = payload();
    let batches: Vec<Vec<u8>> = names
        .iter()
        .map(|name| [wire.publish(name, &payload).as_slice(), wire.after_batch()].concat())
        .collect();
    let message_len = names.first().map_or(0, |name| wire.message_len(name, &payload));
    let reply_len = wire.reply_len(1, MEMBERS);
    let mut owed = vec![reply_len; listeners];
    let mut answered = histogram()?;
    let batch_of = |speaker: usize| batches.get(speaker / MEMBERS).map_or(&[][..], Vec::as_slice);
    let mut post = Post::new(rooms, MEMBERS, message_len)?;
    let stretch = Stretch::begin(server)?;
    let mut sent_at = vec![stretch.started; listeners];
    for speaker in 0..listeners {
        post.sent(speaker / MEMBERS, Instant::now());
        fleet.send(listeners + speaker, batch_of(speaker))?;
    }
    let (mut said, mut under_way, mut delivered) = (listeners, listeners, 0);
    while under_way > 0 || delivered < said * MEMBERS * message_len {
        fleet.poll_owed()?;
        let now = Instant::now();
        let goes_on = stretch.started.elapsed() < time;
        for (number, length) in std::mem::take(&mut fleet.came) {
            let Some(speaker) = number.checked_sub(listeners) else {
                delivered += length;
                post.record_received(number, length, now);
                continue;
            };
            let Some(owed) = owed.get_mut(speaker) else { continue };
            ensure!(length <= *owed, "a speaker received more replies than it has requests");
            *owed -= length;
            if *owed > 0 {
                continue;
            }
            if let Some(sent) = sent_at.get_mut(speaker) {
                answered.saturating_record(micros(std::mem::replace(sent, now), now));
            }
            if goes_on {
                *owed = reply_len;
                said += 1;
                post.sent(speaker / MEMBERS, now);
                fleet.send(number, batch_of(speaker))?;
            } else {
                under_way -= 1;
            }
        }
    }
    ensure!(delivered == said * MEMBERS * message_len, "{delivered} bytes came");
    let figures = stretch.end(server, said * MEMBERS)?;
    let latency_us = Some(post.latencies(said * MEMBERS)?);
    Ok(Figures { latency_us, answer_us: Some(answered), ..figures })
}

fn idle(server: &Server, wire: Wire, connections: usize) -> Result<Figures> {
    const FIRST: usize = 100;
    let mut fleet = Fleet::new(wire)?;
    // What the first ones take is not theirs alone: buffers, tables, threads.
    for number in 0..FIRST {
        take_audience(&mut fleet, server, wire, &format!("first:{number}"), 1)?;
    }
    let before = server.resident_bytes()?;
    let stretch = Stretch::begin(server)?;
    for number in 0..connections {
        take_audience(&mut fleet, server, wire, &format!("own:{number}"), 1)?;
    }
    let bytes_each = (server.resident_bytes()? - before) / connections as f64;
    Ok(Figures { bytes_each: Some(bytes_each), ..stretch.end(server, connections)? })
}

fn churn(server: &Server, wire: Wire, at_a_time: usize, time: Duration) -> Result<Figures> {
    let names: Vec<String> = (0..10).map(|number| format!("channel:{number}")).collect();
    let subscribe = wire.subscribe(&names, names.len());
    let stretch = Stretch::begin(server)?;
    let cycles = std::thread::scope(|scope| {
        let come_and_go = || -> Result<usize> {
            let mut cycles = 0;
            while stretch.started.elapsed() < time {
                ask(&mut wire.connect(server.port)?, &subscribe)?;
                cycles += 1;
            }
            Ok(cycles)
        };
        let threads: Vec<_> = (0..at_a_time).map(|_| scope.spawn(come_and_go)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
            .sum::<Result<usize>>()
    })?;
    stretch.end(server, cycles)
}

fn publish_beside_patterns(
    server: &Server,
    wire: Wire,
    patterns: usize,
    all_match: bool,
    time: Duration,
) -> Result<Figures> {
    const CHANNEL: &str = "quotes:1";
    const EACH: usize = 1_000;
    let mut listeners = Vec::new();
    let all: Vec<String> = (0..patterns)
        .map(|number| match all_match {
            // As many ways to say the same.
            true => format!("quotes:{}1", "*".repeat(number + 1)),
            false => format!("prices:{number:06}:*"),
        })
        .collect();
    for some in all.chunks(EACH) {
        let mut stream = wire.connect(server.port)?;
        ask(&mut stream, &wire.psubscribe(some, some.len()))?;
        listeners.push(stream);
    }
    let mut fleet = Fleet::new(wire)?;
    for stream in listeners {
        fleet.take(stream)?;
    }
    let publisher = fleet.take(wire.connect(server.port)?)?;
    const DEPTH: usize = 64;
    let payload = payload();
    let receivers = if all_match { patterns } else { 0 };
    let batch = wire.publish(CHANNEL, &payload).repeat(DEPTH);
    let reply_len = wire.reply_len(DEPTH, receivers);
    let lengths = all.iter().map(|pattern| wire.pmessage_len(pattern, CHANNEL, &payload));
    let received_len = if all_match { DEPTH * lengths.sum::<usize>() } else { 0 };
    let stretch = Stretch::begin(server)?;
    let mut rounds = 0;
    while rounds == 0 || stretch.started.elapsed() < time {
        fleet.send(publisher, &batch)?;
        let (mut replied, mut received) = (0, 0);
        while replied < reply_len || received < received_len {
            fleet.poll_owed()?;
            for &(number, length) in &fleet.came {
                if number == publisher {
                    replied += length;
                } else {
                    received += length;
                }
            }
        }
        ensure!((replied, received) == (reply_len, received_len), "more came than was owed");
        rounds += 1;
    }
    stretch.end(server, rounds * DEPTH * receivers.max(1))
}
