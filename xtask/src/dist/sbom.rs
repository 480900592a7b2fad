//! What the released program is made of: a bill of materials in `CycloneDX`'s format (ECMA-424).

use std::{collections::BTreeSet, env::consts::ARCH};

use anyhow::Result;
use serde_json::{Value, json};

use super::VERSION;
use crate::cmd;

/// Who makes a program for this machine.
fn target() -> String {
    format!("{ARCH}-unknown-linux-gnu")
}

/// The bill, as JSON.
pub(super) fn make() -> Result<String> {
    let mut tree = cmd::cargo(["tree", "--locked", "--package", "underpass"]);
    tree.args(["--edges", "normal", "--target", &target()])
        .args(["--prefix", "none", "--format", "{p}|{l}"]);
    let lines = cmd::output(&mut tree)?;
    let components: BTreeSet<_> = lines.lines().filter_map(component).collect();
    let listed: Vec<Value> = components
        .into_iter()
        .filter(|component| component.name != "underpass")
        .map(Component::into_json)
        .collect();
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "application",
            "bom-ref": "underpass",
            "name": "underpass",
            "version": VERSION,
            "licenses": [{ "expression": "MIT OR Apache-2.0" }],
        } },
        "components": listed,
    });
    Ok(format!("{bill:#}\n"))
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Component<'a> {
    name: &'a str,
    version: &'a str,
    licence: String,
    /// Whether it is from here.
    own: bool,
}

/// What one line of `cargo tree` names.
fn component(line: &str) -> Option<Component<'_>> {
    let (package, licence) = line.trim_end_matches(" (*)").split_once('|')?;
    let mut words = package.split(' ');
    let name = words.next()?;
    let version = words.next()?.strip_prefix('v')?;
    Some(Component {
        name,
        version,
        // As cargo allows it, and SPDX does not.
        licence: licence.replace('/', " OR "),
        own: words.any(|word| word.starts_with("(/")),
    })
}

impl Component<'_> {
    fn into_json(self) -> Value {
        let mut value = serde_json::Map::new();
        value.insert("type".to_owned(), json!("library"));
        value.insert("name".to_owned(), json!(self.name));
        value.insert("version".to_owned(), json!(self.version));
        if !self.licence.is_empty() {
            let expression = json!([{ "expression": self.licence }]);
            value.insert("licenses".to_owned(), expression);
        }
        if !self.own {
            let url = format!("pkg:cargo/{}@{}", self.name, self.version);
            value.insert("purl".to_owned(), json!(url));
        }
        value.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_component() {
        let of = |line| component(line).map(|component| component.into_json().to_string());
        assert_eq!(
            of("bytes v1.10.0|MIT").as_deref(),
            Some(
                r#"{"licenses":[{"expression":"MIT"}],"name":"bytes","purl":"pkg:cargo/bytes@1.10.0","type":"library","version":"1.10.0"}"#
            )
        );
        let macros = component("serde_derive v1.0.0 (proc-macro)|MIT/Apache-2.0 (*)").unwrap();
        assert_eq!(macros.licence, "MIT OR Apache-2.0");
        assert!(!macros.own);
        assert!(
            component("proxy-common v0.1.0 (/src/common)|MIT")
                .unwrap()
                .own
        );
        assert_eq!(component(""), None);
    }

    #[test]
    fn the_program_is_made_of_what_it_is_built_from() {
        let bill: Value = serde_json::from_str(&make().unwrap()).unwrap();
        let components = bill["components"].as_array().unwrap();
        for name in ["aya", "proxy-common", "ring", "tokio"] {
            assert!(
                components.iter().any(|component| component["name"] == name),
                "{name}"
            );
        }
        for name in ["proptest", "proxy-tests", "underpass", "xtask"] {
            assert!(
                !components.iter().any(|component| component["name"] == name),
                "{name}"
            );
        }
    }
}
