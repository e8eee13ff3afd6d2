//! For tests: a plugin that uses the network and files, so that its component imports `wasi:sockets`
//! and `wasi:filesystem`, which contain nothing.

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
        // Such as `{"connect":"127.0.0.1:80"}`.
        let address = settings.split('"').nth(3).unwrap_or("127.0.0.1:80");
        let stream = TcpStream::connect(address);
        let file = std::fs::read("/etc/passwd");
        match (stream, file) {
            (Err(stream), Err(file)) => Err(format!("no socket: {stream}; no file: {file}")),
            _ => Ok(()),
        }
    }
}

impl messages::Guest for Snoop {
    fn on_publish(_: Vec<messages::Submission>, _: Vec<Extras>) -> Vec<messages::Decision> {
        vec![]
    }
}
