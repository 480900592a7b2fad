//! A named network namespace: made by `ip netns add`, entered by a thread, removed on drop with all its processes.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::IpAddr,
    os::fd::AsFd as _,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// A name that no other test of this or another process uses: `up-<pid>-<counter>-<role>`.
pub fn unique_name(role: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("up-{}-{count}-{role}", std::process::id())
}

/// One network namespace and what is started in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Makes a namespace whose name ends in `role`.
    ///
    /// # Panics
    ///
    /// When it cannot be made: check [`crate::privilege::namespaces_missing`] first.
    pub fn create(role: &str) -> Self {
        let name = unique_name(role);
        let mut add = Command::new("ip");
        add.args(["netns", "add", &name]);
        if let Err(how) = attempt(&mut add) {
            // An emulated machine killed it once, without a word. That says nothing of the proxy.
            eprintln!("{how}; trying again");
            drop(Command::new("ip").args(["netns", "del", &name]).output());
            run(&mut add);
        }
        let handle = File::open(format!("/run/netns/{name}")).expect("ip netns add has made it");
        Self { name, handle }
    }

    /// The name that `ip netns exec` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `action` in a thread that has entered the namespace; sockets it makes stay there wherever they go.
    ///
    /// # Panics
    ///
    /// When the namespace cannot be entered, or with the panic of `action`.
    pub fn run_in<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter();
                action()
            });
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace for the rest of its life.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn enter(&self) {
        move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter a namespace");
    }

    /// `program`, to be run inside the namespace; the child has the process id of the program itself.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Name resolution of programs started by [`Self::command`]: these names, and no DNS server.
    ///
    /// # Panics
    ///
    /// When the files cannot be written.
    pub fn set_hosts(&self, hosts: &[(&str, &str)]) {
        let directory = self.etc();
        fs::create_dir_all(&directory).unwrap();
        let mut text = String::from("127.0.0.1 localhost\n");
        for (address, name) in hosts {
            writeln!(text, "{address} {name}").unwrap();
        }
        fs::write(directory.join("hosts"), text).unwrap();
        // Nothing listens there, so a name that is not in the file fails at once.
        self.set_name_server([127, 0, 0, 1].into());
    }

    /// Lets programs started by [`Self::command`] ask this name server, in what they do not find otherwise.
    ///
    /// # Panics
    ///
    /// When the file cannot be written.
    pub fn set_name_server(&self, address: IpAddr) {
        let text = format!("nameserver {address}\noptions timeout:1 attempts:1\n");
        fs::write(self.etc().join("resolv.conf"), text).unwrap();
    }

    /// Loses every packet from here to `neighbour`, a host at the other end of `cable`, until the result is dropped.
    ///
    /// They go to a hardware address that nobody has.
    ///
    /// # Panics
    ///
    /// When `ip neigh` fails.
    pub fn lose_packets_to(&self, neighbour: IpAddr, cable: &str) -> Loss<'_> {
        let loss = Loss {
            netns: self,
            neighbour: neighbour.to_string(),
            cable: cable.to_owned(),
            found: self.hardware_address(neighbour, cable),
        };
        loss.set("02:00:00:00:00:99");
        loss
    }

    /// What the kernel has found out about a neighbour that was talked to.
    fn hardware_address(&self, neighbour: IpAddr, cable: &str) -> String {
        let output = Command::new("ip")
            .args([
                "-n",
                &self.name,
                "neigh",
                "show",
                &neighbour.to_string(),
                "dev",
                cable,
            ])
            .output()
            .expect("ip(8) is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split_whitespace().skip_while(|word| *word != "lladdr");
        words
            .nth(1)
            .unwrap_or_else(|| panic!("{neighbour} was never talked to: {text}"))
            .to_owned()
    }

    /// Process ids of everything that runs in the namespace.
    pub fn processes(&self) -> Vec<i32> {
        let Ok(output) = Command::new("ip")
            .args(["netns", "pids", &self.name])
            .output()
        else {
            return Vec::new();
        };
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }
}

/// Packets to a neighbour are being lost.
#[derive(Debug)]
pub struct Loss<'netns> {
    netns: &'netns Netns,
    neighbour: String,
    cable: String,
    /// The neighbour's real hardware address.
    found: String,
}

impl Loss<'_> {
    fn set(&self, hardware: &str) {
        let name = self.netns.name();
        run(Command::new("ip")
            .args(["-n", name, "neigh", "replace", &self.neighbour])
            .args(["lladdr", hardware, "dev", &self.cable, "nud", "permanent"]));
    }
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        self.set(&self.found);
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Only we know the name, so what runs here was started by us; our own threads belong to another process id.
        for pid in self.processes() {
            if let Some(pid) = Pid::from_raw(pid) {
                // It may have ended by itself.
                kill_process(pid, Signal::KILL).ok();
            }
        }
        drop(
            Command::new("ip")
                .args(["netns", "del", &self.name])
                .output(),
        );
        drop(fs::remove_dir_all(self.etc()));
        // The last test takes the directory with it; others still have entries in it and keep it.
        drop(fs::remove_dir("/etc/netns"));
    }
}

/// Runs a set-up command that has to succeed.
///
/// # Panics
///
/// When it fails, with what it said.
pub fn run(command: &mut Command) {
    if let Err(how) = attempt(command) {
        panic!("{how}");
    }
}

/// Runs a command; how it failed, if it did.
fn attempt(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{command:?}: {}: {said}", output.status))
        }
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
