//! What is printed: for each scenario a table with a row for each server, medians, and ratios to the
//! peers. What is written to a file: a few tables with a row for each scenario.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use bench::machine;
use bench::table::thousands;
use hdrhistogram::Histogram;

use crate::scenarios::{Figures, Scenario};
use crate::server::Kind;

/// What the runs of one server in one scenario came to.
pub struct Cell {
    /// Which server.
    pub kind: Kind,
    /// Its runs.
    pub runs: Vec<Figures>,
    /// Why one of them failed.
    pub failure: Option<String>,
}

impl Cell {
    fn median(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        let mut values: Vec<f64> = self.runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn cpu_us(&self) -> f64 {
        self.median(|run| 1e6 * run.cpu_seconds / run.count)
    }

    fn latency(&self, quantile: f64) -> String {
        self.quantile(|run| run.latency_us.as_ref(), quantile)
    }

    fn quantile(&self, of: fn(&Figures) -> Option<&Histogram<u64>>, quantile: f64) -> String {
        let value = self
            .median(|run| of(run).map_or(f64::NAN, |all| all.value_at_quantile(quantile) as f64));
        if value.is_nan() { String::new() } else { thousands(value) }
    }
}

/// Prints a table for each scenario, and writes all scenarios in a few tables to a file.
pub struct Report {
    file: Option<File>,
    rows: Vec<(String, Vec<Summary>)>,
}

/// The medians of one server in one scenario.
struct Summary {
    server: &'static str,
    cpu_us: String,
    per_second: String,
    p99_us: String,
    bytes_each: String,
}

impl Summary {
    fn of(cell: &Cell) -> Summary {
        if cell.failure.is_some() {
            let [cpu_us, per_second, p99_us, bytes_each] = ["failed"; 4].map(str::to_owned);
            return Summary { server: cell.kind.name, cpu_us, per_second, p99_us, bytes_each };
        }
        let bytes = cell.median(|run| run.bytes_each.unwrap_or(f64::NAN));
        Summary {
            server: cell.kind.name,
            cpu_us: format!("{:.3}", cell.cpu_us()),
            per_second: thousands(cell.median(|run| run.count / run.seconds)),
            p99_us: cell.latency(0.99),
            bytes_each: if bytes.is_nan() { String::new() } else { thousands(bytes) },
        }
    }
}

impl Report {
    /// Says where, when and how.
    pub fn begin(title: &str, path: Option<&Path>) -> Result<Report> {
        let file = path.map(|path| File::options().append(true).create(true).open(path));
        let mut report = Report { file: file.transpose()?, rows: Vec::new() };
        let head = format!("## {title}\n\n{}", machine::facts());
        println!("{head}");
        report.write(&head)?;
        Ok(report)
    }

    /// Writes the tables to the file: a row for each scenario, a column for each server.
    pub fn finish(mut self) -> Result<()> {
        let mut servers: Vec<&str> = Vec::new();
        for summary in self.rows.iter().flat_map(|(_, summaries)| summaries) {
            if !servers.contains(&summary.server) {
                servers.push(summary.server);
            }
        }
        let table = |title: &str, of: fn(&Summary) -> &str| {
            let mut lines = format!("\n### {title}\n\n| scenario | {} |\n", servers.join(" | "));
            lines += &format!("{}|\n", "|---".repeat(servers.len() + 1));
            for (scenario, summaries) in &self.rows {
                let value = |server: &&str| {
                    summaries.iter().find(|one| one.server == *server).map_or("", of)
                };
                let values: Vec<&str> = servers.iter().map(value).collect();
                if values.iter().any(|value| !value.is_empty()) {
                    lines += &format!("| {scenario} | {} |\n", values.join(" | "));
                }
            }
            lines
        };
        let tables = [
            table("Processor time of the server for each unit, µs", |one| &one.cpu_us),
            table("Units per second", |one| &one.per_second),
            table("p99 of the latency, µs", |one| &one.p99_us),
            table("Resident memory, bytes each", |one| &one.bytes_each),
        ];
        self.write(&tables.concat())
    }

    fn write(&mut self, text: &str) -> Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{text}")?;
        }
        Ok(())
    }

    /// Prints a table for a scenario.
    pub fn scenario(&mut self, scenario: Scenario, cells: &[Cell]) {
        let counted = scenario.counts();
        self.rows.push((scenario.name(), cells.iter().map(Summary::of).collect()));
        println!("\n### {}\n", scenario.name());
        println!(
            "| server | {counted}/s | CPU µs each | ÷ redis-server | ÷ bun | p50 µs | p99 µs | p99.9 µs | max µs | answer p99 µs | bytes each |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|");
        let cpu_of =
            |name: &str| cells.iter().find(|cell| cell.kind.name == name).map(Cell::cpu_us);
        let ratio = |cell: &Cell, peer: &str| {
            cpu_of(peer)
                .filter(|_| cell.kind.name != peer)
                .map_or_else(String::new, |peer| format!("{:.2}", cell.cpu_us() / peer))
        };
        for cell in cells {
            if let Some(failure) = &cell.failure {
                println!("| {} | failed: {failure} | | | | | | | | | |", cell.kind.name);
                continue;
            }
            let Summary { server, cpu_us, per_second, p99_us, bytes_each } = Summary::of(cell);
            println!(
                "| {server} | {per_second} | {cpu_us} | {} | {} | {} | {p99_us} | {} | {} | {} | {bytes_each} |",
                ratio(cell, "redis-server"),
                ratio(cell, "bun"),
                cell.latency(0.5),
                cell.latency(0.999),
                cell.latency(1.0),
                cell.quantile(|run| run.answer_us.as_ref(), 0.99),
            );
        }
    }
}
