//! Temporary directories that remove themselves.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::netns::unique_name;

/// A directory under the system's temporary directory, writable for every user, removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes an empty directory.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(unique_name("scratch"));
        fs::create_dir(&path).unwrap();
        // Daemons under test give up their privileges and still have to write here.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        Self { path }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file into it and returns its path.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(&path, content).unwrap();
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover directory is a nuisance, not a failure.
        drop(fs::remove_dir_all(&self.path));
    }
}
