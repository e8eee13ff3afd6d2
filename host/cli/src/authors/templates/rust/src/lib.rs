//! {{name}}: a plugin of Switchyard.

use std::sync::OnceLock;

use serde::Deserialize;

use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{
    self, Change, Decision, PublishVerdict, Submission,
};
use bindings::switchyard::pubsub::log::{Level, log};
use bindings::switchyard::pubsub::types::{Extras, Refusal};

mod bindings {
    wit_bindgen::generate!({ path: "wit", world: "hooks", generate_all });
    use super::Plugin;
    export!(Plugin);
}

/// The plugin's declaration, which is read without running it. `on_failure` is what happens
/// to an item while the plugin cannot decide, unless {{name}}.toml has a `policy`: "open" lets
/// it pass, "closed" refuses it. A plugin that enforces access must be closed.
#[cfg(target_family = "wasm")]
const DECLARATION: &str = r#"{"name": "{{name}}", "version": "0.1.0", "on_failure": "open"}"#;

#[cfg(target_family = "wasm")]
#[used]
#[unsafe(link_section = "switchyard:plugin")]
static SECTION: [u8; DECLARATION.len()] = *DECLARATION.as_bytes().first_chunk().unwrap();

/// The `[settings]` of {{name}}.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    ending: String,
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

struct Plugin;

impl lifecycle::Guest for Plugin {
    /// Called once, before anything else. An error refuses the plugin with that message.
    fn init(settings: String) -> Result<(), String> {
        let settings = serde_json::from_str(&settings).map_err(|problem| problem.to_string())?;
        log(Level::Info, &format!("it starts with {settings:?}"));
        SETTINGS.get_or_init(|| settings);
        Ok(())
    }
}

impl messages::Guest for Plugin {
    /// Returns the decisions about submissions that do not pass unchanged, in order. A
    /// submission is a publication and its origin; its channel is `None` where it is that of the
    /// submission before it. The extras are the keys, versions and tags of the few submissions
    /// that have some.
    fn on_publish(submissions: Vec<Submission>, _extras: Vec<Extras>) -> Vec<Decision> {
        let decisions = (0..).zip(submissions).filter_map(|(position, submission)| {
            let verdict = decide(submission)?;
            Some(Decision { position, verdict })
        });
        decisions.collect()
    }
}

/// Returns `None` for a submission that passes unchanged. Put your logic here. Besides `Replace`
/// and `Reject` there is `Absorb`.
fn decide(submission: Submission) -> Option<PublishVerdict> {
    let settings = SETTINGS.get().expect("`init` is called first");
    let mut payload = submission.payload;
    if payload.is_empty() {
        return Some(PublishVerdict::Reject(Refusal {
            code: "EMPTY".to_owned(),
            message: "there is nothing in it".to_owned(),
        }));
    }
    if settings.ending.is_empty() {
        return None;
    }
    payload.extend(settings.ending.as_bytes());
    // What is `None` stays as it is.
    Some(PublishVerdict::Replace(Change {
        channel: None,
        payload: Some(payload),
        tags: None,
    }))
}
