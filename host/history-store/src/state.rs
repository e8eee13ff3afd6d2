//! The file `state`: whether the last stop was clean, and a bound above all epochs.
//!
//! It is separate from the database, so that a damaged database does not bring an epoch back. It is
//! replaced as a whole, and synchronised to disk, when the server starts, when epochs reach the
//! bound, and at a clean stop.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::format::VERSION;

/// Epochs are times: the bound is so much later than the last one.
pub(crate) const EPOCHS_RESERVED_US: u64 = 60_000_000;

const FILE: &str = "state";
const NEW_FILE: &str = "state.new";
const TITLE: &str = "switchyard history";

/// What a store has that was closed: how many values, and the sum of their checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Digest {
    pub values: u64,
    pub sum: u64,
}

impl Digest {
    pub fn add(&mut self, checksum: u32) {
        self.values = self.values.wrapping_add(1);
        self.sum = self.sum.wrapping_add(checksum.into());
    }

    pub fn remove(&mut self, checksum: u32) {
        self.values = self.values.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(checksum.into());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// All epochs that were used are below this one.
    pub epochs_below: u64,
    /// What was written when the server stopped; none: it runs, or did not stop in order.
    pub clean: Option<Digest>,
}

/// Why the file is not used.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// There is none.
    Missing,
    /// It cannot be read.
    Io(io::Error),
    /// It is of another version.
    Version,
    /// It is not what was written.
    Damaged,
}

impl State {
    pub fn read(directory: &Path) -> Result<State, Unusable> {
        let text = fs::read(directory.join(FILE)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Unusable::Missing,
            _ => Unusable::Io(error),
        })?;
        State::decode(&text)
    }

    /// Replaces the file.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(NEW_FILE);
        let mut file = File::create(&path)?;
        file.write_all(self.encode().as_bytes())?;
        file.sync_all()?;
        fs::rename(&path, directory.join(FILE))?;
        File::open(directory)?.sync_all()
    }

    /// Whether the file is there.
    pub fn exists(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    /// Renames the file, so that it is not read again.
    pub fn set_aside(directory: &Path, name: &str) -> io::Result<()> {
        fs::rename(directory.join(FILE), directory.join(format!("{FILE}.{name}")))
    }

    fn encode(&self) -> String {
        let stop = match self.clean {
            Some(Digest { values, sum }) => format!("clean {values} {sum}"),
            None => "running".to_owned(),
        };
        let text = format!("{TITLE} {VERSION}\nepochs below {}\n{stop}\n", self.epochs_below);
        let sum = crc32fast::hash(text.as_bytes());
        format!("{text}checksum {sum}\n")
    }

    fn decode(text: &[u8]) -> Result<State, Unusable> {
        let text = std::str::from_utf8(text).map_err(|_| Unusable::Damaged)?;
        let version = text.strip_prefix(TITLE).and_then(|rest| rest.split_once('\n'));
        let (version, _) = version.ok_or(Unusable::Damaged)?;
        if version.trim().parse() != Ok(VERSION) {
            return Err(Unusable::Version);
        }
        State::decode_lines(text).ok_or(Unusable::Damaged)
    }

    fn decode_lines(text: &str) -> Option<State> {
        let (content, sum) = text.strip_suffix('\n')?.rsplit_once("checksum ")?;
        if sum.parse() != Ok(crc32fast::hash(content.as_bytes())) {
            return None;
        }
        let mut lines = content.lines().skip(1);
        let epochs_below = lines.next()?.strip_prefix("epochs below ")?.parse().ok()?;
        let clean = match lines.next()?.split(' ').collect::<Vec<_>>()[..] {
            ["running"] => None,
            ["clean", values, sum] => {
                Some(Digest { values: values.parse().ok()?, sum: sum.parse().ok()? })
            }
            _ => return None,
        };
        Some(State { epochs_below, clean })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(matches!(State::read(directory.path()), Err(Unusable::Missing)));
        for clean in [None, Some(Digest { values: 7, sum: u64::MAX })] {
            let state = State { epochs_below: 1_764_340_000_000_000, clean };
            state.write(directory.path()).expect("it is written");
            assert_eq!(State::read(directory.path()).expect("it is read"), state);
            let text = state.encode().into_bytes();
            for at in 0..text.len() {
                let mut changed = text.clone();
                changed[at] ^= 1;
                assert!(State::decode(&changed).is_err(), "{at}");
                assert!(State::decode(&text[..at]).is_err(), "{at}");
            }
        }
        let other =
            State { epochs_below: 1, clean: None }.encode().replace("history 1", "history 2");
        assert!(matches!(State::decode(other.as_bytes()), Err(Unusable::Version)));
    }
}
