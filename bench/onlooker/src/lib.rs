//! For the benchmark: a plugin with `access` and `messages` that lets everything
//! through. What it costs is what any plugin costs before it does something.

use bindings::exports::switchyard::pubsub::{access, lifecycle, messages};
use bindings::switchyard::pubsub::types::Extras;
use guest_heap as _;

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        inline: "package switchyard:onlooker;
            world onlooker {
                include switchyard:pubsub/transformer@0.2.0;
                export switchyard:pubsub/access@0.2.0;
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
    fn on_access(_requests: Vec<access::Request>) -> Vec<access::Denial> {
        vec![]
    }
}

impl messages::Guest for Onlooker {
    fn on_publish(_: Vec<messages::Submission>, _: Vec<Extras>) -> Vec<messages::Decision> {
        vec![]
    }
}
