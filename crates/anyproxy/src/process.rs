//! What the process asks of the machine.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one; the number there are.
pub(crate) fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            limit.current
        }
    };
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// The memory this process may have, in bytes: the machine's, or less where a control group says so. Where nothing can
/// be read there is no limit.
pub(crate) fn memory() -> u64 {
    memory_below(Path::new("/"))
}

fn memory_below(root: &Path) -> u64 {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| total(&text));
    // Without a limit, version 2 says `max` and version 1 a number close to 2^63.
    let limits = limits(root, "memory", ["memory.max", "memory.limit_in_bytes"]);
    let limits = limits.iter().filter_map(|limit| limit.trim().parse().ok());
    limits.chain(machine).min().unwrap_or(u64::MAX)
}

/// Whether a control group limits the time that this process may have on the machine's cores.
pub(crate) fn has_cpu_quota() -> bool {
    has_cpu_quota_below(Path::new("/"))
}

fn has_cpu_quota_below(root: &Path) -> bool {
    // Without one, version 2 says `max` and a period, and version 1 `-1`.
    let limits = limits(root, "cpu", ["cpu.max", "cpu.cfs_quota_us"]);
    let mut quotas = limits.iter().filter_map(|limit| limit.split_whitespace().next()?.parse::<i64>().ok());
    quotas.any(|quota| quota >= 0)
}

/// `MemTotal:  24684392 kB`
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control groups of this process say in the first of `files`, if they are of version 2, or in the second, if they are
/// of version 1. A limit holds for the groups within, so all on the way up count; the way is followed to the root because a
/// container may see its own group as that.
fn limits(root: &Path, controller: &str, files: [&str; 2]) -> Vec<String> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Vec::new();
    for line in groups.lines() {
        // `number:controllers:path`; those of version 2 name no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mounts, file) = if controllers.is_empty() {
            (vec!["".as_ref(), "unified".as_ref()], files[0])
        } else if controllers.split(',').any(|named| named == controller) {
            (vec![Path::new(controller)], files[1])
        } else {
            continue;
        };
        let group = Path::new(path.trim_start_matches('/'));
        for mount in mounts {
            let mount = root.join("sys/fs/cgroup").join(mount);
            let files = group.ancestors().map(|group| mount.join(group).join(file));
            limits.extend(files.filter_map(|file| fs::read_to_string(file).ok()));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of 8 GiB whose other files these are: its memory, and whether its CPU time is limited.
    fn machine(files: &[(&str, &str)]) -> (u64, bool) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in
            [("proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 5 kB\n")].iter().chain(files)
        {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (memory_below(root.path()), has_cpu_quota_below(root.path()))
    }

    fn memory_of(files: &[(&str, &str)]) -> u64 {
        machine(files).0
    }

    #[test]
    fn a_machine_without_control_groups_gives_all_it_has() {
        assert_eq!(memory_of(&[]), 8 << 30);
        assert_eq!(memory_below(Path::new("/does/not/exist")), u64::MAX);
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_counts_in_version_2() {
        let own = ("proc/self/cgroup", "0::/system.slice/anyproxy.service\n");
        let unlimited = ("sys/fs/cgroup/system.slice/anyproxy.service/memory.max", "max\n");
        let slice = ("sys/fs/cgroup/system.slice/memory.max", "268435456\n");
        assert_eq!(memory_of(&[own, unlimited]), 8 << 30);
        assert_eq!(memory_of(&[own, unlimited, slice]), 256 << 20);
    }

    #[test]
    fn a_container_of_version_1_sees_its_limit_at_the_root() {
        let own = ("proc/self/cgroup", "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n");
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n");
        let other = ("sys/fs/cgroup/cpu/memory.limit_in_bytes", "1\n");
        assert_eq!(memory_of(&[own, limit, other]), 512 << 20);
        let none = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory_of(&[own, none]), 8 << 30);
    }

    #[test]
    fn a_quota_of_cpu_time_is_seen_in_both_versions() {
        assert!(!machine(&[]).1 && !has_cpu_quota_below(Path::new("/does/not/exist")));
        let own = ("proc/self/cgroup", "0::/kubepods/pod/1\n");
        for (text, quota) in [("max 100000\n", false), ("250000 100000\n", true), ("50000 100000\n", true)] {
            let file = ("sys/fs/cgroup/kubepods/pod/cpu.max", text);
            assert_eq!(machine(&[own, file]).1, quota, "{text}");
        }
        let own = ("proc/self/cgroup", "5:cpu,cpuacct:/docker/1\n0::/\n");
        for (text, quota) in [("-1\n", false), ("20000\n", true)] {
            for path in ["sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us"]
            {
                assert_eq!(machine(&[own, (path, text)]).1, quota, "{path}: {text}");
            }
        }
    }
}
