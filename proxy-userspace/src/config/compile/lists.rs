//! Lists of values, with those of the files that they name.

use std::{collections::HashSet, fs, path::Path, str::FromStr};

use regex::{RegexSet, RegexSetBuilder};

use super::{
    super::{
        ConfigError,
        values::{HostPattern, Item, Network, Pattern, Text, Word},
    },
    Compiler,
};
use crate::policy::{DomainSet, NetworkSet, Place, Users};

impl Compiler<'_> {
    pub(in crate::config) fn networks(
        &mut self,
        list: &[Text<Item<Network>>],
        place: &Place,
    ) -> Result<NetworkSet, ConfigError> {
        Ok(self
            .items(list, place)?
            .into_iter()
            .map(Network::ends)
            .collect())
    }

    pub(super) fn hosts(
        &mut self,
        list: &[Text<Item<HostPattern>>],
        place: &Place,
    ) -> Result<DomainSet, ConfigError> {
        let mut set = DomainSet::default();
        for HostPattern(pattern) in self.items(list, place)? {
            set.insert(&pattern);
        }
        Ok(set)
    }

    pub(super) fn patterns(
        &mut self,
        list: &[Text<Item<Pattern>>],
        place: &Place,
    ) -> Result<RegexSet, ConfigError> {
        let patterns = self.items(list, place)?;
        // Each was compiled when it was read; together they may be too large.
        RegexSetBuilder::new(patterns.iter().map(|pattern| &pattern.0))
            .size_limit(64 << 20)
            .build()
            .map_err(|error| ConfigError::At {
                place: place.clone(),
                message: error.to_string(),
            })
    }

    pub(super) fn users(
        &mut self,
        list: &[Text<Item<Word>>],
        ignore_case: bool,
        place: &Place,
    ) -> Result<Users, ConfigError> {
        let mut users = Users {
            ignore_case,
            ..Users::default()
        };
        let mut names = HashSet::new();
        for Word(name) in self.items(list, place)? {
            match name.as_str() {
                "*" => users.anybody = true,
                _ if ignore_case => _ = names.insert(name.to_lowercase()),
                _ => _ = names.insert(name),
            }
        }
        users.names = names;
        Ok(users)
    }

    /// The values of a list, with those of the files that it names.
    fn items<T: Clone + FromStr<Err = String>>(
        &mut self,
        list: &[Text<Item<T>>],
        place: &Place,
    ) -> Result<Vec<T>, ConfigError> {
        let mut values = Vec::new();
        for Text(item) in list {
            match item {
                Item::Value(value) => values.push(value.clone()),
                Item::File(path) => {
                    let directory = place.file.parent().unwrap_or(Path::new(""));
                    let path = directory.join(path);
                    read_list(&path, place, &mut values)?;
                    self.sources.push(path);
                }
            }
        }
        Ok(values)
    }
}

/// Reads a file with a value a line.
fn read_list<T: FromStr<Err = String>>(
    path: &Path,
    place: &Place,
    values: &mut Vec<T>,
) -> Result<(), ConfigError> {
    let text = fs::read_to_string(path).map_err(|error| ConfigError::At {
        place: place.clone(),
        message: format!("cannot read the list {}: {error}", path.display()),
    })?;
    for (index, line) in text.lines().enumerate() {
        let value = without_comment(line);
        if value.is_empty() {
            continue;
        }
        values.push(value.parse().map_err(|message| ConfigError::At {
            place: Place {
                file: path.into(),
                line: index + 1,
            },
            message,
        })?);
    }
    Ok(())
}

/// A line of a list: a `#` begins a comment at its start or after a space, since a pattern may have one.
fn without_comment(line: &str) -> &str {
    let comment = line.match_indices('#').find(|&(at, _)| {
        line.get(..at)
            .is_some_and(|before| before.trim_end() != before || at == 0)
    });
    comment
        .map_or(line, |(at, _)| line.get(..at).unwrap_or_default())
        .trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_begins_a_line_or_follows_a_space() {
        for (line, value) in [
            ("example.com # ours", "example.com"),
            ("# nothing", ""),
            ("  a#b  ", "a#b"),
            ("", ""),
            ("\u{e4} #", "\u{e4}"),
        ] {
            assert_eq!(without_comment(line), value);
        }
    }
}
