//! Which engines this process has ready: what was asked for, and what the kernel and our privileges
//! allow.

use std::{fmt, str::FromStr, sync::Arc};

use aya::util::KernelVersion;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Relay,
    sockmap::{Sockmap, selftest},
    splice::Splice,
};
use crate::{
    kernel::version::{SOUND_KERNELS, is_sound},
    limits::{DESCRIPTORS_PER_PIPE, MAX_TUNNELS, RESERVED_DESCRIPTORS},
};

/// The `--engine` option.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// By how a tunnel behaves: it begins in user space and moves into the kernel once it chats
    #[default]
    Auto,
    /// Spliced in the kernel by eBPF; refuse to start without it
    Sockmap,
    /// Moved through pipes by splice(2)
    Splice,
    /// Read and write in user space
    Copy,
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        clap::ValueEnum::from_str(text, false)
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Sockmap => "sockmap",
            Self::Splice => "splice",
            Self::Copy => "copy",
        })
    }
}

/// Why an engine cannot be had, and what would change it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Unavailable {
    /// What is missing.
    pub reason: String,
    /// What the operator can do.
    pub remedy: String,
}

/// What was selected.
#[derive(Debug)]
pub struct Selection {
    /// The engines, ready to use.
    pub relay: Relay,
    /// The kernel engine was wanted and is not among them.
    pub no_sockmap: Option<Unavailable>,
    /// So were the pipes.
    pub no_splice: Option<Unavailable>,
}

/// How much a process can hold at a time.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Tunnels.
    pub tunnels: u32,
    /// Pipes of the splice engine.
    pub pipes: usize,
}

impl Room {
    /// What so many descriptors allow.
    pub(crate) fn within(descriptors: u64, pipes_used: bool) -> Self {
        let usable = descriptors.saturating_sub(RESERVED_DESCRIPTORS);
        let pipes = if pipes_used {
            usable / DESCRIPTORS_PER_PIPE
        } else {
            0
        };
        let tunnels = u32::try_from((usable - 2 * pipes) / 2).unwrap_or(u32::MAX);
        Self {
            tunnels: tunnels.clamp(1, MAX_TUNNELS),
            pipes: usize::try_from(pipes).unwrap_or(usize::MAX),
        }
    }
}

/// Readies the engines for tunnels of each of these choices.
///
/// # Errors
/// An engine was demanded and cannot be had: which, and why.
pub async fn select(
    choices: impl IntoIterator<Item = EngineChoice>,
    room: Room,
) -> Result<Selection, (EngineChoice, Unavailable)> {
    let choices: Vec<_> = choices.into_iter().collect();
    let is_chosen = |choice| choices.contains(&choice);
    let (mut relay, mut no_sockmap, mut no_splice) = (Relay::new(), None, None);
    let loaded = if is_chosen(EngineChoice::Sockmap) {
        let loaded = load(room.tunnels).await;
        Some(loaded.map_err(|why| (EngineChoice::Sockmap, why))?)
    } else if is_chosen(EngineChoice::Auto) {
        sockmap(room.tunnels)
            .await
            .map_err(|why| no_sockmap = Some(why))
            .ok()
    } else {
        None
    };
    if let Some(sockmap) = loaded {
        relay = relay.with_sockmap(sockmap);
    }
    if is_chosen(EngineChoice::Splice) || is_chosen(EngineChoice::Auto) {
        match splice(room.pipes) {
            Ok(splice) => relay = relay.with_splice(splice),
            Err(why) if is_chosen(EngineChoice::Splice) => {
                return Err((EngineChoice::Splice, why));
            }
            Err(why) => no_splice = Some(why),
        }
    }
    Ok(Selection {
        relay,
        no_sockmap,
        no_splice,
    })
}

/// The engine that uses pipes.
///
/// # Errors
/// Why there is none.
pub fn splice(pipes: usize) -> Result<Arc<Splice>, Unavailable> {
    Splice::new(pipes)
        .map(Arc::new)
        .map_err(|error| Unavailable {
            reason: format!("splice(2) does not work: {error}"),
            remedy: "permit pipe2(2) and splice(2) where system calls are filtered".to_owned(),
        })
}

/// The kernel engine, where it is known to be sound.
///
/// # Errors
/// Why it is not offered.
pub async fn sockmap(tunnels: u32) -> Result<Arc<Sockmap>, Unavailable> {
    // Unknown is not old: the self-test decides.
    if let Ok(version) = KernelVersion::current()
        && !is_sound(version)
    {
        return Err(Unavailable {
            reason: "the sockmap of this kernel can lose or repeat bytes".to_owned(),
            remedy: format!("run {SOUND_KERNELS}, or insist with --engine sockmap"),
        });
    }
    load(tunnels).await
}

/// Loads the kernel engine and tries it.
async fn load(tunnels: u32) -> Result<Arc<Sockmap>, Unavailable> {
    let sockmap = Sockmap::load(tunnels).map_err(|error| Unavailable {
        reason: error.to_string(),
        remedy: error.remedy(),
    })?;
    match selftest::run(&sockmap).await {
        Ok(()) => Ok(sockmap),
        Err(error) => Err(Unavailable {
            remedy: error.remedy(),
            reason: error.to_string(),
        }),
    }
}
