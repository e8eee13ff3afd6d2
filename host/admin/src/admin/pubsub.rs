//! Subscriptions on this node or on all nodes: `PUBSUB` for operators.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use percent_encoding::percent_decode_str;

use super::Admin;
use super::error::ApiError;
use super::view::{ChannelsView, CountsView, Name, NodesView, PatternsView, SubscribersView};
use switchyard_backplane::{self as backplane, Answer, Question, Text};

/// How many channels one request may name.
const CHANNELS_MAX: usize = 1_000;

/// The parameters of a request.
#[derive(Default)]
struct Wanted {
    matching: Option<Vec<u8>>,
    channels: Vec<Vec<u8>>,
    is_shard: bool,
    of_all_nodes: bool,
}

/// The responses of several nodes.
struct Answers {
    of_each: Vec<Answer>,
    nodes: NodesView,
}

/// `GET /v1/pubsub/channels`
pub async fn channels(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<ChannelsView>, ApiError> {
    let Wanted { matching, is_shard, of_all_nodes, .. } = read(query, &["matching", "shard"])?;
    let question = Question::Channels { is_shard, matching: matching.map(Text) };
    let Answers { of_each, nodes } = ask(&admin, question, of_all_nodes).await?;
    let (mut all, mut is_any_cut) = (BTreeSet::new(), false);
    for answer in of_each {
        if let Answer::Names { names, is_cut } = answer {
            is_any_cut |= is_cut;
            all.extend(names.into_iter().map(|Text(name)| name));
        }
    }
    let channels = all.iter().map(|name| Name::new(name)).collect();
    Ok(Json(ChannelsView { channels, is_cut: is_any_cut, nodes }))
}

/// `GET /v1/pubsub/numsub`
pub async fn subscribers(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<CountsView>, ApiError> {
    let Wanted { channels, is_shard, of_all_nodes, .. } = read(query, &["channel", "shard"])?;
    if !(1..=CHANNELS_MAX).contains(&channels.len()) {
        let words = format!("channel must be given, from once to {CHANNELS_MAX} times");
        return Err(ApiError::bad_request(words));
    }
    let names = channels.iter().cloned().map(Text).collect();
    let question = Question::SubscriberCounts { is_shard, channels: names };
    let Answers { of_each, nodes } = ask(&admin, question, of_all_nodes).await?;
    let mut sums = vec![0; channels.len()];
    for answer in of_each {
        if let Answer::Counts(counts) = answer {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
    let view = |(channel, subscribers): (&Vec<u8>, u64)| SubscribersView {
        channel: Name::new(channel),
        subscribers,
    };
    Ok(Json(CountsView { counts: channels.iter().zip(sums).map(view).collect(), nodes }))
}

/// `GET /v1/pubsub/numpat`
pub async fn patterns(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<PatternsView>, ApiError> {
    let Wanted { of_all_nodes, .. } = read(query, &[])?;
    let Answers { of_each, nodes } = ask(&admin, Question::PatternCount, of_all_nodes).await?;
    let count = |answer| if let Answer::Count(count) = answer { count } else { 0 };
    Ok(Json(PatternsView { patterns: of_each.into_iter().map(count).sum(), nodes }))
}

/// The response of this node, or of all nodes that respond in time.
async fn ask(admin: &Admin, question: Question, of_all_nodes: bool) -> Result<Answers, ApiError> {
    let hub = &admin.services.hub;
    let of_each = match &admin.services.backplane {
        Some(backplane) if of_all_nodes => {
            let answers = backplane.ask_all(hub, question).await;
            answers.into_iter().map(|answer| answer.answer).collect()
        }
        // Without a backplane, this node is all of them.
        _ => vec![backplane::answer(hub.clone(), question).await],
    };
    let unavailable = of_each.iter().filter(|answer| **answer == Answer::Unavailable).count();
    if unavailable == of_each.len() {
        let words = "the engine is not available";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", words));
    }
    let nodes = NodesView { answered: of_each.len() - unavailable, unavailable };
    Ok(Answers { of_each, nodes })
}

/// Parses a query whose names may be any bytes, percent-encoded.
fn read(query: Option<String>, keys: &[&str]) -> Result<Wanted, ApiError> {
    let mut wanted = Wanted::default();
    for (key, value) in pairs(&query.unwrap_or_default()) {
        match key {
            "all" => wanted.of_all_nodes = flag(key, &value)?,
            "shard" if keys.contains(&key) => wanted.is_shard = flag(key, &value)?,
            "matching" if keys.contains(&key) => wanted.matching = Some(value),
            "channel" if keys.contains(&key) => wanted.channels.push(value),
            _ => {
                let known = ["all"].iter().chain(keys).copied().collect::<Vec<_>>().join(", ");
                return Err(ApiError::bad_request(format!("\"{key}\" is none of {known}")));
            }
        }
    }
    Ok(wanted)
}

/// The parameters of a query. Values may be any bytes.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, Vec<u8>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key, percent_decode_str(&value.replace('+', " ")).collect())
    })
}

fn flag(key: &str, value: &[u8]) -> Result<bool, ApiError> {
    match value {
        b"true" => Ok(true),
        b"false" => Ok(false),
        _ => Err(ApiError::bad_request(format!("{key} must be true or false"))),
    }
}
