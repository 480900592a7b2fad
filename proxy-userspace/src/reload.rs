//! The configuration, read again: on SIGHUP, and when one of its files changes.
//!
//! All or nothing: new requests are judged by the new rules once everything in them is known to be
//! right; what is wrong is reported with its place, and the old rules stay. No listener is closed. Open
//! tunnels go on, unless `enforce_on_live` says that those which are forbidden now are to end.
//!
//! Files are looked at once a second instead of being watched by the kernel: that also sees a
//! `ConfigMap`, which Kubernetes changes by swapping a symbolic link above it, and a file on a network.

use std::{path::PathBuf, sync::Arc};

use tokio::{task::block_in_place, time::sleep};
use tracing::{error, info, warn};

use crate::{
    config::{Config, Listener, cli::Settings},
    limits::WATCH_PAUSE,
    look::{Look, look},
    policy::audit::audit,
    session::Shared,
};

/// Reads the configuration again.
#[derive(Debug)]
pub struct Reloader {
    settings: Settings,
    /// What the process was started with, and keeps.
    listen: Vec<Listener>,
    watch: bool,
    sources: Vec<PathBuf>,
    /// What the files looked like when they were read.
    read: Vec<Look>,
    /// What they looked like since, if that was something else.
    changed: Option<Vec<Look>>,
}

impl Reloader {
    /// Begins with a configuration that was just read with these settings.
    #[must_use]
    pub fn new(settings: Settings, config: &Config) -> Self {
        Self {
            settings,
            listen: config.listen.clone(),
            watch: config.watch,
            sources: config.sources.clone(),
            read: look_at(&config.sources),
            changed: None,
        }
    }

    /// Returns once a file has changed, and stayed as it is from one look to the next.
    pub async fn changed(&mut self) {
        loop {
            sleep(WATCH_PAUSE).await;
            if !self.watch {
                continue;
            }
            let now = look_at(&self.sources);
            if now == self.read {
                self.changed = None;
            } else if self.changed.as_ref() == Some(&now) {
                return;
            } else {
                self.changed = Some(now);
            }
        }
    }

    /// Reads the configuration, and lets new requests be judged by it.
    ///
    /// # Errors
    /// It is refused: why.
    pub fn reload(&mut self, shared: &Shared, why: &str) -> Result<String, String> {
        let outcome = self.replace(shared);
        shared
            .registry
            .note_reload(outcome.as_ref().map(drop).map_err(String::as_str));
        match &outcome {
            Ok(said) => info!("{why}: the configuration was read again: {said}"),
            Err(error) => {
                error!("{why}: the configuration is refused, and the old one stays: {error}");
            }
        }
        if outcome.is_ok() {
            let live = shared.current.get();
            let ended = if live.enforce_on_live {
                shared.registry.enforce(&live)
            } else {
                0
            };
            if ended > 0 {
                info!(tunnels = ended, "ended, since the rules forbid them now");
            }
        }
        outcome
    }

    /// Puts the new configuration in the place of the old: what it says of itself.
    fn replace(&mut self, shared: &Shared) -> Result<String, String> {
        // Whatever comes of it: the same files are not read again until they change again.
        self.read = look_at(&self.sources);
        self.changed = None;
        let config = match Config::load(&self.settings) {
            Ok(config) => config,
            Err(problem) => {
                // It may be in a file that was not part of the configuration before.
                let mut blamed = problem.files();
                blamed.retain(|path| !self.sources.contains(path));
                self.read.extend(look_at(&blamed));
                self.sources.extend(blamed);
                let cause = std::error::Error::source(&problem)
                    .map_or(String::new(), |cause| format!(": {cause}"));
                return Err(format!("{problem}{cause}"));
            }
        };
        if config.listen != self.listen {
            warn!("`listen` has changed; that takes effect when the proxy is started again");
        }
        let mut live = config.live;
        let before = shared.current.get();
        block_in_place(|| live.open_logs(Some(&before)))?;
        live.inherit(&before);
        for warning in audit(&live.policy, &shared.listeners) {
            warn!("{}", warning.in_words(""));
        }
        self.watch = config.watch;
        if config.sources != self.sources {
            self.sources = config.sources;
            self.read = look_at(&self.sources);
        }
        let said = live.to_string();
        shared.current.set(Arc::new(live));
        Ok(said)
    }
}

fn look_at(sources: &[PathBuf]) -> Vec<Look> {
    sources.iter().map(|path| look(path)).collect()
}
