//! `cgroup/getpeername4`, `cgroup/getpeername6` and `cgroup/getsockopt`: an application that asks where it is connected to
//! hears where it meant to go.

use aya_ebpf::{
    macros::{cgroup_sock_addr, cgroup_sockopt},
    programs::{SockAddrContext, SockoptContext},
};

use proxy_common::capture::Origin;

use crate::{connect::low, maps::origin};

const GO_ON: i32 = 1;

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` (`linux/netfilter_ipv4.h`, `linux/netfilter_ipv6/ip6_tables.h`).
const ORIGINAL_DST: i32 = 80;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

#[cgroup_sock_addr(getpeername4)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands it over by value"
)]
fn underpass_peer4(ctx: SockAddrContext) -> i32 {
    // SAFETY: a field of the context.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if let Some(origin) = origin(sk) {
        let [.., a, b, c, d] = origin.address;
        // SAFETY: fields of the context that the program may write.
        unsafe {
            (*ctx.sock_addr).user_ip4 = u32::from_ne_bytes([a, b, c, d]);
            (*ctx.sock_addr).user_port = u32::from(port(&origin));
        }
    }
    GO_ON
}

#[cgroup_sock_addr(getpeername6)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands it over by value"
)]
fn underpass_peer6(ctx: SockAddrContext) -> i32 {
    // SAFETY: a field of the context.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if let Some(origin) = origin(sk) {
        let [a, b, c, d] = words(&origin.address);
        // SAFETY: fields of the context that the program may write.
        unsafe {
            (*ctx.sock_addr).user_ip6[0] = a;
            (*ctx.sock_addr).user_ip6[1] = b;
            (*ctx.sock_addr).user_ip6[2] = c;
            (*ctx.sock_addr).user_ip6[3] = d;
            (*ctx.sock_addr).user_port = u32::from(port(&origin));
        }
    }
    GO_ON
}

#[cgroup_sockopt(getsockopt)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro hands it over by value"
)]
fn underpass_sockopt(ctx: SockoptContext) -> i32 {
    // SAFETY: fields of the context.
    let (level, name) = unsafe { ((*ctx.sockopt).level, (*ctx.sockopt).optname) };
    if name == ORIGINAL_DST && (level == SOL_IP || level == SOL_IPV6) {
        answer(&ctx, level);
    }
    GO_ON
}

/// Writes a `struct sockaddr_in` or `struct sockaddr_in6`, and that it worked.
#[inline(always)]
fn answer(ctx: &SockoptContext, level: i32) -> Option<()> {
    // SAFETY: fields of the context.
    let (sk, value, end) = unsafe {
        (
            (*ctx.sockopt).__bindgen_anon_1.sk,
            (*ctx.sockopt).__bindgen_anon_2.optval.cast::<u8>(),
            (*ctx.sockopt).__bindgen_anon_3.optval_end.cast::<u8>(),
        )
    };
    let origin = origin(sk)?;
    let [.., a, b, c, d] = origin.address;
    let port = port(&origin);
    let length = if level == SOL_IP { 16 } else { 28 };
    if value.wrapping_add(length) > end {
        return None;
    }
    // SAFETY: the bounds were checked, with which the verifier agrees.
    unsafe {
        value.add(2).cast::<u16>().write_unaligned(port);
        if level == SOL_IP {
            value.cast::<u16>().write_unaligned(AF_INET);
            value
                .add(4)
                .cast::<u32>()
                .write_unaligned(u32::from_ne_bytes([a, b, c, d]));
            value.add(8).cast::<u64>().write_unaligned(0);
        } else {
            let [a, b, c, d] = words(&origin.address);
            value.cast::<u16>().write_unaligned(AF_INET6);
            value.add(4).cast::<u32>().write_unaligned(0);
            value.add(8).cast::<u32>().write_unaligned(a);
            value.add(12).cast::<u32>().write_unaligned(b);
            value.add(16).cast::<u32>().write_unaligned(c);
            value.add(20).cast::<u32>().write_unaligned(d);
            value.add(24).cast::<u32>().write_unaligned(0);
        }
        (*ctx.sockopt).optlen = if level == SOL_IP { 16 } else { 28 };
        (*ctx.sockopt).retval = 0;
    }
    Some(())
}

/// The port, as a context and a socket address have it.
#[inline(always)]
fn port(origin: &Origin) -> u16 {
    low(origin.port.into()).to_be()
}

/// The words of an address, as a context has them.
#[inline(always)]
fn words(address: &[u8; 16]) -> [u32; 4] {
    // SAFETY: any bytes are both.
    unsafe { core::mem::transmute(*address) }
}
