//! `sockops`: a connection that was led to us has its addresses, and the listener will see it next.
//!
//! The client's side is established when the listener's SYN-ACK arrives, before it acknowledges it
//! (`tcp_finish_connect`): before anybody can accept the connection.

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
    helpers::generated::bpf_get_netns_cookie, macros::sock_ops, programs::SockOpsContext,
};
use proxy_common::capture::{Address, Client};

use crate::{
    connect::{from_words, mapped},
    maps::{CAPTURED, origin},
};

const AF_INET: u32 = 2;

#[sock_ops]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands it over by value"
)]
fn underpass_established(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        note(&ctx);
    }
    1
}

#[inline(always)]
fn note(ctx: &SockOpsContext) -> Option<()> {
    // SAFETY: a field of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    let origin = origin(sk)?;
    let client = Client {
        // SAFETY: the context is the helper's own.
        namespace: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
        address: local(ctx),
        port: ctx.local_port(),
        reserved: 0,
    };
    CAPTURED.insert(client, origin, 0).ok()
}

/// All fields are read, of either family: the compiler would make one read with a computed offset of two in branches,
/// which the verifier does not allow.
#[inline(always)]
fn local(ctx: &SockOpsContext) -> Address {
    let ops = ctx.ops;
    // SAFETY: fields of the context.
    let (v4, v6) = unsafe {
        let v4 = (&raw const (*ops).local_ip4).read_volatile();
        let a = (&raw const (*ops).local_ip6[0]).read_volatile();
        let b = (&raw const (*ops).local_ip6[1]).read_volatile();
        let c = (&raw const (*ops).local_ip6[2]).read_volatile();
        let d = (&raw const (*ops).local_ip6[3]).read_volatile();
        (v4, [a, b, c, d])
    };
    if ctx.family() == AF_INET {
        mapped(v4)
    } else {
        from_words(v6)
    }
}
