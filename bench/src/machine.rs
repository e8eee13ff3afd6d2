//! Where and of what the numbers are: without that they cannot be compared.
//!
//! What a system does not report is `unknown`; nothing is measured wrongly for it.

use std::fs;
use std::process::Command;
use std::thread;

/// The versions that were built.
const LOCKED: &str = include_str!("../../Cargo.lock");

/// The day, the machine, and how busy it is with other things.
pub fn facts() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{}; {}, {cores} cores; Linux {}; load {}",
        date(),
        cpu(),
        read("/proc/sys/kernel/osrelease"),
        read("/proc/loadavg").split(' ').next().unwrap_or(UNKNOWN),
    )
}

/// Which version of a package was built.
pub fn version_of(package: &str) -> &'static str {
    let entry = format!("name = \"{package}\"\nversion = \"");
    LOCKED
        .split_once(&entry)
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or(UNKNOWN, |(version, _)| version)
}

const UNKNOWN: &str = "unknown";

fn date() -> String {
    let printed = Command::new("date").args(["--utc", "+%Y-%m-%d %H:%M UTC"]).output();
    let text = printed.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    text.map_or_else(|| UNKNOWN.to_owned(), |text| text.trim().to_owned())
}

fn cpu() -> String {
    read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "unknown processor".to_owned(), |(_, model)| model.to_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| UNKNOWN.to_owned(), |text| text.trim().to_owned())
}
