//! The metrics of the histories on disk.

use std::fmt;

use super::page::{NONE, Page};
use switchyard_hub::Hub;

/// Absent while histories are in memory only.
pub fn history_store(page: &mut Page<'_, '_>, hub: &Hub) -> fmt::Result {
    let status = hub.history().store().map(|store| store.status());
    let status = status.as_ref();
    page.gauges(
        "switchyard_history_store_bytes",
        "The size of the files in history.directory.",
        status.map(|status| (NONE, status.disk_bytes as f64)),
    )?;
    page.gauges(
        "switchyard_history_store_pending_channels",
        "Channels with changes that are not written yet.",
        status.map(|status| (NONE, status.pending as f64)),
    )?;
    page.gauges(
        "switchyard_history_store_age_seconds",
        "The time since everything there was had been written: what a crash now would lose.",
        status.map(|status| (NONE, status.age.as_secs_f64())),
    )?;
    page.counters(
        "switchyard_history_store_messages",
        "Messages written to history.directory.",
        status.map(|status| (NONE, status.messages)),
    )?;
    page.counters(
        "switchyard_history_store_written_bytes",
        "Bytes given to the database in history.directory, before what it adds.",
        status.map(|status| (NONE, status.written_bytes)),
    )?;
    page.counters(
        "switchyard_history_store_failures",
        "Writes to history.directory that failed. They are tried again.",
        status.map(|status| (NONE, status.failures)),
    )
}
