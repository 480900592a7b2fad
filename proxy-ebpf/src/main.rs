//! The kernel side of Underpass. No logic here: the programs are in [`verdict`] and [`brake`], their maps
//! and globals in [`maps`], what they read of the kernel's sockets in [`sock`]; what they say while being
//! debugged goes through [`log`], and what they share with the loader is the crate `proxy-common`.

#![no_std]
#![no_main]

mod brake;
mod log;
mod maps;
mod sock;
mod verdict;

/// The programs read kernel structures with `bpf_probe_read_kernel`, which is GPL-only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program reaches this.
    loop {}
}
