//! Which way requests go: parents and routes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    super::{
        ConfigError,
        compile::{Compiler, place_of},
        file::{self, Balance, File, Located},
        load::nearest,
    },
    Conditional, Live,
};
use crate::{
    parent::{Hop, Parent, Route, Via},
    policy::{self, Facts, Need, Place, Term},
};

/// What routes call no parent at all.
const DIRECT: &str = "direct";

/// A parent, and what must hold for a request to go through it.
#[derive(Debug)]
pub struct ParentEntry {
    /// The parent.
    pub parent: Arc<Parent>,
    /// The conditions.
    pub terms: Vec<Term>,
}

/// The parents of a file, in the order of their names.
pub(super) fn parents<'a>(
    file: &'a File,
    compiler: &mut Compiler<'a>,
    sources: &mut Vec<PathBuf>,
) -> Result<Vec<ParentEntry>, ConfigError> {
    let mut parents = Vec::new();
    for (name, located) in &file.parent {
        let place = place_of(located);
        let at = |message| ConfigError::At {
            place: place.clone(),
            message,
        };
        if name == DIRECT {
            return Err(at("a parent cannot be called direct".to_owned()));
        }
        let directory = place.file.parent().unwrap_or(Path::new(""));
        let spec = located.value.spec(directory, sources).map_err(at)?;
        let parent = Parent::new(name, spec).map_err(at)?;
        parents.push(ParentEntry {
            parent: Arc::new(parent),
            terms: compiler.references(&located.value.when, &place)?,
        });
    }
    if file.route.is_empty()
        && let Some((name, located)) = file.parent.first_key_value()
    {
        return Err(ConfigError::At {
            place: place_of(located),
            message: format!(
                "nothing goes through the parent; write [[route]] with via = [\"{name}\"], or [\"{name}\", \"{DIRECT}\"]"
            ),
        });
    }
    Ok(parents)
}

/// The routes of a file.
pub(super) fn routes<'a>(
    file: &'a File,
    compiler: &mut Compiler<'a>,
) -> Result<Conditional<Route>, ConfigError> {
    let indices: BTreeMap<&str, usize> = file
        .parent
        .keys()
        .enumerate()
        .map(|(index, name)| (name.as_str(), index))
        .collect();
    let compile = |located: &'a Located<file::Route>| {
        let place = place_of(located);
        let route = &located.value;
        let via = route
            .via
            .iter()
            .map(|word| via(word.0.0.as_str(), &indices, &place))
            .collect::<Result<Vec<_>, _>>()?;
        if via.is_empty() {
            return Err(ConfigError::At {
                place,
                message: format!(
                    "the route leads nowhere; write via with names of parents, or \"{DIRECT}\""
                ),
            });
        }
        let is_round_robin = route.balance == Some(Balance::RoundRobin);
        let terms = compiler.entry(&route.conditions(), &place)?;
        Ok((terms, Route::new(via, is_round_robin)))
    };
    file.route.iter().map(compile).collect()
}

fn via(name: &str, indices: &BTreeMap<&str, usize>, place: &Place) -> Result<Via, ConfigError> {
    if name == DIRECT {
        return Ok(Via::Direct);
    }
    indices
        .get(name)
        .map(|index| Via::Parent(*index))
        .ok_or_else(|| {
            let known = indices.keys().copied().chain([DIRECT]);
            let hint = nearest(name, known)
                .map_or(String::new(), |name| format!("; did you mean '{name}'?"));
            ConfigError::At {
                place: place.clone(),
                message: format!("there is no parent '{name}'{hint}"),
            }
        })
}

impl Live {
    /// The index of the route that a request takes; without one it goes straight to its target.
    ///
    /// # Errors
    /// What has to be known first.
    pub fn route(&self, facts: &Facts<'_>) -> Result<Option<usize>, Need> {
        for (index, (terms, _)) in self.routes.iter().enumerate() {
            if policy::may_hold(terms, facts)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// The ways of a route, in the order in which they are tried.
    #[must_use]
    pub fn hops(&self, route: Option<usize>, facts: &Facts<'_>) -> Vec<Hop> {
        let Some((_, route)) = route.and_then(|index| self.routes.get(index)) else {
            return vec![Hop::Direct];
        };
        route.hops(|index| {
            let entry = self.parents.get(index)?;
            policy::hold(&entry.terms, facts).then_some(&entry.parent)
        })
    }
}
