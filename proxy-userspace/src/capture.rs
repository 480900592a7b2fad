//! Transparent capture: connections of processes that do not know of the proxy.
//!
//! The program in [`kernel::capture`](crate::kernel::capture) leads what chosen cgroups connect to listeners of ours, on
//! loopback of the network namespace that they are in. Here it is kept up to date who and where that is: cgroups come and
//! go, and so do pods with their network namespaces. A listener is made inside of each by a thread that enters it; the
//! socket stays there, whoever has it.
//!
//! It fails open: what is attached goes with this process, and connections are direct again. That is also what a namespace
//! gets whose processes were not seen yet.

mod cgroups;
mod namespaces;
pub mod opening;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use proxy_common::capture::Origin;
use tokio::{net::TcpListener, select, task::JoinHandle, task::block_in_place, time::sleep};
use tracing::{info, warn};

use crate::{
    config::file,
    kernel::capture::{Attachment, Object, address, remedy},
    policy::{PortRange, Process},
    server::Server,
};

/// How often cgroups and processes are looked at.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Warnings that are remembered, so that each is given once.
const MOST_SAID: usize = 1000;

/// Looks that a network namespace may be without a process before its listeners are closed.
const PATIENCE: u32 = 4;

/// A connection that was led to us.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Where it was to go.
    pub destination: SocketAddr,
    /// Who wanted that.
    pub process: Arc<Process>,
}

/// What keeps the capture up to date.
#[derive(Debug)]
pub struct Capture {
    object: Option<Arc<Object>>,
    /// The settings that the object has.
    applied: Option<file::Capture>,
    /// By the numbers of the cgroups.
    attached: HashMap<u64, (PathBuf, Attachment)>,
    /// By the numbers of the namespaces' inodes.
    places: HashMap<u64, Place>,
    paths: Arc<Paths>,
    /// What was said already.
    said: HashSet<String>,
}

/// The listeners in one network namespace.
#[derive(Debug)]
struct Place {
    object: Arc<Object>,
    cookie: u64,
    loops: Vec<JoinHandle<()>>,
    /// Looks since a process was seen.
    missed: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.object.forget(self.cookie);
        for accept in &self.loops {
            accept.abort();
        }
    }
}

/// The paths of cgroups by their numbers.
#[derive(Debug, Default)]
struct Paths(Mutex<HashMap<u64, Arc<str>>>);

impl Paths {
    fn set(&self, paths: HashMap<u64, Arc<str>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = paths;
    }

    fn get(&self, cgroup: u64) -> Option<Arc<str>> {
        let paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paths.get(&cgroup).cloned()
    }
}

/// What a listener's connections are recognised by.
#[derive(Clone, Debug)]
pub struct Recognition {
    object: Arc<Object>,
    namespace: u64,
    paths: Arc<Paths>,
}

impl Recognition {
    /// Where a client meant to go, and who it is; none if it was not led to us.
    pub fn captured(&self, client: SocketAddr) -> Option<Captured> {
        let origin = self.object.take(self.namespace, client)?;
        let port = u16::try_from(origin.port).ok()?;
        let cgroup = match self.paths.get(origin.cgroup) {
            Some(path) => path.as_ref().into(),
            // Younger than the last look.
            None => cgroups::of_process(origin.pid).unwrap_or_default(),
        };
        Some(Captured {
            destination: (address(origin.address), port).into(),
            process: Arc::new(Process {
                uid: origin.uid,
                gid: origin.gid,
                pid: origin.pid,
                command: command(&origin),
                cgroup,
            }),
        })
    }
}

/// The name of a thread.
fn command(origin: &Origin) -> Box<str> {
    let end = origin.command.iter().position(|&byte| byte == 0);
    let name = origin.command.get(..end.unwrap_or(origin.command.len()));
    String::from_utf8_lossy(name.unwrap_or_default()).into()
}

impl Capture {
    /// Captures what the configuration says, from now on.
    ///
    /// # Errors
    /// Nothing can be captured here, and something is to be.
    pub fn begin(server: &Arc<Server>) -> anyhow::Result<()> {
        let mut capture = Self {
            object: None,
            applied: None,
            attached: HashMap::new(),
            places: HashMap::new(),
            paths: Arc::default(),
            said: HashSet::new(),
        };
        block_in_place(|| capture.look(server))?;
        tokio::spawn(capture.keep(Arc::clone(server)));
        Ok(())
    }

    async fn keep(mut self, server: Arc<Server>) {
        loop {
            select! {
                () = server.shared().draining.cancelled() => return,
                () = sleep(LOOK_PAUSE) => {}
            }
            if let Err(error) = block_in_place(|| self.look(&server)) {
                self.say(format!("what is captured cannot be changed: {error:#}"));
            }
        }
    }

    /// Warns, once.
    fn say(&mut self, what: String) {
        if !self.said.contains(&what) {
            // Each may name another process.
            if self.said.len() >= MOST_SAID {
                self.said.clear();
            }
            warn!("{what}");
            self.said.insert(what);
        }
    }

    /// Looks at cgroups and processes, and at the configuration.
    fn look(&mut self, server: &Arc<Server>) -> anyhow::Result<()> {
        let live = server.shared().current.get();
        let Some(settings) = live.capture.as_deref() else {
            self.attached.clear();
            self.places.clear();
            self.applied = None;
            return Ok(());
        };
        let object = self.object()?;
        if self.applied.as_ref() != Some(settings) {
            apply(&object, settings)?;
            self.applied = Some(settings.clone());
        }
        let root = match &settings.root {
            Some(root) => root.clone(),
            None => cgroups::root()?,
        };
        let mut found = cgroups::Found::default();
        let mut wanted = HashMap::new();
        for path in &settings.cgroups {
            let directory = below(&root, path);
            if let Some(number) = cgroups::number(&directory) {
                wanted.insert(number, directory.clone());
                found.look(&root, &directory);
            } else {
                self.say(format!(
                    "there is no cgroup {path} below {} yet; what it connects will be captured when there is",
                    root.display()
                ));
            }
        }
        let excluded = settings.exclude.iter().map(|path| below(&root, path));
        let excluded: Vec<_> = excluded
            .filter_map(|directory| cgroups::number(&directory))
            .chain(found.own)
            .collect();
        object
            .set_excluded(&excluded)
            .context("too many cgroups are excluded")?;
        self.enter(&object, &found.processes, server);
        self.paths.set(found.paths);
        self.attached
            .retain(|number, _| wanted.contains_key(number));
        for (number, directory) in wanted {
            if let Entry::Vacant(place) = self.attached.entry(number) {
                let cgroup = fs::File::open(&directory)
                    .with_context(|| format!("cannot open {}", directory.display()))?;
                let attachment = object.attach(&cgroup).map_err(|error| {
                    anyhow!(
                        "cannot capture what {} connects: {error}; {}",
                        directory.display(),
                        remedy(&error)
                    )
                })?;
                info!("capturing what {} connects", directory.display());
                place.insert((directory, attachment));
            }
        }
        Ok(())
    }

    fn object(&mut self) -> anyhow::Result<Arc<Object>> {
        if let Some(object) = &self.object {
            return Ok(Arc::clone(object));
        }
        let object = Object::load().map_err(|error| {
            anyhow!(
                "connections cannot be captured: {error}; {}",
                remedy(&error)
            )
        })?;
        let object = Arc::new(object);
        self.object = Some(Arc::clone(&object));
        Ok(object)
    }

    /// Listens in the network namespaces of these processes, and no longer in others.
    fn enter(&mut self, object: &Arc<Object>, processes: &[u32], server: &Arc<Server>) {
        let mut seen: HashMap<u64, u32> = HashMap::new();
        for process in processes {
            // A process may have ended meanwhile.
            if let Some(namespace) = namespaces::of_process(*process) {
                seen.entry(namespace).or_insert(*process);
            }
        }
        for (namespace, place) in &mut self.places {
            place.missed = if seen.contains_key(namespace) {
                0
            } else {
                place.missed + 1
            };
        }
        self.places.retain(|_, place| {
            let stays = place.missed < PATIENCE;
            if !stays {
                info!("no process is left in network namespace {}", place.cookie);
            }
            stays
        });
        for (namespace, process) in seen {
            if self.places.contains_key(&namespace) {
                continue;
            }
            match self.place(object, process, server) {
                Ok(place) => {
                    info!("listening in the network namespace of process {process}");
                    self.places.insert(namespace, place);
                }
                Err(error) => self.say(format!(
                    "what processes in the network namespace of process {process} connect is not captured: {error:#}"
                )),
            }
        }
    }

    /// Listens in the network namespace of a process.
    fn place(
        &self,
        object: &Arc<Object>,
        process: u32,
        server: &Arc<Server>,
    ) -> anyhow::Result<Place> {
        let opened = namespaces::listen(process)?;
        let recognition = Recognition {
            object: Arc::clone(object),
            namespace: opened.cookie,
            paths: Arc::clone(&self.paths),
        };
        let mut loops = Vec::new();
        for listener in opened.listeners {
            let listener = TcpListener::from_std(listener)?;
            let accept = Arc::clone(server).accept_captured(listener, recognition.clone());
            loops.push(tokio::spawn(accept));
        }
        // From here on its end closes them.
        let place = Place {
            object: Arc::clone(object),
            cookie: opened.cookie,
            loops,
            missed: 0,
        };
        object
            .listen(opened.cookie, opened.ports)
            .context("too many network namespaces")?;
        Ok(place)
    }
}

fn apply(object: &Object, settings: &file::Capture) -> anyhow::Result<()> {
    let usual = [PortRange::from(80), PortRange::from(443)];
    object
        .set_ports(settings.ports.as_deref().unwrap_or(&usual))
        .context("cannot set the ports that are captured")?;
    let networks: Vec<_> = settings
        .direct
        .iter()
        .flat_map(|network| network.0.networks())
        .collect();
    object
        .set_direct(&networks)
        .context("cannot set the networks that are not captured")
}

/// A path of the configuration below the root of the file system of cgroups.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}
