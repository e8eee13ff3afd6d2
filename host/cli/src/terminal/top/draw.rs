//! Draws a reading.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

use super::super::bench::grouped;
use super::reading::{Budget, Holder, Hook, Memory, Plugin, Rates, Reading, Swap};

/// How many rates are kept, one per column.
const HISTORY_MAX: usize = 512;

/// The displayed state.
pub struct View {
    url: String,
    reading: Reading,
    rates: Option<Rates>,
    /// The rates of each plugin, in the order of the reading.
    plugin_rates: Vec<PluginRates>,
    commands: VecDeque<u64>,
    bytes_written: VecDeque<u64>,
    /// Why the last poll failed.
    problem: Option<String>,
}

/// The rates of a plugin.
#[derive(Debug, Clone, Copy, Default)]
struct PluginRates {
    items: f64,
    refused: f64,
}

impl View {
    /// The state after the first poll.
    pub fn new(url: &str, reading: Reading) -> View {
        View {
            url: url.to_owned(),
            plugin_rates: vec![PluginRates::default(); reading.plugins.len()],
            reading,
            rates: None,
            commands: VecDeque::new(),
            bytes_written: VecDeque::new(),
            problem: None,
        }
    }

    /// Updates the state after a poll.
    pub fn update(&mut self, reading: anyhow::Result<Reading>) {
        match reading {
            Ok(reading) => {
                let rates = reading.rates_since(&self.reading);
                remember(&mut self.commands, rates.commands);
                remember(&mut self.bytes_written, rates.bytes_written);
                self.rates = Some(rates);
                let seconds = (reading.at - self.reading.at).as_secs_f64().max(1e-9);
                let before = &self.reading.plugins;
                self.plugin_rates =
                    reading.plugins.iter().map(|now| plugin_rates(now, before, seconds)).collect();
                self.reading = reading;
                self.problem = None;
            }
            Err(problem) => self.problem = Some(format!("{problem:#}")),
        }
    }

    /// Draws everything that fits.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let plugins = self.reading.plugins.len().max(1) as u16 + 2;
        let [title, rates, curves, people, plugin_area, swaps] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(2),
            Constraint::Length(4),
            Constraint::Length(5),
            Constraint::Max(plugins),
            Constraint::Min(0),
        ])
        .areas(frame.area());
        self.draw_title(frame, title);
        self.draw_rates(frame, rates);
        self.draw_curves(frame, curves);
        self.draw_people(frame, people);
        self.draw_plugins(frame, plugin_area);
        self.draw_swaps(frame, swaps);
    }

    fn draw_title(&self, frame: &mut Frame<'_>, area: Rect) {
        let stats = &self.reading.stats;
        let mut title = Line::from(vec![
            Span::from(format!("switchyard {}", stats.version)).bold(),
            Span::from(format!("  {}  up {}", self.url, ago(stats.uptime_ms))),
        ]);
        match &self.problem {
            Some(problem) => title.push_span(Span::from(format!("  {problem}")).red()),
            None => title.push_span(Span::from("  q ends").dim()),
        }
        frame.render_widget(Paragraph::new(title), area);
    }

    fn draw_rates(&self, frame: &mut Frame<'_>, area: Rect) {
        let names = ["commands/s", "publications/s", "deliveries/s", "bytes in/s", "bytes out/s"];
        let rates = self.rates.unwrap_or_default();
        let is_known = self.rates.is_some();
        let count =
            |rate: f64| if is_known { grouped(rate.round() as u64) } else { "-".to_owned() };
        let values = [
            count(rates.commands),
            rates.publications.map_or("-".to_owned(), count),
            rates.deliveries.map_or("-".to_owned(), count),
            if is_known { bytes(rates.bytes_read) } else { "-".to_owned() },
            if is_known { bytes(rates.bytes_written) } else { "-".to_owned() },
        ];
        let rows = [
            Row::new(names.map(|name| right(name.into()))).dim(),
            Row::new(values.map(right)).bold(),
        ];
        frame.render_widget(Table::new(rows, [Constraint::Fill(1); 5]), area);
    }

    fn draw_curves(&self, frame: &mut Frame<'_>, area: Rect) {
        let [left, between, right] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(2), Constraint::Fill(1)])
                .areas(area);
        let _ = between;
        for (area, name, values, color) in [
            (left, "commands/s", &self.commands, Color::Cyan),
            (right, "bytes out/s", &self.bytes_written, Color::Green),
        ] {
            let skipped = values.len().saturating_sub(usize::from(area.width));
            let seen: Vec<u64> = values.iter().skip(skipped).copied().collect();
            let block = Block::new().borders(Borders::TOP).title(name).dim();
            let curve = Sparkline::default().data(seen).style(Style::new().fg(color)).block(block);
            frame.render_widget(curve, area);
        }
    }

    fn draw_people(&self, frame: &mut Frame<'_>, area: Rect) {
        let stats = &self.reading.stats;
        let unknown = |count: Option<u64>| count.map_or("-".to_owned(), grouped);
        let doors = self.reading.doors.iter().flatten();
        let doors: Vec<_> = doors.map(|(door, count)| format!("{door} {count}")).collect();
        let doors =
            if doors.is_empty() { String::new() } else { format!(" ({})", doors.join(", ")) };
        let opened =
            self.rates.map_or("-".to_owned(), |rates| grouped(rates.connections.round() as u64));
        let connections = Line::from(vec![
            Span::from("connections ").dim(),
            Span::from(grouped(stats.connections)).bold(),
            Span::from(format!(
                "{doors}  opened {opened}/s  rejected {}  too slow {}",
                grouped(stats.connections_rejected),
                grouped(stats.outbox_overflows)
            )),
        ]);
        let engine = Line::from(vec![
            Span::from("engine ").dim(),
            Span::from(short(&stats.engine)),
            Span::from(format!(
                "  channels {}  patterns {}",
                unknown(stats.channels),
                unknown(stats.patterns)
            )),
        ]);
        let memory = self.reading.memory.iter().flat_map(memory);
        let lines: Vec<_> = [connections, engine].into_iter().chain(memory).collect();
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn draw_plugins(&self, frame: &mut Frame<'_>, area: Rect) {
        let names = ["plugin", "state", "items/s", "refused/s", "p50", "p99", "faults", "memory"];
        let header = Row::new(names.iter().enumerate().map(|(place, name)| {
            let name = Line::from(*name);
            Cell::from(if place < 2 { name } else { name.right_aligned() })
        }));
        let rows = self.reading.plugins.iter().zip(&self.plugin_rates).map(|(plugin, rates)| {
            // The hook with the most items determines the plugin's time.
            let busiest = plugin.stats.iter().max_by_key(|hook| hook.calls);
            let us = |time: Option<f64>| time.map_or("-".to_owned(), microseconds);
            let faults = plugin.stats.iter().map(|hook| hook.faults).sum::<u64>();
            let memory: u64 = plugin.memory_bytes.iter().flatten().sum();
            let state = Cell::from(plugin.state.as_str());
            Row::new([
                Cell::from(plugin.slot.as_str()).bold(),
                if plugin.state == "running" { state } else { state.red() },
                right(grouped(rates.items.round() as u64)),
                right(grouped(rates.refused.round() as u64)),
                right(us(busiest.and_then(|hook| hook.time.p50_us))),
                right(us(busiest.and_then(|hook| hook.time.p99_us))),
                if faults == 0 { right("0".into()) } else { right(grouped(faults)).red() },
                right(bytes(memory as f64)),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(10),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(6),
            Constraint::Length(8),
        ];
        let table = Table::new(rows, widths).header(header.dim());
        frame.render_widget(table, area);
    }

    fn draw_swaps(&self, frame: &mut Frame<'_>, area: Rect) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
        let mut swaps: Vec<&Swap> = self.reading.stats.swaps.iter().collect();
        swaps.sort_by_key(|swap| std::cmp::Reverse(swap.at_ms));
        let pauses = &self.reading.stats.swap_pauses;
        let us = |time: Option<f64>| time.map_or("-".to_owned(), microseconds);
        let mut lines = vec![
            Line::from(format!(
                "last changes (pauses p50 {}, p99 {})",
                us(pauses.p50_us),
                us(pauses.p99_us)
            ))
            .dim(),
        ];
        if swaps.is_empty() {
            lines.push(Line::from("none since the server began"));
        }
        lines.extend(swaps.into_iter().map(|swap| {
            let names: Vec<_> = [&swap.from, &swap.to].into_iter().flatten().collect();
            let names: Vec<_> = names.into_iter().map(|name| short(name)).collect();
            let since = u64::try_from(now).unwrap_or(u64::MAX).saturating_sub(swap.at_ms);
            Line::from(vec![
                Span::from(format!("{:>9} ago  ", ago(since))).dim(),
                Span::from(format!("{} ", swap.kind)),
                Span::from(swap.slot.clone().unwrap_or_default()).bold(),
                Span::from(format!(
                    "  {}  paused {}",
                    names.join(" to "),
                    microseconds(swap.pause_us as f64)
                )),
            ])
        }));
        frame.render_widget(Paragraph::new(lines), area);
    }
}

/// How much memory is used and for what, and the connection that uses the most.
fn memory(memory: &Memory) -> [Line<'static>; 2] {
    let resident = bytes(memory.resident_bytes as f64);
    let resident = match memory.bytes_max {
        Some(limit) => format!("{resident} of {}", bytes(limit as f64)),
        None => resident,
    };
    let mut used = Line::from(vec![Span::from("memory ").dim(), Span::from(resident).bold()]);
    for Budget { budget, used_bytes, limit_bytes } in &memory.budgets {
        let percent = 100.0 * *used_bytes as f64 / (*limit_bytes).max(1) as f64;
        let text = Span::from(format!("  {} {percent:.0} %", budget.replace('_', " ")));
        used.push_span(if percent > 80.0 { text.red() } else { text });
    }
    let mut most = Line::default();
    let closed: u64 = memory.closed.iter().map(|closed| closed.closed).sum();
    if closed > 0 {
        most.push_span(Span::from(format!("closed for memory {}  ", grouped(closed))).red());
    }
    if let Some(holder) = memory.connections.first()
        && let Holder { connection: Some(connection), address, .. } = holder
    {
        let held = bytes((holder.outbox_bytes + holder.input_bytes + holder.name_bytes) as f64);
        most.push_span(Span::from(format!("#{connection} {address} holds {held}")));
    }
    [used, most]
}

fn remember(history: &mut VecDeque<u64>, rate: f64) {
    if history.len() == HISTORY_MAX {
        history.pop_front();
    }
    history.push_back(rate.round() as u64);
}

fn plugin_rates(now: &Plugin, before: &[Plugin], seconds: f64) -> PluginRates {
    let Some(before) = before.iter().find(|before| before.slot == now.slot) else {
        return PluginRates::default();
    };
    let sum = |plugin: &Plugin, of: fn(&Hook) -> u64| plugin.stats.iter().map(of).sum::<u64>();
    let rate = |of: fn(&Hook) -> u64| sum(now, of).saturating_sub(sum(before, of)) as f64 / seconds;
    let refused = |hook: &Hook| {
        let is_refusal = |verdict: &str| matches!(verdict, "reject" | "failed-closed");
        let refusals = hook.verdicts.iter().filter(|said| is_refusal(&said.verdict));
        refusals.map(|said| said.count).sum()
    };
    PluginRates { items: rate(|hook| hook.items), refused: rate(refused) }
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// A version with a shortened hash.
fn short(version: &str) -> String {
    let Some((name, hash)) = version.split_once('@') else {
        return version.chars().take(24).collect();
    };
    format!("{name}@{}", hash.chars().take(8).collect::<String>())
}

fn bytes(count: f64) -> String {
    let (mut count, mut unit) = (count, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if count < 1024.0 {
            break;
        }
        (count, unit) = (count / 1024.0, larger);
    }
    if unit == "B" { format!("{count:.0} {unit}") } else { format!("{count:.1} {unit}") }
}

fn microseconds(us: f64) -> String {
    if us < 1_000.0 { format!("{us:.0} µs") } else { format!("{:.1} ms", us / 1_000.0) }
}

fn ago(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_short() {
        assert_eq!(bytes(1023.0), "1023 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes(f64::from(1 << 30)), "1.0 GiB");
        assert_eq!(microseconds(12.3), "12 µs");
        assert_eq!(microseconds(1_234.0), "1.2 ms");
        assert_eq!(ago(59_999), "59 s");
        assert_eq!(ago(7_200_000), "2 h");
        assert_eq!(short("acl@0123456789abcdef"), "acl@01234567");
    }
}
