//! Ordeals of tunnels without end, or for as many minutes as one likes: every engine over both IP versions, over good
//! cables and bad ones, drawn from a seed that is printed and can be given again.
#![expect(clippy::print_stdout, reason = "a long test talks to a person")]

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proxy_tests::{
    cable::Weather,
    client::Client,
    daemon::{Daemon, Setup},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    ordeal::Ordeal,
    origin::Origin,
    payload::Random,
    privilege::{namespaces_missing, sockmap_missing},
    tun,
};

/// Tunnels of one round, as many at a time as there are workers.
const TUNNELS: usize = 120;
const WORKERS: usize = 6;

/// What the command line says.
struct Options {
    minutes: u64,
    seed: u64,
    engine: Option<String>,
}

fn main() -> ExitCode {
    if let Some(reason) = namespaces_missing() {
        eprintln!("the soak test {reason}");
        return ExitCode::FAILURE;
    }
    let options = match options() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::FAILURE;
        }
    };
    println!("seed {}", options.seed);
    let start = Instant::now();
    let mut tunnels = 0;
    for round in 0.. {
        let seed = options.seed.wrapping_add(round);
        let plan = Plan::draw(seed, options.engine.as_deref());
        println!(
            "{:5} s, {tunnels} tunnels; round {round}: {plan:?}",
            start.elapsed().as_secs()
        );
        if let Err(wrong) = plan.run() {
            let engine = options
                .engine
                .map_or(String::new(), |engine| format!(" --engine {engine}"));
            eprintln!("{wrong}\nto repeat this round: cargo xtask soak --seed {seed}{engine}");
            return ExitCode::FAILURE;
        }
        tunnels += TUNNELS;
        if start.elapsed() >= Duration::from_secs(options.minutes * 60) {
            break;
        }
    }
    println!("{tunnels} tunnels, and every byte once");
    ExitCode::SUCCESS
}

/// `MINUTES SEED ENGINE`, where `-` leaves the choice to chance; `cargo xtask soak` has the help.
fn options() -> Result<Options, String> {
    let given: Vec<_> = std::env::args().skip(1).collect();
    let number = |place: usize| match given.get(place).map(String::as_str) {
        None | Some("-") => Ok(None),
        Some(text) => text
            .parse::<u64>()
            .map(Some)
            .map_err(|_| format!("'{text}' is no number")),
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    Ok(Options {
        minutes: number(0)?.unwrap_or(1),
        seed: number(1)?.unwrap_or(now),
        engine: given.get(2).filter(|engine| *engine != "-").cloned(),
    })
}

/// One round: a lab, a daemon, and many tunnels.
#[derive(Debug)]
struct Plan {
    seed: u64,
    engine: String,
    family: Family,
    weather: Option<Weather>,
}

impl Plan {
    fn draw(seed: u64, engine: Option<&str>) -> Self {
        let mut random = Random::new(seed);
        let engines: &[&str] = if sockmap_missing().is_none() {
            &["auto", "sockmap", "splice", "copy"]
        } else {
            &["auto", "splice", "copy"]
        };
        let drawn = engines.get(random.between(0, engines.len() - 1));
        let family = if random.between(0, 1) == 0 {
            Family::V4
        } else {
            Family::V6
        };
        let mut bad = |most| random.between(0, most);
        let weather = Weather {
            loss: bad(50),
            duplicate: bad(50),
            reorder: bad(80),
            overlap: bad(200),
        };
        let stormy = bad(1) == 0 && tun::missing().is_none();
        Self {
            seed,
            engine: engine.or(drawn.copied()).unwrap_or("auto").to_owned(),
            family,
            weather: stormy.then_some(weather),
        }
    }

    fn run(&self) -> Result<(), String> {
        let lab = match self.weather {
            Some(weather) => Lab::in_weather(weather, self.seed),
            None => Lab::new(),
        };
        let daemon = Setup::open(&lab).option("--engine", &self.engine).start();
        let origin_side = |_| Origin::bind(&lab.origin, self.family.origin());
        let origins: Vec<_> = (0..WORKERS).map(origin_side).collect();
        // Some pipes are kept for the next who needs one.
        let idle = descriptors(&daemon) + 128;
        let most = if self.weather.is_some() {
            200_000
        } else {
            8 << 20
        };
        thread::scope(|scope| {
            let workers: Vec<_> = origins
                .iter()
                .enumerate()
                .map(|(number, origin)| {
                    let lab = &lab;
                    scope.spawn(move || self.work(lab, origin, number as u64, most))
                })
                .collect();
            for worker in workers {
                worker
                    .join()
                    .unwrap_or_else(|_| Err("a worker panicked".to_owned()))?;
            }
            Ok::<_, String>(())
        })?;
        wait_for("the proxy to close every descriptor", PATIENCE, || {
            (descriptors(&daemon) <= idle).then_some(())
        });
        let records = daemon.wait_tunnel_records(TUNNELS);
        let wrong = records
            .iter()
            .find(|record| ["integrity", "error"].contains(&record.end.as_str()));
        wrong.map_or(Ok(()), |record| Err(format!("{record:?}")))
    }

    /// A share of the tunnels, one after the other.
    fn work(&self, lab: &Lab, origin: &Origin, number: u64, most: usize) -> Result<(), String> {
        let client = Client::new(&lab.client, self.family.proxy());
        let mut random = Random::new(self.seed ^ number << 32);
        for _ in 0..TUNNELS / WORKERS {
            let ordeal = Ordeal::draw(&mut random, most);
            let client = client.tunnel(&origin.target());
            ordeal
                .play(client, origin.accept())
                .map_err(|wrong| format!("{wrong}: {ordeal:?}"))?;
        }
        Ok(())
    }
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).map_or(0, Iterator::count)
}
