//! The command line. Flags override the config file.

pub mod operate;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use switchyard_config::Overrides;

use crate::authors::{AuthorCommand, CacheArgs};
use crate::terminal::bench::BenchArgs;
use crate::terminal::generate::{CompletionsArgs, ConfigArgs, ManArgs};
use crate::terminal::health::HealthArgs;
use crate::terminal::history::{HistoryArgs, PresenceArgs};
use crate::terminal::publish::PubArgs;
use crate::terminal::subscribe::SubArgs;
use crate::terminal::top::TopArgs;
use operate::{
    ConnectionsArgs, DisconnectArgs, EngineCommand, HistoryCommand, LogArgs, PluginCommand,
    PubsubCommand, TopChannelsArgs,
};

/// A Pub/Sub server for WebSocket and Redis clients, with hot-swappable WebAssembly plugins.
#[derive(Debug, Parser)]
#[command(name = "switchyard", version, arg_required_else_help = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the server until it receives a signal to stop.
    ///
    /// Prints its listening addresses to standard output, one per line, and its log to standard
    /// error. SIGTERM or ctrl-c shuts it down gracefully, a second one at once. SIGHUP reloads the
    /// config file, certificates, plugins and the engine file.
    Serve(ServeArgs),
    /// Works with plugin files, and with the plugins of a running server.
    #[command(subcommand)]
    Plugin(Plugins),
    /// Works with the engine of a running server.
    #[command(subcommand)]
    Engine(EngineCommand),
    /// Lists the connections of a running server.
    Connections(ConnectionsArgs),
    /// Closes connections, with code 4105: one, or all of a user, address or client name.
    Disconnect(DisconnectArgs),
    /// Lists subscriptions of a running server, or of all its nodes.
    #[command(subcommand)]
    Pubsub(PubsubCommand),
    /// Shows or changes the log filter of a running server.
    ///
    /// A change lasts until the server's config file is reloaded with another filter, or the server
    /// is restarted.
    Log(LogArgs),

    /// Subscribes to channels and patterns of a running server, and prints published messages.
    ///
    /// Reconnects when the connection is lost, as the server's close codes and messages say. Ctrl-c
    /// ends it.
    Sub(SubArgs),

    /// Publishes on a channel of a running server, and prints the number of deliveries.
    Pub(PubArgs),

    /// Prints the messages that a channel with history retains.
    History(HistoryLine),

    /// Prints the members of a channel with presence.
    Presence(PresenceArgs),

    /// Shows the activity of a running server: rates, connections, plugins, swaps.
    ///
    /// Uses the admin API. If standard output is not a terminal, it prints one JSON object for each
    /// poll.
    Top(TopArgs),

    /// Puts a running server under load for a while, and prints the results.
    ///
    /// Each message carries the time at which it was sent, so that latency is from publisher to
    /// subscriber. The load generator competes with a server on the same machine. Ctrl-c ends it
    /// early.
    Bench(BenchArgs),

    /// Checks the health of a running server. Exits with 0 if it is healthy, else with 1.
    Health(HealthArgs),

    /// Prints the settings of the server as a commented config file: the defaults, or those in effect
    /// with a config file. Secrets are redacted.
    Config(ConfigArgs),

    /// Shows the channels of a running server, and explains the channel rules of a config file.
    #[command(subcommand)]
    Channels(ChannelsCommand),

    /// Prints completions for a shell.
    Completions(CompletionsArgs),

    /// Writes the man pages.
    Man(ManArgs),
}

/// Commands for plugins.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Plugins {
    /// For plugin files.
    #[command(flatten)]
    Author(AuthorCommand),
    /// For the plugins of a running server.
    #[command(flatten)]
    Operate(PluginCommand),
}

/// Commands for channels.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum ChannelsCommand {
    /// Prints the rule that applies to a channel, and which history and presence the channel has.
    ///
    /// Reads the configuration as `switchyard serve --check` does, with the same flags, and exits
    /// with 64 if it is invalid. Connects to no server.
    Explain(ExplainArgs),

    /// Lists the channels with the most subscribers, and what channels retain: their histories, what
    /// was dropped to stay within the bounds, and their members.
    Top(TopChannelsArgs),
}

/// `switchyard history`: for clients, or one of the commands for operators.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct HistoryLine {
    /// A command for operators.
    #[command(subcommand)]
    pub command: Option<HistoryCommand>,

    /// What is printed, if there is no command.
    #[command(flatten)]
    pub args: HistoryArgs,
}

/// The flags of `switchyard channels explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// The name of the channel: any bytes. Write `--` before a name that begins with `-`.
    #[arg(value_name = "NAME")]
    pub name: OsString,

    /// Prints a JSON object, with null for what the channel does not have.
    #[arg(long)]
    pub json: bool,

    /// The configuration.
    #[command(flatten, next_help_heading = "Flags of the server")]
    pub settings: SettingsArgs,
}

/// The flags of `switchyard serve`.
#[derive(Debug, Default, Clone, Args)]
pub struct ServeArgs {
    /// The configuration.
    #[command(flatten)]
    pub settings: SettingsArgs,

    /// Checks the configuration, with the certificates, the engine and the plugins that it names,
    /// and exits: with 0 if they are valid, else with 64. Warns of channel rules that never apply.
    #[arg(long)]
    pub check: bool,
}

/// The config file, and the flags that override it.
#[derive(Debug, Default, Clone, Args)]
pub struct SettingsArgs {
    /// The config file, in TOML. `switchyard config` prints and explains every setting. Without it,
    /// the defaults apply.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where to listen for HTTP and WebSocket, as ADDRESS:PORT or unix:PATH; port 0 selects a free
    /// one. Repeat it for several addresses [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub http: Vec<String>,

    /// Where to listen for Redis clients, likewise; `off` disables it [default: 127.0.0.1:6380].
    #[arg(long, value_name = "ADDR")]
    pub resp: Vec<String>,

    /// Where to listen for the admin API, likewise; `off` disables it. Addresses other than
    /// loopback require tokens [default: 127.0.0.1:8081].
    #[arg(long, value_name = "ADDR")]
    pub admin: Vec<String>,

    /// The directory to load plugins from, and to watch for changes [default:
    /// none].
    #[arg(long, value_name = "DIR")]
    pub plugins: Option<PathBuf>,

    /// The cache of compiled components.
    #[command(flatten)]
    pub cache: CacheArgs,

    /// The engine: a component that exports `switchyard:pubsub/engine`, watched
    /// for changes; or `native` for the library without a sandbox, meant for
    /// comparison [default: the component inside the server].
    #[arg(long, value_name = "FILE")]
    pub engine: Option<PathBuf>,

    /// How many shards the channels are spread over, 1 to 32 [default: the
    /// number of cores].
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,

    /// The backplane between the nodes of a cluster: redis://HOST:PORT, rediss://… for TLS,
    /// redis+sentinel://HOST:PORT/MASTER, nats://HOST:PORT or tls://HOST:PORT; several hosts are
    /// separated by commas. The password is read from SWITCHYARD_CLUSTER_PASSWORD [default: none].
    #[arg(long, value_name = "URL")]
    pub cluster: Option<String>,

    /// The log filter, such as `debug` or `switchyard=debug,plugin=info` [default: info].
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,

    /// Lets every client connect that can reach the server, even if no plugin decides about
    /// connects. Otherwise, addresses other than loopback require such a plugin.
    #[arg(long)]
    pub open_to_all: bool,
}

impl SettingsArgs {
    /// What the flags override.
    pub fn overrides(&self) -> Overrides {
        let SettingsArgs {
            config,
            http,
            resp,
            admin,
            plugins,
            cache,
            engine,
            shards,
            cluster,
            log,
            open_to_all,
        } = self.clone();
        Overrides {
            file: config,
            http,
            resp,
            admin,
            plugins,
            cache: cache.directory,
            engine,
            shards,
            cluster,
            log,
            open_to_all,
        }
    }
}
