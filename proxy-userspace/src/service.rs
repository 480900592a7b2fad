//! The service manager, if one runs us (`sd_notify(3)`): it is told when clients are served, when the configuration is
//! read again, how long the end may take, and once in a while that we live.

use std::{env, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::{limits::STATUS_INTERVAL, session::Shared};

/// Whether one wants to know.
fn is_there() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager cannot be told");
    }
}

/// Clients are served.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] says when that is over.
pub fn reloading() {
    // `Type=notify-reload` wants to know when it began.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "no time"),
    }
}

/// No more clients are served. Those that are there may take so long to leave.
pub fn stopping(within: Duration) {
    let micros = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(micros),
    ]);
}

/// Tells that we live, as often as is wanted (`WatchdogSec=`), and what we do.
pub async fn report(shared: Arc<Shared>) {
    if !is_there() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let pause = watchdog.map_or(STATUS_INTERVAL, |limit| (limit / 3).min(STATUS_INTERVAL));
    let mut clock = interval(pause.max(Duration::from_millis(1)));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    loop {
        clock.tick().await;
        if watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        let clients = shared.registry.all_connections();
        let text = format!("{}; {clients} client connections", shared.state().as_str());
        if text != told {
            tell(&[NotifyState::Status(&text)]);
            told = text;
        }
    }
}
