//! A plugin of Switchyard: masks, rejects or drops what must not be published, by
//! rules in its settings. `README.md` says what they may be.
//!
//! Here stands the glue between the contract and the modules below, which know
//! nothing of it and are tested natively. The plugin keeps nothing but its
//! settings.

pub mod rules;
pub mod settings;

pub mod json;
pub mod search;

pub mod document;
pub mod number;
pub mod text;

use std::cell::OnceCell;

use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{
    self, Change, Decision, PublishVerdict, Submission,
};
use bindings::switchyard::pubsub::types::{Extras, Refusal};
use plugin_kit::items::named;
use rules::{Outcome, Rules};

plugin_kit::declare!(on_failure: "closed");

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit", world: "transformer" });

    #[cfg(target_family = "wasm")]
    export!(Plugin with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Plugin;
}

thread_local! {
    static RULES: OnceCell<Rules> = const { OnceCell::new() };
}

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn init(settings: String) -> Result<(), String> {
        let rules = settings::read(&settings)?;
        RULES.with(|cell| {
            cell.get_or_init(|| rules);
        });
        Ok(())
    }
}

impl messages::Guest for Plugin {
    fn on_publish(submissions: Vec<Submission>, _extras: Vec<Extras>) -> Vec<Decision> {
        let payloads: Vec<_> = named(&submissions, |submission| submission.channel.as_deref())
            .map(|submission| (submission.name, submission.item.payload.as_slice()))
            .collect();
        let outcomes = RULES.with(|rules| {
            rules.get().expect("the host calls `init` before all else").apply_all(&payloads)
        });
        let decisions = (0..).zip(outcomes).filter_map(|(position, outcome)| {
            let verdict = match outcome {
                Outcome::Unchanged => return None,
                Outcome::Changed(payload) => PublishVerdict::Replace(Change {
                    channel: None,
                    payload: Some(payload),
                    tags: None,
                }),
                Outcome::Dropped => PublishVerdict::Absorb(0),
                Outcome::Rejected { code, message } => {
                    PublishVerdict::Reject(Refusal { code: code.to_owned(), message })
                }
            };
            Some(Decision { position, verdict })
        });
        decisions.collect()
    }
}
