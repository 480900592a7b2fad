//! What the kernel program and its loader agree on: names, map values and codes.
//!
//! Both sides compile this crate; nothing here depends on either. Map values are `repr(C)` without
//! padding (`bytemuck` refuses it at compile time) and every field has a single writer: the program
//! writes [`Direction`] once a flow runs, user space writes [`Flow`] before it runs and the request
//! words of [`maps::REQUESTS`] while it does. That is why no field needs an atomic or a lock.

#![no_std]

pub mod capture;

use bytemuck::{Pod, Zeroable};

/// Names of the programs, which are also their functions' names.
pub mod programs {
    /// The stream verdict of [`maps::SOCKETS`](crate::maps::SOCKETS).
    pub const VERDICT: &str = "underpass_verdict";
    /// The filter of every spliced socket.
    pub const BRAKE: &str = "underpass_brake";
}

/// Names of the maps in the object file.
pub mod maps {
    /// SOCKHASH, socket cookie to socket: every spliced socket, as source and as target.
    pub const SOCKETS: &str = "SOCKETS";
    /// Hash, cookie of the receiving socket to [`Flow`](crate::Flow).
    pub const FLOWS: &str = "FLOWS";
    /// Array of [`Direction`](crate::Direction), by slot.
    pub const DIRECTIONS: &str = "DIRECTIONS";
    /// Array of `u64` by slot: user space's latest request that the program take the direction over,
    /// as [`request::word`](crate::request::word).
    pub const REQUESTS: &str = "REQUESTS";
    /// Ring buffer of `u64` slots whose direction needs user space.
    pub const EVENTS: &str = "EVENTS";
    /// Array with one `u64`: events that found the ring buffer full.
    pub const LOST_EVENTS: &str = "LOST_EVENTS";
}

/// Names of the read-only globals that carry the running kernel's structure offsets, in bytes.
pub mod globals {
    /// `struct tcp_sock.copied_seq`
    pub const COPIED_SEQ: &str = "OFFSET_COPIED_SEQ";
    /// `struct tcp_sock.write_seq`
    pub const WRITE_SEQ: &str = "OFFSET_WRITE_SEQ";
    /// `struct sock.sk_wmem_queued`
    pub const WMEM_QUEUED: &str = "OFFSET_WMEM_QUEUED";
    /// `struct sock.sk_sndbuf`
    pub const SNDBUF: &str = "OFFSET_SNDBUF";
}

/// Sizes the object is compiled with; the loader overrides them to fit the host.
pub mod sizes {
    /// Sockets that can be spliced at once, two per tunnel.
    pub const SOCKETS: usize = 65_536;
    /// Bytes of the event ring. A direction has at most one unread event per request it made, so
    /// this is room for all of them (16 bytes each) twice over.
    pub const EVENTS_BYTES: usize = 2 * 1024 * 1024;
    /// What user space lets a spliced socket hold that nobody has read, in bytes of memory.
    pub const RECEIVE_BUFFER_BYTES: usize = 6 * 1024 * 1024;
    /// Unread bytes beyond which a direction accepts no more: more than a receive buffer can hold,
    /// whatever the overhead of its segments, so that this is a limit only where nobody is charged.
    pub const UNREAD_MAX_BYTES: u32 = 12 * 1024 * 1024;

    const _: () = assert!(UNREAD_MAX_BYTES as usize >= 2 * RECEIVE_BUFFER_BYTES);
}

/// Where the bytes that arrive on a socket go. Written by user space before the socket enters
/// [`maps::SOCKETS`], constant afterwards.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// Cookie of the socket that receives them.
    pub peer: u64,
    /// Index into [`maps::DIRECTIONS`] and [`maps::REQUESTS`].
    pub slot: u32,
    /// Keeps the value free of padding.
    pub reserved: u32,
}

/// Who moves the bytes of a direction.
pub mod mover {
    /// User space: the program leaves every byte on the receiving socket.
    pub const USER: u8 = 0;
    /// The program redirects to the peer.
    pub const KERNEL: u8 = 1;
}

/// Requests as words of [`maps::REQUESTS`].
///
/// The kernel writes the word with `memcpy`, which promises no single store: a number is stored
/// beside its complement, so that a word copied half way reads as no request.
pub mod request {
    /// The word for request `number`; 0 stands for none.
    pub const fn word(number: u32) -> u64 {
        if number == 0 {
            return 0;
        }
        ((!number as u64) << 32) | number as u64
    }

    /// The request in a word, 0 if there is none.
    #[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
    #[inline(always)]
    pub const fn number(word: u64) -> u32 {
        let (low, high) = (word as u32, (word >> 32) as u32);
        if high == !low { low } else { 0 }
    }
}

/// Why a direction cannot be trusted any more; user space resets its tunnel.
pub mod fault {
    /// No fault.
    pub const NONE: u8 = 0;
    /// An overlapping segment could not be trimmed to the expected byte.
    pub const TRIM: u8 = 1;
    /// A segment began beyond the expected byte.
    pub const GAP: u8 = 2;
}

/// The state of one direction of a tunnel. Zeroed by user space before the flow starts, written by
/// the program alone from then on, under the receiving socket's lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Direction {
    /// Bytes handed to the peer's backlog.
    pub redirected: u64,
    /// Bytes left on the receiving socket for user space to read.
    pub passed: u64,
    /// When the first bytes were redirected, in nanoseconds of `CLOCK_MONOTONIC`; 0 if none were.
    pub first: u64,
    /// The last request (see [`maps::REQUESTS`]) that was answered, by taking over or by an event.
    pub answered: u32,
    /// Sequence number of the next byte, valid once `started`.
    pub next: u32,
    /// The peer's `write_seq` when the program last took over.
    pub base: u32,
    /// Bytes redirected since then, modulo 2^32.
    pub since: u32,
    /// How often the program handed the direction to user space for want of send space.
    pub paused: u32,
    /// Segments redirected since [`mark`](Self::mark).
    pub segments: u32,
    /// Segments redirected before that which may still be in the peer's backlog. The two together are
    /// never less than the backlog has.
    pub older_segments: u32,
    /// A value of [`since`](Self::since); once that many bytes were written, what was redirected
    /// before it has left the backlog.
    pub mark: u32,
    /// One of [`mover`].
    pub mover: u8,
    /// One of [`fault`].
    pub fault: u8,
    /// 1 once the first segment was seen.
    pub started: u8,
    /// 1 if more than [`sizes::UNREAD_MAX_BYTES`] were unread when a segment was last left to user
    /// space: the brake looks whether they still are.
    pub flooded: u8,
    /// How often they came to be so many.
    pub floods: u16,
    /// Segments that overlapped bytes already delivered and were trimmed.
    pub trimmed: u16,
}

const _: () = assert!(size_of::<Flow>() == 16);
// A line of the cache.
const _: () = assert!(size_of::<Direction>() == 64);

#[cfg(test)]
mod tests {
    use super::request;

    #[test]
    fn a_request_word_carries_its_number() {
        for number in [0, 1, 2, 255, 256, u32::MAX - 1] {
            assert_eq!(request::number(request::word(number)), number);
        }
    }

    #[test]
    fn a_word_torn_between_two_requests_reads_as_neither_or_as_one_of_them() {
        for (old, new) in [(0, 1), (255, 256), (0xffff, 0x1_0000), (7, 0), (1, 2)] {
            let (old_bytes, new_bytes) = (
                request::word(old).to_le_bytes(),
                request::word(new).to_le_bytes(),
            );
            // A copy goes through the word from one end to the other.
            for copied in 0..=8 {
                for forwards in [true, false] {
                    let torn = core::array::from_fn(|i| {
                        let done = if forwards {
                            i < copied
                        } else {
                            i >= 8 - copied
                        };
                        if done { new_bytes[i] } else { old_bytes[i] }
                    });
                    let number = request::number(u64::from_le_bytes(torn));
                    assert!(
                        number == 0 || number == old || number == new,
                        "{old} to {new} read as {number}"
                    );
                }
            }
        }
    }
}
