//! `%XX`, for what may not stand as it is. Pure.

use std::{borrow::Cow, fmt::Write as _};

/// The text with every byte that is not `safe` as `%XX`.
#[must_use]
pub fn encode(text: &str, is_safe: impl Fn(u8) -> bool) -> Cow<'_, str> {
    if text.bytes().all(&is_safe) {
        return text.into();
    }
    let mut encoded = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if is_safe(byte) {
            encoded.push(char::from(byte));
        } else {
            // A String takes everything.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded.into()
}

/// Whether a byte means nothing in any part of a URL (RFC 3986 section 2.3).
#[must_use]
pub fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_safe_is_escaped() {
        assert_eq!(encode("a-b_c.~", is_unreserved), "a-b_c.~");
        assert_eq!(
            encode("http://\u{e4}?", is_unreserved),
            "http%3A%2F%2F%C3%A4%3F"
        );
    }
}
