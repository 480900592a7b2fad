//! What the programs that capture connections and their loader agree on.
//!
//! Addresses are those of IPv6, IPv4 within as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2), in network byte order;
//! ports are numbers.

use bytemuck::{Pod, Zeroable};

/// Names of the programs, which are also their functions' names.
pub mod programs {
    /// `cgroup/connect4`: leads a connection to the listener of its network namespace.
    pub const CONNECT4: &str = "underpass_connect4";
    /// `cgroup/connect6`: the same.
    pub const CONNECT6: &str = "underpass_connect6";
    /// `sockops`: notes the addresses of a connection that was led to us.
    pub const ESTABLISHED: &str = "underpass_established";
    /// `cgroup/getpeername4`: tells the application where it meant to go.
    pub const PEER4: &str = "underpass_peer4";
    /// `cgroup/getpeername6`: the same.
    pub const PEER6: &str = "underpass_peer6";
    /// `cgroup/getsockopt`: the same, where it asks for `SO_ORIGINAL_DST`.
    pub const SOCKOPT: &str = "underpass_sockopt";
}

/// Names of the maps in the object file.
pub mod maps {
    /// Hash, cookie of a network namespace to [`Listeners`](super::Listeners): where there are listeners.
    pub const LISTENERS: &str = "LISTENERS";
    /// LRU hash, [`Client`](super::Client) to [`Origin`](super::Origin): connections that nobody has accepted yet.
    pub const CAPTURED: &str = "CAPTURED";
    /// Trie of networks that are not captured.
    pub const DIRECT: &str = "DIRECT";
    /// Array with a bit for each port that is captured.
    pub const PORTS: &str = "PORTS";
    /// Hash of cgroups that are not captured, with all below them, by their numbers.
    pub const EXCLUDED: &str = "EXCLUDED";
}

/// Sizes the object is compiled with.
pub mod sizes {
    /// Network namespaces that can have listeners.
    pub const LISTENERS: usize = 4096;
    /// Connections that may wait to be accepted.
    pub const CAPTURED: usize = 65_536;
    /// Networks that are not captured.
    pub const DIRECT: usize = 4096;
    /// Words of 64 ports each.
    pub const PORT_WORDS: usize = 65_536 / 64;
    /// Cgroups that are not captured.
    pub const EXCLUDED: usize = 256;
    /// How deep below the root a cgroup is looked for among them.
    pub const DEPTH: i32 = 12;
}

/// Where the listeners of a network namespace are, on loopback; 0 where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Listeners {
    /// The port at 127.0.0.1.
    pub v4: u16,
    /// The port at `::1`.
    pub v6: u16,
}

/// The client's end of a connection that was captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Client {
    /// The cookie of its network namespace (`SO_NETNS_COOKIE`).
    pub namespace: u64,
    /// Its address.
    pub address: [u8; 16],
    /// Its port.
    pub port: u32,
    /// Keeps the value free of padding.
    pub reserved: u32,
}

/// Where somebody meant to connect to, and who that was when they did.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Origin {
    /// The address.
    pub address: [u8; 16],
    /// The port.
    pub port: u32,
    /// The user's number, in the initial user namespace.
    pub uid: u32,
    /// The group's number, in the initial user namespace.
    pub gid: u32,
    /// The process, in the initial namespace of processes.
    pub pid: u32,
    /// The number of its cgroup, which is that of the inode in the cgroup file system.
    pub cgroup: u64,
    /// The name of its thread, ended by zeros (`TASK_COMM_LEN`).
    pub command: [u8; 16],
}

/// A key of [`maps::DIRECT`] behind its prefix length.
pub type Address = [u8; 16];
