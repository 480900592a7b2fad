//! The hash of the BPF sources: which files count, and how they are hashed.
//!
//! Content decides, not modification times, which a checkout does not keep. Versions of
//! dependencies are not part of the hash; `ebpf verify` finds those by rebuilding.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

/// What of `proxy-ebpf` goes into the object; directories with all `.rs` files below them.
const SOURCES: [&str; 5] = [
    "Cargo.toml",
    "build.rs",
    "common/Cargo.toml",
    "common/src",
    "src",
];

/// SHA-256 over the paths and contents of the sources in `directory`, in hex.
pub(super) fn hash(directory: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&directory.join(source), &mut files)?;
    }
    ensure!(
        !files.is_empty(),
        "no BPF sources in {}",
        directory.display()
    );
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(directory)?.to_string_lossy();
        // Name and length in front keep moved bytes from hashing alike.
        hasher.update(format!("{name}\0{}\0", content.len()));
        hasher.update(content);
    }
    Ok(hex(&hasher.finalize()))
}

/// SHA-256 of a byte string, in hex.
pub(super) fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// Adds a file, or every `.rs` file below a directory. What does not exist is no source.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
    } else if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?.path();
            if entry.is_dir() || entry.extension().is_some_and(|ext| ext == "rs") {
                collect(&entry, files)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    /// A small source tree that is removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("xtask-{}-{name}", process::id()));
            let tree = Self(root);
            tree.write("Cargo.toml", "[package]");
            tree.write("src/main.rs", "mod maps;");
            tree.write("src/maps.rs", "");
            tree.write("common/src/lib.rs", "//! Shared.");
            tree
        }

        fn write(&self, file: &str, content: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn hash(&self) -> String {
            hash(&self.0).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn equal_sources_hash_alike_wherever_they_are() {
        let (one, two) = (Tree::new("one"), Tree::new("two"));
        assert_eq!(one.hash(), two.hash());
        assert_eq!(one.hash().len(), 64);
    }

    #[test]
    fn what_is_no_source_does_not_count() {
        let tree = Tree::new("other-files");
        let before = tree.hash();
        tree.write("object/underpass.bpf.o", "ELF");
        tree.write("README.md", "text");
        tree.write("src/notes.txt", "text");
        assert_eq!(tree.hash(), before);
    }

    #[test]
    fn any_change_of_a_source_changes_the_hash() {
        let tree = Tree::new("changes");
        let mut seen = vec![tree.hash()];
        for (file, content) in [
            ("src/maps.rs", "x"),
            ("src/deep/er.rs", ""),
            ("common/src/lib.rs", ""),
            ("build.rs", "fn main() {}"),
            ("Cargo.toml", "[package] "),
        ] {
            tree.write(file, content);
            let hash = tree.hash();
            assert!(!seen.contains(&hash), "{file} did not count");
            seen.push(hash);
        }
    }

    #[test]
    fn bytes_that_move_to_the_next_file_change_the_hash() {
        let tree = Tree::new("moved");
        tree.write("src/main.rs", "ab");
        tree.write("src/maps.rs", "c");
        let before = tree.hash();
        tree.write("src/main.rs", "a");
        tree.write("src/maps.rs", "bc");
        assert_ne!(tree.hash(), before);
    }

    #[test]
    fn a_directory_without_sources_is_an_error() {
        assert!(hash(Path::new("/no/such/directory")).is_err());
    }

    #[test]
    fn hashes_are_plain_sha256() {
        assert_eq!(
            hash_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
