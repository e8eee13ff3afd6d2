//! What Linux reports of this process in `/proc/self`.
//!
//! The file is opened once and kept: it can be read when there are no file descriptors left.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// More than `/proc/self/status` has: 1.5 KB, and up to a few more where there are many CPUs.
const STATUS_BYTES_MAX: usize = 16 << 10;

static STATUS: OnceLock<Option<File>> = OnceLock::new();

/// Opens what is read later. To be called at the start, while there are descriptors.
pub fn prepare() {
    STATUS.get_or_init(|| File::open("/proc/self/status").ok());
}

/// The text of `/proc/self/status` at one moment.
pub struct Status(String);

impl Status {
    /// Reads it. Where that fails, all fields are missing.
    pub fn read() -> Status {
        prepare();
        let mut text = vec![0; STATUS_BYTES_MAX];
        let file = STATUS.get().and_then(Option::as_ref);
        let length = file.and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        text.truncate(length);
        Status(String::from_utf8_lossy(&text).into_owned())
    }

    /// A field that is a number, without its unit: `VmRSS` in KiB, `Threads`.
    pub fn number(&self, name: &str) -> Option<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// The memory that the process holds, in bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        self.number("VmRSS").map(|kibibytes| kibibytes * 1024)
    }
}

/// How many files and sockets are open.
pub fn open_descriptors() -> Option<u64> {
    // Since Linux 6.2 this is the size of the directory. Before that it is 0.
    let size = std::fs::metadata("/proc/self/fd").ok()?.len();
    if size > 0 {
        return Some(size);
    }
    // One of them is the directory that is read here.
    std::fs::read_dir("/proc/self/fd").ok().map(|open| open.count() as u64 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_memory_threads_and_descriptors() {
        let status = Status::read();
        assert!(status.resident_bytes() > Some(1 << 20));
        assert!(status.number("Threads") >= Some(1));
        assert_eq!(status.number("Thread"), None);
        let before = open_descriptors();
        let file = File::open("/dev/null");
        assert!(file.is_ok() && open_descriptors() > Some(0) && before > Some(0));
    }
}
