//! Client, proxy and origin: three namespaces joined by two cables.
//!
//! ```text
//!  client 10.77.1.1  ───  10.77.1.2 proxy 10.77.2.2  ───  10.77.2.1 origin
//!         fd77:1::1       fd77:1::2       fd77:2::2       fd77:2::1
//! ```
//!
//! Nothing forwards packets in the middle and there is no default route, so that every byte which arrives at the
//! other end went through the proxy process (or the kernel on its behalf), and no packet leaves the lab.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    cable::{BadCable, Mishaps, Weather},
    deadline::{PATIENCE, wait_for},
    netns::{Netns, run},
    scratch::Scratch,
};

/// The port on which the daemons of the suites listen.
pub const PROXY_PORT: u16 = 3128;

/// IP version of one leg of a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Address of the client.
    pub fn client(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 77, 1, 1).into(),
            Self::V6 => Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    /// Address of the proxy on the client's cable, with its port.
    pub fn proxy(self) -> SocketAddr {
        let address: IpAddr = match self {
            Self::V4 => Ipv4Addr::new(10, 77, 1, 2).into(),
            Self::V6 => Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 2).into(),
        };
        SocketAddr::new(address, PROXY_PORT)
    }

    /// Address of the proxy on the origin's cable.
    pub fn proxy_outside(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 77, 2, 2).into(),
            Self::V6 => Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 2).into(),
        }
    }

    /// Address of the origin.
    pub fn origin(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 77, 2, 1).into(),
            Self::V6 => Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 1).into(),
        }
    }
}

/// The three namespaces of one test.
#[derive(Debug)]
pub struct Lab {
    cables: Vec<BadCable>,
    /// Where clients run.
    pub client: Netns,
    /// Where the proxy runs.
    pub proxy: Netns,
    /// Where origins run.
    pub origin: Netns,
    scratch: Scratch,
    // Dropped last.
    _share: Share,
}

/// The part of the machine that a lab has: labs share it, or one has it alone.
#[derive(Debug)]
enum Share {
    Some {
        _guard: RwLockReadGuard<'static, ()>,
    },
    All {
        _guard: RwLockWriteGuard<'static, ()>,
    },
}

impl Share {
    fn some() -> Self {
        Self::Some {
            _guard: MACHINE.read().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

static MACHINE: RwLock<()> = RwLock::new(());

impl Lab {
    /// Makes the namespaces and waits until both cables carry both IP versions.
    ///
    /// A test must not hold two labs at a time.
    ///
    /// # Panics
    ///
    /// When it cannot: check [`crate::privilege::namespaces_missing`] first.
    pub fn new() -> Self {
        Self::build(Share::some(), None)
    }

    /// The same, while no other lab of this process exists: for a test that measures speed.
    ///
    /// # Panics
    ///
    /// As [`Self::new`].
    pub fn alone() -> Self {
        let share = Share::All {
            _guard: MACHINE.write().unwrap_or_else(PoisonError::into_inner),
        };
        Self::build(share, None)
    }

    /// A lab whose cables are bad.
    ///
    /// # Panics
    ///
    /// As [`Self::new`], and without TUN devices.
    pub fn in_weather(weather: Weather, seed: u64) -> Self {
        Self::build(Share::some(), Some((weather, seed)))
    }

    fn build(share: Share, weather: Option<(Weather, u64)>) -> Self {
        let mut lab = Self {
            cables: Vec::new(),
            client: Netns::create("client"),
            proxy: Netns::create("proxy"),
            origin: Netns::create("origin"),
            scratch: Scratch::new(),
            _share: share,
        };
        for number in [1, 2] {
            let end = if number == 1 {
                &lab.client
            } else {
                &lab.origin
            };
            if let Some((weather, seed)) = weather {
                let (ends, name) = ([end, &lab.proxy], format!("cable{number}"));
                let cable = BadCable::plug(ends, &name, weather, seed ^ u64::from(number));
                lab.cables.push(cable);
            } else {
                lab.veth(end, number);
            }
            let end = if number == 1 {
                &lab.client
            } else {
                &lab.origin
            };
            lab.address(end, number);
        }
        for netns in [&lab.client, &lab.proxy, &lab.origin] {
            netns.set_hosts(&[]);
            netns.run_in(set_buffer_limits);
        }
        for family in [Family::V4, Family::V6] {
            await_path(&lab.client, family.proxy());
            await_path(&lab.proxy, SocketAddr::new(family.origin(), 1));
        }
        lab
    }

    /// A directory for this lab's files.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// What its bad cables did: packets lost, and packets that overlapped.
    pub fn mishaps(&self) -> (u64, u64) {
        let count = |of: fn(&Mishaps) -> &AtomicU64| {
            let counts = self
                .cables
                .iter()
                .map(|cable| of(&cable.mishaps).load(Relaxed));
            counts.sum()
        };
        (
            count(|mishaps| &mishaps.lost),
            count(|mishaps| &mishaps.overlapped),
        )
    }

    /// Joins `end` and the proxy by a good cable.
    fn veth(&self, end: &Netns, number: u8) {
        let (far, near) = (end.name(), self.proxy.name());
        let script = format!(
            "link add cable{number} netns {far} type veth peer name cable{number} netns {near}\n"
        );
        self.ip(&[], &script);
    }

    /// Gives addresses to `end` (host 1) and the proxy (host 2) at the ends of cable `number`.
    fn address(&self, end: &Netns, number: u8) {
        let (far, near) = (end.name(), self.proxy.name());
        for (host, name) in [(1, far), (2, near)] {
            let script = format!(
                "link set lo up\n\
                 addr add 10.77.{number}.{host}/24 dev cable{number}\n\
                 addr add fd77:{number}::{host}/64 dev cable{number} nodad\n\
                 link set cable{number} up\n"
            );
            self.ip(&["-n", name], &script);
        }
    }

    fn ip(&self, options: &[&str], script: &str) {
        let batch = self.scratch.write("ip.batch", script);
        run(std::process::Command::new("ip")
            .args(options)
            .arg("-batch")
            .arg(batch));
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// The kernel's defaults, whatever this machine's administrator has set: tests count bytes in flight.
fn set_buffer_limits() {
    std::fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 131072 6291456").unwrap();
    std::fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 4194304").unwrap();
}

/// Waits until a connection to a closed port is refused by the other end, which proves the path both ways.
fn await_path(from: &Netns, to: SocketAddr) {
    from.run_in(|| {
        wait_for(
            &format!("a path to {to}"),
            PATIENCE,
            || match TcpStream::connect_timeout(&to, Duration::from_millis(500)) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(()),
                Ok(_) | Err(_) => None,
            },
        );
    });
}
