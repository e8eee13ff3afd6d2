//! What a plugin exports, in any version of the contract.

use wasmtime::Store;
use wasmtime::component::Instance;

use super::{Client, Fault, Hooks};
use crate::items::{Action, DeliverVerdict, Item, PublishVerdict};
use switchyard_hub::filter::Delivery;
use switchyard_types::batch::Batch;
use switchyard_types::command::{Credentials, Publication, Refusal};
use switchyard_types::ids::ConnectionId;
use switchyard_wasm::StoreState;

/// The exports of a component, found by name and checked against the contract.
pub trait Linked: Send + Sync {
    fn hooks(&self) -> Hooks;

    /// The refusal of an action that this version of the contract cannot express; none: the plugin
    /// decides.
    fn refusal_of_unknown(&self, action: &Action<'_>) -> Option<Refusal>;

    /// The functions of an instance.
    fn load(
        &self,
        store: &mut Store<StoreState>,
        instance: &Instance,
    ) -> Result<Box<dyn Exports>, wasmtime::Error>;
}

/// The exports of an instance, called with the host's types. A hook that it does not export lets
/// everything pass.
pub trait Exports: Send {
    fn init(
        &self,
        store: &mut Store<StoreState>,
        settings: &str,
    ) -> Result<Result<(), String>, Fault>;

    fn save(&self, store: &mut Store<StoreState>) -> Result<Option<Vec<u8>>, Fault>;

    fn restore(
        &self,
        store: &mut Store<StoreState>,
        state: &[u8],
    ) -> Result<Result<(), &'static str>, Fault>;

    fn on_connect(
        &self,
        store: &mut Store<StoreState>,
        connection: ConnectionId,
        client: &Client,
    ) -> Result<Result<(), Refusal>, Fault>;

    fn on_authenticate(
        &self,
        store: &mut Store<StoreState>,
        connection: ConnectionId,
        credentials: &Credentials,
    ) -> Result<Result<bool, Refusal>, Fault>;

    fn on_disconnect(
        &self,
        store: &mut Store<StoreState>,
        connection: ConnectionId,
    ) -> Result<(), Fault>;

    /// `is_recheck`: they were allowed before, or clients only look at something.
    fn on_access(
        &self,
        store: &mut Store<StoreState>,
        items: &[Item<Action<'_>>],
        is_recheck: bool,
    ) -> Result<Batch<Option<Refusal>>, Fault>;

    fn on_publish(
        &self,
        store: &mut Store<StoreState>,
        items: &[Item<&Publication<'_>>],
    ) -> Result<Batch<PublishVerdict>, Fault>;

    fn on_deliver(
        &self,
        store: &mut Store<StoreState>,
        items: &[Item<Delivery<'_>>],
    ) -> Result<Batch<DeliverVerdict>, Fault>;
}

/// Defines `link` for the module `generated` of one version, and the types that it returns.
macro_rules! exports {
    () => {
        use generated::exports::switchyard::pubsub as exports;

        /// The places of the exports in a component.
        struct Indices {
            lifecycle: exports::lifecycle::GuestIndices,
            admission: Option<exports::admission::GuestIndices>,
            access: Option<exports::access::GuestIndices>,
            messages: Option<exports::messages::GuestIndices>,
            deliveries: Option<exports::deliveries::GuestIndices>,
            snapshot: Option<exports::snapshot::GuestIndices>,
        }

        /// The exports of an instance.
        struct Guests {
            lifecycle: exports::lifecycle::Guest,
            admission: Option<exports::admission::Guest>,
            access: Option<exports::access::Guest>,
            messages: Option<exports::messages::Guest>,
            deliveries: Option<exports::deliveries::Guest>,
            snapshot: Option<exports::snapshot::Guest>,
        }

        /// Finds the exports of a component; `exported` are the names of all.
        ///
        /// # Errors
        ///
        /// Names an export that is missing or has another type than the contract's.
        pub fn link(
            pre: &wasmtime::component::InstancePre<StoreState>,
            exported: &[String],
        ) -> Result<Box<dyn Linked>, String> {
            let contract = switchyard_wasm::CONTRACT;
            // An interface that is exported with another type must not be treated as absent.
            let is_exported = |interface: &str| {
                exported.iter().any(|name| name.starts_with(&format!("{contract}/{interface}@")))
            };
            macro_rules! optional {
                ($interface:ident) => {
                    match exports::$interface::GuestIndices::new(pre) {
                        Ok(indices) => Some(indices),
                        Err(_) if !is_exported(stringify!($interface)) => None,
                        Err(error) => {
                            return Err(format!(
                                "exports {contract}/{} unlike the contract: {}",
                                stringify!($interface),
                                switchyard_wasm::describe(&error)
                            ));
                        }
                    }
                };
            }
            Ok(Box::new(Indices {
                lifecycle: exports::lifecycle::GuestIndices::new(pre).map_err(|_| {
                    format!("does not export {contract}/lifecycle, which every plugin must")
                })?,
                admission: optional!(admission),
                access: optional!(access),
                messages: optional!(messages),
                deliveries: optional!(deliveries),
                snapshot: optional!(snapshot),
            }))
        }

        impl Linked for Indices {
            fn hooks(&self) -> super::Hooks {
                super::Hooks {
                    admission: self.admission.is_some(),
                    access: self.access.is_some(),
                    messages: self.messages.is_some(),
                    deliveries: self.deliveries.is_some(),
                    snapshot: self.snapshot.is_some(),
                }
            }

            fn refusal_of_unknown(&self, action: &Action<'_>) -> Option<Refusal> {
                refusal_of_unknown(*action)
            }

            fn load(
                &self,
                store: &mut Store<StoreState>,
                instance: &wasmtime::component::Instance,
            ) -> Result<Box<dyn Exports>, wasmtime::Error> {
                macro_rules! load {
                    ($indices:expr) => {
                        match &$indices {
                            Some(indices) => Some(indices.load(&mut *store, instance)?),
                            None => None,
                        }
                    };
                }
                Ok(Box::new(Guests {
                    lifecycle: self.lifecycle.load(&mut *store, instance)?,
                    admission: load!(self.admission),
                    access: load!(self.access),
                    messages: load!(self.messages),
                    deliveries: load!(self.deliveries),
                    snapshot: load!(self.snapshot),
                }))
            }
        }

        fn wit_client<'a>(
            client: &'a super::Client,
            headers: &'a [(&'a str, &'a [u8])],
        ) -> exports::admission::Client<'a> {
            use exports::admission::Protocol;
            exports::admission::Client {
                protocol: match client.door {
                    super::Door::WebSocket => Protocol::Websocket,
                    super::Door::Resp => Protocol::Resp,
                },
                remote: &client.remote,
                path: &client.path,
                headers,
            }
        }

        fn wit_credentials(credentials: &Credentials) -> exports::admission::Credentials<'_> {
            exports::admission::Credentials {
                user: credentials.user.as_deref(),
                secret: &credentials.secret,
            }
        }

        fn refusal(refusal: imports::types::Refusal) -> Refusal {
            super::refusal(refusal.code, &refusal.message)
        }
    };
}

/// Those calls of `Exports` that are the same in all versions.
macro_rules! unchanged_calls {
    () => {
        fn init(
            &self,
            store: &mut Store<StoreState>,
            settings: &str,
        ) -> Result<Result<(), String>, Fault> {
            self.lifecycle.call_init(store, settings).map_err(fault("init"))
        }

        fn save(&self, store: &mut Store<StoreState>) -> Result<Option<Vec<u8>>, Fault> {
            let Some(snapshot) = &self.snapshot else { return Ok(None) };
            snapshot.call_save(store).map(Some).map_err(fault("save"))
        }

        fn restore(
            &self,
            store: &mut Store<StoreState>,
            state: &[u8],
        ) -> Result<Result<(), &'static str>, Fault> {
            use exports::snapshot::RestoreError;
            let Some(snapshot) = &self.snapshot else { return Ok(Ok(())) };
            let restored = snapshot.call_restore(store, state).map_err(fault("restore"))?;
            Ok(restored.map_err(|error| match error {
                RestoreError::Unsupported => {
                    "it does not read the version of its predecessor's state"
                }
                RestoreError::Corrupt => "it takes its predecessor's state for corrupt",
            }))
        }

        fn on_disconnect(
            &self,
            store: &mut Store<StoreState>,
            connection: ConnectionId,
        ) -> Result<(), Fault> {
            let Some(admission) = &self.admission else { return Ok(()) };
            admission.call_on_disconnect(store, connection).map_err(fault("on-disconnect"))
        }
    };
}

pub(super) use {exports, unchanged_calls};
