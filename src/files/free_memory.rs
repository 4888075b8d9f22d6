//! How much memory there is room for.

use std::fs;
use std::path::Path;

/// Bytes of memory that this process could still take. The system says what is available, and a control group may allow less.
/// `None` where neither is known.
#[must_use]
pub fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok();
    let system = system.as_deref().and_then(meminfo);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = room_of_groups(Path::new("/sys/fs/cgroup"), &groups);
    match (system, group) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (system, group) => system.or(group),
    }
}

/// `MemAvailable` of `/proc/meminfo`, which is in units of 1,024 bytes (proc_meminfo(5)).
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

/// Names of a control group's files for its limit and its use.
struct Names {
    limit: &'static str,
    held: &'static str,
}

/// Version 2's one hierarchy, and version 1's memory hierarchy (cgroups(7), cgroup-v1/memory.txt).
const VERSION_2: Names = Names { limit: "memory.max", held: "memory.current" };
const VERSION_1: Names = Names { limit: "memory.limit_in_bytes", held: "memory.usage_in_bytes" };

/// What the groups of `/proc/self/cgroup` leave, in whichever version. `None` where none sets a limit.
fn room_of_groups(root: &Path, groups: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(":/")?;
        match controllers {
            "" => group_room(root, path, &VERSION_2),
            _ if controllers.split(',').any(|name| name == "memory") => {
                group_room(&root.join("memory"), path, &VERSION_1)
            }
            _ => None,
        }
    };
    groups.lines().filter_map(of_line).min()
}

/// Memory left in the group at `path` below `root` and its ancestors. `None` where none sets a limit. Inside of a container its
/// own group may be at the root.
fn group_room(root: &Path, path: &str, names: &Names) -> Option<u64> {
    let group = root.join(path);
    let groups = group.ancestors().take_while(|folder| folder.starts_with(root));
    groups.filter_map(|folder| room_of(folder, names)).min()
}

fn room_of(folder: &Path, names: &Names) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| -> Option<u64> { read(name)?.trim().parse().ok() };
    // Version 1 has a very large number for no limit.
    let limit = number(names.limit).filter(|limit| *limit < 1 << 60)?;
    // Pages of files are given up before anything else is.
    let statistics = read("memory.stat").unwrap_or_default();
    let files: u64 = (statistics.lines())
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| matches!(*name, "active_file" | "inactive_file"))
        .filter_map(|(_, number)| number.parse::<u64>().ok())
        .sum();
    let held = number(names.held)?.saturating_sub(files);
    Some(limit.saturating_sub(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_is_available() {
        let text = "MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   24 kB\nBuffers: 3 kB\n";
        assert_eq!(meminfo(text), Some(24 * 1024));
        for wrong in ["", "MemAvailable: x kB", "MemAvailable: 1", "MemAvailable: 99999999999999999999 kB"] {
            assert_eq!(meminfo(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_tightest_group_counts() {
        for (names, below, lines) in
            [(VERSION_2, "", "1:cpu:/x\n0::/a/b\n"), (VERSION_1, "memory", "4:memory:/a/b\n0::/\n")]
        {
            let root = tempfile::tempdir().unwrap();
            let of_all = root.path().join(below);
            let group = of_all.join("a/b");
            fs::create_dir_all(&group).unwrap();
            let write = |folder: &Path, max: &str, current: &str| {
                fs::write(folder.join(names.limit), max).unwrap();
                fs::write(folder.join(names.held), current).unwrap();
            };
            let room = || room_of_groups(root.path(), lines);
            assert_eq!(room(), None);
            write(&group, "max\n", "5\n");
            assert_eq!(room(), None);
            write(&group, "9223372036854771712\n", "5\n");
            assert_eq!(room(), None);
            write(&of_all.join("a"), "100\n", "30\n");
            assert_eq!(room(), Some(70));
            write(&group, "50\n", "60\n");
            assert_eq!(room(), Some(0));
            // Of what it holds, pages of files can be had.
            fs::write(group.join("memory.stat"), "cache 7\ninactive_file 20\nactive_file 5\n").unwrap();
            assert_eq!(room(), Some(15));
            // Inside of a container.
            assert_eq!(room_of_groups(&of_all.join("a"), "0::/\n"), (below.is_empty()).then_some(70));
        }
    }
}
