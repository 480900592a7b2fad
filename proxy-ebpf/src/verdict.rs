//! `sk_skb/stream_verdict`: what happens to a segment that arrives on a spliced socket.
//!
//! The plain program for this ("look up the peer, redirect") duplicates bytes when TCP segments
//! overlap, buffers without bound when the peer is slow, and kills the peer with a bare FIN
//! (ARCHITECTURE.md, "What the naive splice gets wrong"). This one
//!
//! - **trims** every segment to the next byte that is due;
//! - **gates**: it redirects only what fits into the peer's send buffer, and otherwise hands the
//!   direction to user space, whose reads then are the back-pressure;
//! - takes the direction back only on user space's **request**, and only when no byte is unread.
//!
//! It runs under the receiving socket's lock: in softirq with the bottom-half lock held, or in
//! process context from the socket's backlog or from `setsockopt(SO_RCVLOWAT)`. One direction is
//! therefore never judged by two CPUs at once.
//!
//! Kernel floor: 5.11 for `bpf_skb_adjust_room` on `sk_skb` and for a verdict without a parser;
//! `bpf_skc_to_tcp_sock` needs `CAP_PERFMON`.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::sk_action::{SK_DROP, SK_PASS},
    cty::c_long,
    helpers::{
        bpf_get_socket_cookie,
        generated::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release, bpf_skc_to_tcp_sock},
    },
    macros::stream_verdict,
    programs::SkBuffContext,
};
use proxy_common::{Direction, fault, mover, request, sizes};

use crate::{
    log::log,
    maps::{
        DIRECTIONS, EVENTS, FLOWS, LOST_EVENTS, OFFSET_SNDBUF, OFFSET_WMEM_QUEUED,
        OFFSET_WRITE_SEQ, REQUESTS, SOCKETS,
    },
    sock::{copied_seq, read_u32},
};

/// What `bpf_skb_adjust_room` pulls at most in one call (`sk_skb_adjust_room`: 0xfff).
const TRIM_STEP: u32 = 0xfff;
/// Enough steps for an overlap of 96 KiB; segments are merged to at most 64 KiB.
const TRIM_STEPS: u32 = 24;
/// Send-buffer overhead of a redirect beyond its payload: `sk_buff`s and their header room.
const REDIRECT_OVERHEAD: u64 = 4096;
/// The same for each segment that still is in the backlog; small ones are mostly this.
const SEGMENT_OVERHEAD: u64 = 512;

/// Space accounting of the socket that a direction writes to.
struct SendSpace {
    /// `tcp_sock.write_seq`: sequence number of the byte after the last one queued.
    write_seq: u32,
    /// `sock.sk_wmem_queued`, bytes of memory.
    queued: u32,
    /// `sock.sk_sndbuf`, bytes of memory.
    limit: u32,
}

#[stream_verdict]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands it over by value"
)]
fn underpass_verdict(ctx: SkBuffContext) -> u32 {
    // A socket we know nothing about keeps its bytes: user space reads them.
    try_verdict(&ctx).unwrap_or(SK_PASS)
}

#[inline(always)]
fn try_verdict(ctx: &SkBuffContext) -> Option<u32> {
    // SAFETY: the context is the helper's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: user space removes a flow only after it has closed the socket.
    let flow = unsafe { FLOWS.get(cookie) }?;
    let (slot, mut peer) = (flow.slot, flow.peer);
    let direction = DIRECTIONS.get_ptr_mut(slot)?;
    // SAFETY: the value lives as long as the map, and the socket's lock makes us its only writer.
    let direction = unsafe { &mut *direction };
    let copied_seq = copied_seq(ctx)?;

    if direction.started == 0 {
        // User space may have read part of the first segment (the CONNECT head).
        direction.next = copied_seq;
        direction.started = 1;
    }
    if ctx.len() == 0 {
        // A bare FIN. Redirecting it would make the peer's backlog fail with EPIPE; user space
        // learns of it from EPOLLRDHUP.
        return Some(SK_DROP);
    }

    trim(ctx, direction);
    let len = ctx.len();
    if len == 0 {
        return Some(SK_DROP);
    }
    let seq = direction.next;
    direction.next = seq.wrapping_add(len);

    let latest = latest_request(slot);
    let requested = latest != 0 && latest != direction.answered;
    let resuming = direction.mover == mover::USER;
    let may_move = direction.fault == fault::NONE
        && (!resuming
            // Unread bytes would be overtaken.
            || (requested && copied_seq == seq));

    if may_move
        && let Some(space) = send_space(&mut peer)
        && fits(direction, &space, len, resuming)
        && SOCKETS.redirect_skb(ctx, &mut peer, 0) == c_long::from(SK_PASS)
    {
        if resuming {
            direction.mover = mover::KERNEL;
            direction.answered = latest;
            direction.flooded = 0;
            log!(
                ctx,
                "slot {}: taken over at {}, request {}",
                slot,
                seq,
                latest
            );
        }
        if direction.redirected == 0 {
            // SAFETY: it takes nothing and fails never.
            direction.first = unsafe { bpf_ktime_get_ns() };
        }
        direction.segments += 1;
        direction.since = direction.since.wrapping_add(len);
        direction.redirected += u64::from(len);
        return Some(SK_PASS);
    }

    direction.passed += u64::from(len);
    let flooded = direction.next.wrapping_sub(copied_seq) > sizes::UNREAD_MAX_BYTES;
    if flooded && direction.flooded == 0 {
        direction.floods = direction.floods.saturating_add(1);
        log!(ctx, "slot {}: the brake is on", slot);
    }
    direction.flooded = u8::from(flooded);
    if !resuming {
        direction.mover = mover::USER;
        direction.paused += 1;
        log!(
            ctx,
            "slot {}: left to user space at {}, {} bytes",
            slot,
            seq,
            len
        );
        notify(slot);
    } else if requested {
        // Refused; one event per request, so that a burst cannot flood the ring.
        direction.answered = latest;
        notify(slot);
    }
    Some(SK_PASS)
}

/// Cuts off the bytes before `direction.next`.
///
/// `tcp_data_queue` queues a segment that overlaps delivered bytes whole, and `tcp_read_skb` hands
/// it to us whole; `tcp_recvmsg` would skip the overlap. `cb[0]` is `TCP_SKB_CB(skb)->seq`.
#[inline(always)]
fn trim(ctx: &SkBuffContext, direction: &mut Direction) {
    // SAFETY: a context field, read-only, checked by the verifier.
    let seq = unsafe { (*ctx.skb.skb).cb[0] };
    let mut overlap = direction.next.wrapping_sub(seq);
    if overlap == 0 {
        return;
    }
    if overlap.cast_signed() < 0 {
        direction.fault = fault::GAP;
        return;
    }
    direction.trimmed = direction.trimmed.saturating_add(1);
    for _ in 0..TRIM_STEPS {
        if overlap == 0 {
            return;
        }
        let step = if overlap > TRIM_STEP {
            TRIM_STEP
        } else {
            overlap
        };
        if ctx.adjust_room(-(step.cast_signed()), 0, 0).is_err() {
            break;
        }
        overlap -= step;
    }
    if overlap != 0 {
        direction.fault = fault::TRIM;
    }
}

/// Whether `len` more bytes fit into the peer's send buffer.
///
/// What is still in the peer's backlog counts as queued. Whatever the backlog worker could not write
/// at once would block the other direction, whose unread bytes may wait behind it in the same list.
/// To take a direction back from user space, a peer that is busy must have room for twice as much,
/// so that we do not flap.
#[inline(always)]
fn fits(direction: &mut Direction, space: &SendSpace, len: u32, resuming: bool) -> bool {
    if resuming {
        // User space writes only when the backlog is empty.
        direction.base = space.write_seq;
        direction.since = 0;
        direction.mark = 0;
        direction.segments = 0;
        direction.older_segments = 0;
    }
    let written = space.write_seq.wrapping_sub(direction.base);
    let pending = direction.since.wrapping_sub(written);
    if pending == 0 {
        direction.segments = 0;
        direction.older_segments = 0;
        direction.mark = direction.since;
    } else if written.wrapping_sub(direction.mark).cast_signed() >= 0 {
        direction.older_segments = direction.segments;
        direction.segments = 0;
        direction.mark = direction.since;
    }
    let segments = u64::from(direction.segments) + u64::from(direction.older_segments);
    let bytes = u64::from(pending) + u64::from(len);
    let mut need = bytes + bytes / 4 + REDIRECT_OVERHEAD + segments * SEGMENT_OVERHEAD;
    if resuming && space.queued > 0 {
        need *= 2;
    }
    u64::from(space.queued) + need <= u64::from(space.limit)
}

/// Reads the peer's send buffer state; `None` if the peer has left the map.
#[inline(always)]
fn send_space(peer: &mut u64) -> Option<SendSpace> {
    let map = (&raw const SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: a lookup in a SOCKHASH returns a referenced socket or null.
    let sk = unsafe { bpf_map_lookup_elem(map, (&raw const *peer).cast()) };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is a referenced socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk) };
    let space = if tcp.is_null() {
        None
    } else {
        read_send_space(tcp.cast())
    };
    // SAFETY: the reference that the lookup took, released once on every path.
    unsafe { bpf_sk_release(sk) };
    space
}

#[inline(always)]
fn read_send_space(tcp: *const u8) -> Option<SendSpace> {
    Some(SendSpace {
        write_seq: read_u32(tcp, &OFFSET_WRITE_SEQ)?,
        queued: read_u32(tcp, &OFFSET_WMEM_QUEUED)?,
        limit: read_u32(tcp, &OFFSET_SNDBUF)?,
    })
}

/// User space's latest request for this direction.
#[inline(always)]
fn latest_request(slot: u32) -> u32 {
    match REQUESTS.get_ptr(slot) {
        // SAFETY: an aligned word inside the map; a torn one reads as no request.
        Some(word) => request::number(unsafe { word.read_volatile() }),
        None => 0,
    }
}

/// Asks user space to look at the direction.
#[inline(always)]
fn notify(slot: u32) {
    if EVENTS.output(u64::from(slot), 0).is_err()
        && let Some(lost) = LOST_EVENTS.get_ptr_mut(0)
    {
        // SAFETY: an aligned counter; an increment lost to another CPU still changes the value.
        unsafe { *lost += 1 };
    }
}
