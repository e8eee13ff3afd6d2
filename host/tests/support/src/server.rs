//! The real server as a child process.
//!
//! It is started with `switchyard serve` on a free port, found through the
//! addresses it prints, and ended with its test. Its log is kept for assertions.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::node_host;
use crate::process::{Pipe, Process};
use crate::websocket::{Client, RawClient, Upgrade};
use crate::{compiled, switchyard};

/// Which engine the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The component inside the server: what is shipped.
    Component,
    /// The library without a sandbox, which must behave the same.
    Native,
    /// The component once more, in the host of `examples/node-host`.
    Node,
}

/// How to start a server.
#[derive(Debug)]
pub struct Launch {
    /// Which engine it runs.
    pub engine: Engine,
    /// The text of its config file.
    pub config: String,
    /// Its plugin directory.
    pub plugins: Option<PathBuf>,
    /// Further files beside the config file.
    pub files: Vec<(String, String)>,
    /// What its environment says besides.
    pub environment: Vec<(String, OsString)>,
    /// Where its log goes; none: it is kept.
    pub stderr: Option<Stdio>,
    /// A limit of its process, as `ulimit` takes it: `-n 64`, `-Sn 64` or `-f 8`.
    pub ulimit: Option<&'static str>,
}

impl Default for Launch {
    fn default() -> Launch {
        Launch {
            engine: Engine::Component,
            config: String::new(),
            plugins: None,
            files: Vec::new(),
            environment: Vec::new(),
            stderr: None,
            ulimit: None,
        }
    }
}

impl Launch {
    /// The defaults, and this config file.
    pub fn with_config(config: &str) -> Launch {
        Launch { config: config.to_owned(), ..Launch::default() }
    }

    /// A server that says it is ready.
    pub async fn start(self) -> Result<Server> {
        if self.engine == Engine::Node {
            let server = Server::start(node_host::command(&self)?, tempfile::tempdir()?)?;
            server.url().await?;
            return Ok(server);
        }
        let free = "127.0.0.1:0";
        let words = ["serve", "--http", free, "--resp", free, "--admin", free];
        let mut words: Vec<OsString> = words.map(Into::into).into();
        if self.engine == Engine::Native {
            words.extend(["--engine", "native"].map(Into::into));
        }
        if let Some(directory) = self.plugins {
            words.extend(["--plugins".into(), directory.into()]);
        }
        let home = tempfile::tempdir().context("cannot make a home for the server")?;
        for (name, text) in &self.files {
            std::fs::write(home.path().join(name), text).context("cannot write a file")?;
        }
        let file = home.path().join("switchyard.toml");
        std::fs::write(&file, with_quick_end(&self.config)).context("cannot write a file")?;
        words.extend(["--config".into(), file.into()]);
        let mut command = match self.ulimit {
            None => Command::new(switchyard()),
            Some(ulimit) => {
                let mut shell = Command::new("sh");
                let script = format!("ulimit {ulimit} && exec \"$0\" \"$@\"");
                shell.args(["-c", &script]).arg(switchyard());
                shell
            }
        };
        command.args(words).env("SWITCHYARD_CACHE", compiled()).envs(self.environment);
        let server = Server::start_logging(command, home, self.stderr)?;
        server.url().await?;
        Ok(server)
    }
}

/// A config file whose server does not wait for clients when it ends, unless the file says so.
pub fn with_quick_end(config: &str) -> String {
    let quick = [("grace_ms", 0), ("reconnect_spread_ms", 1), ("close_delay_ms", 0)];
    let missing = quick.iter().filter(|(key, _)| !config.contains(key));
    missing.map(|(key, value)| format!("shutdown.{key} = {value}\n")).collect::<String>() + config
}

/// A running server. Dropping it kills it.
pub struct Server {
    process: Process,
    home: TempDir,
}

impl Server {
    /// Runs `serve` with these words, a free port for HTTP, and no other listener.
    pub fn run_alone(words: &[&str]) -> Result<Server> {
        let alone = ["serve", "--http", "127.0.0.1:0", "--resp", "off", "--admin", "off"];
        Server::run_with(&[&alone, words].concat())
    }

    /// The binary with these words and nothing else, in an empty directory. It
    /// may not come up at all.
    pub fn run_with(words: &[&str]) -> Result<Server> {
        let home = tempfile::tempdir().context("cannot make a home for the server")?;
        let mut command = Command::new(switchyard());
        command.args(words).env("SWITCHYARD_CACHE", compiled());
        Server::start(command, home)
    }

    fn start(command: Command, home: TempDir) -> Result<Server> {
        Server::start_logging(command, home, None)
    }

    fn start_logging(mut command: Command, home: TempDir, stderr: Option<Stdio>) -> Result<Server> {
        command.current_dir(home.path()).env_remove("RUST_LOG");
        let process = match stderr {
            None => Process::start("server", &mut command)?,
            Some(stderr) => Process::start_saying("server", &mut command, stderr)?,
        };
        Ok(Server { process, home })
    }

    /// Where its WebSocket door is: `ws://…/ws`, or `wss://…/ws`. Waits until it
    /// says so.
    pub async fn url(&self) -> Result<String> {
        self.process.line_with(Pipe::Stdout, "/ws").await
    }

    /// The address in [`Server::url`].
    pub async fn address(&self) -> Result<SocketAddr> {
        let url = self.url().await?;
        let scheme_off = url.strip_prefix("ws://").or_else(|| url.strip_prefix("wss://"));
        let authority = scheme_off.and_then(|rest| rest.strip_suffix("/ws"));
        authority
            .and_then(|authority| authority.parse().ok())
            .with_context(|| format!("the server's address is not ws://IP:PORT/ws: {url}"))
    }

    /// Where its door for Redis clients is.
    pub async fn resp_address(&self) -> Result<SocketAddr> {
        let url = self.process.line_with(Pipe::Stdout, "re").await?;
        let scheme_off = url.strip_prefix("resp://").or_else(|| url.strip_prefix("rediss://"));
        let address = scheme_off.and_then(|address| address.parse().ok());
        address.with_context(|| format!("the server's address is not resp://IP:PORT: {url}"))
    }

    /// Where its admin API is: `http://…`.
    pub async fn admin_url(&self) -> Result<String> {
        self.process.line_with(Pipe::Stdout, "http://").await
    }

    /// A client on the default path, without a sub-protocol.
    pub async fn client(&self) -> Result<Client> {
        match Client::connect(self.address().await?, &Upgrade::default()).await? {
            Ok(client) => Ok(client),
            Err(refused) => bail!("the upgrade was answered with HTTP {}", refused.status),
        }
    }

    /// A client that makes its frames by hand, connected and upgraded.
    pub async fn raw_client(&self) -> Result<RawClient> {
        RawClient::dial(self.address().await?).await?.upgrade().await
    }

    /// The first line of the log that contains `text`; waits for it.
    pub async fn wait_for_log(&self, text: &str) -> Result<String> {
        self.process.line_with(Pipe::Stderr, text).await
    }

    /// The lines of the log that contain `text`; waits until there are so many.
    pub async fn wait_for_logs(&self, text: &str, count: usize) -> Result<Vec<String>> {
        self.process.lines_with(Pipe::Stderr, text, count).await
    }

    /// Where its config file is, and what that names.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The log so far; of a server that has ended, the whole log.
    pub fn log(&self) -> String {
        self.process.text(Pipe::Stderr)
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.process.signal(name)
    }

    /// How the server ended, and the lines that it wrote to standard output.
    /// Waits for it to end.
    pub async fn exit(&mut self) -> Result<(ExitStatus, Vec<String>)> {
        self.process.exit().await
    }

    /// Ends the server in good order, and checks that it does and that nothing
    /// in it panicked on the way.
    pub async fn stop(mut self) -> Result<()> {
        self.signal("TERM")?;
        let (status, _) = self.exit().await?;
        ensure!(status.success(), "the server ended with {status}");
        let log = self.log();
        let panic = log.lines().find(|line| line.contains("something in the server panicked"));
        ensure!(panic.is_none(), "something in the server panicked: {panic:?}");
        Ok(())
    }
}
