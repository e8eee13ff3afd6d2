//! A plugin of Switchyard: masks, rejects or drops what must not be published, by
//! rules in its settings. `README.md` says what they may be.
//!
//! Here stands the glue between the contract and the modules below, which know
//! nothing of it and are tested natively. The plugin keeps nothing but its
//! settings.

pub mod rules;
pub mod settings;

pub mod json;

use std::sync::OnceLock;

use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{self, PublishVerdict, Submission};
use bindings::switchyard::pubsub::types::{Publication, Refusal};
use rules::{Outcome, Rule};

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit", world: "transformer" });

    #[cfg(target_family = "wasm")]
    export!(Plugin with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Plugin;
}

static RULES: OnceLock<Vec<Rule>> = OnceLock::new();

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
        let verdict = |submission: Submission| {
            let Publication { channel, payload } = submission.publication;
            match rules::apply(rules, &channel, &payload) {
                Outcome::Unchanged => PublishVerdict::Continue,
                Outcome::Changed(payload) => {
                    PublishVerdict::Replace(Publication { channel, payload })
                }
                Outcome::Dropped => PublishVerdict::Absorb(0),
                Outcome::Rejected { code, message } => {
                    PublishVerdict::Reject(Refusal { code: code.to_owned(), message })
                }
            }
        };
        submissions.into_iter().map(verdict).collect()
    }
}
