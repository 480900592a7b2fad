//! Fields of the kernel's socket structures, at the running kernel's offsets.

use aya_ebpf::{
    Global,
    helpers::{bpf_probe_read_kernel, generated::bpf_skc_to_tcp_sock},
    programs::SkBuffContext,
};

use crate::maps::OFFSET_COPIED_SEQ;

/// `copied_seq` of the socket that received the segment: the first byte nobody has taken.
#[inline(always)]
pub(crate) fn copied_seq(ctx: &SkBuffContext) -> Option<u32> {
    // SAFETY: a context field; the verifier demands the null check below.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is a socket, not null.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
    if tcp.is_null() {
        return None;
    }
    read_u32(tcp.cast(), &OFFSET_COPIED_SEQ)
}

/// Reads a 32-bit field of a `struct tcp_sock`, whose prefix is a `struct sock`.
#[inline(always)]
pub(crate) fn read_u32(tcp: *const u8, offset: &Global<u32>) -> Option<u32> {
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "the field is a u32 of the kernel's"
    )]
    let field = tcp.wrapping_add(offset.load() as usize).cast::<u32>();
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_kernel(field) }.ok()
}
