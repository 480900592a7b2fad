//! Comparing two BPF objects by what the kernel gets: code, data, maps, and what they refer to.
//!
//! Sections that are loaded count (`SHF_ALLOC`), and [`BTF`], which holds the definitions of the
//! maps. Debug information and the order of the symbol table do not; relocations are compared by
//! the name they refer to.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use object::{
    File, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, RelocationTarget,
    SectionFlags, SymbolKind, elf,
};

/// The type information of an object. Another compiler may number the types in another order.
pub(super) const BTF: &str = ".BTF";

/// The sections of an object that count, by name.
pub(super) type Sections = BTreeMap<String, Section>;

/// What counts of one section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    size: u64,
    /// Empty where the section has a size only, as `.bss`.
    bytes: Vec<u8>,
    /// Offset to type, name of what is referred to, and addend.
    relocations: BTreeMap<u64, Relocation>,
    /// Functions and variables: name to offset and size.
    symbols: BTreeMap<String, (u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Relocation {
    kind: u32,
    target: String,
    addend: i64,
}

/// Reads the sections of an ELF object that count.
pub(super) fn read(object: &[u8]) -> Result<Sections> {
    let file = File::parse(object).context("not an object file")?;
    let mut sections = Sections::new();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else {
            continue;
        };
        if sh_flags & u64::from(elf::SHF_ALLOC) == 0 && section.name()? != BTF {
            continue;
        }
        let mut relocations = BTreeMap::new();
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type: kind } = relocation.flags() else {
                continue;
            };
            let target = target_name(&file, relocation.target())?;
            let addend = relocation.addend();
            relocations.insert(
                offset,
                Relocation {
                    kind,
                    target,
                    addend,
                },
            );
        }
        let mut symbols = BTreeMap::new();
        for symbol in file.symbols() {
            let named = matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Data);
            if named && symbol.section_index() == Some(section.index()) {
                let place = (symbol.address(), symbol.size());
                symbols.insert(symbol.name()?.to_owned(), place);
            }
        }
        sections.insert(
            section.name()?.to_owned(),
            Section {
                size: section.size(),
                bytes: section.data()?.to_owned(),
                relocations,
                symbols,
            },
        );
    }
    Ok(sections)
}

/// The name that a relocation refers to: of a symbol, or of the section that a symbol stands for.
fn target_name(file: &File<'_>, target: RelocationTarget) -> Result<String> {
    let RelocationTarget::Symbol(index) = target else {
        return Ok("nothing".to_owned());
    };
    let symbol = file.symbol_by_index(index)?;
    let name = match symbol.section_index() {
        Some(section) if symbol.kind() == SymbolKind::Section => {
            file.section_by_index(section)?.name()?.to_owned()
        }
        _ => symbol.name()?.to_owned(),
    };
    Ok(name)
}

/// One line per difference, empty if the kernel gets the same from both.
pub(super) fn differences(checked_in: &Sections, rebuilt: &Sections) -> Vec<String> {
    let names: BTreeSet<_> = checked_in.keys().chain(rebuilt.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        match (checked_in.get(name), rebuilt.get(name)) {
            (Some(old), Some(new)) => found.extend(
                old.differences(new)
                    .into_iter()
                    .map(|difference| format!("section {name}: {difference}")),
            ),
            (Some(_), None) => found.push(format!("section {name}: not in the rebuilt object")),
            (None, Some(_)) => found.push(format!("section {name}: not in the checked-in object")),
            (None, None) => {}
        }
    }
    found
}

impl Section {
    fn differences(&self, rebuilt: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.size != rebuilt.size {
            let (old, new) = (self.size, rebuilt.size);
            found.push(format!("{old} bytes checked in, {new} rebuilt"));
        } else if let Some(offset) = first_difference(&self.bytes, &rebuilt.bytes) {
            found.push(format!("bytes differ from offset {offset:#x} on"));
        }
        if self.relocations != rebuilt.relocations {
            found.push("relocations differ".to_owned());
        }
        if self.symbols != rebuilt.symbols {
            found.push("functions or variables differ in name, place or size".to_owned());
        }
        found
    }
}

fn first_difference(one: &[u8], two: &[u8]) -> Option<usize> {
    one.iter()
        .zip(two)
        .position(|(a, b)| a != b)
        .or_else(|| (one.len() != two.len()).then(|| one.len().min(two.len())))
}

#[cfg(test)]
mod tests {

    use super::*;

    fn section(bytes: &[u8]) -> Section {
        Section {
            size: bytes.len() as u64,
            bytes: bytes.to_vec(),
            ..Section::default()
        }
    }

    fn object(sections: &[(&str, &Section)]) -> Sections {
        sections
            .iter()
            .map(|(name, section)| ((*name).to_owned(), (*section).clone()))
            .collect()
    }

    #[test]
    fn equal_objects_have_no_difference() {
        let one = object(&[(".text", &section(b"code")), ("license", &section(b"GPL"))]);
        assert_eq!(differences(&one, &one.clone()), Vec::<String>::new());
    }

    #[test]
    fn changed_bytes_and_sizes_are_told_apart() {
        let old = object(&[("a", &section(b"code")), ("b", &section(b"data"))]);
        let new = object(&[("a", &section(b"coDe")), ("b", &section(b"data!"))]);
        assert_eq!(
            differences(&old, &new),
            [
                "section a: bytes differ from offset 0x2 on",
                "section b: 4 bytes checked in, 5 rebuilt",
            ]
        );
    }

    #[test]
    fn a_section_on_one_side_only_is_a_difference() {
        let old = object(&[("a", &section(b""))]);
        let new = object(&[("b", &section(b""))]);
        assert_eq!(
            differences(&old, &new),
            [
                "section a: not in the rebuilt object",
                "section b: not in the checked-in object",
            ]
        );
    }

    #[test]
    fn the_same_code_that_refers_to_another_map_differs() {
        let referring = |target: &str| {
            let mut section = section(b"code");
            let relocation = Relocation {
                kind: 1,
                target: target.to_owned(),
                addend: 0,
            };
            section.relocations.insert(0, relocation);
            object(&[("prog", &section)])
        };
        assert!(differences(&referring("PEERS"), &referring("PEERS")).is_empty());
        assert_eq!(
            differences(&referring("PEERS"), &referring("FLOWS")),
            ["section prog: relocations differ"]
        );
    }

    #[test]
    fn maps_that_changed_places_differ() {
        let placed = |first: &str, second: &str| {
            let mut section = section(&[0; 16]);
            section.symbols.insert(first.to_owned(), (0, 8));
            section.symbols.insert(second.to_owned(), (8, 8));
            object(&[(".maps", &section)])
        };
        assert_eq!(
            differences(&placed("A", "B"), &placed("B", "A")),
            ["section .maps: functions or variables differ in name, place or size"]
        );
    }

    #[test]
    fn a_flipped_byte_of_the_real_object_is_found() {
        let bytes = crate::ebpf::Object::Splice.checked_in().unwrap();
        let original = read(&bytes).unwrap();
        let license = original.get("license").unwrap();
        assert!(license.bytes.ends_with(b"GPL\0"));
        assert!(original.contains_key(BTF));
        assert!(!original.keys().any(|name| name.starts_with(".debug")));
        let maps = original.get(".maps").unwrap();
        assert!(!maps.symbols.is_empty());
        assert!(
            original
                .values()
                .flat_map(|section| section.relocations.values())
                .any(|relocation| maps.symbols.contains_key(&relocation.target)),
            "no program refers to a map by name"
        );

        let place = bytes
            .windows(license.bytes.len())
            .position(|window| window == license.bytes)
            .unwrap();
        let mut tampered = bytes.clone();
        tampered[place] ^= 0x20;
        let tampered = read(&tampered).unwrap();
        assert_eq!(
            differences(&original, &tampered),
            ["section license: bytes differ from offset 0x0 on"]
        );
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(read(b"no ELF").is_err());
    }
}
