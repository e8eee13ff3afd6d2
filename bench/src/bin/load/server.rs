//! The servers: how each is started, and what the system says of its process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::count::{Counter, Counting};
use crate::wire::Wire;

/// A server that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// As the table names it.
    pub name: &'static str,
    /// What is spoken to it.
    pub wire: Wire,
    program: Program,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Switchyard { plugins: usize, is_native: bool },
    Floor,
    Redis,
    Nats,
    Bun,
    Ws,
}

const fn switchyard(name: &'static str, wire: Wire, plugins: usize) -> Kind {
    Kind { name, wire, program: Program::Switchyard { plugins, is_native: false } }
}

const fn native(name: &'static str, wire: Wire) -> Kind {
    Kind { name, wire, program: Program::Switchyard { plugins: 0, is_native: true } }
}

/// All of them.
pub const KINDS: &[Kind] = &[
    switchyard("switchyard/resp", Wire::Resp, 0),
    switchyard("switchyard/resp+plugin", Wire::Resp, 1),
    native("switchyard/resp native", Wire::Resp),
    Kind { name: "floor", wire: Wire::Resp, program: Program::Floor },
    Kind { name: "redis-server", wire: Wire::Resp, program: Program::Redis },
    Kind { name: "nats-server", wire: Wire::Nats, program: Program::Nats },
    switchyard("switchyard/ws", Wire::Json, 0),
    switchyard("switchyard/ws+plugin", Wire::Json, 1),
    switchyard("switchyard/ws+3 plugins", Wire::Json, 3),
    native("switchyard/ws native", Wire::Json),
    Kind { name: "bun", wire: Wire::Json, program: Program::Bun },
    Kind { name: "node ws", wire: Wire::Json, program: Program::Ws },
];

/// A server that runs, until it is dropped.
pub struct Server {
    /// Where it listens for what the kind speaks.
    pub port: u16,
    child: Child,
    /// Its log, line by line.
    log: Mutex<mpsc::Receiver<String>>,
    counter: Counter,
    /// Plugins and engine are in here.
    pub home: tempfile::TempDir,
}

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The repository.
    pub root: PathBuf,
    /// The server to be measured.
    pub switchyard: PathBuf,
    /// What answers and does nothing besides.
    pub floor: PathBuf,
    /// Lines for its config file that this build knows.
    config: String,
}

/// What every build knows: room for what the scenarios do.
const CONFIG: &str = "\
    limits.connections_max = 20000
    limits.subscriptions_max = 100000
    limits.names_per_command_max = 100000
    http.handshakes_max = 20000
    plugins.debounce_ms = 1
";

/// Under callgrind a call takes fifty times as long.
const CONFIG_UNDER_CALLGRIND: &str = "\
    plugins.call_budget_ms = 60000
    plugins.init_budget_ms = 60000
    engine.call_budget_ms = 60000
";

/// What only newer builds know: limits that a scenario passes. One setting a line.
const CONFIG_OF_NEWER: &str = "\
    limits.patterns_max = 200000
";

impl Places {
    /// A server, beside the components of its checkout.
    ///
    /// # Errors
    ///
    /// The server cannot be started.
    pub fn new(root: PathBuf, switchyard: PathBuf, floor: PathBuf) -> Result<Places> {
        let home = tempfile::tempdir()?;
        let file = home.path().join("switchyard.toml");
        let mut config = CONFIG.to_owned();
        for line in CONFIG_OF_NEWER.lines() {
            fs::write(&file, line)?;
            let checked = Command::new(&switchyard)
                .args(["serve", "--check", "--config"])
                .arg(&file)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .with_context(|| format!("cannot start {}", switchyard.display()))?;
            if checked.success() {
                config.push_str(line);
                config.push('\n');
            }
        }
        Ok(Places { root, switchyard, floor, config })
    }
}

/// How long a server may take to listen; under callgrind it compiles its components slowly.
const START_TIME_MAX: Duration = Duration::from_secs(90);

impl Server {
    /// Starts a server and waits until it listens. On these processors, if any are
    /// named.
    /// Its instructions can be counted by `counter`.
    pub fn start(
        kind: Kind,
        places: &Places,
        cpus: Option<&str>,
        counter: Counter,
    ) -> Result<Server> {
        // The port that was free a moment ago may be in use: while no socket listens on it, the
        // kernel may give it to an outgoing connection.
        let start = || Server::try_start(kind, places, cpus, counter);
        start().or_else(|_| start())
    }

    fn try_start(
        kind: Kind,
        places: &Places,
        cpus: Option<&str>,
        counter: Counter,
    ) -> Result<Server> {
        let home = tempfile::tempdir()?;
        let port = free_port()?;
        let mut words = counter.prefix(home.path());
        words.extend(kind.command(places, port, home.path(), counter)?);
        let (program, arguments) = words.split_first().context("there is a program")?;
        let mut command = match cpus {
            Some(cpus) => {
                let mut command = Command::new("taskset");
                command.args(["-c", cpus]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let mut child = command
            .args(arguments)
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let stderr = child.stderr.take().context("it is piped")?;
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Keep reading after the receiver is dropped: otherwise the server would block
                // on a full pipe.
                let _ = lines.send(line);
            }
        });
        let mut server = Server { port, child, log: Mutex::new(log), counter, home };
        let started = Instant::now();
        let is_ready = || match kind.program {
            Program::Switchyard { .. } => kind.wire.is_served(port),
            _ => TcpStream::connect(("127.0.0.1", port)).is_ok(),
        };
        while !is_ready() {
            let ended = server.child.try_wait()?;
            ensure!(ended.is_none(), "{program} ended: {:?}", server.last_words());
            ensure!(started.elapsed() < START_TIME_MAX, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Begins to count its instructions.
    pub fn begin_count(&self) -> Result<Counting> {
        self.counter.begin(self.child.id(), self.home.path())
    }

    /// The processor time that its threads have used, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let mut nanoseconds = 0.0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may have ended since the directory was read.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let on_cpu = text.split(' ').next().context("schedstat is empty")?;
            nanoseconds += on_cpu.parse::<f64>()?;
        }
        Ok(nanoseconds / 1e9)
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().split(' ').next());
        Ok(kibibytes.context("no VmRSS")?.parse::<f64>()? * 1024.0)
    }

    /// Has perf write down where the server's time goes, until the server ends.
    pub fn profile(&self, file: &Path) -> Result<Child> {
        Command::new("perf")
            .args(["record", "--quiet", "--freq=997", "--call-graph=dwarf,8192", "--output"])
            .arg(file)
            .args(["--pid", &self.child.id().to_string()])
            .spawn()
            .context("cannot start perf")
    }

    fn last_words(&self) -> Option<String> {
        self.log.lock().ok()?.try_iter().last()
    }

    /// The next line of its log that contains this; waits a while for it.
    pub fn log_line(&self, part: &str) -> Result<String> {
        let log = self
            .log
            .lock()
            .map_err(|_| anyhow::anyhow!("the thread that read the log panicked"))?;
        loop {
            let line = log.recv_timeout(Duration::from_secs(30));
            let line = line.with_context(|| format!("the log does not say \"{part}\""))?;
            if line.contains(part) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Kind {
    /// Whether it is ours.
    pub fn is_switchyard(self) -> bool {
        matches!(self.program, Program::Switchyard { .. })
    }

    /// Whether it is there to be compared with Switchyard as it is run.
    pub fn is_variant(self) -> bool {
        matches!(self.program, Program::Switchyard { plugins, is_native } if is_native || plugins > 1)
    }

    fn command(
        self,
        places: &Places,
        port: u16,
        home: &Path,
        counter: Counter,
    ) -> Result<Vec<String>> {
        let word = |path: PathBuf| path.to_string_lossy().into_owned();
        let tools = places.root.join(".tools/bench");
        let port = port.to_string();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Ok(match self.program {
            Program::Floor => words(&[&word(places.floor.clone()), &port]),
            Program::Redis => words(&[
                "redis-server",
                "--bind",
                "127.0.0.1",
                "--port",
                &port,
                "--save",
                "",
                "--appendonly",
                "no",
                "--maxclients",
                "15000",
            ]),
            Program::Nats => words(&["nats-server", "-a", "127.0.0.1", "-p", &port]),
            Program::Bun => words(&[
                &word(tools.join("node_modules/.bin/bun")),
                &word(places.root.join("bench/peers/bun.js")),
                &port,
            ]),
            Program::Ws => {
                // Where it finds `ws`: beside the copy.
                for file in ["ws.js", "commands.js"] {
                    fs::copy(places.root.join("bench/peers").join(file), tools.join(file))?;
                }
                words(&["node", &word(tools.join("ws.js")), &port])
            }
            Program::Switchyard { plugins, is_native } => {
                let directory = home.join("plugins");
                fs::create_dir(&directory)?;
                let onlooker = places.root.join("target/components/test/onlooker.wasm");
                for number in 0..plugins {
                    fs::copy(&onlooker, directory.join(format!("{number}0-onlooker.wasm")))?;
                }
                let engine = home.join("engine.wasm");
                fs::copy(places.root.join("target/components/guest-core.wasm"), &engine)?;
                let config = home.join("switchyard.toml");
                let slow = match counter {
                    Counter::Callgrind => CONFIG_UNDER_CALLGRIND,
                    Counter::Off | Counter::Perf => "",
                };
                fs::write(&config, places.config.clone() + slow)?;
                let (http, resp) = match self.wire {
                    Wire::Resp => ("127.0.0.1:0".to_owned(), format!("127.0.0.1:{port}")),
                    Wire::Json | Wire::Nats => (format!("127.0.0.1:{port}"), "off".to_owned()),
                };
                let engine = if is_native { "native".to_owned() } else { word(engine) };
                words(&[
                    &word(places.switchyard.clone()),
                    "serve",
                    "--config",
                    &word(config),
                    "--http",
                    &http,
                    "--resp",
                    &resp,
                    "--admin",
                    "off",
                    "--plugins",
                    &word(directory),
                    "--engine",
                    &engine,
                ])
            }
        })
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
