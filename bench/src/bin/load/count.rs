//! Counts the user-space instructions of a server while a scenario runs.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Nothing is counted.
    Off,
    /// The processor's own counter, through `perf stat`.
    Perf,
    /// callgrind, in which the server runs some fifty times slower.
    Callgrind,
}

impl Counter {
    /// The best one that this machine has.
    ///
    /// # Errors
    ///
    /// It has neither.
    pub fn available() -> Result<Counter> {
        let perf = Command::new("perf")
            .args(["stat", "-x,", "-e", "instructions:u", "true"])
            .stdout(Stdio::null())
            .output();
        if let Ok(output) = perf
            && output.status.success()
            && instructions_of(&String::from_utf8_lossy(&output.stderr)).is_some()
        {
            return Ok(Counter::Perf);
        }
        let valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
        ensure!(
            valgrind.is_ok_and(|status| status.success()),
            "neither perf counts instructions here nor is there valgrind; install valgrind"
        );
        Ok(Counter::Callgrind)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Counter::Off => "nothing",
            Counter::Perf => "perf stat",
            Counter::Callgrind => "callgrind",
        }
    }

    /// The words in front of the server's command. Files are put into `home`.
    pub fn prefix(self, home: &Path) -> Vec<String> {
        match self {
            Counter::Off | Counter::Perf => Vec::new(),
            Counter::Callgrind => vec![
                "valgrind".to_owned(),
                "--quiet".to_owned(),
                "--tool=callgrind".to_owned(),
                "--instr-atstart=no".to_owned(),
                format!("--callgrind-out-file={}", home.join(CALLGRIND_OUT).display()),
            ],
        }
    }

    /// Begins to count in the process with this id.
    ///
    /// # Errors
    ///
    /// The tool cannot be started.
    pub fn begin(self, process: u32, home: &Path) -> Result<Counting> {
        let perf = match self {
            Counter::Off => None,
            Counter::Perf => Some(Perf::begin(process, home)?),
            Counter::Callgrind => {
                callgrind_control("--instr=on", process)?;
                None
            }
        };
        Ok(Counting { counter: self, process, perf })
    }
}

const CALLGRIND_OUT: &str = "callgrind.out";

/// A count that is under way.
pub struct Counting {
    counter: Counter,
    process: u32,
    perf: Option<Perf>,
}

impl Counting {
    /// How many instructions there were since the beginning; none where nothing counts.
    ///
    /// # Errors
    ///
    /// The tool failed or printed no number.
    pub fn end(self, home: &Path) -> Result<Option<u64>> {
        match (self.counter, self.perf) {
            (Counter::Perf, Some(perf)) => perf.end(home).map(Some),
            (Counter::Callgrind, _) => {
                callgrind_control("--instr=off", self.process)?;
                callgrind_control("--dump", self.process)?;
                dumped(home).map(Some)
            }
            _ => Ok(None),
        }
    }
}

fn callgrind_control(command: &str, process: u32) -> Result<()> {
    let done = Command::new("callgrind_control")
        .args([command, &process.to_string()])
        .output()
        .context("cannot start callgrind_control, which comes with valgrind")?;
    ensure!(
        done.status.success(),
        "callgrind_control {command}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// The sum over all dumps: callgrind writes one for each thread where it separates them.
fn dumped(home: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(home)? {
        let path = entry?.path();
        let is_dump = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(CALLGRIND_OUT));
        if !is_dump {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let total = text.lines().rev().find_map(|line| line.strip_prefix("totals:"));
        if let Some(total) = total {
            sum += total.trim().parse::<u64>().context("callgrind's totals are no number")?;
        }
    }
    ensure!(sum > 0, "callgrind wrote no totals");
    Ok(sum)
}

/// `perf stat` on a process; commands through pipes start and stop the counting.
struct Perf {
    child: Child,
    commands: fs::File,
    answers: fs::File,
}

impl Perf {
    fn begin(process: u32, home: &Path) -> Result<Perf> {
        let pipe = |name: &str| -> Result<std::path::PathBuf> {
            let path = home.join(name);
            let made = Command::new("mkfifo").arg(&path).status().context("cannot start mkfifo")?;
            ensure!(made.success(), "mkfifo {}: {made}", path.display());
            Ok(path)
        };
        let (commands, answers) = (pipe("perf.commands")?, pipe("perf.answers")?);
        let child = Command::new("perf")
            .args(["stat", "-x,", "-e", "instructions:u", "--delay=-1", "--output"])
            .arg(home.join("perf.out"))
            .arg(format!("--control=fifo:{},{}", commands.display(), answers.display()))
            .args(["--pid", &process.to_string()])
            .spawn()
            .context("cannot start perf")?;
        // For reading and writing, so that opening waits for no other end.
        let open = |path| fs::File::options().read(true).write(true).open(path);
        let mut perf = Perf { child, commands: open(commands)?, answers: open(answers)? };
        perf.command("enable")?;
        Ok(perf)
    }

    fn command(&mut self, command: &str) -> Result<()> {
        self.commands.write_all(format!("{command}\n").as_bytes())?;
        // perf answers "ack\n" and, in some versions, a zero byte.
        let mut answer = [0; 4];
        self.answers.read_exact(&mut answer).context("perf did not answer")?;
        ensure!(
            answer.trim_ascii().ends_with(b"ack") || answer.contains(&b'a'),
            "perf: {answer:?}"
        );
        Ok(())
    }

    fn end(mut self, home: &Path) -> Result<u64> {
        self.commands.write_all(b"disable\nstop\n")?;
        let status = self.child.wait()?;
        ensure!(status.success(), "perf stat: {status}");
        let printed = fs::read_to_string(home.join("perf.out"))?;
        instructions_of(&printed).with_context(|| format!("perf stat printed {printed:?}"))
    }
}

/// The number in front of the event, in what `perf stat -x,` prints.
fn instructions_of(printed: &str) -> Option<u64> {
    let line = printed.lines().find(|line| line.contains("instructions"))?;
    line.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_does_not_support_is_no_number() {
        let check = |printed: &str, expected: Option<u64>| {
            assert_eq!(instructions_of(printed), expected, "{printed}");
        };
        check("# started on\n\n123456,,instructions:u,2000,100.00,,\n", Some(123_456));
        check("<not supported>,,instructions:u,0,100.00,,\n", None);
        check("", None);
    }
}
