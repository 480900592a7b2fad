//! Which version of the C library a program needs. Pure.

/// The newest version whose symbols a program names, such as `2.34`.
pub(super) fn needed(program: &[u8]) -> String {
    const MARK: &[u8] = b"GLIBC_2.";
    let mut newest = 17;
    for (place, window) in program.windows(MARK.len()).enumerate() {
        if window != MARK {
            continue;
        }
        let rest = program.get(place + MARK.len()..).unwrap_or_default();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
        let minor = digits.fold(0_u32, |number, digit| {
            number
                .saturating_mul(10)
                .saturating_add(u32::from(digit - b'0'))
        });
        newest = newest.max(minor);
    }
    format!("2.{newest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts() {
        let program = b"\0GLIBC_2.34\0GLIBC_2.9\0GLIBC_PRIVATE\0GLIBC_2.2.5\0GLIBC_2.";
        assert_eq!(needed(program), "2.34");
        assert_eq!(needed(b""), "2.17");
    }
}
