//! squid.conf: the subset that matters to a tunnel proxy, exactly; the rest is either known not to matter
//! to one, and listed, or an error.
//!
//! The result is a [`File`], as if somebody had written the equivalent `underpass.toml`; so what runs is
//! what `underpass config convert` prints. What Squid does is in its `cf.data.pre`, and in
//! `src/acl/` for the evaluation; each part names what it follows.

mod acls;
mod directives;
mod fields;
mod lexer;
mod logs;
mod names;
mod peers;
mod pools;
mod ports;
mod settings;
mod words;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::logs::DEFAULT_ACCESS_LOG;
use self::{
    acls::Acls,
    directives::{Directive, Fate},
    lexer::Line,
    settings::Translation,
};
use super::{ConfigError, file::File, load::nearest};
use crate::policy::Place;

#[cfg(test)]
mod tests;

/// What became of a squid.conf.
#[derive(Debug)]
pub struct Translated {
    /// The equivalent of it.
    pub file: File,
    /// Every file that was read, and the directories in which files were looked for.
    pub sources: Vec<PathBuf>,
    /// What does not matter here, or not as Squid would have it.
    pub notices: Vec<String>,
}

/// How files are read; not from the disk, where somebody else chose the paths.
pub type Reader<'a> = &'a dyn Fn(&Path) -> Result<String, ConfigError>;

/// Translates a file.
///
/// # Errors
/// It cannot be read, or something in it is wrong or not supported: all of that, with its lines.
pub fn translate(path: &Path) -> Result<Translated, ConfigError> {
    translate_with(path, &super::load::read)
}

/// The same, with files from somewhere else.
///
/// # Errors
/// As above.
pub fn translate_with(path: &Path, reader: Reader<'_>) -> Result<Translated, ConfigError> {
    // The lists that conditions quote are files of the configuration, too.
    let read = RefCell::new(Vec::new());
    let recording = |path: &Path| {
        read.borrow_mut().push(path.to_owned());
        reader(path)
    };
    let mut directories = Vec::new();
    let lines = lexer::read(path, &recording, &mut directories)?;
    let mut translation = Translation::new(path, &recording);
    let mut errors = Vec::new();
    let mut ignored = Ignored::default();
    for line in &lines {
        match directives::find(&line.name) {
            Some(Directive {
                fate: Fate::Used(apply),
                ..
            }) => {
                if let Err(message) = apply(&mut translation, line) {
                    errors.push(line.error(message));
                }
            }
            Some(Directive {
                fate: Fate::Ignored(why),
                ..
            }) => ignored.add(why, line),
            Some(Directive {
                fate: Fate::Unsupported(why),
                name,
            }) => {
                errors.push(line.error(format!("{name} is not supported: {why}")));
            }
            None => {
                let names = directives::names();
                let hint = nearest(&line.name, names)
                    .map_or(String::new(), |name| format!("; did you mean {name}?"));
                errors.push(line.error(format!("unknown directive {}{hint}", line.name)));
            }
        }
    }
    let mut notices = ignored.into_notices();
    notices.append(&mut translation.notices);
    let file = translation.finish(&mut errors);
    match errors.len() {
        0 => {}
        1 => return Err(errors.remove(0)),
        _ => return Err(ConfigError::Several(errors)),
    }
    let mut sources = read.into_inner();
    sources.append(&mut directories);
    Ok(Translated {
        file,
        sources,
        notices,
    })
}

/// Directives that do not matter, by reason.
#[derive(Default)]
struct Ignored(BTreeMap<&'static str, Vec<String>>);

impl Ignored {
    fn add(&mut self, why: &'static str, line: &Line) {
        let at = format!("{} (line {})", line.name, line.place.line);
        self.0.entry(why).or_default().push(at);
    }

    fn into_notices(self) -> Vec<String> {
        let notice =
            |(why, lines): (&str, Vec<String>)| format!("ignored, {why}: {}", lines.join(", "));
        self.0.into_iter().map(notice).collect()
    }
}

impl Line {
    fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError::At {
            place: self.place.clone(),
            message: message.into(),
        }
    }
}

fn place(file: &Arc<Path>, line: usize) -> Place {
    Place {
        file: Arc::clone(file),
        line,
    }
}
