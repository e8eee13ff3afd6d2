//! Finds the engine that is embedded in the server.
//!
//! `make components` puts it there. Building it from here would start a second
//! cargo inside the first, on the same lock.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=SWITCHYARD_GUEST_CORE");
    let path = env::var_os("SWITCHYARD_GUEST_CORE").map_or_else(
        || {
            // Read when this runs: the compiled script may have been copied with `target/`.
            let here = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
            here.join("../../target/components/guest-core.wasm")
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", path.display());
    if path.is_file() {
        println!("cargo::rustc-env=SWITCHYARD_GUEST_CORE={}", path.display());
    } else {
        println!(
            "cargo::error=the engine component is not at {}: run `make components` first",
            path.display()
        );
    }
}
