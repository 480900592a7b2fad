//! Every map of the object, once; `proxy_common::capture::maps` holds the names that the loader uses.

use aya_ebpf::{
    bindings::bpf_sock,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, SkStorage},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use proxy_common::capture::{Address, Client, Listeners, Origin, sizes};

#[btf_map]
pub(crate) static LISTENERS: HashMap<u64, Listeners, { sizes::LISTENERS }> = HashMap::new();

#[btf_map]
pub(crate) static CAPTURED: LruHashMap<Client, Origin, { sizes::CAPTURED }> = LruHashMap::new();

#[btf_map]
pub(crate) static DIRECT: LpmTrie<Address, u8, { sizes::DIRECT }> = LpmTrie::new();

#[btf_map]
pub(crate) static PORTS: Array<u64, { sizes::PORT_WORDS }> = Array::new();

#[btf_map]
pub(crate) static EXCLUDED: HashMap<u64, u8, { sizes::EXCLUDED }> = HashMap::new();

/// Where a socket's connection was to go; it lives as long as the socket.
#[btf_map]
pub(crate) static ORIGINS: SkStorage<Origin> = SkStorage::new();

/// What is kept with a socket, if it was captured.
#[inline(always)]
pub(crate) fn origin(sk: *mut bpf_sock) -> Option<Origin> {
    if sk.is_null() {
        return None;
    }
    let map = (&raw const ORIGINS).cast_mut().cast();
    // SAFETY: the map is one of storage in sockets, and `sk` a socket, not null; without a value to begin with the helper
    // only looks.
    let found = unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0) };
    let found = found.cast::<Origin>();
    if found.is_null() {
        return None;
    }
    // SAFETY: the value of that map, not null; its only writer is the application's own connect().
    Some(unsafe { *found })
}
