//! The lines of a squid.conf: continued, included, conditional; split into words.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{super::load::expand, ConfigError, Reader, place};
use crate::policy::Place;

/// Squid's own bound.
const MAX_DEPTH: usize = 16;

/// A directive with its words.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// The directive.
    pub(super) name: String,
    /// What follows it.
    pub(super) words: Vec<Word>,
    /// The same, as it is written.
    pub(super) rest: String,
    /// Where it begins.
    pub(super) place: Place,
}

/// A word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Without its quotes.
    pub(super) text: String,
    /// Whether it had some: then it is the name of a file, in most places.
    pub(super) quoted: bool,
}

/// Reads a file and what it includes; directories in which files were looked for are added to theirs.
pub(super) fn read(
    path: &Path,
    reader: Reader<'_>,
    directories: &mut Vec<PathBuf>,
) -> Result<Vec<Line>, ConfigError> {
    let mut lines = Vec::new();
    read_into(path, reader, directories, &mut lines, 0)?;
    Ok(lines)
}

fn read_into(
    path: &Path,
    reader: Reader<'_>,
    directories: &mut Vec<PathBuf>,
    lines: &mut Vec<Line>,
    depth: usize,
) -> Result<(), ConfigError> {
    let text = reader(path)?;
    let file: Arc<Path> = path.into();
    let mut conditions = Conditions::default();
    for (number, text) in logical_lines(&text) {
        let place = place(&file, number);
        let at = |message: String| ConfigError::At {
            place: place.clone(),
            message,
        };
        let text = with_macros(&text);
        let Some((name, rest)) = split_name(&text) else {
            continue;
        };
        if conditions.take(name, rest).map_err(at)? || !conditions.holds() {
            continue;
        }
        let words = split(rest).map_err(at)?;
        if name != "include" {
            lines.push(Line {
                name: name.to_owned(),
                words,
                rest: rest.to_owned(),
                place,
            });
            continue;
        }
        if words.is_empty() {
            return Err(at("include needs a file".to_owned()));
        }
        if depth == MAX_DEPTH {
            return Err(at(format!(
                "files include each other more than {MAX_DEPTH} deep"
            )));
        }
        for pattern in words {
            let expanded = expand(&pattern.text, path).map_err(at)?;
            directories.extend(expanded.directory);
            for path in expanded.files {
                read_into(&path, reader, directories, lines, depth + 1)?;
            }
        }
    }
    if conditions.is_open() {
        return Err(ConfigError::At {
            place: place(&file, text.lines().count().max(1)),
            message: "if without endif".to_owned(),
        });
    }
    Ok(())
}

/// Lines with their number; one that ends in a backslash goes on in the next.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut continued = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end_matches('\r');
        let (line, goes_on) = match line.strip_suffix('\\') {
            Some(line) => (line, true),
            None => (line, false),
        };
        match lines.last_mut() {
            Some((_, whole)) if continued => whole.push_str(line),
            _ => lines.push((index + 1, line.to_owned())),
        }
        continued = goes_on;
    }
    lines
}

/// Squid's macros, as a process without workers has them.
fn with_macros(text: &str) -> String {
    if !text.contains("${") {
        return text.to_owned();
    }
    text.replace("${service_name}", "squid")
        .replace("${process_name}", "squid")
        .replace("${process_number}", "0")
}

/// The directive and what follows it; none in an empty line and in a comment.
pub(super) fn split_name(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return None;
    }
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    Some((name, rest.trim_start()))
}

/// Splits at spaces; quotes hold a word together, a `#` at the beginning of one begins a comment.
pub(super) fn split(text: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if first == '#' {
            break;
        }
        let word;
        if let Some(inner) = rest.strip_prefix('"') {
            let (text, behind) = unquoted(inner).ok_or("a quote is not closed")?;
            word = Word { text, quoted: true };
            rest = behind;
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let (text, behind) = rest.split_at(end);
            word = Word {
                text: text.to_owned(),
                quoted: false,
            };
            rest = behind;
        }
        words.push(word);
        rest = rest.trim_start();
    }
    Ok(words)
}

/// What stands before the closing quote, and what behind it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut word = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((word, text.get(at + 1..)?)),
            '\\' => word.push(characters.next()?.1),
            other => word.push(other),
        }
    }
    None
}

/// `if`, `elif`, `else`, `endif`, nested.
#[derive(Debug, Default)]
struct Conditions(Vec<Branch>);

/// One `if`.
#[derive(Debug)]
struct Branch {
    /// Whether its present part is read.
    holds: bool,
    /// Whether one of its parts was.
    was_taken: bool,
}

impl Conditions {
    fn holds(&self) -> bool {
        self.0.iter().all(|branch| branch.holds)
    }

    fn is_open(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether the line belongs to a conditional.
    fn take(&mut self, name: &str, rest: &str) -> Result<bool, String> {
        match name {
            "if" => {
                // What stands in a part that is not read is not looked at.
                let holds = self.holds() && condition(rest)?;
                self.0.push(Branch {
                    holds,
                    was_taken: holds,
                });
            }
            "elif" => {
                let branch = self.0.last_mut().ok_or("elif without if")?;
                branch.holds = !branch.was_taken && condition(rest)?;
                branch.was_taken |= branch.holds;
            }
            "else" => {
                let branch = self.0.last_mut().ok_or("else without if")?;
                branch.holds = !branch.was_taken;
                branch.was_taken = true;
            }
            "endif" => {
                self.0.pop().ok_or("endif without if")?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// `true`, `false`, or the comparison of two integers.
fn condition(text: &str) -> Result<bool, String> {
    let text = text.trim();
    match text {
        "true" => return Ok(true),
        "false" => return Ok(false),
        _ => {}
    }
    let numbers = text.split_once('=').and_then(|(one, other)| {
        let (one, other): (i64, i64) = (one.trim().parse().ok()?, other.trim().parse().ok()?);
        Some((one, other))
    });
    match numbers {
        Some((one, other)) => Ok(one == other),
        None => Err(format!(
            "'{text}' is not a condition; write true, false or 1 = 1"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(String, Vec<String>, usize)> {
        let reader = |_: &Path| Ok(text.to_owned());
        read(Path::new("squid.conf"), &reader, &mut Vec::new())
            .unwrap()
            .into_iter()
            .map(|line| {
                let words = line.words.into_iter().map(|word| word.text);
                (line.name, words.collect(), line.place.line)
            })
            .collect()
    }

    #[test]
    fn lines_are_continued_and_commented() {
        let text = "# nothing\n\n acl a port 1 \\\n  2 # two\nx \"a b\" c#d\n";
        let expected = [
            ("acl", &["a", "port", "1", "2"][..], 3),
            ("x", &["a b", "c#d"], 5),
        ];
        let expected = expected.map(|(name, words, line)| {
            (
                name.to_owned(),
                words.iter().map(|&word| word.to_owned()).collect(),
                line,
            )
        });
        assert_eq!(lines(text), expected);
    }

    #[test]
    fn conditionals_choose_lines() {
        let text = "if ${process_number} = 1\na\nelif true\nb\nelse\nc\nendif\nif false\nd\nif nonsense\nendif\nendif\ne\n";
        let names: Vec<String> = lines(text).into_iter().map(|line| line.0).collect();
        assert_eq!(names, ["b", "e"]);
    }

    #[test]
    fn what_is_not_closed_is_an_error() {
        for text in [
            "if true\na\n",
            "endif\n",
            "else\n",
            "if maybe\nendif\n",
            "a \"b\n",
        ] {
            let reader = |_: &Path| Ok(text.to_owned());
            assert!(
                read(Path::new("x"), &reader, &mut Vec::new()).is_err(),
                "{text}"
            );
        }
    }
}
