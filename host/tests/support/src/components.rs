//! Built components as files for a server's plugin directory.
//!
//! `make components` builds them. A test copies one under the name that decides
//! its place in the chain, with a TOML file of settings beside it, and may
//! change the copy so that the server sees another component.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What the probe's binary holds where its stamp goes.
const STAMP: &[u8] = b"@@stamp:00000000";

/// The bytes of a built component, such as `acl` or `test/probe`. If `SWITCHYARD_TEST_CONTRACT`
/// is `0.1.0`, those of a plugin that ships are those that were built for that version of the
/// contract.
pub fn built(name: &str) -> Result<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/components");
    let mut path = folder.join(name).with_extension("wasm");
    if std::env::var_os("SWITCHYARD_TEST_CONTRACT").is_some_and(|version| version == "0.1.0") {
        let ships = ["acl", "jwt-auth", "rate-limit", "redact", "validate", "webhook-auth"];
        if ships.contains(&name) {
            path = folder.join(format!("test/{name}-v0-1.wasm"));
        }
    }
    std::fs::read(&path)
        .with_context(|| format!("cannot read {}; run `make components`", path.display()))
}

/// Puts a plugin into a directory, or replaces it: first its settings, then the
/// component, each by a rename, so that a server never sees half of one.
pub fn install(directory: &Path, name: &str, component: &[u8], settings: &Value) -> Result<()> {
    let table = toml::Table::from_iter([("settings".to_owned(), toml_of(settings)?)]);
    write_atomically(&directory.join(format!("{name}.toml")), table.to_string().as_bytes())?;
    write_atomically(&directory.join(format!("{name}.wasm")), component)
}

/// Writes the TOML file beside a plugin, all of it given as JSON.
pub fn configure(directory: &Path, name: &str, config: &Value) -> Result<()> {
    let text = toml::to_string(config).context("this cannot be written as TOML")?;
    write_atomically(&directory.join(format!("{name}.toml")), text.as_bytes())
}

/// Writes a file that appears with all its bytes at once.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().context("a file is in a directory")?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// The same component with another stamp, to distinguish one version from the next.
pub fn stamped(mut component: Vec<u8>, stamp: u32) -> Result<Vec<u8>> {
    let digits = format!("@@stamp:{stamp:08}");
    ensure!(digits.len() == STAMP.len(), "a stamp has eight digits at most");
    let places: Vec<_> = component
        .windows(STAMP.len())
        .enumerate()
        .filter_map(|(at, bytes)| (bytes == STAMP).then_some(at))
        .collect();
    ensure!(!places.is_empty(), "the component has no place for a stamp");
    for at in places {
        let place = component.get_mut(at..at + STAMP.len()).context("it was found there")?;
        place.copy_from_slice(digits.as_bytes());
    }
    Ok(component)
}

/// The same component with one more custom section: it does the same, and its
/// hash is another.
pub fn rehashed(mut component: Vec<u8>, salt: u32) -> Vec<u8> {
    let content = [&[4][..], b"salt", &salt.to_le_bytes()].concat();
    component.push(0);
    component.push(content.len() as u8);
    component.extend(content);
    component
}

/// The same component with the custom section in which it declares what it is, before any
/// that it has.
pub fn declaring(mut component: Vec<u8>, declaration: &str) -> Vec<u8> {
    const NAME: &[u8] = b"switchyard:plugin";
    let content = [&[NAME.len() as u8], NAME, declaration.as_bytes()].concat();
    // LEB128 in two bytes, which the format allows for any length below 2^14.
    let length = [(content.len() & 0x7f | 0x80) as u8, (content.len() >> 7) as u8];
    component.push(0);
    component.extend(length);
    component.extend(content);
    component
}

/// Where a test keeps plugins; the server watches it.
pub fn directory() -> Result<tempfile::TempDir> {
    tempfile::tempdir().context("cannot make a plugin directory")
}

/// The path of a plugin's component, for a test that wants to harm it.
pub fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.wasm"))
}

fn toml_of(settings: &Value) -> Result<toml::Value> {
    toml::Value::try_from(settings).context("the settings cannot be written as TOML")
}

#[test]
fn a_stamp_replaces_its_placeholder_everywhere() -> Result<()> {
    let component = b"a@@stamp:00000000b@@stamp:00000000".to_vec();
    assert_eq!(stamped(component, 17)?, b"a@@stamp:00000017b@@stamp:00000017");
    assert!(stamped(b"no place".to_vec(), 1).is_err());
    Ok(())
}

#[test]
fn another_salt_is_another_section() {
    let expected = b"\0asm\x00\x09\x04salt\x02\x01\x00\x00";
    assert_eq!(rehashed(b"\0asm".to_vec(), 0x102), expected);
}

#[test]
fn a_plugin_is_two_files() -> Result<()> {
    let home = directory()?;
    let settings = serde_json::json!({"rules": [{"users": ["*"], "most": 3}], "on": true});
    install(home.path(), "10-acl", b"component", &settings)?;
    assert_eq!(std::fs::read(path(home.path(), "10-acl"))?, b"component");
    let written: toml::Table = std::fs::read_to_string(home.path().join("10-acl.toml"))?.parse()?;
    assert_eq!(serde_json::to_value(written)?, serde_json::json!({"settings": settings}));
    assert_eq!(std::fs::read_dir(home.path())?.count(), 2, "nothing temporary is left");
    Ok(())
}
