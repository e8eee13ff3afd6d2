//! Checks in which direction the server's crates and their modules import each other.
//!
//! Cargo refuses cycles between crates. This finds those between the top-level modules of each
//! crate below `host/`, and crates that need a package that they must build without. It reads
//! source text: `crate::module` in any file, and `super::module` in the file of a top-level module.
//! Unit tests may import anything; the tests below `host/tests` see the server from outside only.
//!
//! `make check` runs it. It prints each cycle that it finds, and then fails.

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{fs, io};

/// Crates, and the packages that they must build without.
const WITHOUT: [(&str, &[&str]); 3] = [
    ("switchyard-types", &["tokio", "serde", "wasmtime", "axum", "redis", "async-nats"]),
    ("switchyard-protocol", &["tokio", "wasmtime", "axum", "redis", "async-nats"]),
    ("switchyard-hub", &["wasmtime", "axum", "redis", "async-nats"]),
];

/// What the tests below `host/tests` may import of the server's crates: the generators of random input,
/// and the test client that plugin authors use.
const TESTS_MAY_IMPORT: [&str; 5] = [
    "switchyard_cli::authors::conversation",
    "switchyard_protocol::fuzzing",
    "switchyard_protocol::json::fuzzing",
    "switchyard_protocol::resp::fuzzing",
    "switchyard_test_support",
];

/// For each module, the modules that it imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn main() -> ExitCode {
    match check(Path::new("host")) {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            problems.iter().for_each(|problem| eprintln!("crate-check: {problem}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("crate-check: {error}; run it in the root of the repository");
            ExitCode::FAILURE
        }
    }
}

fn check(host: &Path) -> io::Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut crates: Vec<PathBuf> = vec![host.join("src")];
    for entry in fs::read_dir(host)? {
        let source = entry?.path().join("src");
        if source.join("lib.rs").is_file() {
            crates.push(source);
        }
    }
    crates.sort();
    for source in crates {
        if let Some(cycle) = cycle_in(&imports_of(&source)?) {
            let cycle = cycle.join(" → ");
            problems.push(format!("{} imports in a circle: {cycle}", source.display()));
        }
    }
    for (file, import) in imports_of_tests(&host.join("tests"))? {
        problems.push(format!("{}: a black-box test imports {import}", file.display()));
    }
    for (name, unwanted) in WITHOUT {
        let needs = packages_of(name)?;
        for package in unwanted.iter().filter(|package| needs.contains(**package)) {
            problems.push(format!("{name} must build without {package}"));
        }
    }
    Ok(problems)
}

/// The packages that a crate is built with.
fn packages_of(name: &str) -> io::Result<BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--package", name, "--edges", "normal", "--prefix", "none"])
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    Ok(lines.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

/// What tests import of the server's crates and may not.
fn imports_of_tests(tests: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    for path in files_in(tests)? {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let unwanted = text.lines().filter_map(forbidden_import).map(str::to_owned);
            found.extend(unwanted.map(|import| (path.clone(), import)));
        }
    }
    Ok(found)
}

/// All files below a folder.
fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    Ok(files)
}

/// The path that a line imports of the server's crates, if a black-box test may not.
fn forbidden_import(line: &str) -> Option<&str> {
    let line = line.trim_start().trim_start_matches("pub ");
    let path = line.strip_prefix("use ")?;
    let is_allowed = TESTS_MAY_IMPORT.iter().any(|start| path.starts_with(start));
    (path.starts_with("switchyard_") && !is_allowed).then_some(path)
}

/// What the top-level modules of the crate in this folder import of each other.
fn imports_of(source: &Path) -> io::Result<Imports> {
    let mut imports = Imports::new();
    for path in files_in(source)? {
        let inside = path.strip_prefix(source).unwrap_or(&path);
        let Some(module) = module_of(inside) else { continue };
        if is_test(&path) {
            continue;
        }
        let is_top_level = inside.components().count() == 1 || inside.ends_with("mod.rs");
        let text = fs::read_to_string(&path)?;
        let found = imports.entry(module).or_default();
        found.extend(imports::after(&text, "crate::"));
        if is_top_level {
            found.extend(imports::after(&text, "super::"));
        }
    }
    let modules: BTreeSet<String> = imports.keys().cloned().collect();
    for (module, found) in &mut imports {
        found.retain(|other| other != module && modules.contains(other));
    }
    Ok(imports)
}

/// The top-level module that a file belongs to; none: the root of the crate, a test, or no Rust.
fn module_of(inside: &Path) -> Option<String> {
    let name = inside.file_name()?.to_str()?;
    if !name.ends_with(".rs") || name == "tests.rs" {
        return None;
    }
    let first = inside.components().next()?.as_os_str().to_str()?;
    match first.trim_end_matches(".rs") {
        "lib" | "main" => None,
        module => Some(module.to_owned()),
    }
}

/// Whether a file is a module for tests only: one that is declared so in the file above it.
fn is_test(path: &Path) -> bool {
    let (Some(folder), Some(name)) = (path.parent(), path.file_stem().and_then(|n| n.to_str()))
    else {
        return false;
    };
    let declaration = format!("#[cfg(test)]\nmod {name};");
    let above = [folder.with_extension("rs"), folder.join("mod.rs"), folder.join("lib.rs")];
    above.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(&declaration)))
}

/// A shortest cycle, which begins and ends with the same module; none: there is none.
fn cycle_in(imports: &Imports) -> Option<Vec<String>> {
    imports.keys().filter_map(|module| cycle_from(module, imports)).min_by_key(Vec::len)
}

fn cycle_from(start: &str, imports: &Imports) -> Option<Vec<String>> {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut paths: Vec<Vec<&str>> = vec![vec![start]];
    while !paths.is_empty() {
        let mut longer = Vec::new();
        for path in paths {
            let last = path.last().copied().unwrap_or(start);
            for next in imports.get(last).into_iter().flatten() {
                if next == start {
                    let cycle = path.iter().copied().chain([start]);
                    return Some(cycle.map(str::to_owned).collect());
                }
                if seen.insert(next) {
                    longer.push(path.iter().copied().chain([next.as_str()]).collect());
                }
            }
        }
        paths = longer;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(edges: &[(&str, &str)]) -> Imports {
        let mut imports = Imports::new();
        for (from, to) in edges {
            imports.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        imports
    }

    #[test]
    fn a_black_box_test_imports_no_crate_of_the_server() {
        assert_eq!(forbidden_import("use switchyard_hub::Hub;"), Some("switchyard_hub::Hub;"));
        assert_eq!(
            forbidden_import("    pub use switchyard_config::Config;"),
            Some("switchyard_config::Config;")
        );
        for allowed in [
            "use switchyard_protocol::resp::fuzzing::RESP;",
            "use switchyard_cli::authors::conversation::stage::Stage;",
            "use crate::support::server::Server;",
            "// use switchyard_hub::Hub;",
        ] {
            assert_eq!(forbidden_import(allowed), None, "{allowed}");
        }
    }

    #[test]
    fn a_shortest_cycle_is_found() {
        let cycle = cycle_in(&imports(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "b")]));
        assert_eq!(cycle, Some(["b", "c", "b"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn a_diamond_is_no_cycle() {
        assert_eq!(cycle_in(&imports(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])), None);
    }

    #[test]
    fn files_belong_to_top_level_modules() {
        let module = |path: &str| module_of(Path::new(path));
        assert_eq!(module("session.rs").as_deref(), Some("session"));
        assert_eq!(module("session/publish.rs").as_deref(), Some("session"));
        for path in ["lib.rs", "main.rs", "plugin/tests.rs", "try.html"] {
            assert_eq!(module(path), None, "{path}");
        }
    }
}
