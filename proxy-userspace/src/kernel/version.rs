//! Which kernels' sockmap is known to be sound. Pure.

use aya::util::KernelVersion;

/// The kernels of [`is_sound`], in words.
pub const SOUND_KERNELS: &str = "Linux 6.16 or later, or 6.12 from 6.12.35 on";

/// Whether this kernel's sockmap neither loses nor repeats bytes when a send buffer or memory runs
/// out, which no self-test would see: "bpf, sockmap: fix duplicated data transmission" and "fix data
/// lost during EAGAIN retries", in Linux 6.16 and the stable releases of late June 2025.
pub fn is_sound(version: KernelVersion) -> bool {
    version >= KernelVersion::new(6, 16, 0)
        || (KernelVersion::new(6, 15, 4)..KernelVersion::new(6, 16, 0)).contains(&version)
        || (KernelVersion::new(6, 12, 35)..KernelVersion::new(6, 13, 0)).contains(&version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernels_with_both_fixes_are_sound() {
        for (version, sound) in [
            ((6, 1, 192), false),
            ((6, 11, 99), false),
            ((6, 12, 0), false),
            ((6, 12, 34), false),
            ((6, 12, 35), true),
            ((6, 12, 117), true),
            ((6, 13, 12), false),
            ((6, 14, 11), false),
            ((6, 15, 3), false),
            ((6, 15, 4), true),
            ((6, 16, 0), true),
            ((6, 18, 44), true),
            ((7, 0, 0), true),
        ] {
            let (major, minor, patch) = version;
            let version = KernelVersion::new(major, minor, patch);
            assert_eq!(is_sound(version), sound, "{version}");
        }
    }
}
