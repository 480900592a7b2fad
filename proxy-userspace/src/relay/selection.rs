//! Which engines this process uses: what was asked for, and what the kernel and our privileges
//! allow.

use std::{fmt, str::FromStr, sync::Arc};

use aya::util::KernelVersion;
use serde::Deserialize;

use super::{
    Relay,
    sockmap::{Sockmap, selftest},
    splice::Splice,
};
use crate::kernel::version::{SOUND_KERNELS, is_sound};

/// The `--engine` option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The best engine that this kernel and these privileges allow
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
    /// Why the kernel engine is not among them although it was wanted.
    pub missing: Option<Unavailable>,
}

/// How much a process can hold at a time.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Tunnels.
    pub tunnels: u32,
    /// Pipes of the splice engine.
    pub pipes: usize,
}

/// Readies the engines of the choice.
///
/// # Errors
/// An engine was demanded and cannot be had.
pub async fn select(choice: EngineChoice, room: Room) -> Result<Selection, Unavailable> {
    let relay = Relay::new();
    let mut missing = None;
    let relay = match choice {
        EngineChoice::Copy => relay,
        EngineChoice::Splice => relay.with_splice(splice(room.pipes)?),
        EngineChoice::Sockmap => relay.with_sockmap(load(room.tunnels).await?),
        EngineChoice::Auto => match sockmap(room.tunnels).await {
            Ok(sockmap) => relay.with_sockmap(sockmap),
            Err(unavailable) => {
                missing = Some(unavailable);
                relay
            }
        },
    };
    Ok(Selection { relay, missing })
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
