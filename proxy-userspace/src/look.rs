//! What tells two states of a file apart, without reading it.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// Which file it is, links followed, and when it was written. None if it is not there.
pub(crate) type Look = Option<(u64, u64, u64, i64, i64)>;

/// What a file looks like now.
pub(crate) fn look(path: &Path) -> Look {
    let meta = fs::metadata(path).ok()?;
    Some((
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_link_is_a_change() {
        let directory = std::env::temp_dir().join(format!("underpass-look-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (one, other, link) = (
            directory.join("1"),
            directory.join("2"),
            directory.join("link"),
        );
        fs::write(&one, "a").unwrap();
        fs::write(&other, "a").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let before = look(&link);
        assert_eq!(before, look(&link));
        fs::remove_file(&link).unwrap();
        assert_eq!(look(&link), None);
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert_ne!(before, look(&link));
        fs::remove_dir_all(&directory).unwrap();
    }
}
