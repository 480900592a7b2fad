//! `cargo xtask test vm`: the end-to-end suites on other kernels, Debian's, each booted in QEMU.
//!
//! The machine has the kernel of a package, an initial RAM disk with the proxy, the suites and the
//! few programs that they cannot do without, and no network or disk. It is emulated, which every
//! machine can do: ten times slower, so bulk is left out, and tests whose programs are not there
//! skip themselves.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    artifact, cmd, repo,
    report::Report,
    test::{PROXY, SUITES},
    tools,
};

/// Debian 12's: its own and the one that it has backported.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// Seconds in which the whole of the suites ends, on a machine that is not slow.
const PATIENCE: u32 = 3600;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Release series of the kernels
    #[arg(default_values = KERNELS)]
    kernels: Vec<String>,
    /// Seconds until a machine is given up
    #[arg(long, value_name = "N", default_value_t = PATIENCE)]
    patience: u32,
    /// Passed on to the end-to-end test binary; without any, everything but bulk and timing
    #[arg(last = true, value_name = "ARGS")]
    passed_on: Vec<String>,
}

/// Programs of this machine, and the Debian package of each.
const PROGRAMS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("apt-get", "apt"),
];

/// Programs that the suites call in the machine, besides what busybox has.
const GUEST_PROGRAMS: [&str; 4] = ["ip", "tc", "setpriv", "prlimit"];

/// Modules of Debian's kernels that the labs need.
const MODULES: [&str; 3] = [
    "drivers/net/veth.ko",
    "drivers/net/tun.ko",
    "net/sched/sch_netem.ko",
];

/// What runs there: also what is ignored elsewhere, for want of a module. But not what an emulated
/// machine is too slow for, which is bulk, and tests that measure; nor what reads the repository.
const DEFAULT_ARGS: [&str; 25] = [
    "--include-ignored",
    "--skip",
    "quarter_gigabyte",
    "--skip",
    "kernel_path::the_kernel",
    "--skip",
    "deployed_configurations",
    "--skip",
    "every_metric_is_documented",
    "--skip",
    "dashboard_and_alerts",
    "--skip",
    "logrotate_loses_no_line",
    "--skip",
    "monitoring::",
    "--skip",
    "mesh::",
    "--skip",
    "service::",
    "--skip",
    "package::",
    "--skip",
    "image::",
    "--skip",
    "kubernetes::",
];

/// What continuous integration has the time for: what can depend on the kernel, once. Copying is reading and writing,
/// as on any other kernel, and by evidence over IPv4 has to do.
const BRIEF_ARGS: [&str; 19] = [
    "--include-ignored",
    "--skip",
    "kernel_path::the_kernel",
    "--skip",
    "::copy_",
    "--skip",
    "::splice_ipv6",
    "--skip",
    "::auto_ipv6",
    "netem::",
    "stress::bad_cables",
    "doctor_says_of_this_kernel",
    "capture::busybox",
    "auto_moves_a_tunnel",
    "segments_that_overlap",
    "the_origin_may_speak_first",
    "a_half_closing_client",
    "an_origin_that_dies",
    "a_slow_receiver_of_the_last_bytes",
];

/// How the init script reports the suites' exit code.
const EXIT_MARK: &str = "== exit ";

/// What a kernel says when the emulator has run an instruction of its own that it had patched on
/// another processor: breakpoints stand there for a moment, and QEMU's threads may see one after
/// the kernel has forgotten it (`text_poke_bp()`). No program of ours can cause it.
const STALE_BREAKPOINT: &str = "int3: 0000 [#";

/// Times that a machine is started while it ends by a [`STALE_BREAKPOINT`].
const STARTS: u32 = 3;

/// Boots each kernel, for the part of the suites that continuous integration runs.
pub(crate) fn run_briefly(report: &mut Report) {
    let args = Args {
        kernels: KERNELS.map(str::to_owned).into(),
        patience: PATIENCE,
        passed_on: BRIEF_ARGS.map(str::to_owned).into(),
    };
    run(&args, report);
}

/// Boots each kernel and runs the suites in it.
pub(crate) fn run(args: &Args, report: &mut Report) {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| tools::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    for series in &args.kernels {
        let name = format!("e2e suites on Linux {series}");
        if !missing.is_empty() {
            let packages = missing.join(" ");
            report.skip(&name, format!("run `apt-get install {packages}`"));
        } else if let Some(package) = newest_package(series) {
            report.part(&name, || boot(&package, args));
        } else {
            report.skip(
                &name,
                format!(
                    "no package of Debian's Linux {series}: run `apt-get update`, or add backports"
                ),
            );
        }
    }
}

/// The newest kernel of the series that can be downloaded; other distributions have none.
fn newest_package(series: &str) -> Option<String> {
    let pattern = format!(
        "^linux-image-{}[.].*-cloud-amd64$",
        series.replace('.', "[.]")
    );
    let search = Command::new("apt-cache")
        .args(["search", "--names-only", &pattern])
        .output()
        .ok()?;
    let found = String::from_utf8_lossy(&search.stdout).into_owned();
    let names = found
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names.max_by_key(|name| numbers(name)).map(str::to_owned)
}

fn boot(package: &str, args: &Args) -> Result<()> {
    let kernel = Kernel::fetch(package)?;
    let proxy = artifact::build(&PROXY, "underpass")?;
    let suites = artifact::build(&SUITES, "suites")?;
    let root = repo::target_dir().join("vm/root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    furnish(&root, &kernel, &proxy, &suites, args)?;
    let disk = repo::target_dir().join("vm/initrd.gz");
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio -o -H newc --quiet | gzip -1 >\"$0\""])
        .arg(&disk)
        .current_dir(&root);
    cmd::run(&mut pack)?;
    for _ in 0..STARTS {
        match machine(&kernel, &disk, args.patience)? {
            End::Suites(0) => return Ok(()),
            End::Suites(code) => bail!("the suites failed with {code}"),
            End::StaleBreakpoint => eprintln!("that breakpoint is the emulator's: once more"),
        }
    }
    bail!("the emulator failed {STARTS} times")
}

/// How a machine ended.
enum End {
    /// The suites ran, with this exit code.
    Suites(i32),
    /// The kernel panicked by a [`STALE_BREAKPOINT`].
    StaleBreakpoint,
}

/// A kernel of Debian's, unpacked.
struct Kernel {
    /// What is bootable.
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// Downloads the package, unless it is here, and unpacks it.
    fn fetch(package: &str) -> Result<Self> {
        let directory = repo::target_dir().join("vm");
        fs::create_dir_all(&directory)?;
        let unpacked = directory.join(package);
        if !unpacked.exists() {
            let mut download = Command::new("apt-get");
            cmd::run(download.args(["download", package]).current_dir(&directory))?;
            let archive = entry(&directory, |name| name.starts_with(&format!("{package}_")))?;
            cmd::run(
                Command::new("dpkg-deb")
                    .arg("-x")
                    .arg(archive)
                    .arg(&unpacked),
            )?;
        }
        Ok(Self {
            image: entry(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?,
            modules: entry(&unpacked.join("lib/modules"), |_| true)?.join("kernel"),
        })
    }
}

/// The numbers in a name, so that 6.12.9 comes before 6.12.10.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The first entry of a directory with such a name.
fn entry(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(&wanted)
        })
        .with_context(|| format!("nothing suitable in {}", directory.display()))
}

/// Puts everything that the machine needs below `root`.
fn furnish(root: &Path, kernel: &Kernel, proxy: &Path, suites: &Path, args: &Args) -> Result<()> {
    for directory in [
        "bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "tmp",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    let find = |name| tools::find(name).with_context(|| format!("no `{name}`"));
    put(root, &find("busybox")?, "busybox")?;
    put(root, proxy, "underpass")?;
    put(root, suites, "suites")?;
    // Else debug information fills the machine's memory.
    let programs = ["underpass", "suites"].map(|name| root.join("bin").join(name));
    cmd::run(Command::new("strip").args(programs))?;
    for program in GUEST_PROGRAMS {
        put(root, &find(program)?, program)?;
    }
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        let unpacked = root.join("modules").join(name);
        let plain = kernel.modules.join(module);
        if plain.exists() {
            fs::copy(plain, unpacked)?;
        } else {
            let mut xz = Command::new("sh");
            xz.args(["-c", "xz -dc \"$0.xz\" >\"$1\""])
                .arg(plain)
                .arg(unpacked);
            cmd::run(&mut xz)?;
        }
    }
    for (file, text) in [
        ("etc/host.conf", "multi on\n"),
        ("etc/hosts", "127.0.0.1 localhost\n"),
        ("etc/resolv.conf", "nameserver 127.0.0.1\n"),
        ("etc/nsswitch.conf", "hosts: files dns\n"),
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
    ] {
        fs::write(root.join(file), text)?;
    }
    let default = DEFAULT_ARGS.map(str::to_owned);
    let passed_on = if args.passed_on.is_empty() {
        default.as_slice()
    } else {
        args.passed_on.as_slice()
    };
    let scripts = [
        ("init", include_str!("vm/init.sh").to_owned()),
        (
            "start",
            include_str!("vm/start.sh").replace("@ARGS@", &passed_on.join(" ")),
        ),
    ];
    for (name, text) in scripts {
        let path = root.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    symlink("/bin", root.join("sbin"))?;
    Ok(())
}

/// Copies a program with the libraries that it is linked with.
fn put(root: &Path, program: &Path, name: &str) -> Result<()> {
    fs::copy(program, root.join("bin").join(name))
        .with_context(|| format!("cannot copy {}", program.display()))?;
    // It fails for a static program, which needs none.
    let listed = Command::new("ldd").arg(program).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/') && word.contains(".so"));
    for library in libraries {
        let place = root.join(library.trim_start_matches('/'));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(library, place)?;
    }
    Ok(())
}

/// Runs the machine and shows what it prints, the exit code of the suites among it. Every oops ends
/// it: a kernel that we have made stumble must not pass.
fn machine(kernel: &Kernel, disk: &Path, patience: u32) -> Result<End> {
    let mut qemu = Command::new("timeout");
    qemu.arg(patience.to_string())
        .args([
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
        ])
        .args([
            "-m",
            "3072",
            "-smp",
            "2",
            "-nographic",
            "-no-reboot",
            "-nic",
            "none",
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(disk)
        .args(["-append", "console=ttyS0 quiet oops=panic panic=-1"]);
    eprintln!("$ {}", cmd::line(&qemu));
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    let mut end = None;
    if let Some(console) = child.stdout.take() {
        for line in BufReader::new(console).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
            if let Some((_, reported)) = line.split_once(EXIT_MARK) {
                end = reported.parse().ok().map(End::Suites);
            } else if end.is_none() && line.contains(STALE_BREAKPOINT) {
                end = Some(End::StaleBreakpoint);
            }
            eprintln!("{line}");
        }
    }
    let status = child.wait()?;
    ensure!(
        status.code() != Some(124),
        "no end within {patience} seconds"
    );
    end.with_context(|| format!("the machine ended ({status}) without a word from the suites"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_numbers() {
        let names = [
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.107+deb12-cloud-amd64",
            "linux-image-6.12.38+deb12-cloud-amd64",
        ];
        let newest = names.into_iter().max_by_key(|name| numbers(name));
        assert_eq!(newest, Some(names[1]));
    }

    #[test]
    fn the_scripts_speak_the_same_language_as_we() {
        let start = include_str!("vm/start.sh");
        assert!(start.contains("@ARGS@") && start.contains(EXIT_MARK.trim_end()));
    }
}
