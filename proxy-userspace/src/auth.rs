//! Who a client is: HTTP Basic credentials (RFC 7617) against an htpasswd file.
//!
//! Checking a password is slow by design, so one that was right is remembered for a while, under a
//! keyed hash: the password itself is not kept. Wrong ones are not remembered, and how many may be checked
//! at a time is bounded by whoever calls [`Authenticator::verify`]. Pure, but for the clock that it is given.

mod basic;
mod hash;
mod htpasswd;

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

pub use self::{
    basic::{BasicError, Credentials},
    hash::HashError,
    htpasswd::{Htpasswd, HtpasswdError, LineError},
};

/// Passwords that are remembered at most; beyond, the oldest are forgotten first.
const REMEMBERED: usize = 4096;

/// Knows the users of a file.
#[derive(Debug)]
pub struct Authenticator {
    users: Htpasswd,
    ttl: Duration,
    /// The keys of the hashes, drawn for this process.
    keys: [RandomState; 2],
    /// When passwords that were right expire, by their hashes.
    right: Mutex<HashMap<[u64; 2], Instant>>,
}

impl Authenticator {
    /// The users of an htpasswd file; a right password is remembered for `ttl`.
    ///
    /// # Errors
    /// A line is wrong: which, and why.
    pub fn parse(text: &str, ttl: Duration) -> Result<Self, HtpasswdError> {
        Ok(Self {
            users: Htpasswd::parse(text)?,
            ttl,
            keys: [RandomState::new(), RandomState::new()],
            right: Mutex::default(),
        })
    }

    /// Whether the credentials were right a short while ago. Takes a microsecond.
    #[must_use]
    pub fn remembers(&self, credentials: &Credentials, now: Instant) -> bool {
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right
            .get(&self.key(credentials))
            .is_some_and(|expiry| now < *expiry)
    }

    /// Whether the credentials are right. Takes as long as the hash was made to take, also for a user
    /// who does not exist; not for a thread that others wait for.
    #[must_use]
    pub fn verify(&self, credentials: &Credentials, now: Instant) -> bool {
        let is_right = self
            .users
            .verify(credentials.user(), credentials.password());
        if is_right {
            let key = self.key(credentials);
            let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
            if right.len() >= REMEMBERED && !right.contains_key(&key) {
                right.retain(|_, expiry| now < *expiry);
                let oldest = right
                    .iter()
                    .min_by_key(|(_, expiry)| **expiry)
                    .map(|(key, _)| *key);
                if let Some(oldest) = oldest.filter(|_| right.len() >= REMEMBERED) {
                    right.remove(&oldest);
                }
            }
            right.insert(key, now + self.ttl);
        }
        is_right
    }

    /// `SipHash` under two keys that nobody outside can know: what is not remembered cannot be made to
    /// look as if it was, and comparing hashes tells nothing about passwords.
    fn key(&self, credentials: &Credentials) -> [u64; 2] {
        let parts = (credentials.user(), credentials.password());
        [self.keys[0].hash_one(parts), self.keys[1].hash_one(parts)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "anna:$apr1$xxxxxxxx$dxHfLAsjHkDRmG83UXe8K0\n";

    fn credentials(text: &str) -> Credentials {
        Credentials::new(text)
    }

    #[test]
    fn a_right_password_is_remembered_for_a_while() {
        let users = Authenticator::parse(USERS, Duration::from_secs(60)).unwrap();
        let now = Instant::now();
        let right = credentials("anna:password");
        assert!(!users.remembers(&right, now));
        assert!(users.verify(&right, now));
        assert!(users.remembers(&right, now));
        assert!(!users.remembers(&credentials("anna:other"), now));
        assert!(!users.remembers(&right, now + Duration::from_secs(60)));
    }

    #[test]
    fn a_wrong_password_or_user_is_not() {
        let users = Authenticator::parse(USERS, Duration::from_secs(60)).unwrap();
        let now = Instant::now();
        for wrong in ["anna:wrong", "anna:", "bob:password", "Anna:password"] {
            let wrong = credentials(wrong);
            assert!(!users.verify(&wrong, now));
            assert!(!users.remembers(&wrong, now));
        }
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let users = Authenticator::parse(USERS, Duration::from_secs(60)).unwrap();
        let now = Instant::now();
        {
            let mut right = users.right.lock().unwrap();
            for n in 0..REMEMBERED as u64 {
                right.insert([n, n], now + Duration::from_secs(n));
            }
        }
        assert!(users.verify(&credentials("anna:password"), now));
        let right = users.right.lock().unwrap();
        assert!(right.len() <= REMEMBERED);
        assert!(!right.contains_key(&[0, 0]), "the oldest is forgotten");
    }
}
