//! Finds hooks that a component exports, but whose function its source does not have.
//!
//! A component exports all functions of its world. An interpreter looks for the function in the
//! source when it is called, so a misspelt name is found only then. Compilers, and componentize-py,
//! find it at build time.

use super::{NO_CONNECTION, Plugin};
use crate::PluginError;
use crate::bindings::{Client, Door, Fault, Instance};
use switchyard_types::command::Credentials;

type Call = fn(&mut Instance) -> Result<(), Fault>;

impl Plugin {
    /// Calls each hook once, on an instance of its own, with nothing to decide about. Returns the
    /// faults of those whose function does not exist. Other faults are not returned, because the
    /// server makes no such calls. Blocks.
    ///
    /// # Errors
    ///
    /// An instance could not be built.
    pub fn missing_hooks(&self) -> Result<Vec<Fault>, PluginError> {
        let hooks = self.hooks();
        let calls: [(bool, Call); 8] = [
            (hooks.admission, |instance| instance.on_connect(NO_CONNECTION, &client()).map(|_| ())),
            (hooks.admission, |instance| {
                let credentials = Credentials { user: None, secret: String::new() };
                instance.on_authenticate(NO_CONNECTION, &credentials).map(|_| ())
            }),
            (hooks.admission, |instance| instance.on_disconnect(NO_CONNECTION)),
            (hooks.access, |instance| instance.on_access(&[]).map(|_| ())),
            (hooks.messages, |instance| instance.on_publish(&[]).map(|_| ())),
            (hooks.deliveries, |instance| instance.on_deliver(&[]).map(|_| ())),
            (hooks.snapshot, |instance| instance.save(instance.budget()).map(|_| ())),
            (hooks.snapshot, |instance| instance.restore(&[], instance.budget()).map(|_| ())),
        ];
        let mut missing = Vec::new();
        for (_, call) in calls.into_iter().filter(|(is_exported, _)| *is_exported) {
            if let Err(fault) = call(&mut self.build()?)
                && is_missing(&fault.problem)
            {
                missing.push(fault);
            }
        }
        Ok(missing)
    }
}

fn client() -> Client {
    Client {
        remote: "127.0.0.1:1".to_owned(),
        path: String::new(),
        headers: Vec::new(),
        door: Door::Resp,
    }
}

/// Whether the problem of a call is that componentize-qjs panicked, because the function or the
/// object that has it is not exported.
pub fn is_missing(problem: &str) -> bool {
    problem.starts_with("it panicked: ") && problem.contains("' not found: ")
}
