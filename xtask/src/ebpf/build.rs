//! Building the objects, so that the same sources and tools give the same bytes anywhere.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use super::{Object, manifest::Manifest, sources, toolchain::Toolchain};
use crate::{cmd, repo};

const PACKAGE: &str = "proxy-ebpf";
const TARGET: &str = "bpfel-unknown-none";

/// The compiler flags that aya-build uses: the registers of the target machine's kernel, and BTF,
/// which is made from debug information.
const FLAGS: [&str; 3] = [
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
];

/// What an object is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// To be checked in.
    Release,
    /// For debugging: it logs what it does.
    Log,
}

impl Variant {
    /// The arguments of cargo that make it.
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Release => &[],
            Self::Log => &["--features", "log"],
        }
    }
}

/// Builds the objects and checks them in, in the sense of files: objects and manifest.
pub(super) fn build(toolchain: &Toolchain) -> Result<()> {
    let sources_sha256 = sources::hash(&super::directory())?;
    let made = compile(toolchain, &Object::ALL, Variant::Release)?;
    let mut objects_sha256 = BTreeMap::new();
    for (object, bytes) in Object::ALL.into_iter().zip(made) {
        let path = object.path();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
        objects_sha256.insert(object.file().to_owned(), sources::hash_bytes(&bytes));
        let shown = path.strip_prefix(repo::root()).unwrap_or(&path);
        println!("wrote {} ({} bytes)", shown.display(), bytes.len());
    }
    let manifest = Manifest {
        sources_sha256,
        objects_sha256,
        versions: toolchain.versions.clone(),
    };
    manifest.write()
}

/// Builds the object that splices and logs, and says where it is.
pub(super) fn build_logging(toolchain: &Toolchain) -> Result<PathBuf> {
    let object = target_dir().join("underpass-log.bpf.o");
    let made = compile(toolchain, &[Object::Splice], Variant::Log)?;
    fs::write(&object, made.concat())
        .with_context(|| format!("cannot write {}", object.display()))?;
    Ok(object)
}

/// Compiles the sources and returns these objects, without debug information but with BTF.
pub(super) fn compile(
    toolchain: &Toolchain,
    objects: &[Object],
    variant: Variant,
) -> Result<Vec<Vec<u8>>> {
    let target_dir = target_dir();
    // Cargo does not notice a new bpf-linker, so the last step is always done again.
    cmd::run(cargo("clean").arg("--quiet"))?;
    let flags: Vec<_> = FLAGS
        .map(str::to_owned)
        .into_iter()
        .chain(remaps(toolchain))
        .collect();
    let mut build = cargo("build");
    build.args(["-Z", "build-std=core"]);
    for object in objects {
        build.args(["--bin", object.binary()]);
    }
    cmd::run(
        build
            .args(variant.features())
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")),
    )?;

    let stripped = |object: &Object| {
        let linked = target_dir
            .join(TARGET)
            .join("release")
            .join(object.binary());
        let stripped = target_dir.join(object.file());
        // Takes .debug_* and their relocations; .BTF and .BTF.ext stay.
        let mut strip = toolchain.objcopy();
        strip.arg("--strip-debug").arg(&linked).arg(&stripped);
        cmd::run(&mut strip)?;
        fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
    };
    objects.iter().map(stripped).collect()
}

/// The command that lints the programs as they are built.
pub(super) fn clippy(variant: Variant) -> Command {
    let mut command = cargo("clippy");
    command
        .args(["--bins", "-Z", "build-std=core"])
        .args(variant.features())
        .args(["--", "--deny", "warnings"])
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    command
}

/// A command of the nightly cargo on our package for the BPF target.
fn cargo(verb: &str) -> Command {
    let mut command = cmd::nightly(["cargo", verb, "--package", PACKAGE]);
    command
        .args(["--release", "--target", TARGET, "--target-dir"])
        .arg(target_dir());
    command
}

/// A target directory of its own: nightly and stable would throw away each other's work.
fn target_dir() -> PathBuf {
    repo::target_dir().join("ebpf")
}

/// Fixed names for the directories of this machine, which would else be in the object.
fn remaps(toolchain: &Toolchain) -> Vec<String> {
    let library = toolchain.sysroot.join("lib/rustlib/src/rust");
    // Crates are unpacked in one directory per registry, whose name depends on the machine too.
    let registries = fs::read_dir(repo::cargo_home().join("registry/src"));
    registries
        .into_iter()
        .flatten()
        .filter_map(|registry| Some((registry.ok()?.path(), "/crates")))
        .chain([(library, "/rust"), (repo::root().to_owned(), "/underpass")])
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
        .collect()
}
