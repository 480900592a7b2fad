//! Cgroups of version 2 that exist for as long as a test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use crate::netns::unique_name;

/// A cgroup below the root, or below another; removed on drop, when its processes have ended.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    directory: PathBuf,
}

impl Cgroup {
    /// Makes one below the root.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn new() -> Self {
        let root = root().expect("a file system of cgroups, version 2");
        let directory = root.join(unique_name("cgroup"));
        fs::create_dir(&directory).unwrap();
        Self { root, directory }
    }

    /// Makes one below this one.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let directory = self.directory.join(name);
        fs::create_dir(&directory).unwrap();
        Self {
            root: self.root.clone(),
            directory,
        }
    }

    /// Where it is in the file system.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its path from the root.
    ///
    /// # Panics
    ///
    /// Never: it is below the root.
    pub fn path(&self) -> String {
        let path = self.directory.strip_prefix(&self.root).unwrap();
        format!("/{}", path.display())
    }

    /// The command, to be run in it.
    pub fn run(&self, command: &Command) -> Command {
        // Busybox's shell would take programs of its own, of the same name.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path)
            .map(|directory| directory.join(command.get_program()))
            .find(|program| program.is_file())
            .unwrap_or_else(|| command.get_program().into());
        let mut within = Command::new("sh");
        within
            .args(["-c", "echo $$ >\"$0\" && exec \"$@\""])
            .arg(self.directory.join("cgroup.procs"))
            .arg(program)
            .args(command.get_args());
        within
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was just killed is there for a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where the file system is mounted.
fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let directory = words.next()?;
        (words.next()? == "cgroup2").then(|| Path::new(directory).to_owned())
    })
}

/// Why there can be no cgroups here; none if there can.
pub fn missing() -> Option<String> {
    root().is_none().then(|| {
        "no file system of cgroups, version 2, is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
            .to_owned()
    })
}

/// Returns from the calling test, with a line that says why, when there can be no cgroups.
#[macro_export]
macro_rules! require_cgroups_or_skip {
    () => {
        $crate::require_root_or_skip!();
        if let Some(reason) = $crate::cgroup::missing() {
            $crate::privilege::skip(&reason);
            return;
        }
    };
}
