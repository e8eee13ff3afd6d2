//! For tests: the plugin `validate` as it was built for `switchyard:pubsub@0.1.0`.
//!
//! This file has the exports for 0.1.0. The modules below are those of the plugin, which do not
//! depend on the contract.

#[path = "../../../../../plugins/validate/src/rules.rs"]
pub mod rules;
#[path = "../../../../../plugins/validate/src/settings.rs"]
pub mod settings;

#[path = "../../../../../plugins/validate/src/document.rs"]
pub mod document;
#[path = "../../../../../plugins/validate/src/regexes.rs"]
pub mod regexes;
#[path = "../../../../../plugins/validate/src/unique.rs"]
pub mod unique;
#[path = "../../../../../plugins/validate/src/work.rs"]
pub mod work;

use std::sync::OnceLock;

use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{self, PublishVerdict, Submission};
use bindings::switchyard::pubsub::types::Refusal;
use plugin_kit::refused::Refused;
use rules::Rules;

plugin_kit::declare!(name: "validate", on_failure: "closed");

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../wit/0.1.0", world: "transformer" });

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
    fn on_publish(submissions: Vec<Submission>) -> Vec<PublishVerdict> {
        let rules = RULES.get().expect("the host calls `init` before all else");
        let payloads: Vec<_> = submissions
            .iter()
            .map(|Submission { publication, .. }| {
                (publication.channel.as_str(), publication.payload.as_slice())
            })
            .collect();
        let verdict = |checked: Result<(), Refused>| match checked {
            Ok(()) => PublishVerdict::Continue,
            Err(Refused { code, message }) => {
                PublishVerdict::Reject(Refusal { code: code.to_owned(), message })
            }
        };
        rules.check_all(&payloads).into_iter().map(verdict).collect()
    }
}
