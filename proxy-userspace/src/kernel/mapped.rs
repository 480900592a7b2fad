//! The program's counters, read where they are: for thousands of tunnels a system call each would be a good part of a
//! processor for whoever watches them once a second.

#![expect(unsafe_code, reason = "mmap, and memory that the kernel writes")]

use std::{
    io,
    mem::{offset_of, size_of},
    os::fd::AsFd,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use proxy_common::Direction;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The array of directions, mapped to be read (`array_map_mmap`).
#[derive(Debug)]
pub(super) struct Mapped {
    start: NonNull<u8>,
    entries: usize,
}

// SAFETY: the memory is the same for every thread, stays until the drop, and is read by atomic loads only.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps an array of so many directions, which was made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// The kernel does not map it.
    pub(super) fn new(array: impl AsFd, entries: u32) -> io::Result<Self> {
        let entries = usize::try_from(entries).map_err(io::Error::other)?;
        let length = entries * size_of::<Direction>();
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                array,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, entries })
    }

    /// The bytes that were redirected in a direction.
    pub(super) fn redirected(&self, slot: u32) -> Option<u64> {
        self.word(slot, offset_of!(Direction, redirected))
    }

    /// When the first of them were, in nanoseconds of `CLOCK_MONOTONIC`; 0 if none were.
    pub(super) fn first(&self, slot: u32) -> Option<u64> {
        self.word(slot, offset_of!(Direction, first))
    }

    /// A word of a direction.
    fn word(&self, slot: u32, offset: usize) -> Option<u64> {
        let slot = usize::try_from(slot)
            .ok()
            .filter(|slot| *slot < self.entries)?;
        let at = slot * size_of::<Direction>() + offset;
        // SAFETY: it is within the mapping, aligned as the field is, and nobody holds a reference to it; the program
        // writes whole words.
        let word = unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(at).cast()) };
        Some(word.load(Relaxed))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let length = self.entries * size_of::<Direction>();
        // SAFETY: it is our mapping, and nobody can read from it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), length) };
    }
}
