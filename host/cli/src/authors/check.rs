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
use switchyard_middleware::bindings::{CompiledPlugin, Fault, Hooks};
use switchyard_middleware::counters::Counters;
use switchyard_middleware::declaration::TrapPolicy;
use switchyard_middleware::declaration::{self, Declaration, PolicySource};
use switchyard_middleware::directory::{self, PluginFiles};
use switchyard_middleware::plugin::missing::is_missing;
use switchyard_middleware::plugin::{Plugin, PluginContext};
use switchyard_server::compile_cache;

/// The report about a plugin's file.
#[derive(Debug, Default)]
pub struct Report {
    /// The hash of its code.
    pub version: String,
    /// The contract that it was built for, if it names one.
    pub contract: Option<String>,
    /// What it would gain by being built for the newest contract that the server serves; empty if
    /// it is, or could not be linked.
    pub gains: Vec<&'static str>,
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
    /// Its hooks whose function does not exist, and what a call of each ends with.
    pub missing: Vec<Fault>,
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
    let engine =
        compile_cache::open(&config.plugins).map_err(|error| ("set up", format!("{error:#}")))?;
    let component = engine.compile(&bytes).map_err(|problem| ("compile", problem))?;
    switchyard_wasm::Interfaces { imports: report.imports, exports: report.exports } =
        engine.interfaces(&component);
    report.contract = report
        .exports
        .iter()
        .chain(&report.imports)
        .filter_map(|name| name.strip_prefix(switchyard_wasm::CONTRACT)?.split_once('@'))
        .map(|(_, version)| format!("{}@{version}", switchyard_wasm::CONTRACT))
        .next();
    let compiled = CompiledPlugin::link(&engine, &component)?;
    report.hooks = Some(compiled.hooks());
    if report.contract.as_deref().is_some_and(is_older) {
        report.gains = gains(compiled.hooks());
    }
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
        Ok(plugin) => {
            report.missing = plugin.missing_hooks().map_err(|error| (error.step, error.problem))?;
        }
        // Without the right settings it may refuse.
        Err(error) if error.step == "init" && !has_settings && !is_missing(&error.problem) => {
            return Ok(());
        }
        Err(error) => return Err((error.step, error.problem)),
    }
    report.was_initialised = true;
    Ok(())
}

/// Whether this is an older contract than the newest that the server serves. Patch versions count
/// as the same.
fn is_older(contract: &str) -> bool {
    let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
    let version = contract.split_once('@').map_or("", |(_, version)| version);
    minor(version) != minor(newest())
}

/// The newest version of the contract that the server serves.
fn newest() -> &'static str {
    let [newest, ..] = switchyard_wasm::CONTRACT_VERSIONS;
    newest
}

/// What a plugin with these hooks, built for 0.1.0, would gain by being built for 0.2.0.
fn gains(hooks: Hooks) -> Vec<&'static str> {
    let Hooks { admission, access, messages, deliveries, snapshot: _ } = hooks;
    [
        (
            admission,
            "admission: SSE, HTTP and Pusher are protocols of their own, once the server has them",
        ),
        (admission, "admission: may subscribe a client that it accepts, once the server does so"),
        (
            access,
            "access: a request says whether an existing subscription is checked again (recheck)",
        ),
        (
            access,
            "access: decides what clients may look at (inspect); for 0.1.0 this is subscribe, or \
             refused",
        ),
        (
            access,
            "access: resume, history, presence, watch, enter and call are actions of their own, \
             once the server has them",
        ),
        (
            access,
            "access: a name is passed once for all requests in a row that have it, and only \
             refusals are returned, so calls cost less",
        ),
        (
            messages,
            "messages: a channel is passed once for all submissions in a row that have it, and only \
             what does not pass unchanged is returned, so calls cost less",
        ),
        (
            messages,
            "messages: sees the key, version and tags of a publication, once the server carries \
             them",
        ),
        (
            access || messages,
            "origin: publications by an API token, an app or a plugin name it, once the server has \
             such publishers",
        ),
        (
            deliveries,
            "deliveries: a channel is passed once for all deliveries in a row that have it, and \
             only what is changed is returned, so calls cost less",
        ),
        (
            deliveries,
            "deliveries: sees the position, key, version and tags of a publication, once the \
             server carries them",
        ),
    ]
    .into_iter()
    .filter_map(|(applies, gain)| applies.then_some(gain))
    .collect()
}

impl Report {
    /// Whether the server would accept it, and all its hooks exist.
    pub fn is_good(&self) -> bool {
        self.refused.is_none() && self.missing.is_empty()
    }

    /// As text.
    pub fn text(&self) -> String {
        let mut lines = vec![match (&self.refused, self.missing.first()) {
            (None, None) => "the server would take it".to_owned(),
            (None, Some(Fault { hook, .. })) => format!(
                "the server would take it, but {hook} fails whenever it is called: its source \
                 exports no such function"
            ),
            (Some((step, problem)), _) => format!("the server would refuse it: {step}: {problem}"),
        }];
        let mut say = |what: &str, words: String| {
            if !words.is_empty() {
                lines.push(format!("{what:<9} {words}"));
            }
        };
        say("version", self.version.clone());
        say("contract", self.contract_words());
        for Fault { hook, problem } in &self.missing {
            say("missing", format!("{hook}: {problem}"));
        }
        self.gains.iter().for_each(|gain| say("gains", (*gain).to_owned()));
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
            "gains": self.gains,
            "hooks": self.hook_names(),
            "declared": self.declared,
            "policy": self.policy.map(|(policy, _)| policy),
            "policy_source": self.policy.map(|(_, source)| source),
            "initialised": self.was_initialised,
            "missing": self.missing.iter().map(|Fault { hook, problem }| {
                json!({"hook": hook, "problem": problem})
            }).collect::<Vec<_>>(),
            "asks_with": self.asks_with,
            "may_ask": self.may_ask,
            "imports": self.imports,
            "exports": self.exports,
        })
    }

    fn contract_words(&self) -> String {
        let contract = self.contract.clone().unwrap_or_default();
        match self.gains.is_empty() {
            true => contract,
            false => format!("{contract}; what it would gain by moving to {}:", newest()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_would_gain_follows_from_its_hooks() {
        assert_eq!(gains(Hooks::default()), [""; 0]);
        assert_eq!(gains(Hooks { snapshot: true, ..Hooks::default() }), [""; 0]);
        let admission = Hooks { admission: true, ..Hooks::default() };
        let access = Hooks { access: true, ..Hooks::default() };
        let messages = Hooks { messages: true, ..Hooks::default() };
        let deliveries = Hooks { deliveries: true, ..Hooks::default() };
        for (hooks, begin) in [
            (admission, &["admission: "][..]),
            (access, &["access: ", "origin: "]),
            (messages, &["messages: ", "origin: "]),
            (deliveries, &["deliveries: "]),
        ] {
            let gains = gains(hooks);
            for begin in begin {
                assert!(gains.iter().any(|gain| gain.starts_with(begin)), "{begin}: {gains:?}");
            }
            for gain in gains {
                assert!(begin.iter().any(|begin| gain.starts_with(begin)), "{gain}");
            }
        }
        let says = |hooks: Hooks, word: &str| gains(hooks).iter().any(|gain| gain.contains(word));
        assert!(says(access, "recheck") && says(access, "inspect"));
        assert!(says(admission, "Pusher") && says(admission, "subscribe"));
        assert!(says(deliveries, "position"));
        // What several hooks gain is said once.
        let all = gains(Hooks { access: true, ..messages });
        assert_eq!(all.iter().filter(|gain| gain.starts_with("origin: ")).count(), 1);
    }

    #[test]
    fn only_an_older_contract_has_gains() {
        assert!(is_older("switchyard:pubsub@0.1.0"));
        assert!(is_older("switchyard:pubsub@0.1.1"));
        assert!(!is_older("switchyard:pubsub@0.2.0"));
        assert!(!is_older("switchyard:pubsub@0.2.1"));
    }

    #[test]
    fn the_report_says_what_a_plugin_would_gain() {
        let mut report = Report {
            contract: Some("switchyard:pubsub@0.1.0".to_owned()),
            gains: vec!["access: much"],
            was_initialised: true,
            ..Report::default()
        };
        let text = report.text();
        assert!(text.contains("what it would gain by moving to 0.2.0"), "{text}");
        assert!(text.contains("\ngains     access: much"), "{text}");
        assert_eq!(report.json().get("gains"), Some(&json!(["access: much"])));
        report.gains.clear();
        assert!(report.text().ends_with("contract  switchyard:pubsub@0.1.0"), "{}", report.text());
        assert_eq!(report.json().get("gains"), Some(&json!([])));
    }
}
