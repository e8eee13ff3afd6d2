//! For the benchmark: a plugin with `access` and `messages` that lets everything
//! through. What it costs is what any plugin costs before it does something.

use bindings::exports::switchyard::pubsub::{access, lifecycle, messages};
use bindings::switchyard::pubsub::types::Refusal;
use guest_heap as _;

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        inline: "package switchyard:onlooker;
            world onlooker {
                include switchyard:pubsub/transformer@0.1.0;
                export switchyard:pubsub/access@0.1.0;
            }",
        path: "../../wit",
        generate_all,
    });

    #[cfg(target_family = "wasm")]
    export!(Onlooker with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Onlooker;
}

struct Onlooker;

impl lifecycle::Guest for Onlooker {
    fn init(_settings: String) -> Result<(), String> {
        Ok(())
    }
}

impl access::Guest for Onlooker {
    fn on_access(requests: Vec<access::Request>) -> Vec<Option<Refusal>> {
        requests.iter().map(|_| None).collect()
    }
}

impl messages::Guest for Onlooker {
    fn on_publish(submissions: Vec<messages::Submission>) -> Vec<messages::PublishVerdict> {
        submissions.iter().map(|_| messages::PublishVerdict::Continue).collect()
    }
}
