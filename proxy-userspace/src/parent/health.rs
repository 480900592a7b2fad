//! Which parents answer: told by the tunnels that are asked for, and by looking at each of them now and then.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{Dialling, Parent};
use crate::{config::Live, net::outgoing::Outgoing, session::Shared};

/// How often it is looked whether a look is due.
const TICK: Duration = Duration::from_secs(1);

/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether a parent answers.
#[derive(Debug, Default)]
pub(super) struct Health {
    down: AtomicBool,
}

impl Health {
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// A change is worth a line; why a parent is down begins with its name.
    pub(super) fn note(&self, parent: &Parent, state: Result<(), &str>) {
        let was_down = self.down.swap(state.is_err(), Ordering::Relaxed);
        match state {
            Ok(()) if was_down => info!("{parent} is up again"),
            Err(why) if !was_down => warn!("down until it answers: {why}"),
            Ok(()) | Err(_) => {}
        }
    }
}

/// Looks at all parents, each in its time, for as long as the process runs.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut due: HashMap<Arc<str>, Instant> = HashMap::new();
    loop {
        sleep(TICK).await;
        let live = shared.current.get();
        let now = Instant::now();
        due.retain(|name, _| live.parents.iter().any(|entry| entry.parent.name == *name));
        for entry in &live.parents {
            let parent = &entry.parent;
            let next = due
                .entry(Arc::clone(&parent.name))
                .or_insert_with(|| now + parent.spec.check);
            if *next > now {
                continue;
            }
            *next = now + parent.spec.check;
            tokio::spawn(look(
                Arc::clone(&shared),
                Arc::clone(&live),
                Arc::clone(parent),
            ));
        }
    }
}

/// Connects, with TLS if it speaks that, and hangs up.
async fn look(shared: Arc<Shared>, live: Arc<Live>, parent: Arc<Parent>) {
    let dialling = Dialling {
        live: &live,
        listeners: &shared.listeners,
        deadline: Instant::now() + PATIENCE,
        client: None,
        outgoing: &|_| Outgoing::default(),
    };
    // It notes what comes of it.
    drop(parent.connect(&dialling, ()).await);
}
