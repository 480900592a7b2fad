//! Where things are: the repository root and the directories below it.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The root of the repository, fixed when xtask is compiled.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Cargo's target directory: `CARGO_TARGET_DIR` if set, else `target` in the root.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || root().join("target"),
        // Cargo takes a relative value from the working directory; ours is always the root.
        |dir| root().join(dir),
    )
}

/// Cargo's home: where `cargo install` puts programs and where crate sources are unpacked.
pub(crate) fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(
        || env::home_dir().unwrap_or_default().join(".cargo"),
        PathBuf::from,
    )
}
