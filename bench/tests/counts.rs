//! What is done for each message takes no more instructions than it did.
//!
//! callgrind counts them in the program `counts`. It gives a program the same processor on every
//! machine, and counts the same each time. The profile `release` optimises little and builds
//! incrementally, which moves a count by some percent from build to build: this finds an
//! allocation or a copy too many, and `make bench-cost` finds the rest. `counts.txt` holds what is
//! expected; `SWITCHYARD_RENEW_COUNTS=1 make measure` rewrites it, for a change that is worth its
//! cost, and the commit says why.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a piece may take more than was written down, in per cent.
const MORE_MAX: f64 = 15.0;

/// Instructions, each, by piece.
type Counts = BTreeMap<String, f64>;

#[test]
fn no_piece_takes_more_instructions_than_it_did() {
    let counted = count();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("counts.txt");
    if std::env::var_os("SWITCHYARD_RENEW_COUNTS").is_some() {
        let lines: String =
            counted.iter().map(|(piece, count)| format!("{piece} {count:.0}\n")).collect();
        fs::write(&path, lines).expect("counts.txt can be written");
    }
    let text = fs::read_to_string(&path).expect("bench/counts.txt is there");
    let expected: Counts = text
        .lines()
        .map(|line| {
            let (piece, count) = line.split_once(' ').expect("a piece and a number");
            (piece.to_owned(), count.parse().expect("a number"))
        })
        .collect();
    let pieces: Vec<_> = counted.keys().collect();
    assert_eq!(pieces, expected.keys().collect::<Vec<_>>(), "counts.txt has other pieces");
    let mut too_many = Vec::new();
    for (piece, count) in &counted {
        let change = 100.0 * (count / expected[piece] - 1.0);
        println!("{piece:<24} {count:>8.0} instructions, {change:+.1} %");
        if change > MORE_MAX {
            too_many.push(format!("{piece}: {count:.0}, {change:+.1} %"));
        }
    }
    assert!(too_many.is_empty(), "more instructions than bench/counts.txt says: {too_many:?}");
}

fn count() -> Counts {
    let directory = tempfile::tempdir().expect("there is room");
    let out: PathBuf = directory.path().join("callgrind.out");
    let counted = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env!("CARGO_BIN_EXE_counts"))
        .output()
        .expect("valgrind can be started: `make tools` installs it");
    let complaint = String::from_utf8_lossy(&counted.stderr);
    assert!(counted.status.success(), "{complaint}");
    let times: f64 = String::from_utf8_lossy(&counted.stdout).trim().parse().expect("a number");
    let annotated = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--threshold=100", "--show-percs=no", "--auto=no"])
        .arg(&out)
        .output()
        .expect("it comes with valgrind");
    let text = String::from_utf8_lossy(&annotated.stdout);
    let mut counts = Counts::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once("measured_") else { continue };
        let piece = after.split(|c: char| !c.is_ascii_lowercase() && c != '_').next();
        let instructions: String = before.chars().take_while(|c| *c != '?' && *c != '/').collect();
        let digits: String = instructions.chars().filter(char::is_ascii_digit).collect();
        if let (Some(piece), Ok(total)) = (piece, digits.parse::<f64>()) {
            counts.entry(piece.to_owned()).or_insert(total / times);
        }
    }
    assert!(!counts.is_empty(), "nothing was counted: {text}");
    counts
}
