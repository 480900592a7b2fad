//! Damaged type information is refused, never a panic or an endless walk.

#![no_main]

use libfuzzer_sys::fuzz_target;
use underpass::kernel::btf::Btf;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(btf) = Btf::parse(bytes) {
        let _ = btf.member_offset("tcp_sock", "copied_seq");
    }
});
