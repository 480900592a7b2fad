//! The htpasswd file: a user and a hash a line.

use std::collections::HashMap;

use thiserror::Error;

use super::hash::{Hash, HashError};

/// The users of a file.
#[derive(Debug)]
pub struct Htpasswd {
    users: HashMap<String, Hash>,
    /// What a user who does not exist is checked against, to take as long as the others.
    decoy: Hash,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{line}: {problem}")]
pub struct HtpasswdError {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: LineError,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LineError {
    /// No colon, or nothing before it.
    #[error("the line is not user:hash")]
    NoHash,
    /// The user was there before.
    #[error("the user '{0}' is there twice")]
    Repeated(String),
    /// Not a hash that is known.
    #[error(transparent)]
    Hash(#[from] HashError),
}

impl Htpasswd {
    /// Reads the text of a file. Empty lines and lines that begin with `#` do not count.
    pub fn parse(text: &str) -> Result<Self, HtpasswdError> {
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, hash) = entry(line).map_err(|problem| HtpasswdError {
                line: index + 1,
                problem,
            })?;
            if users.insert(user.to_owned(), hash).is_some() {
                return Err(HtpasswdError {
                    line: index + 1,
                    problem: LineError::Repeated(user.to_owned()),
                });
            }
        }
        let decoy = users.values().max_by_key(|hash| hash.cost()).cloned();
        Ok(Self {
            decoy: decoy.unwrap_or_else(Hash::decoy),
            users,
        })
    }

    /// Whether the password is the user's.
    #[must_use]
    pub fn verify(&self, user: &str, password: &str) -> bool {
        let known = self.users.get(user);
        let is_right = known.unwrap_or(&self.decoy).verify(password);
        is_right && known.is_some()
    }
}

fn entry(line: &str) -> Result<(&str, Hash), LineError> {
    let (user, rest) = line
        .split_once(':')
        .filter(|(user, _)| !user.is_empty())
        .ok_or(LineError::NoHash)?;
    // Some files have more fields, as /etc/passwd has.
    let hash = rest.split(':').next().unwrap_or_default();
    Ok((user, hash.parse()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, message) in [
            ("# users\n\nanna", "3: the line is not user:hash"),
            (":x", "1: the line is not user:hash"),
            (
                "anna:secret",
                "1: the hash is of no kind that is known; make one with htpasswd -B",
            ),
            (
                "a:$apr1$xxxxxxxx$dxHfLAsjHkDRmG83UXe8K0\na:$apr1$xxxxxxxx$dxHfLAsjHkDRmG83UXe8K0",
                "2: the user 'a' is there twice",
            ),
        ] {
            assert_eq!(
                Htpasswd::parse(text).unwrap_err().to_string(),
                message,
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Htpasswd::parse(&text);
        }
    }
}
