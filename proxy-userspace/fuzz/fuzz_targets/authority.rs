//! What parses as an authority is written as one, and parses again as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use underpass::authority::Authority;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(authority) = Authority::parse(bytes) {
        let written = authority.to_string();
        assert_eq!(Authority::parse(written.as_bytes()), Ok(authority));
    }
});
