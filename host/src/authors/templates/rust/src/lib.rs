//! {{name}}: a plugin of Switchyard.

use std::sync::OnceLock;

use serde::Deserialize;

use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{self, PublishVerdict, Submission};
use bindings::switchyard::pubsub::log::{Level, log};
use bindings::switchyard::pubsub::types::{Publication, Refusal};

mod bindings {
    wit_bindgen::generate!({ path: "wit", world: "hooks", generate_all });
    use super::Plugin;
    export!(Plugin);
}

/// What the plugin declares of itself, readable without running it. `on_failure` is what
/// holds while it cannot answer, unless {{name}}.toml has a `policy`: "open" lets pass what
/// it would be asked about, "closed" refuses it. A plugin that guards something is closed.
#[cfg(target_family = "wasm")]
const DECLARATION: &str = r#"{"name": "{{name}}", "version": "0.1.0", "on_failure": "open"}"#;

#[cfg(target_family = "wasm")]
#[used]
#[unsafe(link_section = "switchyard:plugin")]
static SECTION: [u8; DECLARATION.len()] = *DECLARATION.as_bytes().first_chunk().unwrap();

/// What stands under `[settings]` in {{name}}.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    ending: String,
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

struct Plugin;

impl lifecycle::Guest for Plugin {
    /// Called once, before anything else. An error refuses the plugin, and says why.
    fn init(settings: String) -> Result<(), String> {
        let settings = serde_json::from_str(&settings).map_err(|problem| problem.to_string())?;
        log(Level::Info, &format!("it starts with {settings:?}"));
        SETTINGS.get_or_init(|| settings);
        Ok(())
    }
}

impl messages::Guest for Plugin {
    /// One verdict for each submission, in order: a publication, and the connection that
    /// it is from. This is where to go on: besides `Replace` and `Reject` there are
    /// `Continue`, which lets it pass as it is, and `Absorb`.
    fn on_publish(submissions: Vec<Submission>) -> Vec<PublishVerdict> {
        let settings = SETTINGS.get().expect("`init` is called first");
        let verdict = |submission: Submission| {
            let Publication { channel, mut payload } = submission.publication;
            if payload.is_empty() {
                return PublishVerdict::Reject(Refusal {
                    code: "EMPTY".to_owned(),
                    message: "there is nothing in it".to_owned(),
                });
            }
            payload.extend(settings.ending.as_bytes());
            PublishVerdict::Replace(Publication { channel, payload })
        };
        submissions.into_iter().map(verdict).collect()
    }
}
