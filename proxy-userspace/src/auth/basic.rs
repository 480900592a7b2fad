//! The `Proxy-Authorization` field (RFC 9110 §11.7.2, RFC 7617).

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use thiserror::Error;

/// A user and a password, as a client gave them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    text: String,
    /// Where the colon is.
    colon: usize,
}

/// Why a field holds no credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BasicError {
    /// Another scheme than Basic.
    #[error("only the scheme Basic is known")]
    OtherScheme,
    /// Not base64 of `user:password` in UTF-8, or with control characters.
    #[error("the credentials are malformed")]
    Malformed,
}

impl Credentials {
    /// Reads the value of the field.
    pub fn parse(field: &[u8]) -> Result<Self, BasicError> {
        let field = str::from_utf8(field).map_err(|_| BasicError::Malformed)?;
        let (scheme, token) = field.split_once(' ').unwrap_or((field, ""));
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(BasicError::OtherScheme);
        }
        let bytes = STANDARD
            .decode(token.trim_matches(' '))
            .map_err(|_| BasicError::Malformed)?;
        let text = String::from_utf8(bytes).map_err(|_| BasicError::Malformed)?;
        let colon = text.find(':').ok_or(BasicError::Malformed)?;
        if colon == 0 || text.contains(char::is_control) {
            return Err(BasicError::Malformed);
        }
        Ok(Self { text, colon })
    }

    /// From `user:password`.
    #[cfg(test)]
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            colon: text.find(':').unwrap(),
        }
    }

    /// The user.
    #[must_use]
    pub fn user(&self) -> &str {
        self.text.get(..self.colon).unwrap_or_default()
    }

    /// The password; it may hold colons.
    pub(super) fn password(&self) -> &str {
        self.text.get(self.colon + 1..).unwrap_or_default()
    }
}

/// Without the password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read() {
        for (field, user, password) in [
            ("Basic YW5uYTpwYXNzd29yZA==", "anna", "password"),
            ("bAsIc   YW5uYTphOmI=", "anna", "a:b"),
            ("Basic YW5uYTo=", "anna", ""),
        ] {
            let credentials = Credentials::parse(field.as_bytes()).unwrap();
            assert_eq!(
                (credentials.user(), credentials.password()),
                (user, password)
            );
            assert!(!format!("{credentials:?}").contains("password"));
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (field, error) in [
            ("Bearer abc", BasicError::OtherScheme),
            ("", BasicError::OtherScheme),
            ("Basic", BasicError::Malformed),
            ("Basic !", BasicError::Malformed),
            // No colon; no user; a control character; not UTF-8.
            ("Basic YW5uYQ==", BasicError::Malformed),
            ("Basic OnB3", BasicError::Malformed),
            ("Basic YTpiAA==", BasicError::Malformed),
            ("Basic YTr/", BasicError::Malformed),
        ] {
            assert_eq!(Credentials::parse(field.as_bytes()), Err(error), "{field}");
        }
        assert_eq!(Credentials::parse(&[0xff]), Err(BasicError::Malformed));
    }
}
