//! The name in a TLS ClientHello, read by somebody who does not answer it.
//!
//! A ClientHello is a handshake message (RFC 8446 section 4.1.2) in one or more records (section 5.1),
//! cut anywhere; the name is in its extension `server_name` (RFC 6066 section 3). With Encrypted Client
//! Hello that is the outer name, the only one that is not for the server alone.
//!
//! What is refused here a server may accept: rules hang on the name, and what cannot be read for certain
//! must not pass as having none.

use std::fmt;

/// The largest message that is waited for. Those of browsers have 2 KiB, those with large tickets some more.
pub const MAX_MESSAGE: usize = 32 * 1024;

const HANDSHAKE_RECORD: u8 = 22;
/// Of the payload of a record (RFC 8446 section 5.1).
const MAX_RECORD: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What a client began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A ClientHello with this name, in lower case.
    Named(Box<str>),
    /// A ClientHello without a name, or no TLS at all.
    Nameless,
}

impl Opening {
    /// The name, if there is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Nameless => None,
        }
    }
}

/// Why a ClientHello is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a malformed ClientHello: {}", self.0)
    }
}

/// Reads what a client has sent so far: none if that does not tell yet.
///
/// Once there is an answer, more bytes do not change it.
///
/// # Errors
/// It begins as a ClientHello does, and is none that can be read.
pub fn read(bytes: &[u8]) -> Result<Option<Opening>, Malformed> {
    match bytes {
        [] | [HANDSHAKE_RECORD] => return Ok(None),
        // Major version 3 has been that of every version since SSL 3.0.
        [HANDSHAKE_RECORD, 3, ..] => {}
        _ => return Ok(Some(Opening::Nameless)),
    }
    let mut message = Vec::new();
    let mut rest = bytes;
    while let Some((&[kind, major, _, high, low], behind)) = rest.split_first_chunk() {
        if (kind, major) != (HANDSHAKE_RECORD, 3) {
            return Err(Malformed("another record within"));
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > MAX_RECORD {
            return Err(Malformed("a record of a forbidden length"));
        }
        let fragment = behind.get(..length).unwrap_or(behind);
        message.extend_from_slice(fragment);
        if let Some(body) = body(&message)? {
            return parse(body).map(Some);
        }
        rest = behind.get(length..).unwrap_or_default();
    }
    Ok(None)
}

/// Whether what a client has sent begins as a ClientHello does.
#[must_use]
pub fn is_one(bytes: &[u8]) -> bool {
    matches!(bytes, [HANDSHAKE_RECORD, 3, ..])
}

/// The body of the message, once it is whole.
fn body(message: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
        return Err(Malformed("another message"));
    }
    let Some((&[_, high, middle, low], rest)) = message.split_first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    if length > MAX_MESSAGE {
        return Err(Malformed("too long"));
    }
    Ok(rest.get(..length))
}

fn parse(body: &[u8]) -> Result<Opening, Malformed> {
    const SHORT: Malformed = Malformed("it ends too early");
    let mut body = Reader(body);
    // Version and random; session id; cipher suites; compression methods.
    body.take(2 + 32).ok_or(SHORT)?;
    body.vector8().ok_or(SHORT)?;
    body.vector16().ok_or(SHORT)?;
    body.vector8().ok_or(SHORT)?;
    // Before TLS 1.3 there need not be extensions.
    if body.0.is_empty() {
        return Ok(Opening::Nameless);
    }
    let mut extensions = Reader(body.vector16().ok_or(SHORT)?);
    if !body.0.is_empty() {
        return Err(Malformed("it ends too late"));
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number16().ok_or(SHORT)?;
        let content = extensions.vector16().ok_or(SHORT)?;
        if kind == SERVER_NAME && name.replace(host_name(content)?).is_some() {
            return Err(Malformed("two names"));
        }
    }
    Ok(name.map_or(Opening::Nameless, Opening::Named))
}

/// The one name that a list of names has; a second one, or one of another kind, was never defined.
fn host_name(extension: &[u8]) -> Result<Box<str>, Malformed> {
    const WRONG: Malformed = Malformed("a list of names that is none");
    let mut extension = Reader(extension);
    let mut list = Reader(extension.vector16().ok_or(WRONG)?);
    let kind = list.take(1).ok_or(WRONG)?;
    let name = list.vector16().ok_or(WRONG)?;
    if kind != [HOST_NAME] || !list.0.is_empty() || !extension.0.is_empty() {
        return Err(WRONG);
    }
    let name = name.strip_suffix(b".").unwrap_or(name);
    let text = str::from_utf8(name)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or(Malformed("a name that is none"))?;
    Ok(text.to_ascii_lowercase().into())
}

/// Takes one field after another.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*number))
    }

    /// Bytes behind their number, of one byte.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first()?;
        self.0 = rest;
        self.take(usize::from(*length))
    }

    /// The same, of two.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A list of names with this one.
    fn names(name: &[u8]) -> Vec<u8> {
        let mut list = vec![HOST_NAME];
        list.extend(vector16(name));
        vector16(&list)
    }

    fn vector16(content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap();
        [&length.to_be_bytes(), content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), vector16(content)].concat()
    }

    /// A ClientHello with these extensions, without records.
    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([2, 0xaa, 0xbb]);
        body.extend(vector16(&[0x13, 0x01, 0x13, 0x02]));
        body.extend([1, 0]);
        body.extend(vector16(extensions));
        message(&body)
    }

    fn message(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO], &length[1..], body].concat()
    }

    /// The message in records of this size.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |fragment| [vec![22, 3, 1], vector16(fragment)].concat();
        message.chunks(size).flat_map(record).collect()
    }

    fn named(name: &str) -> Vec<u8> {
        let extensions = [
            extension(0x0a0a, &[]),
            extension(SERVER_NAME, &names(name.as_bytes())),
            extension(43, &[2, 3, 4]),
        ];
        hello(&extensions.concat())
    }

    #[test]
    fn the_name_is_found() {
        let one = Ok(Some(Opening::Named("www.example.com".into())));
        assert_eq!(read(&records(&named("www.example.com"), 4096)), one);
        assert_eq!(read(&records(&named("WWW.Example.COM."), 4096)), one);
        assert_eq!(read(&records(&named("www.example.com"), 1)), one);
        let whole = [&records(&named("www.example.com"), 4096), &b"early"[..]].concat();
        assert_eq!(read(&whole), one);
    }

    #[test]
    fn what_has_no_name_is_nameless() {
        let without = hello(&extension(43, &[2, 3, 4]));
        let old = message(&[&[3, 1][..], &[7; 32], &[0, 0, 2, 0, 47, 1, 0]].concat());
        for bytes in [
            records(&without, 4096),
            records(&old, 4096),
            b"SSH-2.0-OpenSSH_9.2".to_vec(),
            b"\x16\x02\x01".to_vec(),
            b"GET / HTTP/1.1".to_vec(),
        ] {
            assert_eq!(read(&bytes), Ok(Some(Opening::Nameless)), "{bytes:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_for_certain_is_refused() {
        let name = extension(SERVER_NAME, &names(b"a.test"));
        let two = [&[HOST_NAME, 0, 1, b'a'][..], &[HOST_NAME, 0, 1, b'b']].concat();
        let other_kind = vector16(&[1, 0, 1, b'a']);
        let mut late = hello(&name);
        late.push(0);
        late[3] += 1;
        let mut early = hello(&name);
        early.pop();
        early[3] -= 1;
        for (what, bytes) in [
            ("two names", hello(&[name.clone(), name].concat())),
            ("a list of two", hello(&extension(0, &vector16(&two)))),
            ("another kind", hello(&extension(0, &other_kind))),
            ("no list", hello(&extension(0, &[]))),
            ("an empty name", hello(&extension(0, &names(b"")))),
            ("a root", hello(&extension(0, &names(b".")))),
            ("a zero", hello(&extension(0, &names(b"a\0b")))),
            ("no ASCII", hello(&extension(0, &names("ä".as_bytes())))),
            ("one byte more", late),
            ("one byte less", early),
            ("too long", vec![CLIENT_HELLO, 1, 0, 0]),
            ("another message", vec![2, 0, 0, 1, 0]),
            ("no body", message(&[])),
        ] {
            assert!(read(&records(&bytes, 4096)).is_err(), "{what}");
        }
        let whole = records(&named("a.test"), 10);
        for (at, byte) in [(15, 23), (16, 2), (18, 0xff)] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            assert!(read(&damaged).is_err(), "byte {at}");
        }
        assert!(read(&[22, 3, 1, 0, 0]).is_err(), "an empty record");
    }

    proptest! {
        #[test]
        fn it_may_be_cut_anywhere(size in 1usize..300, label in "[a-z]{1,60}") {
            let whole = records(&named(&format!("{label}.test")), size);
            for length in 0..whole.len() {
                prop_assert_eq!(read(&whole[..length]), Ok(None));
            }
            let name = format!("{label}.test").into();
            prop_assert_eq!(read(&whole), Ok(Some(Opening::Named(name))));
        }

        #[test]
        fn more_bytes_change_no_answer(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            is_tls in any::<bool>(),
            cut in 0usize..300,
        ) {
            if is_tls {
                bytes.splice(0..0, [22, 3, 1, 0, 80, 1, 0, 0, 60]);
            }
            let part = &bytes[..cut.min(bytes.len())];
            match read(part) {
                Ok(None) => {}
                answer => prop_assert_eq!(answer, read(&bytes)),
            }
        }
    }
}
