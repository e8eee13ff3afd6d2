//! For tests: a plugin that imports an interface of version 0.1.0 of the contract, and exports one
//! of version 0.2.0.

use bindings::switchyard::pubsub0_1_0::log::{Level, log};

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    use super::Mixed;

    wit_bindgen::generate!({
        inline: "package switchyard:mixed;
            world mixed {
                import switchyard:pubsub/log@0.1.0;
                export switchyard:pubsub/lifecycle@0.2.0;
            }",
        path: ["../../../../wit/0.1.0", "../../../../wit"],
        generate_all,
    });
    export!(Mixed);
}

struct Mixed;

impl bindings::exports::switchyard::pubsub0_2_0::lifecycle::Guest for Mixed {
    fn init(_settings: String) -> Result<(), String> {
        // What is not called is not imported.
        log(Level::Info, "it begins");
        Ok(())
    }
}
