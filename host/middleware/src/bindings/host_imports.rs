//! What the host offers plugins, with the generated types of one version of the contract: the
//! interfaces `attributes`, `counters` and `log` are the same in all versions.

/// Implements the interfaces for the module `generated` of one version, and defines
/// `add_to_linker`.
macro_rules! host_imports {
    () => {
        use generated::switchyard::pubsub as imports;

        /// Offers a component what it may import of this version.
        pub fn add_to_linker(
            linker: &mut wasmtime::component::Linker<StoreState>,
        ) -> Result<(), wasmtime::Error> {
            use wasmtime::component::HasSelf;
            imports::types::add_to_linker::<StoreState, HasSelf<StoreState>>(linker, |state| {
                state
            })?;
            imports::log::add_to_linker::<StoreState, HasSelf<StoreState>>(linker, |state| state)?;
            imports::attributes::add_to_linker::<StoreState, HasSelf<StoreState>>(
                linker,
                |state| state,
            )?;
            imports::counters::add_to_linker::<StoreState, HasSelf<StoreState>>(linker, |state| {
                state
            })?;
            Ok(())
        }

        impl imports::types::Host for StoreState {}

        impl imports::log::Host for StoreState {
            fn log(&mut self, level: imports::log::Level, message: String) {
                use imports::log::Level as Wit;
                let level = match level {
                    Wit::Trace => tracing::Level::TRACE,
                    Wit::Debug => tracing::Level::DEBUG,
                    Wit::Info => tracing::Level::INFO,
                    Wit::Warn => tracing::Level::WARN,
                    Wit::Error => tracing::Level::ERROR,
                };
                self.log.line(level, &message);
            }
        }

        impl imports::attributes::Host for StoreState {
            fn get(&mut self, connection: ConnectionId, key: String) -> Option<String> {
                self.lent::<crate::bindings::HostImports>()
                    .connections
                    .get(connection)?
                    .attribute(&key)
            }

            fn set(
                &mut self,
                connection: ConnectionId,
                key: String,
                value: Option<String>,
            ) -> Result<(), imports::attributes::AttributesError> {
                match self.lent::<crate::bindings::HostImports>().connections.get(connection) {
                    Some(connection) if !connection.set_attribute(&key, value) => {
                        Err(imports::attributes::AttributesError::Full)
                    }
                    _ => Ok(()),
                }
            }
        }

        impl imports::counters::Host for StoreState {
            fn add(
                &mut self,
                key: String,
                delta: i64,
                ttl_ms: u64,
            ) -> Result<imports::counters::Count, imports::counters::CountersError> {
                let ttl = std::time::Duration::from_millis(ttl_ms);
                let lent = self.lent::<crate::bindings::HostImports>();
                if lent.is_rechecking.get() {
                    let unchanged =
                        lent.counters.get(&key).unwrap_or(crate::counters::Count { value: 0, ttl });
                    return Ok(wit_count(unchanged));
                }
                let count = lent.counters.add(key, delta, ttl);
                count.map(wit_count).ok_or(imports::counters::CountersError::Full)
            }

            fn get(&mut self, key: String) -> Option<imports::counters::Count> {
                self.lent::<crate::bindings::HostImports>().counters.get(&key).map(wit_count)
            }

            fn take(
                &mut self,
                withdrawals: Vec<imports::counters::Withdrawal>,
            ) -> Result<imports::counters::Taking, imports::counters::CountersError> {
                use imports::counters as wit;
                let lent = self.lent::<crate::bindings::HostImports>();
                if lent.is_rechecking.get() {
                    return Ok(wit::Taking::Taken);
                }
                let own = |wit::Withdrawal { bucket, tokens }| crate::counters::Withdrawal {
                    key: bucket.key,
                    capacity: bucket.capacity,
                    refill: bucket.refill,
                    refill_time: std::time::Duration::from_millis(bucket.refill_ms),
                    tokens,
                };
                let withdrawals = withdrawals.into_iter().map(own).collect();
                match lent.counters.take(withdrawals) {
                    Some(crate::counters::Taking::Granted) => Ok(wit::Taking::Taken),
                    Some(crate::counters::Taking::Short { position, retry }) => {
                        Ok(wit::Taking::Short(wit::Shortage {
                            position: position as u32,
                            // Never too early: a fraction of a millisecond is rounded up.
                            retry_ms: retry
                                .map(|retry| retry.as_nanos().div_ceil(1_000_000) as u64),
                        }))
                    }
                    None => Err(wit::CountersError::Full),
                }
            }
        }

        fn wit_count(count: crate::counters::Count) -> imports::counters::Count {
            imports::counters::Count { value: count.value, ttl_ms: count.ttl.as_millis() as u64 }
        }
    };
}

pub(super) use host_imports;
