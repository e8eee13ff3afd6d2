//! Writes 👍 for `:+1:`, and so on, in what is published.

use bindings::exports::switchyard::pubsub::lifecycle;
use bindings::exports::switchyard::pubsub::messages::{
    self, Change, Decision, PublishVerdict, Submission,
};
use bindings::switchyard::pubsub::types::Extras;

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
    fn on_publish(submissions: Vec<Submission>, _extras: Vec<Extras>) -> Vec<Decision> {
        let decide = |(position, submission): (u32, &Submission)| {
            let verdict = verdict(&submission.payload)?;
            Some(Decision { position, verdict })
        };
        (0..).zip(&submissions).filter_map(decide).collect()
    }
}

/// None: it passes unchanged.
fn verdict(payload: &[u8]) -> Option<PublishVerdict> {
    let text = std::str::from_utf8(payload).ok().and_then(with_emoji)?;
    let payload = Some(text.into_bytes());
    Some(PublishVerdict::Replace(Change { channel: None, payload, tags: None }))
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
