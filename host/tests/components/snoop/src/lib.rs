//! For tests: a plugin that wants the network, so that its component imports
//! `wasi:sockets`, which the host grants to no plugin.

use std::net::TcpStream;

use bindings::exports::switchyard::pubsub::{lifecycle, messages};
use bindings::switchyard::pubsub::types::Extras;

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../wit", world: "transformer" });

    #[cfg(target_family = "wasm")]
    export!(Snoop with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::Snoop;
}

struct Snoop;

impl lifecycle::Guest for Snoop {
    fn init(settings: String) -> Result<(), String> {
        let stream = TcpStream::connect(settings);
        stream.map(|_| ()).map_err(|error| error.to_string())
    }
}

impl messages::Guest for Snoop {
    fn on_publish(_: Vec<messages::Submission>, _: Vec<Extras>) -> Vec<messages::Decision> {
        vec![]
    }
}
