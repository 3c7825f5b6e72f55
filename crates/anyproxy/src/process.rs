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
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| group_limit(root, line));
    limits.chain(machine).min().unwrap_or(u64::MAX)
}

/// `MemTotal:  24684392 kB`
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What a line of `/proc/self/cgroup`, `number:controllers:path`, leads to. A limit holds for the groups within, so the
/// smallest on the way up counts; the way is followed to the root because a container may see its own group as that.
fn group_limit(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (mounts, file): (&[_], _) = if controllers.is_empty() {
        (&["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        (&["sys/fs/cgroup/memory"], "memory.limit_in_bytes")
    } else {
        return None;
    };
    let group = Path::new(path.trim_start_matches('/'));
    let limits = mounts.iter().flat_map(|mount| {
        let mount = root.join(mount);
        group.ancestors().filter_map(move |group| fs::read_to_string(mount.join(group).join(file)).ok())
    });
    // Without a limit, version 2 says `max` and version 1 a number close to 2^63.
    limits.filter_map(|limit| limit.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of 8 GiB whose other files these are.
    fn memory_of(files: &[(&str, &str)]) -> u64 {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in
            [("proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 5 kB\n")].iter().chain(files)
        {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        memory_below(root.path())
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
}
