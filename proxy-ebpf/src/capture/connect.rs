//! `cgroup/connect4` and `cgroup/connect6`: where a connection goes that is to be begun.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    btf_maps::lpm_trie::Key,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_comm,
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_netns_cookie,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use proxy_common::capture::{Address, Listeners, Origin, sizes};

use crate::maps::{DIRECT, EXCLUDED, LISTENERS, ORIGINS, PORTS};

/// Lets the call go on, wherever it leads now.
const GO_ON: i32 = 1;

const IPPROTO_TCP: u32 = 6;

/// 127.0.0.1 and `::1`, as the context has them.
const LOOPBACK4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
const LOOPBACK6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];

/// What is in front of an IPv4 address in an IPv6 address.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

#[cgroup_sock_addr(connect4)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands it over by value"
)]
fn underpass_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is the program's own.
    let address = unsafe { (*ctx.sock_addr).user_ip4 };
    if let Some(listeners) = capture(&ctx, mapped(address)) {
        lead4(&ctx, listeners);
    }
    GO_ON
}

#[cgroup_sock_addr(connect6)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands it over by value"
)]
fn underpass_connect6(ctx: SockAddrContext) -> i32 {
    let address = address6(ctx.sock_addr);
    if let Some(listeners) = capture(&ctx, address) {
        lead6(&ctx, address, listeners);
    }
    GO_ON
}

/// Notes where the connection was to go, if it is one to capture: where the listeners are.
#[inline(always)]
fn capture(ctx: &SockAddrContext, address: Address) -> Option<Listeners> {
    let context = ctx.sock_addr;
    // SAFETY: the context is the program's own.
    let (protocol, port, sk) = unsafe {
        (
            (*context).protocol,
            (*context).user_port,
            (*context).__bindgen_anon_1.sk,
        )
    };
    if protocol != IPPROTO_TCP || sk.is_null() {
        return None;
    }
    // The socket may have been led to us before: it may be used for a second try.
    // SAFETY: `sk` is a socket, not null.
    let _ = unsafe { ORIGINS.delete(sk) };
    let port = u32::from(u16::from_be(low(port.into())));
    let word = *PORTS.get(port / 64)?;
    if word & (1 << (port % 64)) == 0 || is_own_host(&address) {
        return None;
    }
    if DIRECT.get(&Key::new(128, address)).is_some() {
        return None;
    }
    // SAFETY: the context is the helper's own.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is replaced as a whole.
    let listeners = *unsafe { LISTENERS.get(namespace) }?;
    // SAFETY: the helpers only look at the current task.
    let (cgroup, users, task) = unsafe {
        (
            bpf_get_current_cgroup_id(),
            bpf_get_current_uid_gid(),
            bpf_get_current_pid_tgid(),
        )
    };
    if is_excluded(cgroup) {
        return None;
    }
    let mut origin = Origin {
        address,
        port,
        uid: half(users),
        gid: half(users >> 32),
        pid: half(task >> 32),
        cgroup,
        command: command(),
    };
    // Without room the connection goes its own way.
    // SAFETY: the context has a socket.
    let kept = unsafe { ORIGINS.get_or_insert_ptr_mut(ctx, Some(&mut origin)) };
    (!kept.is_null()).then_some(listeners)
}

/// The lowest 16 bits.
#[expect(clippy::cast_possible_truncation, reason = "they are wanted")]
#[inline(always)]
pub(crate) const fn low(word: u64) -> u16 {
    word as u16
}

/// The lower half.
#[expect(clippy::cast_possible_truncation, reason = "it is wanted")]
#[inline(always)]
const fn half(word: u64) -> u32 {
    word as u32
}

/// The name of the current thread.
#[inline(always)]
fn command() -> [u8; 16] {
    // Not zeroed: that would be a call of `memset`, which the kernel does not have.
    let mut name = MaybeUninit::<[u8; 16]>::uninit();
    // SAFETY: the helper writes all of the 16 bytes that there are, zeros if it fails.
    unsafe {
        bpf_get_current_comm(name.as_mut_ptr().cast(), 16);
        name.assume_init()
    }
}

/// Loopback, and what stands for it: no address at all.
#[inline(always)]
fn is_own_host(address: &Address) -> bool {
    let [.., a, b, c, d] = *address;
    let is_mapped = address[..12] == MAPPED;
    let is_empty = address[..12] == [0; 12];
    (is_mapped && (a == 127 || [a, b, c, d] == [0; 4]))
        || (is_empty && [a, b, c] == [0; 3] && d <= 1)
}

/// Whether the current task's cgroup, or one that it is in, is not captured.
#[inline(always)]
fn is_excluded(cgroup: u64) -> bool {
    // SAFETY: the value is a byte that nobody changes.
    if unsafe { EXCLUDED.get(cgroup) }.is_some() {
        return true;
    }
    for level in 1..sizes::DEPTH {
        // SAFETY: the helper only looks at the current task.
        let above = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if above == 0 || above == cgroup {
            return false;
        }
        // SAFETY: as above.
        if unsafe { EXCLUDED.get(above) }.is_some() {
            return true;
        }
    }
    false
}

#[inline(always)]
fn lead4(ctx: &SockAddrContext, listeners: Listeners) {
    if listeners.v4 == 0 {
        return;
    }
    // SAFETY: fields of the context that the program may write.
    unsafe {
        (*ctx.sock_addr).user_ip4 = LOOPBACK4;
        (*ctx.sock_addr).user_port = u32::from(listeners.v4.to_be());
    }
}

/// An IPv4 address within an IPv6 address stays one: the connection is one of IPv4.
#[inline(always)]
fn lead6(ctx: &SockAddrContext, address: Address, listeners: Listeners) {
    let is_mapped = address[..12] == MAPPED;
    let port = if is_mapped {
        listeners.v4
    } else {
        listeners.v6
    };
    if port == 0 {
        return;
    }
    let [a, b, c, d] = if is_mapped {
        [0, 0, 0xffff_u32.to_be(), LOOPBACK4]
    } else {
        LOOPBACK6
    };
    // SAFETY: fields of the context that the program may write.
    unsafe {
        (*ctx.sock_addr).user_ip6[0] = a;
        (*ctx.sock_addr).user_ip6[1] = b;
        (*ctx.sock_addr).user_ip6[2] = c;
        (*ctx.sock_addr).user_ip6[3] = d;
        (*ctx.sock_addr).user_port = u32::from(port.to_be());
    }
}

/// An IPv4 address as the maps have it.
#[inline(always)]
pub(crate) fn mapped(address: u32) -> Address {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// An IPv6 address from the words of a context.
#[inline(always)]
pub(crate) fn from_words(words: [u32; 4]) -> Address {
    // SAFETY: any bytes are both.
    unsafe { core::mem::transmute(words) }
}

/// Each word with a read of its own: the verifier allows no computed offset into the context.
#[inline(always)]
fn address6(context: *const bpf_sock_addr) -> Address {
    // SAFETY: the context is the program's own.
    unsafe {
        let a = (&raw const (*context).user_ip6[0]).read_volatile();
        let b = (&raw const (*context).user_ip6[1]).read_volatile();
        let c = (&raw const (*context).user_ip6[2]).read_volatile();
        let d = (&raw const (*context).user_ip6[3]).read_volatile();
        from_words([a, b, c, d])
    }
}
