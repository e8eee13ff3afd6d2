//! Traces single messages: one line of JSON for each decision of a plugin, for as long as the
//! client stays connected.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::Admin;
use super::error::ApiError;
use super::view::{Name, TraceEventView, TraceLine, unix_ms};
use switchyard_middleware::trace::{TraceEvent, TraceSubscription, Wanted};

/// How often something is written, so that a closed connection is noticed.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How many lines wait for the client's socket. Above that they wait in the queue of
/// `admin.trace_queue_max`, where they are counted.
const LINES_MAX: usize = 16;

/// The filter: one of `connection` and `channel`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parameters {
    connection: Option<u64>,
    channel: Option<String>,
    /// Ends after this many events.
    count: Option<u64>,
}

/// `GET /v1/trace`
pub async fn stream(
    State(admin): State<Admin>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(parameters) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let wanted = match (parameters.connection, parameters.channel) {
        (Some(connection), None) => Wanted::Connection(connection),
        (None, Some(channel)) if !channel.is_empty() => Wanted::Channel(channel),
        _ => return Err(ApiError::bad_request("give either connection=ID or channel=GLOB")),
    };
    let subscription = admin.services.middleware.tracer().look(wanted).ok_or_else(|| {
        let words =
            format!("there are {} traces already (admin.traces_max)", admin.config.traces_max);
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-traces", words)
    })?;
    let (lines, queued) = mpsc::channel(LINES_MAX);
    tokio::spawn(write(subscription, parameters.count, lines, admin.ending));
    let headers = [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::new(Lines(queued))).into_response())
}

/// Writes lines until the client disconnects, the requested number was written, or the server ends.
async fn write(
    mut subscription: TraceSubscription,
    count: Option<u64>,
    lines: mpsc::Sender<Bytes>,
    mut ending: watch::Receiver<bool>,
) {
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.reset();
    let mut left = count.unwrap_or(u64::MAX);
    let mut next = Some(line(&TraceLine::Began));
    loop {
        if let Some(line) = next.take()
            && lines.send(line).await.is_err()
        {
            return;
        }
        if left == 0 {
            let ended =
                TraceLine::Ended { why: "the requested number of lines was sent".to_owned() };
            let _gone = lines.send(line(&ended)).await;
            return;
        }
        let dropped = subscription.take_dropped();
        if dropped > 0 {
            next = Some(line(&TraceLine::Dropped { count: dropped }));
            continue;
        }
        tokio::select! {
            event = subscription.next() => {
                let Some(event) = event else { return };
                left -= 1;
                next = Some(line(&TraceLine::Said(Box::new(view(event)))));
            }
            _ = heartbeat.tick() => next = Some(Bytes::from_static(b"\n")),
            () = lines.closed() => return,
            () = async { drop(ending.wait_for(|ending| *ending).await) } => {
                let ended = TraceLine::Ended { why: "the server is ending".to_owned() };
                let _gone = lines.send(line(&ended)).await;
                return;
            }
        }
    }
}

fn line(line: &TraceLine) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("it is JSON");
    text.push(b'\n');
    text.into()
}

fn view(event: TraceEvent) -> TraceEventView {
    let (code, message) = event.refusal.unzip();
    TraceEventView {
        at_ms: unix_ms(event.at),
        connection: event.connection,
        action: event.action.to_owned(),
        channel: event.channel.as_deref().map(Name::new),
        channel_after: event.channel_after.as_deref().map(Name::new),
        plugin: event.plugin.as_ref().to_owned(),
        hook: event.hook,
        verdict: event.verdict,
        code,
        message,
        took_us: event.took.as_nanos() as f64 / 1_000.0,
        items: event.items,
        bytes_before: event.bytes.map(|(before, _)| before),
        bytes_after: event.bytes.map(|(_, after)| after),
        recipients_before: event.recipients.map(|(before, _)| before),
        recipients_after: event.recipients.map(|(_, after)| after),
    }
}

/// The lines as a streamed body.
struct Lines(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Lines>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
