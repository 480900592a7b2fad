//! Other people's servers, as Debian has them: each runs in the foreground until it is dropped.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{
    deadline::{PATIENCE, wait_for},
    netns::Netns,
};

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Peer(Child);

impl Peer {
    /// Starts the command, and waits until somebody accepts connections at `address`.
    ///
    /// # Panics
    ///
    /// When nobody does, or the program ends.
    pub fn listening(netns: &Netns, command: &mut Command, address: SocketAddr) -> Self {
        Self::start(command, || {
            netns.run_in(|| TcpStream::connect(address).is_ok())
        })
    }

    /// Starts the command, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// When that is never, or the program ends.
    pub fn start(command: &mut Command, is_ready: impl Fn() -> bool) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut peer = Self(child);
        // Some begin by looking at everything they have.
        wait_for("a peer is ready", 3 * PATIENCE, || {
            if let Ok(Some(status)) = peer.0.try_wait() {
                panic!("{command:?} ended with {status}");
            }
            is_ready().then_some(())
        });
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A dnsmasq, which knows the names below `test` alone.
#[derive(Debug)]
pub struct Dnsmasq {
    _peer: Peer,
    log: std::path::PathBuf,
}

impl Dnsmasq {
    /// Serves `hosts` (lines of a hosts file) at the address, with more options.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(
        netns: &Netns,
        address: SocketAddr,
        hosts: &str,
        options: &[&str],
        scratch: &Path,
    ) -> Self {
        let file = |name: &str| scratch.join(format!("dnsmasq-{}-{name}", address.port()));
        let (names, log) = (file("hosts"), file("log"));
        fs::write(&names, hosts).unwrap();
        let mut command = netns.command("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
            ])
            .args([
                "--no-hosts",
                "--local=/test/",
                "--user=root",
                "--bind-interfaces",
            ])
            .args(["--except-interface=lo", "--log-queries", "--pid-file="])
            .arg(format!("--port={}", address.port()))
            .arg(format!("--listen-address={}", address.ip()))
            .arg(format!("--addn-hosts={}", names.display()))
            .arg(format!("--log-facility={}", log.display()))
            .args(options);
        let peer = Peer::start(&mut command, || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("started"))
        });
        Self { _peer: peer, log }
    }

    /// How often it was asked for this type of record of a name.
    ///
    /// # Panics
    ///
    /// When its log cannot be read.
    pub fn asked(&self, kind: &str, name: &str) -> usize {
        let query = format!("query[{kind}] {name} ");
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines().filter(|line| line.contains(&query)).count()
    }
}

/// An nginx, which serves what is below `www` in a directory, and takes files into `www/up`.
#[derive(Debug)]
pub struct Nginx {
    _peer: Peer,
}

impl Nginx {
    /// Serves at these addresses.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start<const N: usize>(
        netns: &Netns,
        scratch: &Path,
        addresses: [SocketAddr; N],
    ) -> Self {
        fs::create_dir_all(scratch.join("www/up")).unwrap();
        let listen = addresses
            .map(|address| format!("listen {address}; "))
            .concat();
        let at = |name: &str| scratch.join(name).display().to_string();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {}; ", at(&format!("nginx-{what}"))))
            .concat();
        let config = format!(
            "daemon off; user root; pid {}; error_log /dev/null; worker_processes 1;\n\
             events {{ }}\n\
             http {{ access_log off; {temporary} client_max_body_size 0; default_type text/plain;\n\
             server {{ {listen} root {}; location /up/ {{ dav_methods PUT DELETE; }} }} }}\n",
            at("nginx.pid"),
            at("www")
        );
        let path = scratch.join("nginx.conf");
        fs::write(&path, config).unwrap();
        let mut command = netns.command("nginx");
        command.arg("-c").arg(path);
        Self {
            _peer: Peer::start(&mut command, || {
                let is_there = |address| TcpStream::connect(address).is_ok();
                netns.run_in(|| addresses.into_iter().all(is_there))
            }),
        }
    }
}
