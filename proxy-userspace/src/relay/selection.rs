//! Which engines this process uses: what was asked for, and what the kernel and our privileges
//! allow.

use std::{fmt, str::FromStr, sync::Arc};

use aya::util::KernelVersion;
use serde::Deserialize;

use super::{
    Relay,
    sockmap::{Sockmap, selftest},
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

/// Readies the engines of the choice, with room for `tunnels` tunnels.
///
/// # Errors
/// The kernel engine was demanded and cannot be had.
pub async fn select(choice: EngineChoice, tunnels: u32) -> Result<Selection, Unavailable> {
    let sockmap = match choice {
        EngineChoice::Copy => return Ok(copy_only(None)),
        EngineChoice::Sockmap => load(tunnels).await?,
        EngineChoice::Auto => match sockmap(tunnels).await {
            Ok(sockmap) => sockmap,
            Err(unavailable) => return Ok(copy_only(Some(unavailable))),
        },
    };
    Ok(Selection {
        relay: Relay::new(Some(sockmap)),
        missing: None,
    })
}

fn copy_only(missing: Option<Unavailable>) -> Selection {
    Selection {
        relay: Relay::new(None),
        missing,
    }
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
