//! What about this host costs performance or safety, by what the kernel says of itself below `/proc` and `/sys`.
//!
//! Each finding names what would change it. The page on sizing, `deploy/TUNING.md`, says more of each.

use std::{fmt, fs, num::NonZero, path::PathBuf, thread::available_parallelism};

use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use crate::{limits::MAX_TUNNELS, net::listen::BACKLOG, relay::selection::Room};

/// What one connection holds at most by default, in bytes: less costs throughput over long distances.
const WANTED_BUFFER: u64 = 4 << 20;

/// Pages of a pipe that nobody has resized (pipe(7)).
const PAGES_PER_PIPE: u64 = 16;

/// Ports that Linux gives to connections by default.
const WANTED_PORTS: u64 = 28_000;

/// What a finding costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    /// Some tunnels are slower than they could be.
    Slow,
    /// There can be fewer of them.
    Limit,
    /// Something fails, or may be misused.
    Risk,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    cost: Cost,
    what: String,
    remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cost = match self.cost {
            Cost::Slow => "slow ",
            Cost::Limit => "limit",
            Cost::Risk => "risk ",
        };
        write!(
            f,
            "{cost}    {}\n         to change it: {}",
            self.what, self.remedy
        )
    }
}

/// Where it is read, and what of it is the process's own.
#[derive(Debug)]
pub(super) struct Host {
    /// What stands for `/`.
    root: PathBuf,
    processors: u64,
    /// The hard limit of open files; none is no limit.
    descriptors: Option<u64>,
    /// Whether limits for ordinary users do not apply.
    unlimited: bool,
}

impl Host {
    /// The one that this process runs on.
    pub(super) fn this() -> Self {
        let above = CapabilitySet::SYS_RESOURCE | CapabilitySet::SYS_ADMIN;
        let held = capabilities(None).map(|sets| sets.effective);
        Self {
            root: "/".into(),
            processors: available_parallelism().map_or(1, NonZero::get) as u64,
            descriptors: getrlimit(Resource::Nofile).maximum,
            unlimited: held.is_ok_and(|held| held.intersects(above)),
        }
    }

    /// All that is known to cost something, the dangerous first.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<_> = [
            self.name_servers(),
            self.conntrack(),
            self.syncookies(),
            self.unprivileged_bpf(),
            self.open_files(),
            self.backlog(),
            self.ports(),
            self.pipes(),
            self.jit(),
            self.slow_start(),
            self.buffer("net/ipv4/tcp_rmem", "receives"),
            self.buffer("net/ipv4/tcp_wmem", "sends"),
            self.governor(),
        ]
        .into_iter()
        .flatten()
        .collect();
        findings.extend(self.receive_queues());
        findings
    }

    fn name_servers(&self) -> Option<Finding> {
        let text = self.read("etc/resolv.conf").unwrap_or_default();
        let any = text
            .lines()
            .any(|line| line.split_whitespace().next() == Some("nameserver"));
        (!any).then(|| Finding {
            cost: Cost::Risk,
            what: "/etc/resolv.conf names no server: names are asked for at 127.0.0.1".to_owned(),
            remedy: "name one there, or in `[dns] servers`".to_owned(),
        })
    }

    /// A full table drops the packets of new connections (`nf_conntrack_alloc`).
    fn conntrack(&self) -> Option<Finding> {
        let most = self.sysctl("net/netfilter/nf_conntrack_max")?;
        let used = self.sysctl("net/netfilter/nf_conntrack_count").unwrap_or(0);
        let wanted = 2 * u64::from(self.tunnels());
        let remedy = format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}, or `notrack` for the proxy's own connections",
            (4 * wanted).next_power_of_two()
        );
        if used * 10 > most * 9 {
            return Some(Finding {
                cost: Cost::Risk,
                what: format!(
                    "the connection tracking table is nearly full ({used} of {most}): new connections will be dropped"
                ),
                remedy,
            });
        }
        (most < wanted).then(|| Finding {
            cost: Cost::Limit,
            what: format!(
                "connection tracking has room for {most} connections, and a tunnel is two of them"
            ),
            remedy,
        })
    }

    fn syncookies(&self) -> Option<Finding> {
        self.is("net/ipv4/tcp_syncookies", 0).then(|| Finding {
            cost: Cost::Risk,
            what: "a flood of SYN packets shuts out every client: there are no SYN cookies"
                .to_owned(),
            remedy: "sysctl -w net.ipv4.tcp_syncookies=1".to_owned(),
        })
    }

    fn unprivileged_bpf(&self) -> Option<Finding> {
        self.is("kernel/unprivileged_bpf_disabled", 0)
            .then(|| Finding {
                cost: Cost::Risk,
                what: "every user may load BPF programs, which the proxy does not need".to_owned(),
                remedy: "sysctl -w kernel.unprivileged_bpf_disabled=2".to_owned(),
            })
    }

    fn open_files(&self) -> Option<Finding> {
        let descriptors = self.descriptors?;
        let tunnels = self.tunnels();
        (tunnels < MAX_TUNNELS).then(|| Finding {
            cost: Cost::Limit,
            what: format!("{descriptors} open files are room for {tunnels} tunnels"),
            remedy: format!(
                "LimitNOFILE=262144 in a unit, --ulimit nofile=262144:262144 for a container, `ulimit -Hn` in a shell; \
                 {MAX_TUNNELS} tunnels are the most"
            ),
        })
    }

    fn backlog(&self) -> Option<Finding> {
        let most = self.sysctl("net/core/somaxconn")?;
        (most < u64::from(BACKLOG.unsigned_abs())).then(|| Finding {
            cost: Cost::Limit,
            what: format!("when many clients come at once, {most} may wait to be accepted"),
            remedy: format!("sysctl -w net.core.somaxconn={BACKLOG}"),
        })
    }

    fn ports(&self) -> Option<Finding> {
        let text = self.read("proc/sys/net/ipv4/ip_local_port_range")?;
        let mut ends = text
            .split_whitespace()
            .filter_map(|end| end.parse::<u64>().ok());
        let (low, high) = (ends.next()?, ends.next()?);
        let ports = (high + 1).saturating_sub(low);
        (ports < WANTED_PORTS).then(|| Finding {
            cost: Cost::Limit,
            what: format!(
                "{ports} connections can be made to one address and port, as to a parent proxy"
            ),
            remedy: "sysctl -w net.ipv4.ip_local_port_range='15000 64999'".to_owned(),
        })
    }

    /// Above the soft limit new pipes have two pages (`too_many_pipe_buffers_soft`).
    fn pipes(&self) -> Option<Finding> {
        let pages = self.sysctl("fs/pipe-user-pages-soft")?;
        if self.unlimited || pages == 0 {
            return None;
        }
        let pipes = pages / PAGES_PER_PIPE;
        let room = Room::within(self.descriptors.unwrap_or(u64::MAX), true);
        (pipes < room.pipes as u64).then(|| Finding {
            cost: Cost::Slow,
            what: format!(
                "this user's pipes beyond {pipes} are small, and the splice engine uses two for each tunnel that is busy"
            ),
            remedy: "sysctl -w fs.pipe-user-pages-soft=0".to_owned(),
        })
    }

    fn jit(&self) -> Option<Finding> {
        self.is("net/core/bpf_jit_enable", 0).then(|| Finding {
            cost: Cost::Slow,
            what: "BPF programs are interpreted: the sockmap engine takes several times the processor time"
                .to_owned(),
            remedy: "sysctl -w net.core.bpf_jit_enable=1".to_owned(),
        })
    }

    fn slow_start(&self) -> Option<Finding> {
        self.is("net/ipv4/tcp_slow_start_after_idle", 1)
            .then(|| Finding {
                cost: Cost::Slow,
                what: "a tunnel that was silent for a moment begins with a small congestion window again"
                    .to_owned(),
                remedy: "sysctl -w net.ipv4.tcp_slow_start_after_idle=0".to_owned(),
            })
    }

    fn buffer(&self, name: &str, does: &str) -> Option<Finding> {
        let text = self.read(&format!("proc/sys/{name}"))?;
        let most: u64 = text.split_whitespace().nth(2)?.parse().ok()?;
        (most < WANTED_BUFFER).then(|| {
            // What is under way during a round trip of 100 ms.
            let speed = most * 8 * 10 / 1_000_000;
            Finding {
                cost: Cost::Slow,
                what: format!(
                    "a connection {does} {speed} Mbit/s at most where a round trip takes 100 ms"
                ),
                remedy: format!(
                    "sysctl -w {}='4096 131072 16777216'",
                    name.replace('/', ".")
                ),
            }
        })
    }

    fn governor(&self) -> Option<Finding> {
        let of_cpu = |file: &str| self.read(&format!("sys/devices/system/cpu/cpu0/cpufreq/{file}"));
        let governor = of_cpu("scaling_governor")?;
        let driver = of_cpu("scaling_driver").unwrap_or_default();
        // With these it is the processor that decides, under the same name.
        let decides_itself = driver.starts_with("intel_pstate") || driver.ends_with("-epp");
        (governor == "powersave" && !decides_itself).then(|| Finding {
            cost: Cost::Slow,
            what: "the processors are kept at their lowest frequency (powersave)".to_owned(),
            remedy: "cpupower frequency-set --governor schedutil".to_owned(),
        })
    }

    /// Cards that give all their packets to fewer processors than there are, with nothing to spread them (RPS).
    fn receive_queues(&self) -> Vec<Finding> {
        let cards = self.list("sys/class/net");
        let findings = cards.into_iter().filter_map(|card| {
            let directory = format!("sys/class/net/{card}");
            // Only those of hardware; the others hand on what those received.
            if !self.root.join(&directory).join("device").exists() {
                return None;
            }
            let queues = self.list(&format!("{directory}/queues"));
            let queues: Vec<_> = queues
                .iter()
                .filter(|name| name.starts_with("rx-"))
                .collect();
            let spread = queues.iter().any(|queue| {
                let mask = self.read(&format!("{directory}/queues/{queue}/rps_cpus"));
                mask.is_some_and(|mask| mask.contains(|digit| !matches!(digit, '0' | ',')))
            });
            let count = queues.len() as u64;
            (count > 0 && count < self.processors && !spread).then(|| Finding {
                cost: Cost::Slow,
                what: format!(
                    "{count} of {} processors take the packets of {card}, and what the kernel splices is done there",
                    self.processors
                ),
                remedy: format!(
                    "ethtool -L {card} combined {0}, or spread them: write {1:x} to /{directory}/queues/rx-*/rps_cpus",
                    self.processors,
                    mask(self.processors)
                ),
            })
        });
        findings.collect()
    }

    /// The tunnels that there is room for.
    fn tunnels(&self) -> u32 {
        Room::within(self.descriptors.unwrap_or(u64::MAX), true).tunnels
    }

    fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// A setting below `/proc/sys`, where this kernel has it.
    fn sysctl(&self, name: &str) -> Option<u64> {
        self.read(&format!("proc/sys/{name}"))?.parse().ok()
    }

    fn is(&self, name: &str, value: u64) -> bool {
        self.sysctl(name) == Some(value)
    }
}

/// One bit for each of so many processors; of more than 32, for the first.
fn mask(processors: u64) -> u64 {
    (1 << processors.min(32)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose files are these.
    fn host(name: &str, files: &[(&str, &str)]) -> Host {
        let root = std::env::temp_dir().join(format!("underpass-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Host {
            root,
            processors: 8,
            descriptors: Some(1 << 20),
            unlimited: false,
        }
    }

    fn said(host: &Host) -> String {
        let findings = host.findings();
        fs::remove_dir_all(&host.root).unwrap();
        findings.iter().fold(String::new(), |text, finding| {
            text + &finding.to_string() + "\n"
        })
    }

    const GOOD: [(&str, &str); 13] = [
        ("etc/resolv.conf", "nameserver 192.0.2.1\n"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "1048576\n"),
        ("proc/sys/net/netfilter/nf_conntrack_count", "17\n"),
        ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
        ("proc/sys/kernel/unprivileged_bpf_disabled", "2\n"),
        ("proc/sys/net/core/somaxconn", "4096\n"),
        ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
        ("proc/sys/fs/pipe-user-pages-soft", "0\n"),
        ("proc/sys/net/core/bpf_jit_enable", "1\n"),
        ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "0\n"),
        ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
        ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
        ("sys/class/net/eth0/queues/rx-0/rps_cpus", "ff\n"),
    ];

    #[test]
    fn a_good_host_has_nothing_to_be_said_of_it() {
        assert_eq!(said(&host("good", &GOOD)), "");
    }

    #[test]
    fn each_thing_that_costs_something_is_named_with_its_remedy() {
        let mut bad = host(
            "bad",
            &[
                ("etc/resolv.conf", "search test\n"),
                ("proc/sys/net/netfilter/nf_conntrack_max", "1000\n"),
                ("proc/sys/net/netfilter/nf_conntrack_count", "990\n"),
                ("proc/sys/net/ipv4/tcp_syncookies", "0\n"),
                ("proc/sys/kernel/unprivileged_bpf_disabled", "0\n"),
                ("proc/sys/net/core/somaxconn", "128\n"),
                ("proc/sys/net/ipv4/ip_local_port_range", "40000\t40999\n"),
                ("proc/sys/fs/pipe-user-pages-soft", "1024\n"),
                ("proc/sys/net/core/bpf_jit_enable", "0\n"),
                ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "1\n"),
                ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t1250000\n"),
                ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
                (
                    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
                    "powersave\n",
                ),
                (
                    "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver",
                    "acpi-cpufreq\n",
                ),
                ("sys/class/net/eth0/device/vendor", "0x8086\n"),
                (
                    "sys/class/net/eth0/queues/rx-0/rps_cpus",
                    "00000000,00000000\n",
                ),
                ("sys/class/net/lo/queues/rx-0/rps_cpus", "0\n"),
            ],
        );
        bad.descriptors = Some(20_000);
        let said = said(&bad);
        for part in [
            "risk     /etc/resolv.conf names no server",
            "nearly full (990 of 1000)",
            "tcp_syncookies=1",
            "unprivileged_bpf_disabled=2",
            "limit    20000 open files are room for 9004 tunnels",
            "128 may wait to be accepted",
            "1000 connections can be made to one address",
            "pipes beyond 64 are small",
            "slow     BPF programs are interpreted",
            "tcp_slow_start_after_idle=0",
            "receives 100 Mbit/s at most",
            "lowest frequency",
            "1 of 8 processors take the packets of eth0",
            "write ff to /sys/class/net/eth0/queues/rx-*/rps_cpus",
        ] {
            assert!(said.contains(part), "no '{part}' in\n{said}");
        }
        assert!(!said.contains("sends"), "{said}");
        assert!(!said.contains(" of lo"), "{said}");
    }

    #[test]
    fn a_table_with_little_room_is_told_from_a_full_one() {
        let files = [
            ("etc/resolv.conf", "nameserver ::1\n"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "10000\n"),
            ("proc/sys/net/netfilter/nf_conntrack_count", "17\n"),
        ];
        let said = said(&host("little", &files));
        assert!(
            said.starts_with("limit    connection tracking has room for 10000"),
            "{said}"
        );
        assert!(said.contains("nf_conntrack_max=262144"), "{said}");
    }
}
