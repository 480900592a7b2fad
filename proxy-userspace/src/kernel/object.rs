//! The BPF object: loading it for the running kernel, and its maps as typed tables.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, AsRawFd as _},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, RingBuf, SockHash},
    programs::{Program, ProgramError, ProgramFd, SkSkb, SocketFilter},
};
use proxy_common::{Direction, Flow, globals, maps, programs, request, sizes};
use rustix::thread::{CapabilitySet, capabilities};
use thiserror::Error;
use tracing::debug;

use super::{
    btf::{self, Btf, BtfError},
    clock,
    mapped::Mapped,
    version::SOUND_KERNELS,
};
use crate::net::sockopt;

/// The object, built from `proxy-ebpf` and checked in.
#[cfg(not(feature = "program-log"))]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../proxy-ebpf/object/underpass.bpf.o");
/// The object that logs, built for the occasion.
#[cfg(feature = "program-log")]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!(
    "UNDERPASS_BPF_OBJECT",
    "use `cargo xtask run --program-log`, which builds the object that logs"
));

/// Words of a [`Direction`] and a [`Flow`] as aya passes map values.
type DirectionWords = [u64; size_of::<Direction>() / 8];
type FlowWords = [u64; size_of::<Flow>() / 8];

/// Why the object cannot be used here.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel publishes no type information.
    #[error("cannot read {path}: {source}", path = btf::VMLINUX)]
    NoBtf {
        /// What the system said.
        source: io::Error,
    },
    /// A structure is not as the program needs it.
    #[error("{0}")]
    Btf(BtfError),
    /// The kernel refuses programs or maps from us.
    #[error("the kernel does not permit loading BPF programs: {0}")]
    NotPermitted(String),
    /// The verifier, or the lack of a feature.
    #[error("the kernel refuses the program: {0}")]
    Refused(String),
}

/// Room in the map for sockets that are closed but not gone yet: one leaves it when the last holder of its
/// file lets go, and an `epoll_wait` of another thread may be that (`ep_item_poll`).
const CLOSING_SOCKETS: u32 = 64;

impl LoadError {
    /// What the operator can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::NoBtf { .. } | Self::Btf(_) => {
                "run a kernel built with CONFIG_DEBUG_INFO_BTF=y, with /sys mounted".to_owned()
            }
            Self::NotPermitted(_) => permission().to_owned(),
            Self::Refused(_) => format!(
                "run {SOUND_KERNELS}, built with CONFIG_BPF_SYSCALL=y and CONFIG_BPF_STREAM_PARSER=y"
            ),
        }
    }
}

impl From<BtfError> for LoadError {
    fn from(error: BtfError) -> Self {
        Self::Btf(error)
    }
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> Self {
        classify(&error)
    }
}

impl From<ProgramError> for LoadError {
    fn from(error: ProgramError) -> Self {
        classify(&error)
    }
}

impl From<MapError> for LoadError {
    fn from(error: MapError) -> Self {
        classify(&error)
    }
}

/// Tells missing privilege from missing features. The kernel says EPERM for some privileges; without
/// others the verifier just does not know a helper.
fn classify(error: &(dyn std::error::Error + 'static)) -> LoadError {
    let text = chain(error);
    let mut link = Some(error);
    let mut refused = lacks_capability();
    while let Some(current) = link {
        let os = current.downcast_ref::<io::Error>();
        refused |= os.is_some_and(|os| os.raw_os_error() == Some(libc::EPERM));
        link = current.source();
    }
    if refused {
        LoadError::NotPermitted(text)
    } else {
        LoadError::Refused(text)
    }
}

/// What would permit the program, by what is missing.
fn permission() -> &'static str {
    if lacks_capability() {
        return "run as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let filtered = status.lines().any(|line| {
        line.strip_prefix("Seccomp:")
            .is_some_and(|mode| mode.trim() == "2")
    });
    if filtered {
        "the capabilities are there, but a seccomp filter forbids bpf(2): containerd from 1.6.9 and Docker from 23 allow \
         it with CAP_BPF; elsewhere run with a profile that does, or with seccomp=unconfined"
    } else {
        "the capabilities are there, but something else forbids bpf(2): look at the kernel's lockdown \
         (/sys/kernel/security/lockdown) and at its security modules"
    }
}

/// Whether this process is without a capability that the program takes.
fn lacks_capability() -> bool {
    // Unknown is not absent.
    capabilities(None).is_ok_and(|sets| {
        let held = sets.effective;
        // CAP_SYS_ADMIN includes the two that were split from it.
        let split = CapabilitySet::BPF | CapabilitySet::PERFMON;
        !held.contains(CapabilitySet::NET_ADMIN)
            || !(held.contains(split) || held.contains(CapabilitySet::SYS_ADMIN))
    })
}

/// An error with its causes on one line, cut where a verifier log would begin.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut link = Some(error);
    while let Some(current) = link {
        let full = current.to_string();
        let line = full.lines().next().unwrap_or_default();
        let line = line.split(". Verifier output").next().unwrap_or(line);
        if !text.contains(line) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(line);
        }
        link = current.source();
    }
    text
}

/// The loaded and attached object. Dropping it detaches the program.
pub struct Object {
    tables: Tables,
    events: RingBuf<MapData>,
    /// Owns the program and its attachment.
    attached: Attached,
}

/// What has to live for the program to run.
struct Attached {
    #[cfg(feature = "program-log")]
    _log: super::program_log::ProgramLog,
    _program: Ebpf,
}

impl Object {
    /// Loads the object for the running kernel, with room for `sockets` spliced sockets. Call within a
    /// Tokio runtime.
    pub fn load(sockets: u32) -> Result<Self, LoadError> {
        let blob = fs::read(btf::VMLINUX).map_err(|source| LoadError::NoBtf { source })?;
        let kernel = Btf::parse(&blob)?;
        let copied_seq = kernel.member_offset("tcp_sock", "copied_seq")?;
        let write_seq = kernel.member_offset("tcp_sock", "write_seq")?;
        let wmem_queued = kernel.member_offset("sock", "sk_wmem_queued")?;
        let sndbuf = kernel.member_offset("sock", "sk_sndbuf")?;
        drop(blob);

        // 16 bytes an event, twice the number of sockets, at least a page, a power of two.
        let ring = sockets
            .saturating_mul(32)
            .next_power_of_two()
            .clamp(4096, u32::try_from(sizes::EVENTS_BYTES).unwrap_or(u32::MAX));
        let directions = sockets;
        let mut ebpf = EbpfLoader::new()
            .override_global(globals::COPIED_SEQ, &copied_seq, true)
            .override_global(globals::WRITE_SEQ, &write_seq, true)
            .override_global(globals::WMEM_QUEUED, &wmem_queued, true)
            .override_global(globals::SNDBUF, &sndbuf, true)
            .map_max_entries(maps::SOCKETS, sockets.saturating_add(CLOSING_SOCKETS))
            .map_max_entries(maps::FLOWS, sockets)
            .map_max_entries(maps::DIRECTIONS, sockets)
            .map_max_entries(maps::REQUESTS, sockets)
            .map_max_entries(maps::EVENTS, ring)
            .load(OBJECT)?;

        #[cfg(feature = "program-log")]
        let log = super::program_log::ProgramLog::follow(&mut ebpf)?;

        let sockets: SockHash<_, u64> = take(&mut ebpf, maps::SOCKETS)?;
        let target = sockets.fd().try_clone().map_err(|error| classify(&error))?;
        let verdict: &mut SkSkb = program(&mut ebpf, programs::VERDICT)?;
        verdict.load()?;
        verdict.attach(&target)?;
        let brake: &mut SocketFilter = program(&mut ebpf, programs::BRAKE)?;
        brake.load()?;
        let brake = brake.fd()?.try_clone().map_err(|error| classify(&error))?;

        Ok(Self {
            tables: Tables {
                brake,
                sockets: Mutex::new(sockets),
                flows: Mutex::new(take(&mut ebpf, maps::FLOWS)?),
                mapped: map_directions(&ebpf, directions),
                directions: Mutex::new(take(&mut ebpf, maps::DIRECTIONS)?),
                requests: Mutex::new(take(&mut ebpf, maps::REQUESTS)?),
                lost_events: take(&mut ebpf, maps::LOST_EVENTS)?,
            },
            events: take(&mut ebpf, maps::EVENTS)?,
            attached: Attached {
                #[cfg(feature = "program-log")]
                _log: log,
                _program: ebpf,
            },
        })
    }

    /// The maps, the event ring, and what keeps the program attached.
    pub fn into_parts(self) -> (Tables, RingBuf<MapData>, impl Send + Sync) {
        (self.tables, self.events, self.attached)
    }
}

/// A program of the object as the type its name promises.
pub(super) fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, LoadError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| LoadError::Refused(format!("the object has no program {name}")))?;
    Ok(program.try_into()?)
}

/// The array of directions in our memory; without it, its counters are system calls away.
fn map_directions(ebpf: &Ebpf, entries: u32) -> Option<Mapped> {
    let aya::maps::Map::Array(array) = ebpf.map(maps::DIRECTIONS)? else {
        return None;
    };
    Mapped::new(array.fd(), entries)
        .inspect_err(|error| debug!(%error, "the counters of the kernel cannot be mapped"))
        .ok()
}

/// Takes a map out of the object as the type its name promises.
pub(super) fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T, LoadError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| LoadError::Refused(format!("the object has no map {name}")))?;
    Ok(T::try_from(map)?)
}

/// The maps and the filter of every socket, usable from any task. Every operation is one system call, but for
/// [`Tables::redirected`].
pub struct Tables {
    brake: ProgramFd,
    sockets: Mutex<SockHash<MapData, u64>>,
    flows: Mutex<HashMap<MapData, u64, FlowWords>>,
    directions: Mutex<Array<MapData, DirectionWords>>,
    mapped: Option<Mapped>,
    requests: Mutex<Array<MapData, u64>>,
    lost_events: Array<MapData, u64>,
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tables")
    }
}

/// aya's map handles want `&mut` for what the kernel does atomically; a panic between cannot leave
/// them inconsistent.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The operating system's error behind a map operation.
pub(super) fn os_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(syscall) => syscall.io_error,
        other => io::Error::other(other),
    }
}

impl Tables {
    /// Says where the bytes of the socket with this cookie go.
    pub fn insert_flow(&self, cookie: u64, flow: Flow) -> io::Result<()> {
        let words: FlowWords = bytemuck::cast(flow);
        lock(&self.flows).insert(cookie, words, 0).map_err(os_error)
    }

    /// Forgets the flow of a closed socket.
    pub fn remove_flow(&self, cookie: u64) {
        // Absent is as good.
        let _ = lock(&self.flows).remove(&cookie);
    }

    /// Puts a socket under the filter that holds its sender back. It accepts everything while the socket
    /// has no flow, so it may stay.
    ///
    /// # Errors
    /// `EPERM`: the socket's filter is locked. `ENOMEM`: `net.core.optmem_max` is used up
    /// (`sk_filter_charge`).
    pub fn put_brake(&self, socket: impl AsFd) -> io::Result<()> {
        sockopt::attach_filter(socket, &self.brake)
    }

    /// Puts a socket under the verdict program.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: not ESTABLISHED, or MPTCP (`sock_map_sk_state_allowed`). `EBUSY`: another
    /// sockmap's program has it (`sock_map_link`). `E2BIG`: the map is full.
    pub fn insert_socket(&self, cookie: u64, socket: impl AsFd) -> io::Result<()> {
        lock(&self.sockets)
            .insert(cookie, socket.as_fd().as_raw_fd(), 0)
            .map_err(os_error)
    }

    /// The program's state of a direction.
    pub fn direction(&self, slot: u32) -> io::Result<Direction> {
        let words = lock(&self.directions).get(&slot, 0).map_err(os_error)?;
        Ok(bytemuck::cast(words))
    }

    /// The bytes redirected in a direction, for whoever only watches.
    pub fn redirected(&self, slot: u32) -> u64 {
        let mapped = self.mapped.as_ref();
        let mapped = mapped.and_then(|mapped| mapped.redirected(slot));
        mapped.unwrap_or_else(|| self.direction(slot).map_or(0, |state| state.redirected))
    }

    /// When the first bytes were redirected in a direction, if any were; for whoever only watches.
    pub fn first_redirected(&self, slot: u32) -> Option<Instant> {
        let mapped = self.mapped.as_ref();
        let mapped = mapped.and_then(|mapped| mapped.first(slot));
        let first = mapped.or_else(|| Some(self.direction(slot).ok()?.first))?;
        (first != 0).then(|| clock::instant(first)).flatten()
    }

    /// Makes a slot ready for its next user. No socket may be using it.
    pub fn clear(&self, slot: u32) -> io::Result<()> {
        self.request(slot, 0)?;
        let zero: DirectionWords = bytemuck::Zeroable::zeroed();
        lock(&self.directions).set(slot, zero, 0).map_err(os_error)
    }

    /// Asks the program to take the direction over; `0` takes the request back.
    pub fn request(&self, slot: u32, number: u32) -> io::Result<()> {
        lock(&self.requests)
            .set(slot, request::word(number), 0)
            .map_err(os_error)
    }

    /// How many events did not fit the ring so far.
    pub fn lost_events(&self) -> io::Result<u64> {
        self.lost_events.get(&0, 0).map_err(os_error)
    }
}
