//! The kernel side of transparent capture: connections of chosen cgroups are led to a listener of ours.
//!
//! [`connect`] rewrites where a connection goes, before it is begun, and keeps with the socket where it was to go;
//! [`established`] tells the proxy, by the address that it will see; [`truth`] tells the application. There is no cost per
//! packet or byte: what was led to us is an ordinary connection over loopback.

#![no_std]
#![no_main]

mod connect;
mod established;
mod maps;
mod truth;

/// The same as that of the programs that splice.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program reaches this.
    loop {}
}
