//! What can be said on the command line. Flags override the config file.

pub mod operate;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::authors::AuthorCommand;
use crate::terminal::bench::BenchArgs;
use crate::terminal::generate::{CompletionsArgs, ManArgs};
use crate::terminal::health::HealthArgs;
use crate::terminal::publish::PubArgs;
use crate::terminal::subscribe::SubArgs;
use crate::terminal::top::TopArgs;
use operate::{ConnectionsArgs, EngineCommand, LogArgs, PluginCommand, PubsubCommand};

/// A Pub/Sub server for WebSocket and Redis clients whose logic is made of
/// WebAssembly components that are replaced while it runs.
#[derive(Debug, Parser)]
#[command(name = "switchyard", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the server until it is told to end.
    ///
    /// Prints the addresses it listens on to standard output, one a line, and
    /// its log to standard error. SIGTERM or ctrl-c ends it in good order, a
    /// second one at once; SIGHUP reads the config file, certificates, plugins and
    /// the engine file again.
    Serve(ServeArgs),
    /// Plugins: their files, and those of a running server.
    #[command(subcommand)]
    Plugin(Plugins),
    /// The engine of a running server.
    #[command(subcommand)]
    Engine(EngineCommand),
    /// Lists the connections of a running server.
    Connections(ConnectionsArgs),
    /// What is listened to, on a running server or on all its nodes.
    #[command(subcommand)]
    Pubsub(PubsubCommand),
    /// Shows what a running server logs, or changes it.
    ///
    /// It holds until the server's config file says otherwise, or it is restarted.
    Log(LogArgs),

    /// Listens to channels and patterns of a running server, and prints what is
    /// published.
    ///
    /// A lost connection is made again, as the server's words and close codes say.
    /// Ctrl-c ends it.
    Sub(SubArgs),

    /// Publishes on a channel of a running server, and prints how many deliveries
    /// that made.
    Pub(PubArgs),

    /// Shows what a running server does, as it does it: rates, connections, plugins,
    /// swaps.
    ///
    /// Asks its admin API. Where standard output is no terminal, it prints one JSON
    /// object for each look at the server.
    Top(TopArgs),

    /// Puts a running server under load for a while, and says what it did.
    ///
    /// Each message carries the time at which it was sent, so that latency is from
    /// publisher to listener. The load shares the machine with the server if that
    /// runs here. Ctrl-c ends it early.
    Bench(BenchArgs),

    /// Asks a running server how it is: 0 when it is well, 1 when it is not.
    Health(HealthArgs),

    /// Writes completions for a shell.
    Completions(CompletionsArgs),

    /// Writes the manual, as pages for man.
    Man(ManArgs),
}

/// What can be done with plugins.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Plugins {
    /// With the file of one.
    #[command(flatten)]
    Author(AuthorCommand),
    /// With those of a running server.
    #[command(flatten)]
    Operate(PluginCommand),
}

/// Where compiled components are kept.
#[derive(Debug, Default, Clone, Args)]
pub struct CacheArgs {
    /// The directory to keep compiled components in, so that they need not be compiled
    /// again. It must belong to the user alone who runs this: what is in it is executed
    /// [default: none].
    #[arg(id = "cache", long = "cache", value_name = "DIR", env = "SWITCHYARD_CACHE")]
    pub directory: Option<PathBuf>,
}

/// The flags of `switchyard serve`.
#[derive(Debug, Default, Clone, Args)]
pub struct ServeArgs {
    /// The config file, in TOML. `switchyard.example.toml` explains every
    /// setting. Without it, the defaults hold.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where to listen for HTTP and WebSocket, as ADDRESS:PORT; port 0 takes a
    /// free one [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,

    /// Where to listen for Redis clients, as ADDRESS:PORT; port 0 takes a free
    /// one, `off` none [default: 127.0.0.1:6380].
    #[arg(long, value_name = "ADDR")]
    pub resp: Option<String>,

    /// Where to listen for the admin API, as ADDRESS:PORT; port 0 takes a free one,
    /// `off` none. What is not loopback needs tokens [default: 127.0.0.1:8081].
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,

    /// The directory to load plugins from, and to watch for changes [default:
    /// none].
    #[arg(long, value_name = "DIR")]
    pub plugins: Option<PathBuf>,

    /// Where compiled components are kept.
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

    /// What lies between this node and others that are to be one with it:
    /// redis://HOST:PORT, rediss://… for TLS, redis+sentinel://HOST:PORT/MASTER,
    /// nats://HOST:PORT or tls://HOST:PORT; several hosts stand between commas. The
    /// password is taken from SWITCHYARD_CLUSTER_PASSWORD [default: none].
    #[arg(long, value_name = "URL")]
    pub cluster: Option<String>,

    /// What is logged, such as `debug` or `switchyard=debug,plugin=info`
    /// [default: info].
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,

    /// Lets everybody connect who can reach the server, also when no plugin
    /// decides who may. Without it, addresses other than loopback are listened
    /// on only with such a plugin.
    #[arg(long)]
    pub open_to_all: bool,

    /// Checks the configuration, with the certificates, the engine and the
    /// plugins that it names, and ends: 0 when they are good, 64 when not.
    #[arg(long)]
    pub check: bool,
}
