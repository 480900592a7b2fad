//! Reads `underpass.toml` and what it includes: the text becomes a [`File`] whose parts know their
//! place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use super::{
    ConfigError,
    compile::place_of,
    file::{AccessLogs, File, Included, Listen, Located, Match, Rule},
};
use crate::policy::Place;

/// How deep files may include each other, as in Squid.
const MAX_DEPTH: usize = 16;

/// A file with everything that it includes.
#[derive(Debug)]
pub(super) struct Loaded {
    /// As if it had been one file.
    pub(super) file: File,
    /// Every file that was read, and the directories in which files were looked for.
    pub(super) sources: Vec<PathBuf>,
}

/// Reads a file and what it includes.
pub(super) fn load(path: &Path) -> Result<Loaded, ConfigError> {
    parse(&read(path)?, path)
}

/// The same, from the text of the file.
pub(super) fn parse(text: &str, path: &Path) -> Result<Loaded, ConfigError> {
    let mut file: File = deserialize(text, path)?;
    let lines = Lines::new(text, path);
    lines.place_all(&mut file.matches, &mut file.rule);
    if let Some(AccessLogs::Several(logs)) = &mut file.access_log {
        for entry in logs {
            lines.place(entry);
        }
    }
    file.outgoing
        .iter_mut()
        .for_each(|entry| lines.place(entry));
    file.parent
        .values_mut()
        .for_each(|entry| lines.place(entry));
    file.route.iter_mut().for_each(|entry| lines.place(entry));
    file.shape.iter_mut().for_each(|entry| lines.place(entry));
    file.auth.iter_mut().for_each(|entry| lines.place(entry));
    for listen in file.listen.iter_mut().flatten() {
        if let Listen::Table(table) = listen {
            table.tls.iter_mut().for_each(|entry| lines.place(entry));
        }
    }
    file.dns.iter_mut().for_each(|entry| lines.place(entry));
    file.capture.iter_mut().for_each(|entry| lines.place(entry));
    file.time_zone
        .iter_mut()
        .for_each(|entry| lines.place(entry));
    let mut inclusion = Inclusion {
        matches: BTreeMap::new(),
        rules: Vec::new(),
        sources: vec![path.to_owned()],
    };
    for pattern in &file.include {
        inclusion.include(pattern, path, 1)?;
    }
    let Inclusion {
        matches,
        mut rules,
        sources,
    } = inclusion;
    rules.append(&mut file.rule);
    file.rule = rules;
    for (name, found) in matches {
        if let Some(other) = file.matches.get(&name) {
            return Err(defined_twice(&name, other, &found));
        }
        file.matches.insert(name, found);
    }
    Ok(Loaded { file, sources })
}

pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// What was included so far.
struct Inclusion {
    matches: BTreeMap<String, Located<Match>>,
    rules: Vec<Located<Rule>>,
    sources: Vec<PathBuf>,
}

impl Inclusion {
    fn include(&mut self, pattern: &str, from: &Path, depth: usize) -> Result<(), ConfigError> {
        let failed = |message| ConfigError::Invalid {
            path: from.to_owned(),
            line: 1,
            column: 1,
            message,
        };
        if depth > MAX_DEPTH {
            return Err(failed(format!(
                "files include each other more than {MAX_DEPTH} deep"
            )));
        }
        let expanded = expand(pattern, from).map_err(failed)?;
        self.sources.extend(expanded.directory);
        for path in expanded.files {
            let text = read(&path)?;
            let mut part: Included = deserialize(&text, &path)?;
            Lines::new(&text, &path).place_all(&mut part.matches, &mut part.rule);
            self.sources.push(path.clone());
            for pattern in &part.include {
                self.include(pattern, &path, depth + 1)?;
            }
            self.rules.append(&mut part.rule);
            for (name, found) in part.matches {
                if let Some(other) = self.matches.get(&name) {
                    return Err(defined_twice(&name, other, &found));
                }
                self.matches.insert(name, found);
            }
        }
        Ok(())
    }
}

/// What a pattern means.
pub(super) struct Expanded {
    /// The files, in the order of their names.
    pub(super) files: Vec<PathBuf>,
    /// Where another one would appear, if the pattern has wildcards.
    pub(super) directory: Option<PathBuf>,
}

/// The files that a pattern means, as seen from a file.
pub(super) fn expand(pattern: &str, from: &Path) -> Result<Expanded, String> {
    let pattern = from.parent().unwrap_or(Path::new("")).join(pattern);
    let is_wild = |path: &Path| path.to_string_lossy().contains(['*', '?', '[']);
    if !is_wild(&pattern) {
        return Ok(Expanded {
            files: vec![pattern],
            directory: None,
        });
    }
    let text = pattern.to_string_lossy();
    let paths = glob::glob(&text).map_err(|error| format!("{text}: {error}"))?;
    Ok(Expanded {
        // What cannot be looked at cannot be read either, and that is reported then.
        files: paths
            .map(|path| path.unwrap_or_else(|error| error.path().to_owned()))
            .collect(),
        directory: pattern
            .ancestors()
            .find(|path| !is_wild(path))
            .map(Path::to_owned),
    })
}

fn defined_twice(name: &str, one: &Located<Match>, other: &Located<Match>) -> ConfigError {
    ConfigError::At {
        place: place_of(other),
        message: format!("the match '{name}' is defined in {} already", place_of(one)),
    }
}

fn deserialize<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        ConfigError::Invalid {
            path: path.to_owned(),
            line,
            column,
            message: with_suggestion(&error.message().replace('\n', ", ")),
        }
    })
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// Where the lines of a file begin.
struct Lines {
    file: Arc<Path>,
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str, path: &Path) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            file: path.into(),
            starts: newlines.map(|(at, _)| at + 1).collect(),
        }
    }

    fn place<T>(&self, located: &mut Located<T>) {
        let before = self
            .starts
            .partition_point(|start| *start <= located.span.start);
        located.place = Some(Place {
            file: Arc::clone(&self.file),
            line: before + 1,
        });
    }

    fn place_all(
        &self,
        matches: &mut BTreeMap<String, Located<Match>>,
        rules: &mut [Located<Rule>],
    ) {
        for entry in matches.values_mut() {
            self.place(entry);
        }
        for rule in rules {
            self.place(rule);
        }
    }
}

/// Serde names what it expected; of many names, the one that was meant is worth more.
fn with_suggestion(message: &str) -> String {
    let Some((found, expected)) = message
        .strip_prefix("unknown field `")
        .or_else(|| message.strip_prefix("unknown variant `"))
        .and_then(|rest| rest.split_once('`'))
    else {
        return message.to_owned();
    };
    let names = expected.split('`').skip(1).step_by(2);
    match nearest(found, names) {
        Some(name) => format!("{message}; did you mean `{name}`?"),
        None => message.to_owned(),
    }
}

/// The name that a misspelt one is likely to be.
pub(super) fn nearest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Millions of comparisons teach a fuzzer nothing, and leave it a tenth of its speed.
    if cfg!(fuzzing) {
        return None;
    }
    names
        .map(|name| (strsim::jaro_winkler(found, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn file(text: &str) -> Result<File, ConfigError> {
        parse(text, "a.toml".as_ref()).map(|loaded| loaded.file)
    }

    fn error(text: &str) -> String {
        file(text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let message = error("relaxed = true\nallow_ports = [443]\n");
        assert!(message.starts_with("a.toml:2:1: "), "{message}");
        assert!(message.contains("unknown field `allow_ports`"), "{message}");
        assert!(message.ends_with("did you mean `allow_port`?"), "{message}");
        let message = error("[[rule]]\naction = \"alow\"\n");
        assert!(message.starts_with("a.toml:2:10: "), "{message}");
        assert!(message.ends_with("did you mean `allow`?"), "{message}");
    }

    #[test]
    fn a_bad_value_is_named_with_its_place() {
        for (text, place, part) in [
            (
                "allow_client = [\"10.0.0/8\"]",
                "a.toml:1:17",
                "is not a network",
            ),
            ("listen = [\"localhost\"]", "a.toml:1:11", "with a port"),
            ("listen = [{ name = \"x\" }]", "a.toml:1:11", "address"),
            ("engine = \"fast\"", "a.toml:1:10", "unknown variant"),
            ("[[engine_rule]]\nport = [1]", "a.toml:1:1", "engine"),
            (
                "[[engine_rule]]\nengine = \"copy\"\nports = [1]",
                "a.toml:3:1",
                "unknown field `ports`",
            ),
            (
                "[[engine_rule]]\nengine = \"copy\"\ndestination = []",
                "a.toml:3:15",
                "a list of networks",
            ),
            ("\n[timeouts]\nidle = \"never\"", "a.toml:3:8", "such as"),
            ("[timeouts]\nidle = 5", "a.toml:2:8", "such as"),
            ("allow_port = [0]", "a.toml:1:15", "port"),
            ("access_log = \"\"", "a.toml:1:14", "is empty"),
            ("listen = []", "a.toml:1:10", "such as [\"127.0.0.1:3128\"]"),
            ("listen = \"[::]:1\"", "a.toml:1:10", "a list of addresses"),
            ("allow_client = []", "a.toml:1:16", "a list of networks"),
            ("allow_port = 443", "a.toml:1:14", "such as [443,"),
            ("allow_port = []", "a.toml:1:14", "a list of ports"),
            ("listen = ", "a.toml:1:10", ""),
            ("[[rule]]\nclient = []", "a.toml:2:10", "leave the key out"),
            ("[[rule]]\nhost = [\"a b\"]", "a.toml:2:9", "is not a host"),
            (
                "[[rule]]\nhost_regex = [\"(\"]",
                "a.toml:2:15",
                "unclosed group",
            ),
            ("[[rule]]\ntime = [\"noon\"]", "a.toml:2:9", "is not a time"),
            (
                "[[rule]]\nclients = [\"::1\"]",
                "a.toml:2:1",
                "did you mean `client`?",
            ),
        ] {
            let message = error(text);
            assert!(message.starts_with(place), "{text}: {message}");
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let file = file("# nothing\n").unwrap();
        assert!(file.listen.is_none() && !file.relaxed);
        assert_eq!(file.timeouts.idle.0, Duration::from_secs(900));
    }

    #[test]
    fn rules_and_matches_know_their_line() {
        let file = file("\n[match.a]\nport = [1]\n\n[[rule]]\n\n[[rule]]\n").unwrap();
        let line = |place: &Option<Place>| place.as_ref().unwrap().line;
        assert_eq!(line(&file.matches["a"].place), 2);
        let rules: Vec<_> = file.rule.iter().map(|rule| line(&rule.place)).collect();
        assert_eq!(rules, [5, 7]);
    }
}
