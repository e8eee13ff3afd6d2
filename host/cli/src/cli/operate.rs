//! The commands that use the admin API of a running server.

#![allow(missing_docs, reason = "what is flattened says so itself, and the rest is said as help")]

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::tls::TrustArgs;

/// The server to use, and the output format.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The admin API of the server. If it requires a token, set SWITCHYARD_ADMIN_TOKEN.
    #[arg(
        long,
        value_name = "URL",
        env = "SWITCHYARD_ADMIN",
        default_value = "http://127.0.0.1:8081"
    )]
    pub admin: String,

    #[command(flatten)]
    pub trust: TrustArgs,

    /// Prints the server's response as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A component to install.
#[derive(Debug, Args)]
pub struct ComponentArgs {
    /// The component, on this machine; it is uploaded.
    #[arg(value_name = "FILE", required_unless_present = "path")]
    pub file: Option<PathBuf>,

    /// The component, on the server's machine; the server reads it.
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    pub path: Option<PathBuf>,
}

/// Commands for plugins.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum PluginCommand {
    /// Lists the plugins in the order of the chain.
    Ls {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Shows the details of one plugin.
    Show {
        /// Its slot, or its name if only one plugin has it.
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
        /// Its settings and limits, in TOML, on this machine [default: the existing settings file].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Replaces a plugin by another version.
    Swap {
        /// Its slot, or its name if only one plugin has it.
        plugin: String,
        #[command(flatten)]
        component: ComponentArgs,
        /// Its settings and limits, in TOML, on this machine [default: unchanged].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Starts without the state of the current version.
        #[arg(long)]
        fresh: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Restores the version that was replaced last.
    Rollback {
        /// Its slot, or its name if only one plugin has it.
        plugin: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Moves a plugin within the chain.
    Move {
        /// Its slot, or its name if only one plugin has it.
        plugin: String,
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Removes a plugin from the chain. Its settings stay in the plugin directory, as
    /// SLOT.toml.removed; `load` finds them there.
    Rm {
        /// Its slot, or its name if only one plugin has it.
        plugin: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Replaces the instances of a plugin by new ones with other settings, as a swap does.
    Reload {
        /// Its slot, or its name if only one plugin has it.
        plugin: String,
        /// Its settings and limits, in TOML, on this machine [default: the settings file as it is
        /// now].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Starts without the state of the current instances.
        #[arg(long)]
        fresh: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Prints the plugins' decisions about messages as they pass, until ctrl-c.
    Trace {
        #[command(flatten)]
        wanted: WantedArgs,
        /// Ends after this many lines.
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

    /// Right after this plugin.
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
    /// Commands and publications of this connection.
    #[arg(long, value_name = "ID")]
    pub connection: Option<u64>,

    /// Items on channels that match.
    #[arg(long, value_name = "GLOB")]
    pub channel: Option<String>,
}

/// Commands for the engine.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum EngineCommand {
    /// Shows the details of the engine.
    Show {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Replaces it by another component.
    Swap {
        #[command(flatten)]
        component: ComponentArgs,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Restores the engine that was replaced last.
    Rollback {
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Queries of subscriptions.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum PubsubCommand {
    /// Lists the channels with subscribers.
    Channels {
        /// Only channels that match this glob.
        #[arg(value_name = "GLOB")]
        matching: Option<String>,
        /// Shard channels (SSUBSCRIBE).
        #[arg(long)]
        shard: bool,
        #[command(flatten)]
        nodes: NodesArgs,
    },
    /// Counts the subscribers of channels.
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

/// The flags of `switchyard channels top`.
#[derive(Debug, Args)]
pub struct TopChannelsArgs {
    /// How many channels are shown of each kind.
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100))]
    pub limit: u64,

    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Commands for the histories of a running server.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum HistoryCommand {
    /// Ends the history of a channel: its messages are gone. For operators.
    Purge {
        /// The channel.
        #[arg(value_name = "CHANNEL")]
        channel: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Which nodes are included.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// Includes all nodes, not only this one.
    #[arg(long)]
    pub all: bool,

    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Which connections are listed.
#[derive(Debug, Args)]
pub struct ConnectionsArgs {
    /// Shows one connection and its subscriptions.
    #[arg(value_name = "ID")]
    pub connection: Option<u64>,

    /// Closes this connection, with code 4105.
    #[arg(long, requires = "connection")]
    pub close: bool,

    /// Only connections with a higher id.
    #[arg(long, value_name = "ID", conflicts_with = "connection")]
    pub after: Option<u64>,

    /// How many are shown, 1 to 1000 [default: 100].
    #[arg(long, value_name = "N", conflicts_with = "connection")]
    pub limit: Option<usize>,

    #[command(flatten)]
    pub which: WhichArgs,

    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Conditions for connections; those that meet all of them are meant.
#[derive(Debug, Args)]
pub struct WhichArgs {
    /// Only connections of this user: the attribute `user`, which the plugin sets that
    /// authenticates.
    #[arg(long, value_name = "USER", conflicts_with = "connection")]
    pub user: Option<String>,

    /// Only connections from this IP address or network, such as 192.0.2.1 or 192.0.2.0/24.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "connection")]
    pub address: Option<String>,

    /// Only connections whose client gave itself this name (CLIENT SETNAME).
    #[arg(long, value_name = "NAME", conflicts_with = "connection")]
    pub name: Option<String>,
}

/// Which connections are closed.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true)
    .args(["connection", "user", "address", "name"])))]
pub struct DisconnectArgs {
    /// The id of one connection.
    #[arg(value_name = "ID")]
    pub connection: Option<u64>,

    #[command(flatten)]
    pub which: WhichArgs,

    #[command(flatten)]
    pub admin: AdminArgs,
}

/// The log filter.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// A level, or levels for targets, such as `debug` or
    /// `info,plugin=debug,switchyard_server::listener=debug` [default: unchanged].
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,

    /// Logs the activity of this connection, whatever the filter says; may be repeated. `switchyard
    /// connections` lists the ids.
    #[arg(long, value_name = "ID")]
    pub follow: Vec<u64>,

    /// Stops logging the activity of this connection.
    #[arg(long, value_name = "ID")]
    pub unfollow: Vec<u64>,

    #[command(flatten)]
    pub admin: AdminArgs,
}
