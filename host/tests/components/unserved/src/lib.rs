//! For tests: a plugin with an interface that is in the contract, and that the host does not call
//! yet.

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    use super::Unserved;

    wit_bindgen::generate!({
        inline: "package switchyard:unserved;
            world unserved {
                export switchyard:pubsub/lifecycle@0.2.0;
                export switchyard:pubsub/timer@0.2.0;
            }",
        path: "../../../../wit",
        generate_all,
    });
    export!(Unserved);
}

struct Unserved;

impl bindings::exports::switchyard::pubsub::lifecycle::Guest for Unserved {
    fn init(_settings: String) -> Result<(), String> {
        Ok(())
    }
}

impl bindings::exports::switchyard::pubsub::timer::Guest for Unserved {
    fn on_timer(_due_ms: u64) {}
}
