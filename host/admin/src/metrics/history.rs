//! The metrics of the history and the presence of channels.

use std::fmt;

use super::page::{NONE, Page};
use switchyard_hub::Hub;

/// Absent while no channel rule gives a channel history or presence.
pub fn history(page: &mut Page<'_, '_>, hub: &Hub) -> fmt::Result {
    let history = hub.history();
    let is_on = history.is_on();
    let totals = is_on.then(|| history.totals());
    page.gauges(
        "switchyard_history_streams",
        "Channels with a history, those that hold nothing included.",
        totals.iter().map(|totals| (NONE, totals.streams as f64)),
    )?;
    page.gauges(
        "switchyard_history_messages",
        "Messages in the histories of all channels.",
        totals.iter().map(|totals| (NONE, totals.messages as f64)),
    )?;
    page.gauges(
        "switchyard_history_bytes",
        "What the histories of all channels count against history.bytes_max.",
        totals.iter().map(|totals| (NONE, totals.counted_bytes as f64)),
    )?;
    page.counters(
        "switchyard_history_evictions",
        "What was dropped to stay within the bounds of all histories: whole histories that held \
         nothing (idle), whole histories (stream), and messages of one that passed the bound alone \
         (message).",
        totals.iter().flat_map(|totals| {
            let evicted = &totals.evictions;
            [
                ([("what", "idle")], evicted.idle_streams),
                ([("what", "stream")], evicted.streams),
                ([("what", "message")], evicted.oldest_messages),
            ]
        }),
    )?;
    page.counters(
        "switchyard_resumes",
        "RESUMEs by outcome: recovered, or why not; first: without a position.",
        history
            .resumes()
            .into_iter()
            .filter(|_| is_on)
            .map(|(outcome, count)| ([("outcome", outcome)], count)),
    )?;
    page.gauges(
        "switchyard_blocked_readers",
        "Connections of Redis clients that wait for a message by XREAD BLOCK.",
        is_on.then(|| (NONE, hub.stream_readers().count() as f64)),
    )?;
    let (keys, forgotten) = history.keys();
    page.gauge(
        "switchyard_idempotency_keys",
        "Keys of publications that are remembered.",
        keys as f64,
    )?;
    page.counters(
        "switchyard_idempotency_keys_forgotten",
        "Keys that were forgotten early because there were too many.",
        [(NONE, forgotten)],
    )?;
    let presence = hub.presence();
    let totals = presence.is_on().then(|| presence.totals());
    page.gauges(
        "switchyard_presence_rooms",
        "Channels with members or watchers.",
        totals.iter().map(|totals| (NONE, totals.rooms as f64)),
    )?;
    page.gauges(
        "switchyard_presence_members",
        "Members of all channels.",
        totals.iter().map(|totals| (NONE, totals.members as f64)),
    )?;
    page.gauges(
        "switchyard_presence_watchers",
        "Connections that watch a channel, once for each channel.",
        totals.iter().map(|totals| (NONE, totals.watchers as f64)),
    )?;
    page.gauges(
        "switchyard_presence_bytes",
        "What members and watchers take, about.",
        totals.iter().map(|totals| (NONE, totals.bytes as f64)),
    )
}
