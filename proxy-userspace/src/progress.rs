//! Lines in the access logs for tunnels that are open, at the intervals that the logs ask for.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{access_log::Event, session::Shared};

/// How often it is looked which tunnels are due.
const PAUSE: Duration = Duration::from_secs(1);

/// Writes them, for ever.
pub async fn report(shared: Arc<Shared>) {
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Instant::now();
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let live = shared.current.get();
        for log in live.logs.iter().filter(|log| log.has_interval()) {
            for tunnel in shared.registry.tunnels() {
                let age = tunnel.since.elapsed();
                let age_before = age.saturating_sub(now.duration_since(before));
                if log.is_due(age_before, age) {
                    log.write(&tunnel.record(Event::Progress), &live);
                }
            }
        }
        before = now;
    }
}
