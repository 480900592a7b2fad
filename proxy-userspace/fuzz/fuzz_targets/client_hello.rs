//! Whatever a client begins with, its first answer is the last.

#![no_main]

use libfuzzer_sys::fuzz_target;
use underpass::client_hello::read;

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let cut = usize::from(cut) % (bytes.len() + 1);
    let part = read(&bytes[..cut]);
    if part != Ok(None) {
        assert_eq!(part, read(bytes));
    }
});
