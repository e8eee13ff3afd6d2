//! Writes 👍 for `:+1:`, and so on, in what is published.

use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{self, PublishVerdict, Submission};
use bindings::switchyard::pubsub::types::Publication;

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "transformer" });

    #[cfg(target_family = "wasm")]
    export!(Plugin with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Plugin;
}

const EMOJI: &[(&str, &str)] =
    &[("+1", "👍"), ("heart", "❤️"), ("smile", "😄"), ("tada", "🎉"), ("wave", "👋")];

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn init(_settings: String) -> Result<(), String> {
        Ok(())
    }
}

impl messages::Guest for Plugin {
    fn on_publish(submissions: Vec<Submission>) -> Vec<PublishVerdict> {
        submissions.into_iter().map(|submission| verdict(submission.publication)).collect()
    }
}

fn verdict(Publication { channel, payload }: Publication) -> PublishVerdict {
    match std::str::from_utf8(&payload).ok().and_then(with_emoji) {
        Some(text) => PublishVerdict::Replace(Publication { channel, payload: text.into_bytes() }),
        None => PublishVerdict::Continue,
    }
}

/// The text with emoji; none: there is none in it.
fn with_emoji(text: &str) -> Option<String> {
    let mut written = String::new();
    let mut rest = text;
    // Between a colon and the next is a name, perhaps.
    while let Some((before, behind)) = rest.split_once(':') {
        written.push_str(before);
        let known = behind.split_once(':').and_then(|(name, behind)| {
            let (_, emoji) = EMOJI.iter().find(|(known, _)| *known == name)?;
            Some((emoji, behind))
        });
        rest = match known {
            Some((emoji, behind)) => {
                written.push_str(emoji);
                behind
            }
            None => {
                written.push(':');
                behind
            }
        };
    }
    written.push_str(rest);
    (written != text).then_some(written)
}
