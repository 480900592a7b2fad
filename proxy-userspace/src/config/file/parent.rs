//! Parent proxies, as they are written.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;
use crate::{
    config::values::{Span, Text, Word},
    parent::{CHECK_PAUSE, Names, ParentUrl, Spec, TlsSpec},
};

/// A parent proxy, for `via` in routes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Where it is, and whether it is talked to over TLS.
    pub url: Text<ParentUrl>,
    /// A file whose first line is the `user:password` that it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_file: Option<PathBuf>,
    /// The same, here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// Who resolves the names of targets. "here": the rules judge the address, and the parent gets it in place of
    /// the name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub names: Names,
    /// Certificate authorities to trust, a PEM file [default: the system's].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Our certificate, a PEM file, if it asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its key, a PEM file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The name in its certificate [default: its host].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// The pause between two looks whether it is there [default: 10s].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Span>,
    /// Names of matches that must hold for a request to go through it; `!` negates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Text<Word>>,
}

impl Parent {
    /// What it means; `directory` is where relative paths begin. Files that are read are added to `sources`.
    pub(in crate::config) fn spec(
        &self,
        directory: &Path,
        sources: &mut Vec<PathBuf>,
    ) -> Result<Spec, String> {
        let mut path = |path: &Option<PathBuf>| {
            let path = path.as_ref().map(|path| directory.join(path));
            sources.extend(path.clone());
            path
        };
        let (ca, certificate, key) = (path(&self.ca), path(&self.certificate), path(&self.key));
        let login_file = path(&self.login_file);
        let is_about_tls =
            ca.is_some() || certificate.is_some() || key.is_some() || self.server_name.is_some();
        if is_about_tls && !self.url.0.is_tls {
            return Err(
                "ca, certificate, key and server_name are for an https:// parent".to_owned(),
            );
        }
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("`certificate` and `key` belong together".to_owned()),
        };
        let login = match (&self.login, login_file) {
            (Some(_), Some(_)) => return Err("write `login` or `login_file`, not both".to_owned()),
            (Some(login), None) => Some(login.clone()),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                Some(text.lines().next().unwrap_or_default().to_owned())
            }
            (None, None) => None,
        };
        let is_login = |login: &String| {
            login.find(':').is_some_and(|colon| colon > 0) && !login.contains(char::is_control)
        };
        if login.as_ref().is_some_and(|login| !is_login(login)) {
            return Err("the login is not user:password".to_owned());
        }
        Ok(Spec {
            url: self.url.0.clone(),
            login: login.map(Into::into),
            names: self.names,
            tls: TlsSpec {
                ca,
                identity,
                server_name: self.server_name.as_deref().map(Into::into),
            },
            check: self.check.map_or(CHECK_PAUSE, |span| span.0),
        })
    }
}

/// The order in which a route's parents are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// The first one that is up.
    #[default]
    First,
    /// In turns.
    RoundRobin,
}
