//! How much of each budget is used, and what uses the most.

use crate::session::Services;
use switchyard_hub::connections::memory::{Holding, Reading};

/// The state of the budgets.
pub struct Usage {
    /// Each budget in use.
    pub budgets: Vec<Reading>,
    /// The connections that hold the most, the largest first.
    pub connections: Vec<Holding>,
    /// The addresses whose connections hold the most, the largest first, without those that are not
    /// counted.
    pub addresses: Vec<Holding>,
}

/// Surveys all connections, engines and plugins, and lists this many connections and addresses.
/// Blocks until it has locked each of them.
pub fn usage(services: &Services, count: usize) -> Usage {
    let memory = services.hub.connections().memory();
    let (mut budgets, connections, addresses) = memory.read(count);
    let holdings = services.hub.holdings();
    budgets.push(Reading {
        name: "names",
        used: holdings.total().1,
        limit: holdings.limits().name_bytes_total_max,
    });
    let plugins = services.middleware.chain().plugins().to_vec();
    let plugins: usize = plugins.iter().flat_map(|plugin| plugin.memory_bytes()).flatten().sum();
    budgets.extend(memory.settings().map(|settings| Reading {
        name: "engine_and_plugins",
        used: services.hub.engine_memory_bytes() + plugins,
        limit: settings.budget.engine_and_plugins,
    }));
    Usage { budgets, connections, addresses }
}
