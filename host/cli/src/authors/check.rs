//! Checks whether the server would accept a plugin, and prints what is known about it.
//!
//! This runs the server's own code for all steps except adding the plugin to a chain. With a
//! `.toml` next to it, `init` is called with its settings.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tokio::runtime::Handle;

use switchyard_config::Config;
use switchyard_config::limits::LiveLimits;
use switchyard_hub::connections::Connections;
use switchyard_middleware::bindings::{CompiledPlugin, Hooks};
use switchyard_middleware::counters::Counters;
use switchyard_middleware::declaration::TrapPolicy;
use switchyard_middleware::declaration::{self, Declaration, PolicySource};
use switchyard_middleware::directory::{self, PluginFiles};
use switchyard_middleware::plugin::{Plugin, PluginContext};
use switchyard_server::compile_cache;

/// The report about a plugin's file.
#[derive(Debug, Default)]
pub struct Report {
    /// The hash of its code.
    pub version: String,
    /// The contract that it was built for, if it names one.
    pub contract: Option<String>,
    /// Its imports.
    pub imports: Vec<String>,
    /// Its exports.
    pub exports: Vec<String>,
    /// Its hooks, if it could be linked.
    pub hooks: Option<Hooks>,
    /// What happens when it cannot decide, and where that is set.
    pub policy: Option<(TrapPolicy, PolicySource)>,
    /// Its declaration.
    pub declared: Declaration,
    /// The interfaces that it imports for HTTP, if any.
    pub asks_with: Option<String>,
    /// The hosts it may send HTTP requests to, by its settings file.
    pub may_ask: Vec<String>,
    /// Whether `init` was called, with its settings.
    pub was_initialised: bool,
    /// The step that failed and why; none: the server would accept it.
    pub refused: Option<(&'static str, String)>,
}

/// Checks the plugin in this file. Must be called within a runtime, on a thread that may block.
pub fn check(file: &Path, cache: Option<&Path>) -> Report {
    let mut report = Report::default();
    report.refused = look(file, cache, &mut report).err();
    report
}

fn look(
    file: &Path,
    cache: Option<&Path>,
    report: &mut Report,
) -> Result<(), (&'static str, String)> {
    let slot = file
        .file_stem()
        .and_then(|stem| stem.to_str())
        .filter(|_| file.extension().is_some_and(|extension| extension == "wasm"))
        .ok_or(("read", "a plugin is a file NAME.wasm".to_owned()))?;
    let directory = file.parent().unwrap_or(Path::new(""));
    let mut config = Config::default();
    config.plugins.cache.directory = cache.map(Path::to_owned);
    let PluginFiles { config: mut plugin, wasm: bytes, toml: _ } =
        directory::read(directory, slot, config.plugins.defaults)
            .map_err(|error| (error.step, error.problem))?;
    report.version.clone_from(&plugin.version);
    report.declared.clone_from(&plugin.declared);
    let engine = compile_cache::open(&config.plugins.cache)
        .map_err(|error| ("set up", format!("{error:#}")))?;
    let component = engine.compile(&bytes).map_err(|problem| ("compile", problem))?;
    (report.imports, report.exports) = engine.interfaces(&component);
    report.contract = report
        .exports
        .iter()
        .chain(&report.imports)
        .filter_map(|name| name.strip_prefix(switchyard_wasm::CONTRACT)?.split_once('@'))
        .map(|(_, version)| format!("{}@{version}", switchyard_wasm::CONTRACT))
        .next();
    let compiled = CompiledPlugin::link(&engine, &component)?;
    report.hooks = Some(compiled.hooks());
    report.policy = Some(declaration::policy(plugin.policy, &plugin.declared, compiled.hooks()));
    report.asks_with = compiled.outside().map(str::to_owned);
    report.may_ask = plugin.http_allow.iter().map(ToString::to_string).collect();
    let context = PluginContext {
        connections: Connections::new(1, config.outbox, config.limits.attributes_bytes_max),
        runtime: Handle::current(),
        rebuild_backoff: config.plugins.rebuild_backoff,
        rebuild_backoff_max: config.plugins.rebuild_backoff_max,
        parked: Arc::default(),
        limits: Arc::new(LiveLimits::new(&config.limits)),
    };
    plugin.instances = 1;
    let counters = Counters::new(config.limits.counters_max).space(&plugin.counters);
    let has_settings = file.with_extension("toml").exists();
    match Plugin::new(plugin, Arc::new(compiled), counters, Arc::default(), context) {
        Ok(_) => {}
        // Without the right settings it may refuse.
        Err(error) if error.step == "init" && !has_settings => return Ok(()),
        Err(error) => return Err((error.step, error.problem)),
    }
    report.was_initialised = true;
    Ok(())
}

impl Report {
    /// As text.
    pub fn text(&self) -> String {
        let mut lines = vec![match &self.refused {
            None => "the server would take it".to_owned(),
            Some((step, problem)) => format!("the server would refuse it: {step}: {problem}"),
        }];
        let mut say = |what: &str, words: String| {
            if !words.is_empty() {
                lines.push(format!("{what:<9} {words}"));
            }
        };
        say("version", self.version.clone());
        say("contract", self.contract.clone().unwrap_or_default());
        say("hooks", self.hook_names().join(", "));
        say("declares", self.declared_words());
        if let Some((policy, source)) = self.policy {
            say("policy", format!("{} ({})", policy.name(), source.words()));
        }
        if self.refused.is_none() && !self.was_initialised {
            say("settings", "none beside it, and it does not start without".to_owned());
        }
        if let Some(import) = &self.asks_with {
            say(
                "asks",
                match self.may_ask.is_empty() {
                    true => format!(
                        "the outside world, by {import}: it needs http_allow = [\"https://HOST\"] \
                     in its .toml"
                    ),
                    false => {
                        format!("{}, in on-connect and on-authenticate", self.may_ask.join(", "))
                    }
                },
            );
        }
        self.imports.iter().for_each(|name| say("imports", name.clone()));
        self.exports.iter().for_each(|name| say("exports", name.clone()));
        lines.join("\n")
    }

    /// As JSON.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "accepted": self.refused.is_none(),
            "refused": self.refused.as_ref().map(|(step, problem)| {
                json!({"step": step, "problem": problem})
            }),
            "version": self.version,
            "contract": self.contract,
            "hooks": self.hook_names(),
            "declared": self.declared,
            "policy": self.policy.map(|(policy, _)| policy),
            "policy_source": self.policy.map(|(_, source)| source),
            "initialised": self.was_initialised,
            "asks_with": self.asks_with,
            "may_ask": self.may_ask,
            "imports": self.imports,
            "exports": self.exports,
        })
    }

    fn declared_words(&self) -> String {
        let Declaration { name, version, on_failure } = &self.declared;
        let on_failure = on_failure.map(|policy| format!("{} on failure", policy.name()));
        let words = [name.clone(), version.clone(), on_failure];
        words.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn hook_names(&self) -> Vec<&'static str> {
        let Some(hooks) = self.hooks else { return Vec::new() };
        [
            ("admission", hooks.admission),
            ("access", hooks.access),
            ("messages", hooks.messages),
            ("deliveries", hooks.deliveries),
            ("snapshot", hooks.snapshot),
        ]
        .into_iter()
        .filter_map(|(name, has)| has.then_some(name))
        .collect()
    }
}
