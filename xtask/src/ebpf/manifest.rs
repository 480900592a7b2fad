//! `proxy-ebpf/object/MANIFEST.toml`: what the checked-in objects were made from, and with.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

const HEADER: &str =
    "# Written by `cargo xtask ebpf build`, checked by `cargo xtask ebpf verify`.\n";

/// The whole manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The hash of `sources::hash` when the object was made.
    pub(super) sources_sha256: String,
    /// The hashes of the object files, by name.
    pub(super) objects_sha256: BTreeMap<String, String>,
    /// What made it.
    pub(super) versions: Versions,
}

/// The versions that decide which bytes come out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Versions {
    /// The line of `rustc --version`, with the commit.
    pub(super) rustc: String,
    /// The LLVM inside rustc, which makes the bitcode.
    pub(super) rustc_llvm: String,
    /// The line of `bpf-linker --version`.
    pub(super) bpf_linker: String,
    /// The LLVM that bpf-linker uses, which makes the code.
    pub(super) linker_llvm: String,
}

impl Manifest {
    /// Reads the checked-in manifest.
    pub(super) fn read() -> Result<Self> {
        let path = path();
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Writes the manifest beside the object.
    pub(super) fn write(&self) -> Result<()> {
        let path = path();
        fs::write(&path, self.text()?).with_context(|| format!("cannot write {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    fn text(&self) -> Result<String> {
        Ok(format!("{HEADER}{}", toml::to_string(self)?))
    }
}

impl Versions {
    /// One sentence per version that differs here from the recorded one.
    pub(super) fn differences(&self, here: &Self) -> Vec<String> {
        [
            ("rustc", &self.rustc, &here.rustc),
            ("LLVM of rustc", &self.rustc_llvm, &here.rustc_llvm),
            ("bpf-linker", &self.bpf_linker, &here.bpf_linker),
            ("LLVM of bpf-linker", &self.linker_llvm, &here.linker_llvm),
        ]
        .into_iter()
        .filter(|(_, recorded, here)| recorded != here)
        .map(|(name, recorded, here)| format!("{name}: made with `{recorded}`, here `{here}`"))
        .collect()
    }
}

fn path() -> PathBuf {
    super::directory().join("object/MANIFEST.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        Manifest {
            sources_sha256: "aa".into(),
            objects_sha256: BTreeMap::from([("a.o".into(), "bb".into())]),
            versions: Versions {
                rustc: "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)".into(),
                rustc_llvm: "22.1.4".into(),
                bpf_linker: "bpf-linker 0.13.0".into(),
                linker_llvm: "22.1.8".into(),
            },
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = example().text().unwrap();
        assert!(text.starts_with("# Written by"), "{text}");
        assert_eq!(Manifest::parse(&text).unwrap(), example());
    }

    #[test]
    fn an_unknown_or_missing_key_is_an_error() {
        let text = example().text().unwrap();
        assert!(Manifest::parse(&format!("extra = 1\n{text}")).is_err());
        assert!(Manifest::parse(&text.replace("objects_sha256", "objects_sha1")).is_err());
        assert!(Manifest::parse("").is_err());
    }

    #[test]
    fn differing_versions_are_named_with_both_values() {
        let recorded = example().versions;
        assert_eq!(recorded.differences(&recorded), Vec::<String>::new());
        let here = Versions {
            linker_llvm: "22.1.9".into(),
            ..recorded.clone()
        };
        assert_eq!(
            recorded.differences(&here),
            ["LLVM of bpf-linker: made with `22.1.8`, here `22.1.9`"]
        );
    }
}
