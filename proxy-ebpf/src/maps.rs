//! Every map and global of the object, once. The loader overrides the sizes and sets the globals;
//! `proxy_common::maps` and `proxy_common::globals` hold the names it uses.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, RingBuf, SockHash},
    macros::btf_map,
};
use proxy_common::{Direction, Flow, sizes};

/// `BPF_F_NO_PREALLOC`: an idle proxy pays for no flow.
const NO_PREALLOC: usize = 1;

/// `BPF_F_MMAPABLE`: user space reads counters without a system call.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
pub(crate) static SOCKETS: SockHash<u64, { sizes::SOCKETS }> = SockHash::new();

#[btf_map]
pub(crate) static FLOWS: HashMap<u64, Flow, { sizes::SOCKETS }, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub(crate) static DIRECTIONS: Array<Direction, { sizes::SOCKETS }, MMAPABLE> = Array::new();

#[btf_map]
pub(crate) static REQUESTS: Array<u64, { sizes::SOCKETS }> = Array::new();

#[btf_map]
pub(crate) static EVENTS: RingBuf<u64, { sizes::EVENTS_BYTES }> = RingBuf::new();

#[btf_map]
pub(crate) static LOST_EVENTS: Array<u64, 1> = Array::new();

/// Set from the running kernel's BTF; 0 would read the wrong field, so the loader insists on them.
#[unsafe(no_mangle)]
pub(crate) static OFFSET_COPIED_SEQ: Global<u32> = Global::new(0);

#[unsafe(no_mangle)]
pub(crate) static OFFSET_WRITE_SEQ: Global<u32> = Global::new(0);

#[unsafe(no_mangle)]
pub(crate) static OFFSET_WMEM_QUEUED: Global<u32> = Global::new(0);

#[unsafe(no_mangle)]
pub(crate) static OFFSET_SNDBUF: Global<u32> = Global::new(0);
