//! The kernel side of Underpass. No logic here: the program is in [`verdict`], its maps and globals
//! are in [`maps`], what it says while being debugged goes through [`log`], and what it shares with the loader is the crate `proxy-common`.

#![no_std]
#![no_main]

mod log;
mod maps;
mod verdict;

/// The verdict reads kernel structures with `bpf_probe_read_kernel`, which is GPL-only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program reaches this.
    loop {}
}
