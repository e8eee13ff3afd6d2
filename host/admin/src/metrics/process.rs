//! The process metrics, under the names that Prometheus' own libraries use.
//!
//! Values that the system does not report are left out.

use std::fmt;
use std::time::SystemTime;

use rustix::time::{ClockId, clock_gettime};

use super::page::{NONE, Page};
use switchyard_telemetry::process::{Status, open_descriptors};

/// Writes the metrics of the process, which was started at `started`.
pub fn write(page: &mut Page<'_, '_>, started: SystemTime) -> fmt::Result {
    let began = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    page.gauge(
        "process_start_time_seconds",
        "When the process began, in seconds since 1970.",
        began.as_secs_f64(),
    )?;
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    page.counters(
        "process_cpu_seconds",
        "Processor time that the process has used.",
        [(NONE, cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9)],
    )?;
    let status = Status::read();
    let field = |name| status.number(name).map(|number| number as f64);
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Memory that the process holds.", "VmRSS"),
        ("process_virtual_memory_bytes", "Virtual memory of the process.", "VmSize"),
    ] {
        // The kernel's kB are of 1024 bytes.
        page.gauges(name, help, field(value).map(|kibibytes| (NONE, kibibytes * 1024.0)))?;
    }
    page.gauges(
        "process_threads",
        "Threads of the process.",
        field("Threads").map(|threads| (NONE, threads)),
    )?;
    let open = open_descriptors().map(|open| (NONE, open as f64));
    page.gauges("process_open_fds", "Open files and sockets.", open)?;
    page.gauges(
        "process_max_fds",
        "How many files and sockets may be open.",
        max_fds().map(|max| (NONE, max)),
    )
}

fn max_fds() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
