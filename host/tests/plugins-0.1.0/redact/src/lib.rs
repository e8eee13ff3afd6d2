//! For tests: the plugin `redact` as it was built for `switchyard:pubsub@0.1.0`.
//!
//! This file has the exports for 0.1.0. The modules below are those of the plugin, which do not
//! depend on the contract.

#[path = "../../../../../plugins/redact/src/rules.rs"]
pub mod rules;
#[path = "../../../../../plugins/redact/src/settings.rs"]
pub mod settings;

#[path = "../../../../../plugins/redact/src/json.rs"]
pub mod json;
#[path = "../../../../../plugins/redact/src/search.rs"]
pub mod search;

#[path = "../../../../../plugins/redact/src/document.rs"]
pub mod document;
#[path = "../../../../../plugins/redact/src/number.rs"]
pub mod number;
#[path = "../../../../../plugins/redact/src/text.rs"]
pub mod text;

use std::cell::OnceCell;

use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{self, PublishVerdict, Submission};
use bindings::switchyard::pubsub::types::{Publication, Refusal};
use rules::{Outcome, Rules};

plugin_kit::declare!(name: "redact", on_failure: "closed");

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../wit/0.1.0", world: "transformer" });

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
    fn on_publish(submissions: Vec<Submission>) -> Vec<PublishVerdict> {
        let payloads: Vec<_> = submissions
            .iter()
            .map(|Submission { publication, .. }| {
                (publication.channel.as_str(), publication.payload.as_slice())
            })
            .collect();
        let outcomes = RULES.with(|rules| {
            rules.get().expect("the host calls `init` before all else").apply_all(&payloads)
        });
        let verdicts = submissions.into_iter().zip(outcomes);
        let verdicts = verdicts.map(|(submission, outcome)| match outcome {
            Outcome::Unchanged => PublishVerdict::Continue,
            Outcome::Changed(payload) => PublishVerdict::Replace(Publication {
                channel: submission.publication.channel,
                payload,
            }),
            Outcome::Dropped => PublishVerdict::Absorb(0),
            Outcome::Rejected { code, message } => {
                PublishVerdict::Reject(Refusal { code: code.to_owned(), message })
            }
        });
        verdicts.collect()
    }
}
