//! A child process whose output is kept, line by line.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;

use crate::{PATIENCE, within};

/// A running process. Dropping it kills it, and shows what it wrote: the test
/// harness prints that when the test fails.
pub struct Process {
    name: &'static str,
    child: Child,
    stdout: watch::Receiver<Output>,
    stderr: watch::Receiver<Output>,
}

/// Which of its two pipes.
#[derive(Debug, Clone, Copy)]
pub enum Pipe {
    Stdout,
    Stderr,
}

/// What came out of a pipe so far.
#[derive(Debug, Default)]
struct Output {
    lines: Vec<String>,
    has_ended: bool,
}

impl Process {
    /// Starts a process, called `name` in what a failing test shows.
    pub fn start(name: &'static str, command: &mut Command) -> Result<Process> {
        Process::start_fed(name, command, Stdio::null())
    }

    /// The same with something to read at its standard input.
    pub fn start_fed(name: &'static str, command: &mut Command, stdin: Stdio) -> Result<Process> {
        Process::spawn(name, command, stdin, Stdio::piped())
    }

    /// The same where standard error goes elsewhere, and is not kept.
    pub fn start_saying(
        name: &'static str,
        command: &mut Command,
        stderr: Stdio,
    ) -> Result<Process> {
        Process::spawn(name, command, Stdio::null(), stderr)
    }

    fn spawn(
        name: &'static str,
        command: &mut Command,
        stdin: Stdio,
        stderr: Stdio,
    ) -> Result<Process> {
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        let stdout = collect(child.stdout.take().context("stdout is a pipe")?);
        let nothing = || watch::channel(Output { has_ended: true, ..Output::default() }).1;
        let stderr = child.stderr.take().map_or_else(nothing, collect);
        Ok(Process { name, child, stdout, stderr })
    }

    /// The first line in a pipe that contains `text`; waits for it.
    pub async fn line_with(&self, pipe: Pipe, text: &str) -> Result<String> {
        let mut output = self.pipe(pipe).clone();
        let what = format!("{text:?} from {}", self.name);
        let found = |output: &Output| output.line_with(text).map(str::to_owned);
        let output = within(
            PATIENCE,
            what,
            output.wait_for(|output| output.has_ended || found(output).is_some()),
        );
        let line = found(&*output.await??);
        line.with_context(|| format!("{} ended without saying {text:?}", self.name))
    }

    /// The lines in a pipe that contain `text`; waits until there are so many.
    pub async fn lines_with(&self, pipe: Pipe, text: &str, count: usize) -> Result<Vec<String>> {
        let mut output = self.pipe(pipe).clone();
        let found = |output: &Output| -> Vec<String> {
            output.lines.iter().filter(|line| line.contains(text)).cloned().collect()
        };
        let what = format!("{count} times {text:?} from {}", self.name);
        let enough = output.wait_for(|output| output.has_ended || found(output).len() >= count);
        let lines = found(&*within(PATIENCE, what, enough).await??);
        ensure!(lines.len() >= count, "{} ended before it said {text:?} so often", self.name);
        Ok(lines)
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What came out of a pipe so far.
    pub fn text(&self, pipe: Pipe) -> String {
        self.pipe(pipe).borrow().lines.join("\n")
    }

    /// Sends a signal, such as `TERM`, to this process and to no other.
    pub fn signal(&self, name: &str) -> Result<()> {
        // It is reaped by `exit` and `drop` only, so the id is still its own.
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status()?;
        ensure!(status.success(), "cannot send SIG{name} to {}", self.name);
        Ok(())
    }

    /// How it ended, and the lines that it wrote to standard output. Waits for
    /// it to end.
    pub async fn exit(&mut self) -> Result<(ExitStatus, Vec<String>)> {
        let (mut stdout, mut stderr) = (self.stdout.clone(), self.stderr.clone());
        within(PATIENCE, format!("the end of {}", self.name), async {
            let lines = stdout.wait_for(|output| output.has_ended).await?.lines.clone();
            stderr.wait_for(|output| output.has_ended).await?;
            // Its pipes are closed, so this is a matter of microseconds.
            loop {
                match self.child.try_wait()? {
                    Some(status) => return Ok((status, lines)),
                    None => tokio::task::yield_now().await,
                }
            }
        })
        .await?
    }

    fn pipe(&self, pipe: Pipe) -> &watch::Receiver<Output> {
        match pipe {
            Pipe::Stdout => &self.stdout,
            Pipe::Stderr => &self.stderr,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pipe in [&self.stdout, &self.stderr] {
            for line in &pipe.borrow().lines {
                eprintln!("[{}] {line}", self.name);
            }
        }
    }
}

impl Output {
    fn line_with(&self, text: &str) -> Option<&str> {
        self.lines.iter().map(String::as_str).find(|line| line.contains(text))
    }
}

/// Reads a pipe on a thread of its own, until it ends.
fn collect(pipe: impl Read + Send + 'static) -> watch::Receiver<Output> {
    let (sender, receiver) = watch::channel(Output::default());
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            sender.send_modify(|output| output.lines.push(line));
        }
        sender.send_modify(|output| output.has_ended = true);
    });
    receiver
}
