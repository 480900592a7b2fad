//! `underpass run`: builds everything from the configuration, and takes it down again.

mod listeners;

use std::{
    future::pending,
    io::{self, IsTerminal as _},
    net::SocketAddr,
    num::NonZero,
    sync::Arc,
    thread::available_parallelism,
    time::Instant,
};

use anyhow::{anyhow, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, mpsc},
    task::{JoinHandle, block_in_place},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    admin::{self, Admin, Command, Place, Rights},
    capture::Capture,
    config::{Config, Live, cli::Settings, file},
    diagnostics::Diagnostics,
    limits::{LOG_FLUSH_TIMEOUT, MAX_PASSWORD_CHECKS, MAX_TUNNELS, STOP_TIME},
    metrics::Metrics,
    parent::watch,
    policy::audit::audit,
    progress::report,
    relay::selection::{EngineChoice, Room, Selection, select as select_engine},
    reload::Reloader,
    server::Server,
    service,
    session::{Current, Shared, pseudonym},
    shaping::Buckets,
    units,
};

/// Runs the proxy until a signal ends it.
///
/// # Errors
/// Whatever keeps the proxy from starting, in words for the operator.
pub async fn run(
    settings: Settings,
    mut config: Config,
    diagnostics: &Diagnostics,
) -> anyhow::Result<()> {
    // Before anything that takes time, in which a file might change.
    let mut reloader = Reloader::new(settings, &config);
    let cores = available_parallelism().map_or(1, NonZero::get);
    let room = room(&config.live, cores * config.listen.len());
    let tunnels = room.tunnels;
    let groups = listeners::open(&config, cores)?;
    let addresses: Vec<_> = groups.iter().map(|group| group.address).collect();
    let (commands, mut asked) = mpsc::channel(1);
    let admin = Admin::new(commands, diagnostics.levels().clone());
    let endpoints = open_admin(&config.admin, &admin)?;
    config
        .live
        .open_logs(None)
        .map_err(|error| anyhow!("{error}; --access-log PATH or - takes another place"))?;

    let selection = match select_engine(config.live.engine_choices(), room).await {
        Ok(selection) => selection,
        Err((engine, missing)) => {
            bail!("engine {engine} cannot be had: {missing}; or use --engine auto")
        }
    };
    report_engines(&config.live, &selection);
    report_room(tunnels);
    report_policy(&config, &addresses);

    let shared = Shared {
        current: Current::new(config.live),
        listeners: addresses,
        relay: selection.relay,
        registry: Arc::default(),
        buckets: Buckets::default(),
        pool: Arc::default(),
        checks: Arc::new(Semaphore::new(MAX_PASSWORD_CHECKS.min(cores))),
        metrics: Metrics::default(),
        diagnostics: diagnostics.lines().clone(),
        room: tunnels,
        began: Instant::now(),
        draining: CancellationToken::new(),
        pseudonym: pseudonym(),
    };
    let server = Server::new(shared, tunnels);
    let mut signals = Signals::new()?;
    tokio::spawn(watch(Arc::clone(server.shared())));
    tokio::spawn(report(Arc::clone(server.shared())));
    for group in groups {
        let name: Arc<str> = group.listener.name.into();
        for socket in group.sockets {
            let address = group.listener.address;
            let accept = Arc::clone(&server).accept(socket, address, Arc::clone(&name));
            tokio::spawn(accept);
        }
        info!("listening on {}", group.address);
    }
    Capture::begin(&server)?;
    admin.begin(Arc::clone(server.shared()));
    service::ready();
    tokio::spawn(service::report(Arc::clone(server.shared())));
    obey(&server, &mut signals, &mut reloader, &mut asked).await;
    for endpoint in endpoints {
        endpoint.abort();
    }
    select! {
        () = server.stop() => {}
        name = signals.stop() => info!("{name} again: stopping at once"),
    }
    info!("tunnels carried: {}", server.relay().tally());
    let (accepted, refused) = server.shared().registry.reloads();
    if accepted + refused > 0 {
        info!(accepted, refused, "the configuration was read again");
    }
    for (rule, requests) in server.shared().registry.would_deny() {
        info!(rule, requests, "would have been denied");
    }
    let live = server.shared().current.get();
    if let Err(log) = block_in_place(|| live.flush_logs(LOG_FLUSH_TIMEOUT)) {
        bail!("the last lines of the access log could not be written in time: {log}");
    }
    Ok(())
}

/// Does what signals and the admin endpoint ask for, until that is to stop.
async fn obey(
    server: &Server,
    signals: &mut Signals,
    reloader: &mut Reloader,
    asked: &mut mpsc::Receiver<Command>,
) {
    let attended = io::stdin().is_terminal() || io::stderr().is_terminal();
    // Whoever is still there then is reset.
    let mut deadline = None;
    loop {
        let request = select! {
            request = signals.next() => request,
            Some(command) = asked.recv() => Request::Asked(command),
            () = reloader.changed() => Request::FileChanged,
            () = server.drained() => {
                info!("the last client has left: stopping");
                break;
            }
            () = until(deadline) => {
                let clients = server.shared().registry.all_connections();
                if clients > 0 {
                    warn!(clients, "the time to drain is over: resetting what is still open");
                }
                break;
            }
        };
        match request {
            // Whoever was to be told is told.
            Request::FileChanged => _ = reload(reloader, server, "a file has changed"),
            Request::Asked(Command::Reload(answer)) => {
                let outcome = reload(reloader, server, "asked at the admin endpoint");
                // Somebody who does not wait may read the diagnostics.
                let _ = answer.send(outcome);
            }
            Request::Asked(Command::Drain) => {
                info!("draining: no more clients are served");
                server.drain();
            }
            // The terminal was closed.
            Request::Reload if attended => {
                info!("SIGHUP from the terminal: stopping");
                break;
            }
            Request::Reload => {
                // The diagnostics tell.
                let _ = reload(reloader, server, "SIGHUP");
                server.shared().current.get().reopen_logs();
            }
            Request::Reopen => {
                info!("SIGUSR1: opening the access log again");
                server.shared().current.get().reopen_logs();
            }
            Request::Drain if deadline.is_none() => {
                let time = server.shared().current.get().drain_timeout;
                server.drain();
                service::stopping(time + STOP_TIME);
                deadline = Some(Instant::now() + time);
                let clients = server.shared().registry.all_connections();
                info!(
                    clients,
                    "SIGTERM: draining for {} at most",
                    units::duration(time)
                );
            }
            Request::Drain => {
                info!("SIGTERM again: stopping at once");
                break;
            }
            Request::Stop(name) => {
                info!("{name}: stopping");
                break;
            }
        }
    }
}

/// Reads the configuration again, and tells the service manager.
fn reload(reloader: &mut Reloader, server: &Server, why: &str) -> Result<String, String> {
    service::reloading();
    let outcome = reloader.reload(server.shared(), why);
    service::ready();
    outcome
}

/// Returns then, if ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

fn report_room(tunnels: u32) {
    if tunnels < MAX_TUNNELS {
        info!("room for {tunnels} tunnels; a higher limit of open files (ulimit -n) makes more");
    } else {
        info!("room for {tunnels} tunnels");
    }
}

/// Opens the admin endpoint, as it is configured. The usual socket is done without where there is none to be had.
fn open_admin(config: &file::Admin, admin: &Arc<Admin>) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let mut endpoints = Vec::new();
    let tcp = [
        (
            config.listen.as_ref().map(|address| address.0.0),
            Rights::View,
        ),
        (
            config.metrics_listen.as_ref().map(|address| address.0),
            Rights::Metrics,
        ),
    ];
    for (address, rights) in tcp {
        if let Some(address) = address {
            let endpoint = admin::open(admin, &Place::Tcp(address), rights);
            let endpoint = endpoint
                .map_err(|error| anyhow!("cannot open the admin endpoint at {address}: {error}"))?;
            endpoints.push(endpoint);
            if rights == Rights::Metrics {
                info!("metrics at http://{address}/metrics");
            } else {
                info!("admin endpoint at http://{address}, to look only");
            }
        }
    }
    let (path, is_wanted) = match &config.socket {
        Some(socket) => (socket.0.0.clone(), true),
        None => (admin::default_socket(), false),
    };
    if let Some(path) = path {
        let shown = path.display().to_string();
        match admin::open(admin, &Place::Socket(path), Rights::Full) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(error) if is_wanted => bail!("cannot open the admin socket {shown}: {error}"),
            Err(error) => {
                info!("no admin socket at {shown}: {error}; --admin-socket takes another place");
            }
        }
    }
    Ok(endpoints)
}

/// Says what is suspicious about the policy, or was left out of it.
fn report_policy(config: &Config, addresses: &[SocketAddr]) {
    for notice in &config.notices {
        info!("{notice}");
    }
    let policy = &config.live.policy;
    let is_outside = addresses.iter().any(|address| !address.ip().is_loopback());
    if is_outside && policy.is_for_loopback_only() {
        warn!(
            "only clients on loopback are allowed; --allow-client CIDR lets others use the proxy"
        );
    }
    for warning in audit(policy, addresses) {
        warn!("{}", warning.in_words(""));
    }
}

/// Says which engine runs, why, and what would make it a better one.
fn report_engines(live: &Live, selection: &Selection) {
    let engines = &live.engines;
    match (&selection.no_sockmap, &selection.no_splice) {
        (Some(no_sockmap), Some(no_splice)) => warn!("engine copy: {no_sockmap}; {no_splice}"),
        (Some(no_sockmap), None) => warn!("engine splice: {no_sockmap}"),
        (None, Some(no_splice)) => warn!("engine sockmap: {no_splice}"),
        (None, None) if engines.default == EngineChoice::Auto => {
            info!("engine auto: by how a tunnel behaves (copy, splice, sockmap)");
        }
        (None, None) => info!("engine {}: as configured", engines.default),
    }
    if !engines.rules.is_empty() {
        let rules = engines.rules.len();
        info!("rules for the engine of some targets: {rules}");
    }
}

/// What a signal asks for.
enum Request {
    /// To read the configuration again.
    Reload,
    /// To open the access log again.
    Reopen,
    /// To read it again, since a file has changed.
    FileChanged,
    /// What the admin endpoint was asked for.
    Asked(Command),
    /// To serve no more clients, and to end with the last of them or when they had time enough.
    Drain,
    /// To stop; with the signal's name.
    Stop(&'static str),
}

/// The signals that the proxy obeys.
struct Signals {
    hangup: Signal,
    user1: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Request {
        select! {
            _ = self.hangup.recv() => Request::Reload,
            _ = self.user1.recv() => Request::Reopen,
            _ = self.interrupt.recv() => Request::Stop("SIGINT"),
            _ = self.quit.recv() => Request::Stop("SIGQUIT"),
            _ = self.terminate.recv() => Request::Drain,
        }
    }

    /// The next signal that asks to stop.
    async fn stop(&mut self) -> &'static str {
        loop {
            match self.next().await {
                Request::Drain => return "SIGTERM",
                Request::Stop(name) => return name,
                _ => {}
            }
        }
    }
}

/// What the limit of descriptors allows beside so many listeners, after raising it as far as we may.
fn room(live: &Live, listeners: usize) -> Room {
    let limit = getrlimit(Resource::Nofile);
    // Failing to raise it leaves the lower limit, which is then what counts.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let pipes_used = live
        .engine_choices()
        .any(|choice| matches!(choice, EngineChoice::Auto | EngineChoice::Splice));
    Room::within(descriptors.saturating_sub(listeners as u64), pipes_used)
}
