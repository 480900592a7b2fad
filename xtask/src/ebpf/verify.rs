//! Proving that the checked-in objects are what the sources say.

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Object,
    build::{self, Variant},
    manifest::{Manifest, Versions},
    sections, sources,
    toolchain::Toolchain,
};
use crate::report::Report;

/// Checks the recorded hashes, which needs no tools, then rebuilds and compares.
pub(crate) fn verify(report: &mut Report) {
    report.part("BPF object: recorded hashes", check_hashes);
    let rebuild = "BPF object: rebuilt and compared";
    match Toolchain::detect() {
        Ok(toolchain) => report.part(rebuild, || check_rebuild(&toolchain)),
        Err(missing) => report.skip(rebuild, missing.to_string()),
    }
}

fn check_hashes() -> Result<()> {
    let manifest = Manifest::read()?;
    ensure!(
        manifest.sources_sha256 == sources::hash(&super::directory())?,
        "sources changed: run `cargo xtask ebpf build` and commit the object"
    );
    for object in Object::ALL {
        let file = object.file();
        ensure!(
            manifest.objects_sha256.get(file) == Some(&sources::hash_bytes(&object.checked_in()?)),
            "{file} is not the one in MANIFEST.toml: run `cargo xtask ebpf build` and commit both"
        );
    }
    Ok(())
}

fn check_rebuild(toolchain: &Toolchain) -> Result<()> {
    let recorded = Manifest::read()?.versions;
    let rebuilt = build::compile(toolchain, &Object::ALL, Variant::Release)?;
    for (object, rebuilt) in Object::ALL.into_iter().zip(rebuilt) {
        compare(
            &object.checked_in()?,
            &rebuilt,
            &recorded,
            &toolchain.versions,
        )
        .with_context(|| object.file())?;
    }
    Ok(())
}

/// Compares two objects; where other versions explain a difference, the error names them first.
fn compare(checked_in: &[u8], rebuilt: &[u8], recorded: &Versions, here: &Versions) -> Result<()> {
    if checked_in == rebuilt {
        return Ok(());
    }
    let mut old = sections::read(checked_in).context("the checked-in object")?;
    let mut new = sections::read(rebuilt).context("the rebuilt object")?;
    let versions = recorded.differences(here);
    if !versions.is_empty() {
        old.remove(sections::BTF);
        new.remove(sections::BTF);
    }
    let differences = sections::differences(&old, &new);
    match (differences.is_empty(), versions.is_empty()) {
        (true, _) => {
            eprintln!(
                "note: code, data and maps are equal; only type information or symbol order differs"
            );
            Ok(())
        }
        (false, true) => bail!(
            "the checked-in object is not what the sources give: {}; \
             run `cargo xtask ebpf build` and commit the object",
            differences.join("; ")
        ),
        (false, false) => bail!(
            "cannot verify with other versions than the object was made with ({}); use those, or \
             run `cargo xtask ebpf build` and commit the object. What differs: {}",
            versions.join("; "),
            differences.join("; ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(llvm: &str) -> Versions {
        Versions {
            rustc: "rustc 1".into(),
            rustc_llvm: "22.1.4".into(),
            bpf_linker: "bpf-linker 0.13.0".into(),
            linker_llvm: llvm.into(),
        }
    }

    /// The real object with one byte of its licence changed.
    fn tampered(object: &[u8]) -> Vec<u8> {
        changed(object, b"GPL\0")
    }

    /// The object with the first byte of this text changed where it is found first.
    fn changed(object: &[u8], text: &[u8]) -> Vec<u8> {
        let place = object.windows(text.len()).position(|w| w == text).unwrap();
        let mut bytes = object.to_vec();
        bytes[place] ^= 0x20;
        bytes
    }

    #[test]
    fn type_information_counts_under_equal_versions_only() {
        let object = Object::Splice.checked_in().unwrap();
        // The name of a section in a string table: in .BTF, which comes first.
        let other_types = changed(&object, b"license\0");
        let (recorded, here) = (versions("22.1.8"), versions("22.1.9"));
        let error = compare(&object, &other_types, &recorded, &recorded).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("section .BTF: bytes differ"), "{text}");
        compare(&object, &other_types, &recorded, &here).unwrap();
    }

    #[test]
    fn equal_objects_pass_whatever_the_versions() {
        let object = Object::Splice.checked_in().unwrap();
        let (recorded, here) = (versions("22.1.8"), versions("22.1.9"));
        compare(&object, &object, &recorded, &here).unwrap();
    }

    #[test]
    fn a_difference_under_equal_versions_blames_the_object() {
        let object = Object::Splice.checked_in().unwrap();
        let same = versions("22.1.8");
        let error = compare(&object, &tampered(&object), &same, &same).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("not what the sources give"), "{text}");
        assert!(text.contains("section license: bytes differ"), "{text}");
    }

    #[test]
    fn a_difference_under_other_versions_names_them() {
        let object = Object::Splice.checked_in().unwrap();
        let (recorded, here) = (versions("22.1.8"), versions("22.1.9"));
        let error = compare(&object, &tampered(&object), &recorded, &here).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("cannot verify with other versions"),
            "{text}"
        );
        assert!(text.contains("made with `22.1.8`, here `22.1.9`"), "{text}");
    }
}
