//! For tests: a plugin built for `switchyard:pubsub@0.3.0`, a contract that the
//! host does not serve.

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    use super::Foreign;

    wit_bindgen::generate!({ path: "wit" });
    export!(Foreign);
}

struct Foreign;

impl bindings::exports::switchyard::pubsub::lifecycle::Guest for Foreign {
    fn init(_settings: String) -> Result<(), String> {
        Ok(())
    }
}
