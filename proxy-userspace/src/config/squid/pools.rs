//! Delay pools: `delay_pools`, `delay_class`, `delay_parameters`, `delay_access` as buckets and shapes.

use super::{
    super::{
        file::{Bucket, File, Flow, Located, Match, Shape, Sharing},
        values::{Rate, Size, Text, Word},
    },
    ConfigError, Line,
    settings::{AccessLine, Translation, texts},
};
use crate::policy::Place;

/// A delay pool.
#[derive(Debug, Default)]
pub(super) struct Pool {
    class: Option<u32>,
    /// The buckets in their order: rate and size; none is no limit.
    parameters: Vec<Option<(u64, u64)>>,
    access: Vec<AccessLine>,
}

impl Translation<'_> {
    /// Pools in order: the first whose `delay_access` allows a request has it.
    pub(super) fn delay_pools(&mut self) -> Result<(), ConfigError> {
        for (number, pool) in std::mem::take(&mut self.pools) {
            let Some(first) = pool.access.first() else {
                continue;
            };
            let at = |message: String| ConfigError::At {
                place: first.place.clone(),
                message,
            };
            let Some(class) = pool.class else {
                return Err(at(format!("delay pool {number} has no delay_class")));
            };
            let sharing: &[Sharing] = match class {
                1 => &[Sharing::All],
                2 => &[Sharing::All, Sharing::Client],
                _ => &[Sharing::All, Sharing::Network, Sharing::Client],
            };
            if pool.parameters.len() != sharing.len() {
                return Err(at(format!(
                    "delay pool {number} is of class {class} and needs delay_parameters with {} buckets",
                    sharing.len()
                )));
            }
            let mut names = Vec::new();
            for (parameters, per) in pool.parameters.iter().zip(sharing) {
                let Some((rate, size)) = *parameters else {
                    continue;
                };
                let name = format!("pool{number}-{per:?}").to_lowercase();
                let bucket = Bucket {
                    rate: Text(Rate(rate)),
                    size: Some(Text(Size(size))),
                    per: *per,
                    direction: Flow::Down,
                };
                self.file.bucket.insert(name.clone(), bucket);
                names.push(Text(Word(name)));
            }
            self.shape(number, &pool.access, &names);
        }
        Ok(())
    }

    /// A pool's access list as entries: each that allows, unless one before it denied.
    fn shape(&mut self, number: u32, access: &[AccessLine], bucket: &[Text<Word>]) {
        let mut denied: Vec<Text<Word>> = Vec::new();
        let add = |file: &mut File, when: Vec<Text<Word>>, place: &Place| {
            let bucket = bucket.to_vec();
            let shape = Shape {
                bucket,
                when,
                ..Shape::default()
            };
            file.shape.push(Located::new(shape, place.clone()));
        };
        for line in access {
            if line.allow {
                let when = denied.iter().chain(&line.terms).cloned().collect();
                add(&mut self.file, when, &line.place);
            } else {
                let name = format!("pool{number}-denied#{}", denied.len() + 1);
                let condition = Match {
                    when: line.terms.clone(),
                    ..Match::default()
                };
                self.file
                    .matches
                    .insert(name.clone(), Located::new(condition, line.place.clone()));
                denied.push(Text(Word(format!("!{name}"))));
            }
        }
        if let Some(last) = access.last()
            && !last.allow
        {
            // The opposite of the last line, as above.
            add(&mut self.file, denied, &last.place);
        }
    }

    fn pool(&mut self, line: &Line) -> Result<&mut Pool, String> {
        let text = line.words.first().map_or("", |word| &word.text);
        let number: u32 = text
            .parse()
            .map_err(|_| format!("'{text}' is not the number of a pool"))?;
        let count = self.pool_count.unwrap_or(0);
        if number == 0 || number > count {
            return Err(format!(
                "there is no delay pool {number}; delay_pools says {count}"
            ));
        }
        Ok(self.pools.entry(number).or_default())
    }
}

pub(super) fn delay_pools(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let text = line.words.first().map_or("", |word| &word.text);
    to.pool_count = Some(
        text.parse()
            .map_err(|_| format!("'{text}' is not a number of pools"))?,
    );
    Ok(())
}

pub(super) fn delay_class(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let text = line
        .words
        .get(1)
        .map_or(String::new(), |word| word.text.clone());
    let Ok(class @ 1..=3) = text.parse() else {
        return Err(format!("delay pools are of class 1, 2 or 3, not '{text}'"));
    };
    to.pool(line)?.class = Some(class);
    Ok(())
}

pub(super) fn delay_parameters(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let parameters = texts(line)
        .into_iter()
        .skip(1)
        .map(parameter)
        .collect::<Result<_, _>>()?;
    to.pool(line)?.parameters = parameters;
    Ok(())
}

/// `restore/maximum`, `none`, `-1/-1`.
fn parameter(text: &str) -> Result<Option<(u64, u64)>, String> {
    let wrong = || {
        format!(
            "'{text}' is not a bucket; write bytes in a second, a slash, and how many it holds, or none"
        )
    };
    if matches!(text, "none" | "-1/-1") {
        return Ok(None);
    }
    let (rate, size) = text.split_once('/').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number > 0);
    number(rate).zip(number(size)).map(Some).ok_or_else(wrong)
}

pub(super) fn delay_access(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    to.pool(line)?;
    let words = line.words.get(1..).unwrap_or_default();
    if let Some(access) = to.access_line(line, words)? {
        if access
            .terms
            .iter()
            .any(|term| to.acls.is_about_users(&term.0.0))
        {
            to.notices.push(format!(
                "delay_access ({}) asks for a user: it fits once the user is known",
                line.place
            ));
        }
        to.pool(line)?.access.push(access);
    }
    Ok(())
}
