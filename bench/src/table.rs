//! Comparisons as text, for a terminal: one a line, as they come.

use crate::sides::Comparison;

/// What stands above the numbers.
pub fn print_head(unit: &str) {
    println!();
    println!(
        "{unit:<44}{:>10}{:>11}{:>8}{:>13}{:>9}",
        "native", "component", "ratio", "difference", "spread"
    );
}

/// A line of it.
pub fn print_line(what: &str, comparison: &Comparison) {
    let [native, component, difference] =
        [comparison.native, comparison.component, comparison.difference()].map(nanoseconds);
    println!(
        "  {what:<42}{native:>10}{component:>11}{ratio:>8.1}{difference:>13}{spread:>7.0} %",
        ratio = comparison.ratio(),
        spread = 100.0 * comparison.spread,
    );
}

/// With as many digits as are significant.
fn nanoseconds(value: f64) -> String {
    match value.abs() < 10.0 {
        true => format!("{value:.2}"),
        false => thousands(value),
    }
}

/// Rounded, with a comma after each thousand.
pub fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    match value < 0.0 {
        true => format!("-{text}"),
        false => text,
    }
}
