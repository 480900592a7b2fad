//! The Debian package: installed, used and removed on a copy of the system.

use std::{fs, net::SocketAddr, path::PathBuf};

use proxy_tests::{
    lab::{Family, Lab},
    privilege::skip,
    require_root_or_skip, require_tool_or_skip,
    tls::{Pages, TlsOrigin, page},
    transcript::Transcript,
};

/// What dpkg and those who keep the users write for themselves.
const KEPT_BY_THE_SYSTEM: [&str; 10] = [
    "./etc/.pwd.lock",
    "./etc/group",
    "./etc/gshadow",
    "./etc/passwd",
    "./etc/shadow",
    "./etc/subgid",
    "./etc/subuid",
    "./var/cache/",
    "./var/lib/dpkg/",
    "./var/log/",
];

/// The package that was made for the tests.
fn package() -> Option<PathBuf> {
    let directory = std::env::var_os("UNDERPASS_DIST")?;
    let mut files = fs::read_dir(directory).ok()?.flatten();
    let deb = files.find(|file| {
        file.path()
            .extension()
            .is_some_and(|extension| extension == "deb")
    });
    Some(deb?.path())
}

#[test]
fn it_is_installed_used_and_removed_without_a_trace() {
    require_root_or_skip!();
    require_tool_or_skip!("dpkg-deb", "--version");
    require_tool_or_skip!("deb-systemd-helper", "--help");
    require_tool_or_skip!("setpriv", "--version");
    require_tool_or_skip!("curl", "--version");
    let Some(package) = package() else {
        return skip(
            "UNDERPASS_DIST names no directory with a package; `cargo xtask test` makes one",
        );
    };
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let pages = Pages::from([("/".to_owned(), page("Through the package", 2_000))]);
    let address = SocketAddr::new(Family::V4.origin(), 443);
    let origin = TlsOrigin::start(&lab.origin, &[address], &["origin.test"], pages);
    let overlay = lab.scratch().path().join("overlay");
    fs::create_dir(&overlay).unwrap();

    let mut install = lab.proxy.command("unshare");
    install
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh"])
        .arg("suites/package/install.sh")
        .arg(&overlay)
        .arg(package)
        .arg("https://origin.test/")
        .arg(origin.authority())
        .arg("10.77.2.0/24");
    let transcript = Transcript::of(&mut install);
    for (name, expected) in [
        ("install", "underpass:x:"),
        (
            "install",
            "/etc/underpass/underpass.toml root underpass 640",
        ),
        ("install", "/usr/bin/underpass root root 755"),
        ("install", ".TH underpass-run 1"),
        ("install", "enabled"),
        ("start", "state      ready"),
        ("use", "<title>Through the package</title>"),
        ("use", "the configuration was read again"),
        ("use", "ended with 0"),
        ("use", "TCP_TUNNEL/200"),
        ("remove", "no user"),
    ] {
        transcript.expect(name, expected);
    }
    let left: Vec<&str> = transcript
        .part("left")
        .lines()
        .filter(|path| !KEPT_BY_THE_SYSTEM.iter().any(|kept| path.starts_with(kept)))
        .filter(|path| !path.is_empty())
        .collect();
    assert_eq!(left, [""; 0]);
    assert!(!transcript.part("left").contains("underpass"));
}
