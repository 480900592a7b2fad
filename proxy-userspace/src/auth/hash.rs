//! The hashes of htpasswd files.
//!
//! bcrypt and the SHA-2 based ones of crypt(3) come from crates. The MD5 based ones (`$1$` of FreeBSD, and
//! Apache's `$apr1$`, which differs in that name alone) are old but what many files hold; they are
//! here, over the crate `md-5`.

use std::{fmt, str::FromStr};

use md5::{Digest as _, Md5};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

/// The largest cost of bcrypt: some seconds, of which a client could ask for many.
const MAX_BCRYPT_COST: u32 = 14;
/// The most rounds of the SHA-2 based hashes.
const MAX_SHA_ROUNDS: u32 = 1_000_000;
/// The alphabet of crypt(3), from 0 to 63.
const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A hash of a password.
#[derive(Clone)]
pub(super) struct Hash {
    scheme: Scheme,
    text: String,
}

/// How it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Bcrypt {
        cost: u32,
    },
    Sha512 {
        rounds: u32,
    },
    Sha256 {
        rounds: u32,
    },
    /// `$1$` or `$apr1$`.
    Md5(&'static str),
}

/// Why a text is no hash that we check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HashError {
    /// Plain text, or a scheme that is not known.
    #[error("the hash is of no kind that is known; make one with htpasswd -B")]
    UnknownScheme,
    /// The text does not have the parts of its scheme.
    #[error("the hash is malformed")]
    Malformed,
    /// It would take too long.
    #[error(
        "the hash costs more than can be spent on a client: bcrypt up to {MAX_BCRYPT_COST}, SHA-2 up to {MAX_SHA_ROUNDS} rounds"
    )]
    TooCostly,
}

impl Hash {
    /// A hash that is nobody's.
    pub(super) fn decoy() -> Self {
        Self {
            scheme: Scheme::Md5("$apr1$"),
            text: "$apr1$00000000$0000000000000000000000".to_owned(),
        }
    }

    /// Whether the password is the one that was hashed; compares in constant time.
    pub(super) fn verify(&self, password: &str) -> bool {
        match self.scheme {
            // It compares in constant time, and reads 72 bytes, as every bcrypt does.
            Scheme::Bcrypt { .. } => bcrypt::verify(password, &self.text).unwrap_or(false),
            Scheme::Sha512 { .. } => sha_crypt::sha512_check(password, &self.text).is_ok(),
            Scheme::Sha256 { .. } => sha_crypt::sha256_check(password, &self.text).is_ok(),
            Scheme::Md5(magic) => {
                let salt = md5_parts(&self.text, magic).map_or("", |(salt, _)| salt);
                let made = md5_crypt(password.as_bytes(), salt, magic);
                made.as_bytes().ct_eq(self.text.as_bytes()).into()
            }
        }
    }

    /// What checking it costs, in about a microsecond.
    pub(super) fn cost(&self) -> u64 {
        match self.scheme {
            Scheme::Bcrypt { cost } => 50 << cost,
            Scheme::Sha512 { rounds } | Scheme::Sha256 { rounds } => u64::from(rounds),
            Scheme::Md5(_) => 300,
        }
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let scheme = if let Some(rest) = ["$2a$", "$2b$", "$2y$"]
            .iter()
            .find_map(|id| text.strip_prefix(id))
        {
            let (cost, digest) = rest.split_once('$').ok_or(HashError::Malformed)?;
            let cost = cost.parse().map_err(|_| HashError::Malformed)?;
            if digest.len() != 53 || !(4..=31).contains(&cost) {
                return Err(HashError::Malformed);
            }
            if cost > MAX_BCRYPT_COST {
                return Err(HashError::TooCostly);
            }
            Scheme::Bcrypt { cost }
        } else if let Some(rest) = text.strip_prefix("$6$") {
            Scheme::Sha512 {
                rounds: sha_rounds(rest, 86)?,
            }
        } else if let Some(rest) = text.strip_prefix("$5$") {
            Scheme::Sha256 {
                rounds: sha_rounds(rest, 43)?,
            }
        } else if let Some(magic) = ["$apr1$", "$1$"]
            .into_iter()
            .find(|magic| text.starts_with(magic))
        {
            md5_parts(text, magic).ok_or(HashError::Malformed)?;
            Scheme::Md5(magic)
        } else {
            return Err(HashError::UnknownScheme);
        };
        Ok(Self {
            scheme,
            text: text.to_owned(),
        })
    }
}

/// Without what could be attacked.
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scheme.fmt(f)
    }
}

/// The rounds of `[rounds=N$]salt$digest`, with a digest of this length.
fn sha_rounds(text: &str, digest_length: usize) -> Result<u32, HashError> {
    let (rounds, rest) = match text.strip_prefix("rounds=") {
        Some(text) => {
            let (rounds, rest) = text.split_once('$').ok_or(HashError::Malformed)?;
            (rounds.parse().map_err(|_| HashError::Malformed)?, rest)
        }
        None => (5000, text),
    };
    let (salt, digest) = rest.split_once('$').ok_or(HashError::Malformed)?;
    let is_digest =
        digest.len() == digest_length && digest.bytes().all(|byte| ALPHABET.contains(&byte));
    if !is_digest || salt.len() > 16 || rounds < 1000 {
        return Err(HashError::Malformed);
    }
    if rounds > MAX_SHA_ROUNDS {
        return Err(HashError::TooCostly);
    }
    Ok(rounds)
}

/// Salt and digest.
fn md5_parts<'a>(text: &'a str, magic: &str) -> Option<(&'a str, &'a str)> {
    let (salt, digest) = text.strip_prefix(magic)?.split_once('$')?;
    let is_digest = digest.len() == 22 && digest.bytes().all(|byte| ALPHABET.contains(&byte));
    (is_digest && salt.len() <= 8).then_some((salt, digest))
}

/// Poul-Henning Kamp's MD5 based hash.
fn md5_crypt(password: &[u8], salt: &str, magic: &str) -> String {
    let digest = |parts: &[&[u8]]| -> [u8; 16] {
        let mut md5 = Md5::new();
        for part in parts {
            md5.update(part);
        }
        md5.finalize().into()
    };
    let salt_bytes = salt.as_bytes();
    let inner = digest(&[password, salt_bytes, password]);
    let mut md5 = Md5::new();
    md5.update(password);
    md5.update(magic);
    md5.update(salt_bytes);
    let whole = password.len() / inner.len();
    for _ in 0..whole {
        md5.update(inner);
    }
    md5.update(
        inner
            .get(..password.len() % inner.len())
            .unwrap_or_default(),
    );
    let mut length = password.len();
    while length > 0 {
        // A bug of the first version that is part of the hash.
        let byte: &[u8] = if length & 1 == 1 {
            &[0]
        } else {
            password.get(..1).unwrap_or_default()
        };
        md5.update(byte);
        length >>= 1;
    }
    let mut state: [u8; 16] = md5.finalize().into();
    for round in 0..1000_u32 {
        let is_odd = round & 1 == 1;
        let mut parts: Vec<&[u8]> = Vec::with_capacity(4);
        parts.push(if is_odd { password } else { &state });
        if round % 3 != 0 {
            parts.push(salt_bytes);
        }
        if round % 7 != 0 {
            parts.push(password);
        }
        parts.push(if is_odd { &state } else { password });
        state = digest(&parts);
    }
    let mut text = format!("{magic}{salt}$");
    let mut encode = |high: u8, middle: u8, low: u8, characters: usize| {
        let mut bits = u32::from(high) << 16 | u32::from(middle) << 8 | u32::from(low);
        for _ in 0..characters {
            let character = ALPHABET
                .get((bits & 0x3f) as usize)
                .copied()
                .unwrap_or(b'.');
            text.push(char::from(character));
            bits >>= 6;
        }
    };
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        s8,
        s9,
        s10,
        s11,
        s12,
        s13,
        s14,
        s15,
    ] = state;
    encode(s0, s6, s12, 4);
    encode(s1, s7, s13, 4);
    encode(s2, s8, s14, 4);
    encode(s3, s9, s15, 4);
    encode(s4, s10, s5, 4);
    encode(0, 0, s11, 2);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl passwd` and `htpasswd -nbB`.
    const VECTORS: &[(&str, &str)] = &[
        ("$apr1$saltSALT$G31S4Dn51jQfG/OkZFZuv.", "password"),
        ("$1$saltSALT$LleoMf/aZhN0x40MTz7v5.", "password"),
        (
            "$5$saltSALT$s9ViC5xA/dYwyCUMBCc15YtCeAr8sTEjzDN0BLR3Uu1",
            "password",
        ),
        (
            "$6$saltSALT$wHU3cShdmYK.cqsC/ub0laAN/cdpQjAbhoD0zIxsoi0H4K7muNQDNdDrnrqnr7f.XVqcTyaA9OLatkt8Kd2NG1",
            "password",
        ),
        ("$apr1$saltSALT$JYQsHpSCl0Vu7ZljB950q0", "a"),
        ("$1$saltSALT$H7/7E6rYw5/JvMbnIAZ1v/", "a"),
        (
            "$5$saltSALT$SFjIeAoueehwIUK5IOldPRiKhTVJCg6KIXDzpH58h/1",
            "a",
        ),
        (
            "$6$saltSALT$oYuhvd7TR8vJ59dJuOZaYPQnwK8xLI6T.8ZHArT2.KDEyyKv1TG9p0ir/9gL6zT410vBHE02qLeQMxNNawhE20",
            "a",
        ),
        (
            "$apr1$saltSALT$xSJSzZ2OrBWF7pMYIzvbQ0",
            "correct horse battery staple",
        ),
        (
            "$1$saltSALT$OmAchJ/i5SmOrTe9uxr/Q0",
            "correct horse battery staple",
        ),
        (
            "$5$saltSALT$tpXKWcHdlS4GPssnXOW7GtR4lMJF15U6ZttKi3qIoSA",
            "correct horse battery staple",
        ),
        (
            "$6$saltSALT$ueODP/gZSASI85vLrXOKKcnkvtx6ejYFv0C6EH92w4u0f0Mm7ao6mVE8.W3zJ5qsEmEZEOFHg.nMBXbEA1mzx/",
            "correct horse battery staple",
        ),
        ("$apr1$saltSALT$JPygoduIP8bsHRxusKvLN.", "pässwörd"),
        ("$1$saltSALT$kwkuOgsJO1/i00j4aAMEn1", "pässwörd"),
        (
            "$5$saltSALT$DuleheL51O/65nBqc2f1llfrQfpXGhdZVGIUrtVAvaC",
            "pässwörd",
        ),
        (
            "$6$saltSALT$k6UW744Hkx/oAfGZQLUzpGJJSf2MzRbTLVh7tV5pjOIYC/Pvugd/ohQo/vz0CivcCJh31SEeqQW8felPEiUHj0",
            "pässwörd",
        ),
        (
            "$2y$05$YUyKgEl8vfXzjqHarPyLXeaeetdDpvpRIGlY4etQktn3QB866VU4u",
            "password",
        ),
    ];

    #[test]
    fn passwords_are_checked_as_other_tools_hash_them() {
        for (hash, password) in VECTORS {
            let hash: Hash = hash.parse().unwrap();
            assert!(hash.verify(password), "{hash:?} {password}");
            assert!(!hash.verify(&format!("{password}x")), "{hash:?}");
            assert!(!hash.verify(""), "{hash:?}");
        }
        assert!(!Hash::decoy().verify("password"));
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for (text, error) in [
            ("", HashError::UnknownScheme),
            ("secret", HashError::UnknownScheme),
            (
                "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
                HashError::UnknownScheme,
            ),
            ("$2y$05$short", HashError::Malformed),
            ("$2y$x", HashError::Malformed),
            ("$6$salt", HashError::Malformed),
            ("$6$salt$short", HashError::Malformed),
            ("$6$rounds=1$salt$short", HashError::Malformed),
            ("$apr1$salt$short", HashError::Malformed),
            (
                "$apr1$much-too-long$dxHfLAsjHkDRmG83UXe8K0",
                HashError::Malformed,
            ),
        ] {
            assert_eq!(text.parse::<Hash>().map(drop), Err(error), "{text}");
        }
        let costly = format!("$2y$15${}", "a".repeat(53));
        assert_eq!(costly.parse::<Hash>().map(drop), Err(HashError::TooCostly));
        let costly = format!("$6$rounds=1000001$salt${}", "a".repeat(86));
        assert_eq!(costly.parse::<Hash>().map(drop), Err(HashError::TooCostly));
    }
}
