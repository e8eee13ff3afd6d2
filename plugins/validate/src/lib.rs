//! A plugin of Switchyard: what is published must fit a JSON Schema, by rules in
//! its settings. `README.md` says what they may be.
//!
//! Here stands the glue between the contract and the modules below, which know
//! nothing of it and are tested natively. The plugin keeps nothing but its
//! settings.

pub mod rules;
pub mod settings;

pub mod document;
pub mod regexes;
pub mod unique;
pub mod work;

use std::sync::OnceLock;

use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{self, Decision, PublishVerdict, Submission};
use bindings::switchyard::pubsub::types::{Extras, Refusal};
use plugin_kit::items::named;
use plugin_kit::refused::Refused;
use rules::Rules;

plugin_kit::declare!(on_failure: "closed");

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit", world: "transformer" });

    #[cfg(target_family = "wasm")]
    export!(Plugin with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Plugin;
}

static RULES: OnceLock<Rules> = OnceLock::new();

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn init(settings: String) -> Result<(), String> {
        let rules = settings::read(&settings)?;
        RULES.get_or_init(|| rules);
        Ok(())
    }
}

impl messages::Guest for Plugin {
    fn on_publish(submissions: Vec<Submission>, _extras: Vec<Extras>) -> Vec<Decision> {
        let rules = RULES.get().expect("the host calls `init` before all else");
        let payloads: Vec<_> = named(&submissions, |submission| submission.channel.as_deref())
            .map(|submission| (submission.name, submission.item.payload.as_slice()))
            .collect();
        let checked = (0..).zip(rules.check_all(&payloads));
        let decisions = checked.filter_map(|(position, checked)| {
            let Refused { code, message } = checked.err()?;
            let verdict = PublishVerdict::Reject(Refusal { code: code.to_owned(), message });
            Some(Decision { position, verdict })
        });
        decisions.collect()
    }
}
