//! `socket`: holds a sender back whose bytes nobody is charged for.
//!
//! Bytes that the verdict leaves on a socket wait behind the other direction's backlog, in one list
//! (`psock->ingress_skb`). There they are no part of the receive buffer, so the window stays open, and a
//! backlog worker that has to wait some milliseconds for its CPU is enough for megabytes to arrive.
//! Beyond a bound this filter drops segments, before TCP sees them (`tcp_filter`): they were never
//! received, the sender holds back and sends them again.
//!
//! It runs for every packet and without the socket's lock, so it looks at a flag first, and what it
//! reads may be older than the packet: the bound is passed by as much as other CPUs let in meanwhile.

use aya_ebpf::{
    EbpfContext as _, helpers::bpf_get_socket_cookie, macros::socket_filter,
    programs::SkBuffContext,
};
use proxy_common::sizes;

use crate::{
    maps::{DIRECTIONS, FLOWS},
    sock::copied_seq,
};

/// Lets TCP have all of the packet.
const ACCEPT: i64 = u32::MAX as i64;
/// Lets TCP have nothing of it.
const DROP: i64 = 0;

/// Where the data offset and, behind it, the flags are in a TCP header (RFC 9293 section 3.1).
const DATA_OFFSET: usize = 12;
/// The flag RST.
const RST: u8 = 4;

#[socket_filter]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands it over by value"
)]
fn underpass_brake(ctx: SkBuffContext) -> i64 {
    match is_flooded(&ctx) {
        // What brings no bytes is welcome, above all acknowledgements: they empty the backlog.
        Some(true) if carries_payload(&ctx) => DROP,
        _ => ACCEPT,
    }
}

/// Whether more is unread than may be; `None` if the socket is not, or no longer, spliced.
#[inline(always)]
fn is_flooded(ctx: &SkBuffContext) -> Option<bool> {
    // SAFETY: the context is the helper's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: user space removes a flow only after it has closed the socket.
    let slot = unsafe { FLOWS.get(cookie) }?.slot;
    let direction = DIRECTIONS.get_ptr(slot)?;
    // SAFETY: the value lives as long as the map; the verdict may be writing it on another CPU.
    if unsafe { (&raw const (*direction).flooded).read_volatile() } == 0 {
        return Some(false);
    }
    // In this order, so that the difference is not negative.
    let copied_seq = copied_seq(ctx)?;
    // SAFETY: as above.
    let next = unsafe { (&raw const (*direction).next).read_volatile() };
    Some(next.wrapping_sub(copied_seq) > sizes::UNREAD_MAX_BYTES)
}

/// Whether the packet, which begins with its TCP header, has bytes for the reader. A reset ends the
/// connection, whatever comes with it.
#[inline(always)]
fn carries_payload(ctx: &SkBuffContext) -> bool {
    let Ok([offset, flags]) = ctx.load::<[u8; 2]>(DATA_OFFSET) else {
        return false;
    };
    let header = u32::from(offset >> 4) * 4;
    ctx.len() > header && flags & RST == 0
}
