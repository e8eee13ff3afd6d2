//! The load generator against the server: a short run of each kind of scenario. It
//! fails by itself when a byte is missing or one too many comes.

use std::path::Path;
use std::process::Command;

#[test]
fn every_kind_of_scenario_ends_with_all_that_was_owed() {
    let load = Path::new(env!("CARGO_BIN_EXE_load"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is a member");
    let output = Command::new(load)
        .arg("--quick")
        .arg("--root")
        .arg(root)
        .arg("--switchyard")
        .arg(load.with_file_name("switchyard"))
        .output()
        .expect("it can be started");
    let printed = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{complaint}");
    assert!(!printed.contains("failed"), "{printed}");
    // Eight scenarios with two rows each.
    let rows = printed.lines().filter(|line| line.starts_with("| switchyard/")).count();
    assert_eq!(rows, 16, "{printed}");
}
