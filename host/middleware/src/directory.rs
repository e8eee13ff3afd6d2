//! The plugin directory: `NAME.wasm` files, each with an optional `NAME.toml`, in the order of
//! their names.
//!
//! A number prefix (`10-acl.wasm`) gives the place in the chain and is not part of the plugin's
//! name. This module only reads; it neither compiles nor watches.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::PluginError;
use super::declaration::{Declaration, TrapPolicy};
use switchyard_config::file::{self, SETTINGS_BYTES_MAX, Stamp};
use switchyard_config::{self as config, OutsideLimits};
use switchyard_config::{Bytes, ConfigError, Millis, OnPark, PluginLimits};
use switchyard_wasm::outside::Destination;

/// The configuration of a plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// Its place in the chain: the file's name without `.wasm`.
    pub slot: String,
    /// The name in the log and in refusals.
    pub name: String,
    /// The file that it was read from.
    pub file: PathBuf,
    /// The hash of its code.
    pub version: String,
    /// What happens when it cannot decide; none: its declaration, or the default for its hooks.
    pub policy: Option<TrapPolicy>,
    /// The component's declaration.
    pub declared: Declaration,
    /// How many instances its connections are spread over.
    pub instances: usize,
    /// How many instances are called for clients off the data path. Zero: the instances of the data
    /// path are called. None: as many as those, unless the plugin has state to hand over.
    pub admission_instances: Option<usize>,
    /// The name space of its counters.
    pub counters: String,
    /// Its limits.
    pub limits: PluginLimits,
    /// The destinations it may send HTTP requests to when a client connects or authenticates.
    pub http_allow: Vec<Destination>,
    /// The JSON object for `init`.
    pub settings: String,
}

/// The files of one plugin, read from the directory.
pub struct PluginFiles {
    /// Its configuration.
    pub config: PluginConfig,
    /// The component.
    pub wasm: Arc<[u8]>,
    /// The text of its settings file.
    pub toml: Option<String>,
}

/// Identifies a version of a plugin's files without reading them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint([Option<Stamp>; 2]);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPlugin {
    policy: Option<TrapPolicy>,
    instances: Option<u64>,
    admission_instances: Option<u64>,
    admission_timeout_ms: Option<Millis>,
    counters: Option<String>,
    call_budget_ms: Option<Millis>,
    init_budget_ms: Option<Millis>,
    memory_bytes_max: Option<Bytes>,
    log_lines_per_second_max: Option<u64>,
    table_elements_max: Option<u64>,
    core_instances_max: Option<u64>,
    resources_max: Option<u64>,
    returned_bytes_max: Option<Bytes>,
    strikes_max: Option<u64>,
    strikes_window_ms: Option<Millis>,
    strikes_per_connection_max: Option<u64>,
    spares: Option<u64>,
    handover_budget_ms: Option<Millis>,
    on_park: Option<OnPark>,
    http_allow: Vec<String>,
    http_timeout_ms: Option<Millis>,
    http_response_bytes_max: Option<Bytes>,
    http_requests_max: Option<u64>,
    http_calls_max: Option<u64>,
    settings: toml::Table,
}

/// The plugin files in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The slots that have a component, in order, with the fingerprint of each.
    pub slots: BTreeMap<String, Fingerprint>,
    /// The names of settings files, without `.toml`.
    pub settings: BTreeSet<String>,
}

/// Lists the plugin files in a directory.
///
/// # Errors
///
/// The directory cannot be read.
pub fn list(directory: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        // Editors and copying tools use names with a leading dot for unfinished files.
        let Some(stem) = stem.filter(|stem| !stem.starts_with('.')) else { continue };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("wasm") => {
                listing.slots.insert(stem.to_owned(), Fingerprint::of(&path));
            }
            Some("toml") => {
                listing.settings.insert(stem.to_owned());
            }
            _ => {}
        }
    }
    Ok(listing)
}

/// The fingerprint of a slot's files as they are now.
pub fn fingerprint(directory: &Path, slot: &str) -> Fingerprint {
    Fingerprint::of(&wasm_file(directory, slot))
}

/// Whether a TOML file belongs to a plugin: by its name or by its keys, also if it has a syntax
/// error. A server's configuration may be in the same directory.
pub fn is_for_a_plugin(directory: &Path, stem: &str) -> bool {
    let is_numbered = name_of(stem) != stem;
    let reads = |text: String| match toml::from_str::<toml::Table>(&text) {
        Ok(table) => table.contains_key("settings") || toml::from_str::<RawPlugin>(&text).is_ok(),
        Err(_) => true,
    };
    is_numbered || file::read_text(&toml_file(directory, stem), SETTINGS_BYTES_MAX).is_ok_and(reads)
}

/// Whether a settings file says that its plugin refuses what it cannot decide about.
pub fn is_closed(directory: &Path, stem: &str) -> bool {
    let text = file::read_text(&toml_file(directory, stem), SETTINGS_BYTES_MAX);
    let table = text.ok().and_then(|text| toml::from_str::<toml::Table>(&text).ok());
    table.is_some_and(|table| table.get("policy").is_some_and(|it| it.as_str() == Some("closed")))
}

impl Fingerprint {
    /// Makes it differ from that of any file.
    pub fn forget(&mut self) {
        self.0 = [None, None];
    }

    fn of(wasm: &Path) -> Fingerprint {
        Fingerprint([Stamp::of(wasm), Stamp::of(&wasm.with_extension("toml"))])
    }
}

/// Reads the files of one slot.
///
/// # Errors
///
/// The error names the file, and whether it could not be read or is invalid.
pub fn read(
    directory: &Path,
    slot: &str,
    defaults: PluginLimits,
) -> Result<PluginFiles, PluginError> {
    let name = name_of(slot);
    let error = |file: &Path, step, problem: String| PluginError {
        plugin: name.to_owned(),
        file: file.to_owned(),
        step,
        problem,
    };
    let path = wasm_file(directory, slot);
    let wasm = file::read(&path, defaults.component_bytes_max)
        .map_err(|io| error(&path, "read", io.to_string()))?;
    let toml = read_config(directory, slot)?;
    if toml.as_ref().is_some_and(String::is_empty) {
        return Err(error(&toml_file(directory, slot), "config", file::EMPTY.to_owned()));
    }
    check(slot, &path, wasm.into(), toml, defaults)
}

/// The text of a plugin's settings file; none: there is no such file.
///
/// # Errors
///
/// It could not be read.
pub fn read_config(directory: &Path, slot: &str) -> Result<Option<String>, PluginError> {
    let path = toml_file(directory, slot);
    match file::read_text(&path, SETTINGS_BYTES_MAX) {
        Ok(text) => Ok(Some(text)),
        Err(io) if io.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(io) => Err(PluginError {
            plugin: name_of(slot).to_owned(),
            file: path,
            step: "read",
            problem: io.to_string(),
        }),
    }
}

/// Makes a slot's plugin from a component and its settings.
///
/// # Errors
///
/// The settings are invalid.
pub fn check(
    slot: &str,
    file: &Path,
    wasm: Arc<[u8]>,
    toml: Option<String>,
    defaults: PluginLimits,
) -> Result<PluginFiles, PluginError> {
    let error = |problem: String| PluginError {
        plugin: name_of(slot).to_owned(),
        file: file.with_extension("toml"),
        step: "config",
        problem,
    };
    let raw = match &toml {
        Some(text) => {
            toml::from_str(text).map_err(|toml| error(file::toml_problem(text, &toml)))?
        }
        None => RawPlugin::default(),
    };
    let mut config = raw
        .check(slot, file, switchyard_wasm::version_of(&wasm), defaults)
        .map_err(|config| error(config.to_string()))?;
    config.declared = Declaration::of(&wasm).map_err(|problem| PluginError {
        file: file.to_owned(),
        step: "declaration",
        ..error(problem)
    })?;
    Ok(PluginFiles { config, wasm, toml })
}

/// The path of a slot's component.
pub fn wasm_file(directory: &Path, slot: &str) -> PathBuf {
    directory.join(format!("{slot}.wasm"))
}

/// The path of a slot's settings file.
pub fn toml_file(directory: &Path, slot: &str) -> PathBuf {
    directory.join(format!("{slot}.toml"))
}

/// The maximum length of a slot's name: a file name, with room for suffixes.
const SLOT_BYTES_MAX: usize = 128;

/// Whether this is a valid name of a plugin file, without another meaning.
pub fn is_slot(slot: &str) -> bool {
    !slot.is_empty()
        && slot.len() <= SLOT_BYTES_MAX
        && !slot.starts_with('.')
        && slot.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The slot's name with the shortest number prefix that sorts between these two. None: there is no
/// such number.
pub fn slot_between(name: &str, below: Option<&str>, above: Option<&str>) -> Option<String> {
    const DIGITS_MAX: u32 = 4;
    (2..=DIGITS_MAX).find_map(|digits| {
        let numbers = 1..10_u32.pow(digits);
        let fitting: Vec<String> = numbers
            .map(|number| format!("{number:0width$}-{name}", width = digits as usize))
            .filter(|slot| below.is_none_or(|below| below < slot.as_str()))
            .filter(|slot| above.is_none_or(|above| slot.as_str() < above))
            .collect();
        // In the middle, so that there is room on both sides for the next one.
        fitting.get(fitting.len() / 2).cloned()
    })
}

impl RawPlugin {
    fn check(
        self,
        slot: &str,
        file: &Path,
        version: String,
        defaults: PluginLimits,
    ) -> Result<PluginConfig, ConfigError> {
        let name = name_of(slot);
        let millis = |key, value: Option<Millis>, default| match value {
            Some(value) => config::millis(key, value),
            None => Ok(default),
        };
        let bytes = |key, value: Option<Bytes>, range, default| match value {
            Some(value) => config::bytes(key, value, range),
            None => Ok(default),
        };
        let count = |key, value: Option<u64>, range, default| match value {
            Some(value) => config::count(key, value, range),
            None => Ok(default),
        };
        Ok(PluginConfig {
            slot: slot.to_owned(),
            name: name.to_owned(),
            file: file.to_owned(),
            version,
            policy: self.policy,
            declared: Declaration::default(),
            instances: config::count("instances", self.instances.unwrap_or(1), 1..=64)?,
            admission_instances: self
                .admission_instances
                .map(|value| config::count("admission_instances", value, 0..=64))
                .transpose()?,
            counters: self.counters.unwrap_or_else(|| name.to_owned()),
            limits: PluginLimits {
                call_budget: millis("call_budget_ms", self.call_budget_ms, defaults.call_budget)?,
                init_budget: millis("init_budget_ms", self.init_budget_ms, defaults.init_budget)?,
                memory_bytes_max: bytes(
                    "memory_bytes_max",
                    self.memory_bytes_max,
                    config::WASM_MEMORY_BYTES,
                    defaults.memory_bytes_max,
                )?,
                log_lines_per_second_max: match self.log_lines_per_second_max {
                    None => defaults.log_lines_per_second_max,
                    Some(value) => {
                        config::count("log_lines_per_second_max", value, 1..=1_000_000)? as u32
                    }
                },
                table_elements_max: count(
                    "table_elements_max",
                    self.table_elements_max,
                    config::TABLE_ELEMENTS,
                    defaults.table_elements_max,
                )?,
                component_bytes_max: defaults.component_bytes_max,
                core_instances_max: count(
                    "core_instances_max",
                    self.core_instances_max,
                    config::CORE_INSTANCES,
                    defaults.core_instances_max,
                )?,
                resources_max: count(
                    "resources_max",
                    self.resources_max,
                    config::RESOURCES,
                    defaults.resources_max,
                )?,
                returned_bytes_max: bytes(
                    "returned_bytes_max",
                    self.returned_bytes_max,
                    config::RETURNED_BYTES,
                    defaults.returned_bytes_max,
                )?,
                strikes_max: count(
                    "strikes_max",
                    self.strikes_max,
                    config::STRIKES,
                    defaults.strikes_max,
                )?,
                strikes_window: millis(
                    "strikes_window_ms",
                    self.strikes_window_ms,
                    defaults.strikes_window,
                )?,
                strikes_per_connection_max: count(
                    "strikes_per_connection_max",
                    self.strikes_per_connection_max,
                    config::STRIKES,
                    defaults.strikes_per_connection_max,
                )?,
                spares: count("spares", self.spares, config::SPARES, defaults.spares)?,
                handover_budget: match self.handover_budget_ms {
                    None => defaults.handover_budget,
                    Some(value) => config::handover_time("handover_budget_ms", value)?,
                },
                on_park: self.on_park.unwrap_or(defaults.on_park),
                admission_time: millis(
                    "admission_timeout_ms",
                    self.admission_timeout_ms,
                    defaults.admission_time,
                )?,
                outside: OutsideLimits {
                    time: match self.http_timeout_ms {
                        None => defaults.outside.time,
                        Some(value) => config::http_time("http_timeout_ms", value)?,
                    },
                    response_bytes_max: bytes(
                        "http_response_bytes_max",
                        self.http_response_bytes_max,
                        config::HTTP_RESPONSE_BYTES,
                        defaults.outside.response_bytes_max,
                    )?,
                    requests_max: count(
                        "http_requests_max",
                        self.http_requests_max,
                        config::HTTP_REQUESTS,
                        defaults.outside.requests_max,
                    )?,
                    calls_max: count(
                        "http_calls_max",
                        self.http_calls_max,
                        config::HTTP_CALLS,
                        defaults.outside.calls_max,
                    )?,
                },
            },
            http_allow: self
                .http_allow
                .iter()
                .map(|text| destination(text))
                .collect::<Result<_, _>>()?,
            settings: json(toml::Value::Table(self.settings)).to_string(),
        })
    }
}

/// A host that a plugin may send requests to.
fn destination(text: &str) -> Result<Destination, ConfigError> {
    Destination::parse(text).ok_or_else(|| ConfigError::OutOfRange {
        key: "http_allow",
        value: format!("\"{text}\""),
        expected: "a scheme and one host by name, such as \"https://id.example.com\" or \
                   \"http://127.0.0.1:9000\", without path or wildcard"
            .to_owned(),
    })
}

/// The slot's name without the number prefix.
pub fn name_of(slot: &str) -> &str {
    let digits = slot.trim_start_matches(|c: char| c.is_ascii_digit());
    match digits.strip_prefix('-') {
        Some(name) if digits.len() < slot.len() && !name.is_empty() => name,
        _ => slot,
    }
}

/// TOML as JSON; dates and times become strings.
fn json(value: toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(items) => items.into_iter().map(json).collect(),
        toml::Value::Table(members) => {
            members.into_iter().map(|(key, value)| (key, json(value))).collect()
        }
    }
}

/// The file with the settings of a plugin that was removed by name.
pub(super) fn set_aside_file(directory: &Path, slot: &str) -> PathBuf {
    directory.join(format!("{slot}.toml.removed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use switchyard_config::Config;

    #[test]
    fn a_number_in_front_is_not_part_of_the_name() {
        for (slot, name) in [
            ("10-acl", "acl"),
            ("acl", "acl"),
            ("10", "10"),
            ("10-", "10-"),
            ("-acl", "-acl"),
            ("v2-acl", "v2-acl"),
        ] {
            assert_eq!(name_of(slot), name, "{slot}");
        }
    }

    #[test]
    fn there_is_a_number_between_two_slots() {
        let check = |below: Option<&str>, above: Option<&str>, expected: Option<&str>| {
            assert_eq!(slot_between("x", below, above).as_deref(), expected, "{below:?} {above:?}");
        };
        check(Some("10-acl"), Some("20-redact"), Some("15-x"));
        check(Some("10-y"), Some("11-redact"), Some("105-x"));
        check(None, Some("10-acl"), Some("05-x"));
        check(Some("90-acl"), None, Some("95-x"));
        check(None, Some("acl"), Some("50-x"));
        // Letters sort after digits.
        check(Some("acl"), None, None);
    }

    #[test]
    fn a_slot_is_a_files_name_and_no_path() {
        for slot in ["10-acl", "a", "A_b.c"] {
            assert!(is_slot(slot), "{slot}");
        }
        for slot in ["", ".hidden", "a/b", "..", "a b", "ü", &"a".repeat(129)] {
            assert!(!is_slot(slot), "{slot}");
        }
    }

    #[test]
    fn settings_become_json() {
        let raw: RawPlugin = toml::from_str(
            "policy = 'open'\ninstances = 2\ncall_budget_ms = '2s'\nmemory_bytes_max = '2MiB'\n\
             [settings]\nrules = [{ a = 1 }]\nsince = 2026-01-02\n",
        )
        .expect("valid");
        let defaults = Config::default().plugins.defaults;
        let config = raw.check("10-x", Path::new("x"), "v".to_owned(), defaults).expect("valid");
        assert_eq!(config.settings, r#"{"rules":[{"a":1}],"since":"2026-01-02"}"#);
        assert_eq!((config.policy, config.instances), (Some(TrapPolicy::Open), 2));
        let limits = config.limits;
        assert_eq!((limits.call_budget.as_millis(), limits.memory_bytes_max), (2_000, 2 << 20));
    }
}
