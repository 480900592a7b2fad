//! A TUN device: packets that leave a namespace are read from a file, and what is written there arrives.
#![expect(
    unsafe_code,
    reason = "attaching to a device is an ioctl that nobody wraps"
)]

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
};

use rustix::ioctl::{Setter, ioctl, opcode};

use crate::netns::Netns;

/// `TUNSETIFF` of the kernel's `linux/if_tun.h`.
const ATTACH: u32 = opcode::write::<i32>(b'T', 202);
/// `IFF_TUN | IFF_NO_PI` of the same: IP packets, and nothing before them.
const PLAIN_IP: u16 = 0x0001 | 0x1000;

/// The kernel's `struct ifreq`, as far as it is used here.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    unused: [u8; 22],
}

/// Makes the device `name` in `netns`; it goes when the file is closed. Reads do not block.
///
/// # Panics
///
/// When the kernel has no TUN devices: see [`missing`].
pub fn open(netns: &Netns, name: &str) -> File {
    netns.run_in(|| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open("/dev/net/tun")
            .expect("there are TUN devices");
        let mut request = Request {
            name: [0; 16],
            flags: PLAIN_IP,
            unused: [0; 22],
        };
        for (place, byte) in request.name.iter_mut().zip(name.bytes()) {
            *place = byte;
        }
        // SAFETY: TUNSETIFF reads a `struct ifreq`, which `Request` is laid out as.
        unsafe { ioctl(&file, Setter::<ATTACH, Request>::new(request)) }
            .expect("root may make devices");
        file
    })
}

/// Why there are no TUN devices here; `None` when there are.
pub fn missing() -> Option<String> {
    let opened = OpenOptions::new().read(true).open("/dev/net/tun");
    opened
        .err()
        .map(|error| format!("/dev/net/tun: {error}; run `modprobe tun`"))
}
