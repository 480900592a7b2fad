//! Lists that say what belongs into them, where something else or nothing stands.

use serde::{Deserialize, Deserializer};

use super::{Listen, Networks};
use crate::policy::PortRange;

/// A list that says what belongs into it, and may not be empty.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    expected: &'static str,
) -> Result<Option<Vec<T>>, D::Error> {
    list(deserializer, expected, false).map(Some)
}

fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    expected: &'static str,
    may_be_empty: bool,
) -> Result<Vec<T>, D::Error> {
    struct List<T> {
        expected: &'static str,
        may_be_empty: bool,
        items: std::marker::PhantomData<T>,
    }

    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.expected)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut sequence: A,
        ) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = sequence.next_element()? {
                items.push(item);
            }
            if items.is_empty() && !self.may_be_empty {
                return Err(serde::de::Error::invalid_length(0, &self));
            }
            Ok(items)
        }
    }

    deserializer.deserialize_any(List {
        expected,
        may_be_empty,
        items: std::marker::PhantomData,
    })
}

/// A condition without a value would hold for no request; whoever leaves one empty may mean all.
pub(super) fn filled<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    d: D,
) -> Result<Vec<T>, D::Error> {
    list(
        d,
        "a list with at least one value; leave the key out to match everything",
        false,
    )
}

pub(super) fn some_listeners<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<Vec<Listen>>, D::Error> {
    some(d, "a list of addresses such as [\"127.0.0.1:3128\"]")
}

pub(super) fn some_networks<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Networks>, D::Error> {
    some(d, "a list of networks such as [\"10.0.0.0/8\"]")
}

pub(super) fn networks<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Networks>, D::Error> {
    list(d, "a list of networks such as [\"10.0.0.0/8\"]", true).map(Some)
}

pub(super) fn some_ports<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<Vec<PortRange>>, D::Error> {
    some(d, "a list of ports such as [443, \"8000-8100\"]")
}
