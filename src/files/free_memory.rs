//! How much memory there is room for.

use std::fs;
use std::path::Path;

/// Bytes of memory that this process could still take: what the system says is available, or less where a control group
/// allows less. `None` where neither is known.
#[must_use]
pub fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok();
    let system = system.as_deref().and_then(meminfo);
    let groups = fs::read_to_string("/proc/self/cgroup").ok();
    let group = groups.as_deref().and_then(group_path);
    let group = group.and_then(|path| group_room(Path::new("/sys/fs/cgroup"), path));
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

/// The path of this process's group in the one hierarchy of version 2 (cgroups(7)).
fn group_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// What the group at `path` below `root` and all those that it is in leave; `None` where none sets a limit.
fn group_room(root: &Path, path: &str) -> Option<u64> {
    let number = |folder: &Path, name: &str| -> Option<u64> {
        fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
    };
    let group = root.join(path);
    let groups = group.ancestors().take_while(|folder| folder.starts_with(root));
    groups
        .filter_map(|folder| {
            let max = number(folder, "memory.max")?;
            Some(max.saturating_sub(number(folder, "memory.current")?))
        })
        .min()
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
        assert_eq!(group_path("1:cpu:/x\n0::/a/b\n"), Some("a/b"));
        assert_eq!(group_path("4:memory:/x\n"), None);
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("a/b");
        fs::create_dir_all(&group).unwrap();
        let write = |folder: &Path, max: &str, current: &str| {
            fs::write(folder.join("memory.max"), max).unwrap();
            fs::write(folder.join("memory.current"), current).unwrap();
        };
        assert_eq!(group_room(root.path(), "a/b"), None);
        write(&group, "max\n", "5\n");
        assert_eq!(group_room(root.path(), "a/b"), None);
        write(&root.path().join("a"), "100\n", "30\n");
        assert_eq!(group_room(root.path(), "a/b"), Some(70));
        write(&group, "50\n", "60\n");
        assert_eq!(group_room(root.path(), "a/b"), Some(0));
    }
}
