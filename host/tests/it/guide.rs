//! docs/plugins/guide.md, followed to the letter: its commands are typed into shells
//! in an empty folder, and its texts must come out.
//!
//! The shells run in a network namespace of their own, which contains only loopback: the
//! guide's servers listen on their default ports, and the dependencies of what it builds come
//! from `.tools/plugins/` (see `support/toolchains`). On Linux any user can create one, unless
//! `kernel.unprivileged_userns_clone` is 0.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::support::{components, toolchains};

/// How long a block of commands may take: npm, cargo and all.
const BLOCK_TIME: Duration = Duration::from_secs(600);

/// A block of the guide between fences.
#[derive(Debug, PartialEq, Eq)]
struct Block<'a> {
    /// The info string after the fence.
    kind: &'a str,
    /// Its contents.
    text: &'a str,
}

/// The blocks of the section with this heading, up to the next heading of its level.
fn blocks<'a>(guide: &'a str, heading: &str) -> Result<Vec<Block<'a>>> {
    let start = guide.find(&format!("\n## {heading}\n")).context("the section is missing")?;
    let section = guide.get(start + 1..).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut blocks = Vec::new();
    // Every second part is between fences.
    for block in section.split("\n```").skip(1).step_by(2) {
        let (kind, text) = block.split_once('\n').context("a fence has a line of its own")?;
        blocks.push(Block { kind, text });
    }
    Ok(blocks)
}

/// A shell that receives typed commands.
struct Terminal {
    shell: Child,
    lines: Receiver<String>,
    received: Vec<String>,
    /// How many of the lines have been searched.
    seen: usize,
    blocks: usize,
}

impl Terminal {
    /// The first shell: with a network of its own.
    fn open(folder: &Path) -> Result<Terminal> {
        let mut bash = toolchains::shell(folder)?;
        // As `bash`, but in it.
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net"]).arg(bash.get_program()).args(bash.get_args());
        Terminal::start(inherit(command, &mut bash))
    }

    /// Another shell in the network of the first.
    fn beside(&self, folder: &Path) -> Result<Terminal> {
        let mut bash = toolchains::shell(folder)?;
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.shell.id().to_string()])
            .args(["--user", "--net", "--preserve-credentials"])
            .arg(bash.get_program())
            .args(bash.get_args());
        Terminal::start(inherit(command, &mut bash))
    }

    fn start(mut command: Command) -> Result<Terminal> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut shell = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let (sender, lines) = channel();
        let pipes: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(shell.stdout.take().context("stdout is a pipe")?),
            Box::new(shell.stderr.take().context("stderr is a pipe")?),
        ];
        for pipe in pipes {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Ok(Terminal { shell, lines, received: Vec::new(), seen: 0, blocks: 0 })
    }

    /// Types commands. They must not read the lines that are typed after them.
    fn enter(&mut self, commands: &str) -> Result<()> {
        let stdin = self.shell.stdin.as_mut().context("stdin is a pipe")?;
        writeln!(stdin, "{{\n{commands}\n}} </dev/null")?;
        stdin.flush()?;
        Ok(())
    }

    /// Types commands and waits until they are done; they must succeed.
    fn run(&mut self, commands: &str) -> Result<()> {
        self.blocks += 1;
        let done = format!("block {} is done", self.blocks);
        self.enter(commands)?;
        self.enter(&format!("echo '{done}'"))?;
        self.wait_for(&done)
    }

    /// Waits for a line that contains this, among the lines since the last call.
    fn wait_for(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + BLOCK_TIME;
        loop {
            if let Some(at) = self.received.iter().skip(self.seen).position(|l| l.contains(text)) {
                self.seen += at + 1;
                return Ok(());
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.received.push(line),
                Err(RecvTimeoutError::Timeout) => bail!("waited in vain for {text:?}: {self}"),
                Err(RecvTimeoutError::Disconnected) => bail!("no {text:?} before the end: {self}"),
            }
        }
    }
}

impl std::fmt::Display for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.received.join("\n"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A program in it ends with its input, or with the shell's process group.
        drop(self.shell.stdin.take());
        let group = format!("-{}", self.shell.id());
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).output();
        let _ = self.shell.wait();
    }
}

/// The command with the folder and the environment of the other, and in a process group of its own,
/// so that all processes that it starts can be ended.
fn inherit(mut command: Command, other: &mut Command) -> Command {
    use std::os::unix::process::CommandExt;
    if let Some(folder) = other.get_current_dir() {
        command.current_dir(folder);
    }
    for (name, value) in other.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.process_group(0);
    command
}

/// Executes the steps of a section.
fn follow(heading: &str) -> Result<()> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins/guide.md");
    let guide = std::fs::read_to_string(guide)?;
    let home = components::directory()?;
    let mut first = Terminal::open(home.path())?;
    first.run("ip link set lo up").context("there is no network for the guide alone")?;
    let mut server = first.beside(home.path())?;
    let mut listener = first.beside(home.path())?;
    let (mut commands, mut texts) = (0, 0);
    for Block { kind, text } in blocks(&guide, heading)? {
        match kind {
            "sh" => {
                first.run(text).with_context(|| text.to_owned())?;
                commands += 1;
            }
            "sh server" => {
                server.enter(text)?;
                server.wait_for("the server is ready").with_context(|| text.to_owned())?;
            }
            "sh listener" => {
                listener.enter(text)?;
                listener.wait_for("listening").with_context(|| text.to_owned())?;
            }
            "text" => {
                // In the output of the last block.
                for line in text.lines() {
                    let said = first.received.iter().any(|received| received.contains(line));
                    ensure!(said, "{line:?} is not said: {first}");
                }
                texts += 1;
            }
            "text listener" => {
                for line in text.lines() {
                    listener.wait_for(line)?;
                }
                texts += 1;
            }
            other => bail!("the guide has a block of an unknown kind: {other}"),
        }
    }
    ensure!(commands > 5 && texts > 3, "there is little in the section {heading}");
    Ok(())
}

#[test]
fn the_guide_in_rust() -> Result<()> {
    follow("In Rust")
}

#[test]
fn the_guide_in_javascript() -> Result<()> {
    follow("In JavaScript")
}

#[test]
fn a_section_is_cut_into_its_blocks() -> Result<()> {
    let guide = "# G\n\n## A\n\n```sh\na\nb\n```\nx\n### B\n```text listener\nc\n```\n\n## C\n```sh\nd\n```\n";
    let expected = [Block { kind: "sh", text: "a\nb" }, Block { kind: "text listener", text: "c" }];
    assert_eq!(blocks(guide, "A")?, expected);
    assert_eq!(blocks(guide, "C")?, [Block { kind: "sh", text: "d" }]);
    assert!(blocks(guide, "D").is_err());
    Ok(())
}
