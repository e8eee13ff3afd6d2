//! Measures what looking for a channel's rule costs:
//!
//!     cargo run --profile production --package switchyard-config --example channel_rules
//!
//! Prints the time of one call for a name of 20 bytes, by the shape of the patterns.

use std::hint::black_box;
use std::time::Instant;

use switchyard_config::{ChannelRule, ChannelRules};

const CALLS: u32 = 100_000;
const ROUNDS: usize = 5;

/// A title, the pattern of each rule, and the name that is looked for.
type Shape = (&'static str, fn(usize) -> String, &'static str);

fn main() {
    println!("{:<44} {:>8} {:>10}", "rules", "matches", "ns");
    measure("none", 0, |_| String::new(), "chat.room.0000000042");
    let shapes: [Shape; 8] = [
        ("app-NN.*, another beginning", |n| format!("app-{n:02}.*"), "chat.room.0000000042"),
        ("app-NN.*, a beginning in common", |n| format!("app-{n:02}.*"), "app-9.room.000000042"),
        ("*.app-NN, a name with another end", |n| format!("*.app-{n:02}"), "chat.room.0000000042"),
        ("literal names", |n| format!("chat.room.{n:010}"), "chat.room.0000000142"),
        ("100 first bytes", first_byte, "~hat.room.0000000042"),
        ("app-NN.*, the last matches", |n| format!("app-{n:02}.*"), "app-99.room.00000042"),
        ("chat.*xNN*42: each is tried", |n| format!("chat.*x{n:02}*42"), "chat.room.0000000042"),
        ("*NN*: each is tried", |n| format!("*-{n:02}*"), "chat.room.0000000042"),
    ];
    for (shape, pattern, name) in shapes {
        measure(shape, 100, pattern, name);
    }
}

/// A pattern for each byte from 20 to 119.
fn first_byte(n: usize) -> String {
    let byte = u8::try_from(n + 20).unwrap_or_default();
    format!("\\{}*", char::from(byte))
}

fn measure(shape: &str, rules: usize, pattern: fn(usize) -> String, name: &str) {
    assert_eq!(name.len(), 20);
    let rule = |n| ChannelRule { match_: vec![pattern(n)], history: None, presence: None };
    let rules = ChannelRules::new((0..rules).map(rule).collect());
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..CALLS {
            black_box(rules.find(black_box(name.as_bytes())));
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    let matches = rules.find(name.as_bytes()).is_some();
    println!("{shape:<44} {matches:>8} {best:>10.1}");
}
