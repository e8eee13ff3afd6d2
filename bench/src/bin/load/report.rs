//! What is printed: for each scenario a table with a row for each server, medians,
//! and ratios to the first peer.

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

/// Tables, as they come.
pub struct Report {
    file: Option<File>,
}

impl Report {
    /// Says where, when and how.
    pub fn begin(title: &str, path: Option<&Path>) -> Result<Report> {
        let file = path.map(|path| File::options().append(true).create(true).open(path));
        let mut report = Report { file: file.transpose()? };
        report.line(&format!("## {title}"))?;
        report.line("")?;
        report.line(&machine::facts())?;
        Ok(report)
    }

    /// A table.
    pub fn scenario(&mut self, scenario: Scenario, cells: &[Cell]) -> Result<()> {
        let counted = scenario.counts();
        self.line(&format!("\n### {}\n", scenario.name()))?;
        self.line(&format!(
            "| server | {counted}/s | CPU µs each | ÷ redis-server | ÷ bun | p50 µs | p99 µs | p99.9 µs | max µs | answer p99 µs | bytes each |"
        ))?;
        self.line("|---|---|---|---|---|---|---|---|---|---|---|")?;
        let cpu_of =
            |name: &str| cells.iter().find(|cell| cell.kind.name == name).map(Cell::cpu_us);
        let ratio = |cell: &Cell, peer: &str| {
            cpu_of(peer)
                .filter(|_| cell.kind.name != peer)
                .map_or_else(String::new, |peer| format!("{:.2}", cell.cpu_us() / peer))
        };
        for cell in cells {
            if let Some(failure) = &cell.failure {
                self.line(&format!(
                    "| {} | failed: {failure} | | | | | | | | | |",
                    cell.kind.name
                ))?;
                continue;
            }
            let bytes = cell.median(|run| run.bytes_each.unwrap_or(f64::NAN));
            self.line(&format!(
                "| {} | {} | {:.3} | {} | {} | {} | {} | {} | {} | {} | {} |",
                cell.kind.name,
                thousands(cell.median(|run| run.count / run.seconds)),
                cell.cpu_us(),
                ratio(cell, "redis-server"),
                ratio(cell, "bun"),
                cell.latency(0.5),
                cell.latency(0.99),
                cell.latency(0.999),
                cell.latency(1.0),
                cell.quantile(|run| run.answer_us.as_ref(), 0.99),
                if bytes.is_nan() { String::new() } else { thousands(bytes) },
            ))?;
        }
        Ok(())
    }

    fn line(&mut self, text: &str) -> Result<()> {
        println!("{text}");
        if let Some(file) = &mut self.file {
            writeln!(file, "{text}")?;
        }
        Ok(())
    }
}
