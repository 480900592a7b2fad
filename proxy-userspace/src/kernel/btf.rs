//! Structure offsets from the kernel's type information (BTF).
//!
//! Only what the verdict program needs: the byte offset of a named member of a named structure. A
//! general BTF library keeps every type of the kernel in memory (50 MB and 0.2 s here); this walks
//! the 5 MB blob once and keeps an index of 4 bytes a type while it lives.
//!
//! Format: the kernel's `Documentation/bpf/btf.rst`. Pure; reads native-endian data.

use thiserror::Error;

/// Where the running kernel publishes its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Bytes of `struct btf_type`.
const TYPE_BYTES: usize = 12;
/// Bytes of `struct btf_member`.
const MEMBER_BYTES: usize = 12;
/// How deep anonymous members may nest; the kernel's own limit is 32.
const MAX_DEPTH: u32 = 32;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Why an offset could not be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// The blob is not BTF, or is cut off.
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// No structure of that name.
    #[error("this kernel's BTF has no struct {0}")]
    NoStruct(String),
    /// The structure has no such member, or it is not byte-aligned.
    #[error("this kernel's struct {0} has no member {1}")]
    NoMember(String, String),
}

/// An indexed BTF blob.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset into `types` of type id + 1.
    index: Vec<u32>,
}

/// `struct btf_type` at an offset.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    /// Where what follows the header starts.
    body: usize,
}

impl Type {
    fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn len(self) -> usize {
        (self.info & 0xffff) as usize
    }

    fn is_composite(self) -> bool {
        matches!(self.kind(), KIND_STRUCT | KIND_UNION)
    }

    /// Whether member offsets carry a bit-field size in their upper byte.
    fn has_bitfields(self) -> bool {
        self.info >> 31 == 1
    }

    /// Bytes of what follows the header.
    fn body_bytes(self) -> Result<usize, BtfError> {
        Ok(match self.kind() {
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => 4,
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            2 | 7..=12 | 16 | 18 => 0,
            // ARRAY
            3 => 12,
            KIND_STRUCT | KIND_UNION => self.len() * MEMBER_BYTES,
            // ENUM, FUNC_PROTO
            6 | 13 => self.len() * 8,
            // DATASEC, ENUM64
            15 | 19 => self.len() * 12,
            _ => return Err(BtfError::Malformed("unknown kind of type")),
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

impl<'a> Btf<'a> {
    /// Reads the header and finds where each type starts.
    pub fn parse(blob: &'a [u8]) -> Result<Self, BtfError> {
        let cut = BtfError::Malformed("cut off");
        let magic = blob.get(..2).and_then(|bytes| bytes.try_into().ok());
        if magic.map(u16::from_ne_bytes) != Some(MAGIC) {
            return Err(BtfError::Malformed("wrong magic number"));
        }
        let header = |at| u32_at(blob, at).map(|word| word as usize);
        let section = |offset: usize, len: usize| {
            let start = header(4)?.checked_add(offset)?;
            blob.get(start..start.checked_add(len)?)
        };
        let (Some(type_offset), Some(type_len), Some(string_offset), Some(string_len)) =
            (header(8), header(12), header(16), header(20))
        else {
            return Err(cut);
        };
        let (Some(types), Some(strings)) = (
            section(type_offset, type_len),
            section(string_offset, string_len),
        ) else {
            return Err(cut);
        };
        let mut btf = Self {
            types,
            strings,
            index: Vec::with_capacity(types.len() / 32),
        };
        let mut at = 0;
        while at < types.len() {
            let start = u32::try_from(at).map_err(|_| BtfError::Malformed("too large"))?;
            btf.index.push(start);
            let entry = btf.type_at(at).ok_or(BtfError::Malformed("cut off"))?;
            at = entry.body + entry.body_bytes()?;
        }
        Ok(btf)
    }

    /// Byte offset of `member` in `struct name`, through anonymous members too.
    pub fn member_offset(&self, name: &str, member: &str) -> Result<u32, BtfError> {
        let composite = self
            .index
            .iter()
            .filter_map(|&at| self.type_at(at as usize))
            .find(|entry| entry.kind() == KIND_STRUCT && self.name_is(entry.name, name))
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))?;
        self.find(composite, member, MAX_DEPTH)
            .filter(|bits| bits % 8 == 0)
            .map(|bits| bits / 8)
            .ok_or_else(|| BtfError::NoMember(name.to_owned(), member.to_owned()))
    }

    /// Bit offset of `member` within `composite`.
    fn find(&self, composite: Type, member: &str, depth: u32) -> Option<u32> {
        for i in 0..composite.len() {
            let at = composite.body + i * MEMBER_BYTES;
            let name = u32_at(self.types, at)?;
            let raw = u32_at(self.types, at + 8)?;
            let (bits, bitfield) = if composite.has_bitfields() {
                (raw & 0x00ff_ffff, raw >> 24 != 0)
            } else {
                (raw, false)
            };
            if name != 0 {
                if self.name_is(name, member) {
                    return (!bitfield).then_some(bits);
                }
                continue;
            }
            let inner = self.type_by_id(u32_at(self.types, at + 4)?)?;
            if depth > 0
                && inner.is_composite()
                && let Some(inside) = self.find(inner, member, depth - 1)
            {
                return bits.checked_add(inside);
            }
        }
        None
    }

    fn type_by_id(&self, id: u32) -> Option<Type> {
        let index = usize::try_from(id.checked_sub(1)?).ok()?;
        self.type_at(*self.index.get(index)? as usize)
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let body = at.checked_add(TYPE_BYTES)?;
        (body <= self.types.len()).then_some(())?;
        Some(Type {
            name: u32_at(self.types, at)?,
            info: u32_at(self.types, at + 4)?,
            body,
        })
    }

    fn name_is(&self, offset: u32, name: &str) -> bool {
        self.strings
            .get(offset as usize..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `struct outer { int a; struct { int b; int c:4; }; int d; }`
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0d\0";
        let name = |s: &str| {
            let needle = [b"\0", s.as_bytes(), b"\0"].concat();
            let at = strings.windows(needle.len()).position(|w| w == needle);
            u32::try_from(at.unwrap() + 1).unwrap()
        };
        let words = [
            // 1: int
            name("int"),
            1 << 24,
            4,
            32,
            // 2: anonymous struct, with bit-fields
            0,
            (1 << 31) | (KIND_STRUCT << 24) | 2,
            8,
            name("b"),
            1,
            0,
            name("c"),
            1,
            (4 << 24) | 32,
            // 3: outer
            name("outer"),
            (KIND_STRUCT << 24) | 3,
            16,
            name("a"),
            1,
            0,
            0,
            2,
            32,
            name("d"),
            1,
            96,
        ];
        let types: Vec<u8> = words
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .collect();
        let mut blob = Vec::new();
        blob.extend(MAGIC.to_ne_bytes());
        blob.extend([1, 0]);
        for word in [24, 0, types.len(), types.len(), strings.len()] {
            blob.extend(u32::try_from(word).unwrap().to_ne_bytes());
        }
        blob.extend(types);
        blob.extend(strings);
        blob
    }

    #[test]
    fn finds_members_directly_and_through_anonymous_structs() {
        let blob = sample();
        let btf = Btf::parse(&blob).unwrap();
        assert_eq!(btf.member_offset("outer", "a"), Ok(0));
        assert_eq!(btf.member_offset("outer", "b"), Ok(4));
        assert_eq!(btf.member_offset("outer", "d"), Ok(12));
    }

    #[test]
    fn names_what_is_missing() {
        let blob = sample();
        let btf = Btf::parse(&blob).unwrap();
        let none = BtfError::NoStruct("inner".to_owned());
        assert_eq!(btf.member_offset("inner", "a"), Err(none));
        for absent in ["z", "c", ""] {
            let none = BtfError::NoMember("outer".to_owned(), absent.to_owned());
            assert_eq!(btf.member_offset("outer", absent), Err(none), "{absent}");
        }
    }

    #[test]
    fn reads_this_kernel() {
        let Ok(blob) = std::fs::read(VMLINUX) else {
            println!("skipped: this kernel publishes no BTF at {VMLINUX}");
            return;
        };
        let btf = Btf::parse(&blob).unwrap();
        let sndbuf = btf.member_offset("sock", "sk_sndbuf").unwrap();
        let copied = btf.member_offset("tcp_sock", "copied_seq").unwrap();
        assert!(
            sndbuf > 0 && copied > sndbuf,
            "tcp_sock starts with its sock"
        );
        assert_eq!(btf.member_offset("tcp_sock", "inet_conn"), Ok(0));
    }

    proptest! {
        #[test]
        fn survives_any_damage(position in 0usize..200, value: u8, cut in 0usize..220) {
            let mut blob = sample();
            let position = position % blob.len();
            blob[position] = value;
            blob.truncate(cut);
            if let Ok(btf) = Btf::parse(&blob) {
                let _ = btf.member_offset("outer", "d");
            }
        }
    }
}
