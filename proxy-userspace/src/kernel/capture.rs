//! The object that captures connections: loading it, its maps, and its attachment to cgroups.

use std::{
    fmt,
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Mutex,
};

use aya::{
    EbpfLoader,
    maps::{Array, HashMap, LpmTrie, MapData, lpm_trie::Key},
    programs::{
        CgroupAttachMode, CgroupSockAddr, CgroupSockopt, SockOps,
        cgroup_sock_addr::CgroupSockAddrLink, cgroup_sockopt::CgroupSockoptLink,
        sock_ops::SockOpsLink,
    },
};
use ipnet::IpNet;
use proxy_common::capture::{Client, Listeners, Origin, maps, programs, sizes};

use super::object::{LoadError, lock, os_error, program, take};
use crate::policy::PortRange;

/// The object, built from `proxy-ebpf` and checked in.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../proxy-ebpf/object/capture.bpf.o");

type ClientWords = [u64; size_of::<Client>() / 8];
type OriginWords = [u64; size_of::<Origin>() / 8];
type ListenerPorts = [u16; 2];

/// The loaded object. What is attached stays so until its [`Attachment`] is dropped, or this process ends.
pub struct Object {
    programs: Mutex<aya::Ebpf>,
    listeners: Mutex<HashMap<MapData, u64, ListenerPorts>>,
    captured: Mutex<HashMap<MapData, ClientWords, OriginWords>>,
    direct: Mutex<LpmTrie<MapData, [u8; 16], u8>>,
    ports: Mutex<Array<MapData, u64>>,
    excluded: Mutex<HashMap<MapData, u64, u8>>,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Object")
    }
}

/// What captures the connections of one cgroup, and of those below it.
#[derive(Debug)]
pub struct Attachment {
    // Fields drop in this order: nothing is led to us that nobody notes.
    _connect: [CgroupSockAddrLink; 2],
    _established: SockOpsLink,
    _truth: ([CgroupSockAddrLink; 2], CgroupSockoptLink),
}

impl Object {
    /// Loads the object. Nothing is captured yet.
    ///
    /// # Errors
    /// The kernel lacks something, or does not permit it.
    pub fn load() -> Result<Self, LoadError> {
        let mut ebpf = EbpfLoader::new().load(OBJECT)?;
        for name in [
            programs::CONNECT4,
            programs::CONNECT6,
            programs::PEER4,
            programs::PEER6,
        ] {
            program::<CgroupSockAddr>(&mut ebpf, name)?.load()?;
        }
        program::<SockOps>(&mut ebpf, programs::ESTABLISHED)?.load()?;
        program::<CgroupSockopt>(&mut ebpf, programs::SOCKOPT)?.load()?;
        Ok(Self {
            listeners: Mutex::new(take(&mut ebpf, maps::LISTENERS)?),
            captured: Mutex::new(take(&mut ebpf, maps::CAPTURED)?),
            direct: Mutex::new(take(&mut ebpf, maps::DIRECT)?),
            ports: Mutex::new(take(&mut ebpf, maps::PORTS)?),
            excluded: Mutex::new(take(&mut ebpf, maps::EXCLUDED)?),
            programs: Mutex::new(ebpf),
        })
    }

    /// Captures what a cgroup connects, beside the programs that others have attached.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(&self, cgroup: &File) -> Result<Attachment, LoadError> {
        // No flags: a link is beside others in any case (cgroup_bpf_link_attach).
        const MODE: CgroupAttachMode = CgroupAttachMode::Single;

        let ebpf = &mut *lock(&self.programs);
        let mut address = |name| {
            let program: &mut CgroupSockAddr = program(ebpf, name)?;
            let id = program.attach(cgroup, MODE)?;
            Ok::<_, LoadError>(program.take_link(id)?)
        };
        // What tells the truth is there before anything needs it.
        let peers = [address(programs::PEER4)?, address(programs::PEER6)?];
        let truth: &mut CgroupSockopt = program(ebpf, programs::SOCKOPT)?;
        let id = truth.attach(cgroup, MODE)?;
        let truth = truth.take_link(id)?;
        let established: &mut SockOps = program(ebpf, programs::ESTABLISHED)?;
        let id = established.attach(cgroup, MODE)?;
        let established = established.take_link(id)?;
        let mut address = |name| {
            let program: &mut CgroupSockAddr = program(ebpf, name)?;
            let id = program.attach(cgroup, MODE)?;
            Ok::<_, LoadError>(program.take_link(id)?)
        };
        let connect = [address(programs::CONNECT4)?, address(programs::CONNECT6)?];
        Ok(Attachment {
            _connect: connect,
            _established: established,
            _truth: (peers, truth),
        })
    }

    /// From now on what a network namespace's processes connect is led to these ports of its loopback.
    ///
    /// # Errors
    /// There are too many namespaces.
    pub fn listen(&self, namespace: u64, ports: Listeners) -> io::Result<()> {
        lock(&self.listeners)
            .insert(namespace, [ports.v4, ports.v6], 0)
            .map_err(os_error)
    }

    /// From now on it is not.
    pub fn forget(&self, namespace: u64) {
        // Absent is as good.
        let _ = lock(&self.listeners).remove(&namespace);
    }

    /// Where the connection of a client was to go, once; none if it was not led to us.
    pub fn take(&self, namespace: u64, client: SocketAddr) -> Option<Origin> {
        let client = Client {
            namespace,
            address: octets(client.ip()),
            port: client.port().into(),
            reserved: 0,
        };
        let key: ClientWords = bytemuck::cast(client);
        let mut captured = lock(&self.captured);
        let origin = captured.get(&key, 0).ok()?;
        // Its client is the only one that could add it again.
        let _ = captured.remove(&key);
        Some(bytemuck::cast(origin))
    }

    /// Captures connections to these ports.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_ports(&self, ranges: &[PortRange]) -> io::Result<()> {
        let mut words = vec![0_u64; sizes::PORT_WORDS];
        for port in ranges.iter().flat_map(|range| range.ports()) {
            if let Some(word) = words.get_mut(usize::from(port / 64)) {
                *word |= 1 << (port % 64);
            }
        }
        let mut ports = lock(&self.ports);
        for (place, word) in (0..).zip(words) {
            ports.set(place, word, 0).map_err(os_error)?;
        }
        Ok(())
    }

    /// Does not capture connections to these networks.
    ///
    /// # Errors
    /// There are too many.
    pub fn set_direct(&self, networks: &[IpNet]) -> io::Result<()> {
        let mut direct = lock(&self.direct);
        let known: Vec<_> = direct.keys().flatten().collect();
        let wanted: Vec<_> = networks.iter().map(key).collect();
        for key in &wanted {
            direct.insert(key, 1, 0).map_err(os_error)?;
        }
        let same = |a: &Key<[u8; 16]>, b: &Key<[u8; 16]>| {
            (a.prefix_len(), a.data()) == (b.prefix_len(), b.data())
        };
        for gone in known
            .iter()
            .filter(|known| !wanted.iter().any(|wanted| same(wanted, known)))
        {
            let _ = direct.remove(gone);
        }
        Ok(())
    }

    /// Does not capture what these cgroups, known by their numbers, and those below them connect.
    ///
    /// # Errors
    /// There are too many.
    pub fn set_excluded(&self, cgroups: &[u64]) -> io::Result<()> {
        let mut excluded = lock(&self.excluded);
        let known: Vec<_> = excluded.keys().flatten().collect();
        for cgroup in cgroups {
            excluded.insert(cgroup, 1, 0).map_err(os_error)?;
        }
        for gone in known.iter().filter(|known| !cgroups.contains(known)) {
            let _ = excluded.remove(gone);
        }
        Ok(())
    }
}

/// What the operator can do where it cannot be loaded or attached.
pub fn remedy(error: &LoadError) -> String {
    match error {
        LoadError::Refused(_) => {
            "run Linux 6.1 or later, built with CONFIG_CGROUP_BPF=y".to_owned()
        }
        other => other.remedy(),
    }
}

/// An address as the maps have it.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// An address of the maps.
pub fn address(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

fn key(network: &IpNet) -> Key<[u8; 16]> {
    let length = match network {
        IpNet::V4(network) => 96 + u32::from(network.prefix_len()),
        IpNet::V6(network) => network.prefix_len().into(),
    };
    Key::new(length, octets(network.network()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_ipv6() {
        for text in ["192.0.2.7", "2001:db8::1", "::1"] {
            let given: IpAddr = text.parse().unwrap();
            assert_eq!(address(octets(given)), given);
        }
        let key = key(&"10.0.0.0/8".parse().unwrap());
        assert_eq!(key.prefix_len(), 104);
        assert_eq!(
            key.data(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 0]
        );
    }
}
