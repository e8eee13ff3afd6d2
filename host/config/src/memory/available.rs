//! How much memory is available to the process.
//!
//! This is the smallest of the limits that apply: those of its control groups, from its own up to
//! the root that it can see, and the memory of the machine. Versions 1 and 2 of control groups are
//! both read, so that mixed hosts need no special case. A value that cannot be read sets no limit.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// The available memory, and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Available {
    /// How much, in bytes.
    pub bytes: u64,
    /// Its source.
    pub source: Source,
}

/// A limit on the memory of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A limit of a control group, in this file.
    ControlGroup(PathBuf),
    /// The memory of the machine.
    Machine,
    /// Nothing could be read.
    Unknown,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::ControlGroup(file) => write!(f, "{}", file.display()),
            Source::Machine => f.write_str("the memory of the machine"),
            Source::Unknown => f.write_str("unknown, so a guess"),
        }
    }
}

/// The assumed memory where no value can be read.
const UNKNOWN_BYTES: u64 = 1 << 30;

/// The files of version 2. Above `memory.high` the kernel slows the process down until it holds
/// less, so it is a limit as well.
const FILES_V2: [&str; 2] = ["memory.max", "memory.high"];
const FILES_V1: [&str; 1] = ["memory.limit_in_bytes"];

/// What is available to this process, where `root` is the root of its file system.
pub fn available(root: &Path) -> Available {
    let unknown = Available { bytes: UNKNOWN_BYTES, source: Source::Unknown };
    let machine = machine_bytes(root).map(|bytes| Available { bytes, source: Source::Machine });
    control_groups(root)
        .into_iter()
        .chain(machine)
        .min_by_key(|available| available.bytes)
        .unwrap_or(unknown)
}

fn machine_bytes(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1_024).filter(|bytes| *bytes > 0)
}

/// The limits of the control groups that the process is in.
fn control_groups(root: &Path) -> Vec<Available> {
    let read = |file| std::fs::read_to_string(root.join(file)).unwrap_or_default();
    let groups = read("proc/self/cgroup");
    let mounts = read("proc/self/mountinfo");
    let mut limits = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let Some(path) = groups.lines().find_map(|line| path_in(line, mount.version)) else {
            continue;
        };
        let files = match mount.version {
            Version::One => FILES_V1.as_slice(),
            Version::Two => FILES_V2.as_slice(),
        };
        let mount_point = below(root, &mount.point);
        for group in mount.groups_up_from(Path::new(path)) {
            let directory = below(&mount_point, &group);
            let of_files = files.iter().filter_map(|file| limit(directory.join(file)));
            limits.extend(of_files);
            if mount.version == Version::One {
                limits.extend(hierarchical_limit(directory.join("memory.stat")));
            }
        }
    }
    limits
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The path of the process, if this line of `/proc/self/cgroup` is of the hierarchy that has
/// the memory controller.
fn path_in(line: &str, version: Version) -> Option<&str> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let is_it = match version {
        Version::One => controllers.split(',').any(|controller| controller == "memory"),
        Version::Two => number == "0" && controllers.is_empty(),
    };
    is_it.then_some(path)
}

/// A mounted hierarchy of control groups.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The group at the mount point.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// A line of `/proc/self/mountinfo`, if it is of a hierarchy that may limit memory:
    /// `36 35 98:0 ROOT POINT OPTIONS TAGS… - TYPE SOURCE SUPER-OPTIONS`.
    fn parse(line: &str) -> Option<Mount> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let version = match kind.next()? {
            "cgroup2" => Version::Two,
            "cgroup" => {
                let options = kind.nth(1)?;
                options.split(',').find(|option| *option == "memory").map(|_| Version::One)?
            }
            _ => return None,
        };
        Some(Mount { version, root: unescape(root), point: unescape(point) })
    }

    /// The groups from this one up to the one at the mount point, as paths below it. If a path is
    /// not below the mounted group, only that group is returned.
    fn groups_up_from(&self, path: &Path) -> Vec<PathBuf> {
        let below = match path.strip_prefix(&self.root) {
            Ok(below) if is_plain(below) => below,
            _ => Path::new(""),
        };
        below.ancestors().map(Path::to_owned).collect()
    }
}

/// Whether a path leads only downwards.
fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// An absolute path, relative to another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Decodes the octal escapes that the kernel writes for blanks.
fn unescape(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let escaped = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (escaped, part.get(3..)) {
            (Some(byte), Some(rest)) => {
                path.push(char::from(byte));
                path.push_str(rest);
            }
            _ => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path.into()
}

/// The number in a file; none: `max`, or it cannot be read.
fn limit(file: PathBuf) -> Option<Available> {
    let bytes = std::fs::read_to_string(&file).ok()?.trim().parse().ok()?;
    (bytes > 0).then_some(Available { bytes, source: Source::ControlGroup(file) })
}

/// The limits of the parent groups in version 1, including those that are not visible here.
fn hierarchical_limit(file: PathBuf) -> Option<Available> {
    let text = std::fs::read_to_string(&file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "))?;
    let bytes = line.trim().parse().ok()?;
    (bytes > 0).then_some(Available { bytes, source: Source::ControlGroup(file) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");
    const MACHINE: u64 = 16 << 20;

    /// The root of a file system with these files.
    fn check(files: &[(&str, &str)], expected_bytes: u64, expected_source: &str) {
        let root = tempfile::tempdir().expect("there is room");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("room");
            std::fs::write(path, text).expect("there is room");
        }
        let Available { bytes, source } = available(root.path());
        let source = match source {
            Source::ControlGroup(file) => {
                let file = file.strip_prefix(root.path()).expect("it is below the root");
                file.display().to_string()
            }
            source => source.to_string(),
        };
        assert_eq!((bytes, source.as_str()), (expected_bytes, expected_source));
    }

    const V2_MOUNT: (&str, &str) = (
        "proc/self/mountinfo",
        "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
         30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
    );
    const V2_GROUP: (&str, &str) = ("proc/self/cgroup", "0::/a.slice/b.service\n");
    const MACHINE_SOURCE: &str = "the memory of the machine";

    #[test]
    fn version_2_is_limited_by_the_lowest_group_on_the_way_up() {
        let own = ("sys/fs/cgroup/a.slice/b.service/memory.max", "8388608\n");
        let parent = ("sys/fs/cgroup/a.slice/memory.max", "4194304\n");
        let unlimited = ("sys/fs/cgroup/a.slice/memory.max", "max\n");
        check(&[MEMINFO, V2_MOUNT, V2_GROUP, own, parent], 4 << 20, parent.0);
        check(&[MEMINFO, V2_MOUNT, V2_GROUP, own, unlimited], 8 << 20, own.0);
        check(&[MEMINFO, V2_MOUNT, V2_GROUP, unlimited], MACHINE, MACHINE_SOURCE);
        let high = ("sys/fs/cgroup/a.slice/b.service/memory.high", "3000000\n");
        check(&[MEMINFO, V2_MOUNT, V2_GROUP, own, high], 3_000_000, high.0);
        // A neighbour's limit is not ours.
        let other = ("sys/fs/cgroup/c.slice/memory.max", "1\n");
        check(&[MEMINFO, V2_MOUNT, V2_GROUP, other], MACHINE, MACHINE_SOURCE);
    }

    #[test]
    fn a_container_with_a_name_space_of_its_own_sees_its_limit_at_the_root() {
        let group = ("proc/self/cgroup", "0::/\n");
        let limit = ("sys/fs/cgroup/memory.max", "8388608\n");
        check(&[MEMINFO, V2_MOUNT, group, limit], 8 << 20, limit.0);
        // It was moved out of the visible hierarchy.
        let outside = ("proc/self/cgroup", "0::/../../else\n");
        check(&[MEMINFO, V2_MOUNT, outside, limit], 8 << 20, limit.0);
    }

    #[test]
    fn version_1_is_limited_by_the_memory_controller() {
        let mounts = (
            "proc/self/mountinfo",
            "31 1 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             32 1 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        );
        let groups = ("proc/self/cgroup", "3:cpu,cpuacct:/c\n4:memory:/m/n\n1:name=systemd:/s\n");
        let own = ("sys/fs/cgroup/memory/m/n/memory.limit_in_bytes", "9223372036854771712\n");
        let parent = ("sys/fs/cgroup/memory/m/memory.limit_in_bytes", "5242880\n");
        check(&[MEMINFO, mounts, groups, own, parent], 5 << 20, parent.0);
        check(&[MEMINFO, mounts, groups, own], MACHINE, MACHINE_SOURCE);
        let above = (
            "sys/fs/cgroup/memory/m/n/memory.stat",
            "cache 1\nhierarchical_memory_limit 2097152\n",
        );
        check(&[MEMINFO, mounts, groups, own, parent, above], 2 << 20, above.0);
    }

    #[test]
    fn the_path_is_relative_to_the_mounted_group() {
        // A container that sees its own group only, and its path outside of it.
        let mounts = (
            "proc/self/mountinfo",
            "32 1 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
        );
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "6291456\n");
        let inner = ("sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "4194304\n");
        let groups = ("proc/self/cgroup", "4:memory:/docker/abc\n");
        check(&[MEMINFO, mounts, groups, limit, inner], 6 << 20, limit.0);
        let groups = ("proc/self/cgroup", "4:memory:/docker/abc/inner\n");
        check(&[MEMINFO, mounts, groups, limit, inner], 4 << 20, inner.0);
        let groups = ("proc/self/cgroup", "4:memory:/docker/other\n");
        check(&[MEMINFO, mounts, groups, limit, inner], 6 << 20, limit.0);
    }

    #[test]
    fn both_versions_side_by_side_count() {
        let mounts = (
            "proc/self/mountinfo",
            "32 1 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 1 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        let groups = ("proc/self/cgroup", "4:memory:/one\n0::/two\n");
        let one = ("sys/fs/cgroup/memory/one/memory.limit_in_bytes", "4194304\n");
        let two = ("sys/fs/cgroup/unified/two/memory.max", "2097152\n");
        check(&[MEMINFO, mounts, groups, one], 4 << 20, one.0);
        check(&[MEMINFO, mounts, groups, one, two], 2 << 20, two.0);
    }

    #[test]
    fn blanks_in_paths_are_read() {
        let mounts =
            ("proc/self/mountinfo", "30 24 0:26 / /sys/my\\040groups rw - cgroup2 cgroup2 rw\n");
        let groups = ("proc/self/cgroup", "0::/a b:c\n");
        let limit = ("sys/my groups/a b:c/memory.max", "4194304\n");
        check(&[MEMINFO, mounts, groups, limit], 4 << 20, limit.0);
    }

    #[test]
    fn what_cannot_be_read_limits_nothing() {
        let limit = ("sys/fs/cgroup/a.slice/b.service/memory.max", "many\n");
        check(&[MEMINFO, V2_MOUNT, V2_GROUP, limit], MACHINE, MACHINE_SOURCE);
        let zero = ("sys/fs/cgroup/a.slice/b.service/memory.max", "0\n");
        check(&[MEMINFO, V2_MOUNT, V2_GROUP, zero], MACHINE, MACHINE_SOURCE);
        check(&[MEMINFO, V2_GROUP], MACHINE, MACHINE_SOURCE);
        check(&[MEMINFO], MACHINE, MACHINE_SOURCE);
        let garbage = ("proc/self/mountinfo", "- cgroup2\n1 2\n - - -\n\n");
        check(&[MEMINFO, garbage, V2_GROUP], MACHINE, MACHINE_SOURCE);
        check(&[("proc/meminfo", "MemTotal: x kB\n")], UNKNOWN_BYTES, "unknown, so a guess");
        check(&[], UNKNOWN_BYTES, "unknown, so a guess");
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available(Path::new("/")).bytes >= 16 << 20);
    }
}
