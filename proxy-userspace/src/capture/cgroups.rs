//! The tree of cgroups, version 2 (Documentation/admin-guide/cgroup-v2.rst).

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::id,
    sync::Arc,
};

use anyhow::Context as _;

/// Where its file system is mounted.
pub(super) fn root() -> anyhow::Result<PathBuf> {
    let text =
        fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    // One may lie under another mount.
    let mut mounts = mounted(&text).filter(|directory| directory.join("cgroup.procs").exists());
    mounts.next().context(
        "no file system of cgroups, version 2, is mounted; mount one, or name it as `root` in [capture]",
    )
}

/// Where the mounts of this process have it (proc(5)).
fn mounted(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let is_cgroup2 = kind.split(' ').next()? == "cgroup2";
        is_cgroup2.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The number of a cgroup, by its directory.
pub(super) fn number(directory: &Path) -> Option<u64> {
    let metadata = fs::metadata(directory).ok()?;
    metadata.is_dir().then(|| metadata.ino())
}

/// The path of the cgroup that a process is in.
pub(super) fn of_process(process: u32) -> Option<Box<str>> {
    path_in(&fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?)
}

fn path_in(cgroups: &str) -> Option<Box<str>> {
    let mut lines = cgroups.lines();
    lines.find_map(|line| line.strip_prefix("0::").map(Into::into))
}

/// What there is below some cgroups.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The paths by the cgroups' numbers.
    pub(super) paths: HashMap<u64, Arc<str>>,
    pub(super) processes: Vec<u32>,
    /// The number of the one among them that this process is in.
    pub(super) own: Option<u64>,
}

impl Found {
    /// Looks at a cgroup and all below it. What goes away meanwhile is not there.
    pub(super) fn look(&mut self, root: &Path, directory: &Path) {
        let Some(number) = number(directory) else {
            return;
        };
        if let Ok(path) = directory.strip_prefix(root) {
            let path = format!("/{}", path.display());
            self.paths.insert(number, path.into());
        }
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for process in text.lines().filter_map(|line| line.parse().ok()) {
            if process == id() {
                self.own = Some(number);
            }
            // 0 is one that is not in this process's namespace of processes.
            if process != 0 {
                self.processes.push(process);
            }
        }
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.look(root, &entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let hybrid = "25 1 0:1 / / rw - ext4 /dev/vda rw\n\
                      30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 25 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let found: Vec<_> = mounted(hybrid).collect();
        assert_eq!(found, [Path::new("/sys/fs/cgroup/unified")]);
        assert_eq!(mounted("25 1 0:1 / / rw - ext4 /dev/vda rw\n").count(), 0);
    }

    #[test]
    fn the_line_of_version_two_counts() {
        let hybrid = "9:cpu:/a\n0::/system.slice/b.service\n";
        assert_eq!(path_in(hybrid).as_deref(), Some("/system.slice/b.service"));
        assert_eq!(path_in("9:cpu:/a\n"), None);
    }
}
