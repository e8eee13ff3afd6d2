//! The commands that speak to a running server.

#![allow(missing_docs, reason = "what is flattened says so itself, and the rest is said as help")]

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Where the server is, and how its answers are shown.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The admin API of the server. Where it asks for a token, that is taken from
    /// the environment: SWITCHYARD_ADMIN_TOKEN.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
    pub admin: String,

    /// Shows what the server answers, as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A component that the server is to take.
#[derive(Debug, Args)]
pub struct ComponentArgs {
    /// The component, on this machine; it is uploaded.
    #[arg(value_name = "FILE", required_unless_present = "path")]
    pub file: Option<PathBuf>,

    /// The component, on the server's machine; the server reads it.
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    pub path: Option<PathBuf>,
}

/// What can be done with plugins.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum PluginCommand {
    /// Lists the plugins in the order of the chain.
    Ls {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Shows all that is known of one plugin.
    Show {
        /// Its slot, or its name where only one plugin has it.
        plugin: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Puts a plugin into the chain.
    Load {
        /// The slot to put it in, such as `20-redact`: a number, which gives the
        /// place in the chain, and the plugin's name.
        slot: String,
        #[command(flatten)]
        component: ComponentArgs,
        /// Its settings and limits, in TOML, on this machine [default: those that
        /// stand beside it already].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Puts another version in the place of a plugin.
    Swap {
        /// Its slot, or its name where only one plugin has it.
        plugin: String,
        #[command(flatten)]
        component: ComponentArgs,
        /// Its settings and limits, in TOML, on this machine [default: as they
        /// are].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Starts without the state of the version in place, where that cannot be
        /// handed over.
        #[arg(long)]
        fresh: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Brings back the version that was replaced last.
    Rollback {
        /// Its slot, or its name where only one plugin has it.
        plugin: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Gives a plugin another place in the chain.
    Move {
        /// Its slot, or its name where only one plugin has it.
        plugin: String,
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Takes a plugin out of the chain. Its settings stay in the plugin directory, as
    /// SLOT.toml.removed; `load` finds them there.
    Rm {
        /// Its slot, or its name where only one plugin has it.
        plugin: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Makes new instances of a plugin with other settings, as a swap does.
    Reload {
        /// Its slot, or its name where only one plugin has it.
        plugin: String,
        /// Its settings and limits, in TOML, on this machine [default: those that
        /// stand beside it now].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Starts without the state of the instances in place.
        #[arg(long)]
        fresh: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Shows what the plugins say of messages while they pass, until ctrl-c.
    Trace {
        #[command(flatten)]
        wanted: WantedArgs,
        /// Ends after so many lines.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Another place in the chain.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct PlaceArgs {
    /// Right before this plugin.
    #[arg(long, value_name = "PLUGIN")]
    pub before: Option<String>,

    /// Right behind this plugin.
    #[arg(long, value_name = "PLUGIN")]
    pub after: Option<String>,

    /// Under this slot's name.
    #[arg(long, value_name = "SLOT")]
    pub to: Option<String>,
}

/// Which messages are shown.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct WantedArgs {
    /// What this connection asks for and publishes.
    #[arg(long, value_name = "ID")]
    pub connection: Option<u64>,

    /// What is about the channels that match.
    #[arg(long, value_name = "GLOB")]
    pub channel: Option<String>,
}

/// What can be done with the engine.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum EngineCommand {
    /// Shows what is known of the engine.
    Show {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Puts another component in its place.
    Swap {
        #[command(flatten)]
        component: ComponentArgs,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Brings back the engine that was replaced last.
    Rollback {
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// What can be asked about what is listened to.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum PubsubCommand {
    /// Lists the channels that somebody subscribes to.
    Channels {
        /// Those that match this glob.
        #[arg(value_name = "GLOB")]
        matching: Option<String>,
        /// Shard channels (SSUBSCRIBE).
        #[arg(long)]
        shard: bool,
        #[command(flatten)]
        nodes: NodesArgs,
    },
    /// Counts who subscribes to channels.
    Numsub {
        /// The channels.
        #[arg(required = true, value_name = "CHANNEL")]
        channels: Vec<String>,
        /// Shard channels (SSUBSCRIBE).
        #[arg(long)]
        shard: bool,
        #[command(flatten)]
        nodes: NodesArgs,
    },
    /// Counts patterns.
    Numpat {
        #[command(flatten)]
        nodes: NodesArgs,
    },
}

/// Which nodes are asked.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// Asks all nodes, and not only this one.
    #[arg(long)]
    pub all: bool,

    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Which connections are listed.
#[derive(Debug, Args)]
pub struct ConnectionsArgs {
    /// Shows one connection, and what it listens to.
    #[arg(value_name = "ID")]
    pub connection: Option<u64>,

    /// Sends this connection away: it is closed with 4105.
    #[arg(long, requires = "connection")]
    pub close: bool,

    /// Shows those with a higher id.
    #[arg(long, value_name = "ID", conflicts_with = "connection")]
    pub after: Option<u64>,

    /// How many are shown, 1 to 1000 [default: 100].
    #[arg(long, value_name = "N", conflicts_with = "connection")]
    pub limit: Option<usize>,

    #[command(flatten)]
    pub admin: AdminArgs,
}

/// What is to be logged.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// A level, or levels for targets, such as `debug` or
    /// `info,plugin=debug,switchyard::listener=debug` [default: as it is].
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,

    /// Logs what this connection does, whatever the filter says; may be given more
    /// than once. `switchyard connections` lists the ids.
    #[arg(long, value_name = "ID")]
    pub follow: Vec<u64>,

    /// Does not any more.
    #[arg(long, value_name = "ID")]
    pub unfollow: Vec<u64>,

    #[command(flatten)]
    pub admin: AdminArgs,
}
