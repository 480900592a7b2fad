//! What is measured, and how.

use std::{
    io,
    net::{Shutdown, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use proxy_tests::lab::Lab;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{
    ends::{MESSAGE, Order, Origin, clients, connect, drain, pump, round_trip},
    results::{Metric, Sample},
    subject::Subject,
    usage::{cpu_seconds, resident_bytes, slab_bytes},
};

/// Which way bulk goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    Down,
    Up,
    Both,
}

/// One kind of measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scenario {
    /// As fast as it goes, between ends that do not copy.
    Bulk {
        tunnels: usize,
        direction: Direction,
    },
    /// A fixed rate in bursts, below saturation, between ends that copy.
    Paced { burst: u64, rate: u64 },
    /// Messages to and fro, the next when the last is back.
    RoundTrips { tunnels: usize, one_cpu: bool },
    /// Messages at fixed times, whether or not the last is back.
    OpenLoop { tunnels: usize, rate: usize },
    /// One short tunnel after another, by so many clients.
    ShortTunnels { clients: usize },
    /// Tunnels that say nothing.
    Idle { tunnels: usize },
}

/// Time before a measurement of what goes on and on, for windows to open and for `auto` to choose.
const WARM_UP: Duration = Duration::from_millis(400);

impl Scenario {
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for direction in [Direction::Down, Direction::Up, Direction::Both] {
            for tunnels in [1, 8, 64] {
                all.push(Self::Bulk { tunnels, direction });
            }
        }
        for (burst, rate) in [
            (1400, 12_500_000),
            (16 << 10, 100_000_000),
            (32 << 10, 200_000_000),
            (64 << 10, 400_000_000),
        ] {
            all.push(Self::Paced { burst, rate });
        }
        for (tunnels, one_cpu) in [(1, false), (1, true), (64, false)] {
            all.push(Self::RoundTrips { tunnels, one_cpu });
        }
        all.push(Self::OpenLoop {
            tunnels: 64,
            rate: 6400,
        });
        all.push(Self::ShortTunnels { clients: 8 });
        all.push(Self::Idle { tunnels: 3000 });
        all
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Bulk { tunnels, direction } => {
                format!("bulk {tunnels} {}", format!("{direction:?}").to_lowercase())
            }
            Self::Paced { burst, rate } => format!(
                "paced {} KB at {:.1} Gbit/s",
                (*burst as f64 / 1024.0).ceil(),
                *rate as f64 * 8.0 / 1e9
            ),
            Self::RoundTrips { tunnels, one_cpu } => {
                let cpu = if *one_cpu { ", one CPU" } else { "" };
                format!("round trip {tunnels}{cpu}")
            }
            Self::OpenLoop { tunnels, rate } => format!("open loop {tunnels} at {rate}/s"),
            Self::ShortTunnels { clients } => format!("short tunnels {clients}"),
            Self::Idle { tunnels } => format!("idle {tunnels}"),
        }
    }

    /// Whether the short form has it.
    pub(crate) fn is_essential(&self) -> bool {
        matches!(
            self,
            Self::Bulk {
                tunnels: 1 | 8,
                direction: Direction::Down
            } | Self::Paced { burst: 16384, .. }
                | Self::RoundTrips { .. }
                | Self::ShortTunnels { .. }
        )
    }

    /// Measures it once.
    pub(crate) fn measure(
        &self,
        subject: &Subject<'_>,
        lab: &Lab,
        origin: &Origin,
        seconds: f64,
    ) -> Result<Sample, String> {
        let length = Duration::from_secs_f64(seconds);
        let run = Run {
            subject,
            lab,
            origin,
            length,
        };
        let sample = match *self {
            Self::Bulk { tunnels, direction } => run.bulk(tunnels, direction),
            Self::Paced { burst, rate } => run.paced(burst, rate),
            Self::RoundTrips { tunnels, one_cpu } => run.round_trips(tunnels, one_cpu),
            Self::OpenLoop { tunnels, rate } => run.open_loop(tunnels, rate),
            Self::ShortTunnels { clients } => run.short_tunnels(clients),
            Self::Idle { tunnels } => run.idle(tunnels),
        };
        sample.map_err(|error| error.to_string())
    }
}

/// One measurement on its way.
struct Run<'a> {
    subject: &'a Subject<'a>,
    lab: &'a Lab,
    origin: &'a Origin,
    length: Duration,
}

/// Counters at one moment.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    cpu: f64,
    down: u64,
    up: u64,
}

impl Run<'_> {
    fn bulk(&self, tunnels: usize, direction: Direction) -> io::Result<Sample> {
        let order = match direction {
            Direction::Down => Order::Source,
            Direction::Up => Order::Sink,
            Direction::Both => Order::Both,
        };
        let streams = clients(&self.lab.client, tunnels, |_| connect(self.subject, order))?;
        let down = AtomicU64::new(0);
        let now = || Moment {
            at: Instant::now(),
            cpu: cpu_seconds(),
            down: down.load(Relaxed),
            up: self.origin.received.load(Relaxed),
        };
        let (start, end) = thread::scope(|scope| {
            for stream in &streams {
                // They end when the stream is shut down.
                if direction != Direction::Up {
                    scope.spawn(|| drain(stream, &down));
                }
                if direction != Direction::Down {
                    scope.spawn(|| pump(stream));
                }
            }
            thread::sleep(WARM_UP);
            let start = now();
            thread::sleep(self.length);
            let end = now();
            for stream in &streams {
                let _ = stream.shutdown(Shutdown::Both);
            }
            (start, end)
        });
        drop(streams);
        self.settle();
        let (went_down, went_up) = (end.down - start.down, end.up - start.up);
        let bytes = (went_down + went_up) as f64;
        if bytes == 0.0 {
            return Err(io::Error::other("no byte arrived"));
        }
        let elapsed = (end.at - start.at).as_secs_f64();
        let mut sample = vec![
            (Metric::Throughput, bytes * 8.0 / elapsed / 1e9),
            (
                Metric::CpuPerGigabyte,
                (end.cpu - start.cpu) / (bytes / 1e9),
            ),
        ];
        if direction == Direction::Both {
            let slower = went_down.min(went_up) as f64;
            sample.push((Metric::Fairness, slower / went_down.max(went_up) as f64));
        }
        Ok(Sample(sample))
    }

    /// Lets connections that were cut off end, so that they do not disturb what comes next.
    fn settle(&self) {
        let mut last = u64::MAX;
        for _ in 0..50 {
            let received = self.origin.received.load(Relaxed);
            if received == last {
                break;
            }
            last = received;
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn paced(&self, burst: u64, rate: u64) -> io::Result<Sample> {
        // Long enough for the clock of `/proc/stat`.
        let bursts = (rate as f64 * self.length.as_secs_f64().max(2.0) / burst as f64).ceil();
        let bytes = bursts as u64 * burst;
        let order = Order::Paced { bytes, burst, rate };
        let cpu = cpu_seconds();
        let start = Instant::now();
        let received = clients(&self.lab.client, 1, |_| {
            let mut stream = connect(self.subject, order)?;
            let received = io::copy(&mut stream, &mut io::sink())?;
            stream.shutdown(Shutdown::Write)?;
            Ok(received)
        })?;
        let elapsed = start.elapsed().as_secs_f64();
        let received: u64 = received.iter().sum();
        if received != bytes {
            let wrong = format!("{received} bytes arrived of {bytes}");
            return Err(io::Error::other(wrong));
        }
        let bytes = bytes as f64;
        Ok(Sample(vec![
            (Metric::Throughput, bytes * 8.0 / elapsed / 1e9),
            (
                Metric::CpuPerGigabyte,
                (cpu_seconds() - cpu) / (bytes / 1e9),
            ),
        ]))
    }

    fn round_trips(&self, tunnels: usize, one_cpu: bool) -> io::Result<Sample> {
        let everywhere = sched_getaffinity(None)?;
        if one_cpu {
            let mut one = CpuSet::new();
            one.set(0);
            // Our threads to come, and those of the origin that are made from now on.
            self.pin(&one)?;
        }
        let sample = self.closed_loop(tunnels);
        if one_cpu {
            self.pin(&everywhere)?;
        }
        sample
    }

    /// Keeps everybody who takes part on these processors.
    fn pin(&self, cpus: &CpuSet) -> io::Result<()> {
        self.subject.pin(cpus);
        for thread in std::fs::read_dir("/proc/self/task")?.flatten() {
            let tid = thread.file_name().to_string_lossy().parse().ok();
            // It may have ended.
            let _ = sched_setaffinity(tid.and_then(rustix::process::Pid::from_raw), cpus);
        }
        Ok(())
    }

    fn closed_loop(&self, tunnels: usize) -> io::Result<Sample> {
        let stop = AtomicBool::new(false);
        let count = AtomicU64::new(0);
        let cpu = Mutex::new((0.0, 0, Duration::ZERO));
        thread::scope(|scope| {
            let work = scope.spawn(|| {
                clients(&self.lab.client, tunnels, |_| {
                    let mut stream = connect(self.subject, Order::Echo)?;
                    while !stop.load(Relaxed) {
                        round_trip(&mut stream)?;
                        count.fetch_add(1, Relaxed);
                    }
                    Ok(())
                })
            });
            thread::sleep(WARM_UP);
            let (start, used, done) = (Instant::now(), cpu_seconds(), count.load(Relaxed));
            thread::sleep(self.length);
            *cpu.lock().unwrap() = (
                cpu_seconds() - used,
                count.load(Relaxed) - done,
                start.elapsed(),
            );
            stop.store(true, Relaxed);
            work.join()
                .unwrap_or_else(|_| Err(io::Error::other("panicked")))
        })?;
        let (cpu, messages, elapsed) = cpu.into_inner().unwrap();
        if messages == 0 {
            return Err(io::Error::other("no message came back"));
        }
        let messages = messages as f64;
        Ok(Sample(vec![
            (
                Metric::RoundTrip,
                elapsed.as_secs_f64() * 1e6 * tunnels as f64 / messages,
            ),
            (Metric::Rate, messages / elapsed.as_secs_f64()),
            (Metric::CpuPerMessage, cpu * 1e6 / messages),
        ]))
    }

    fn open_loop(&self, tunnels: usize, rate: usize) -> io::Result<Sample> {
        let pace = Duration::from_secs_f64(tunnels as f64 / rate as f64);
        let each = (self.length.as_secs_f64() / pace.as_secs_f64()).ceil() as u32;
        let cpu = cpu_seconds();
        let times = clients(&self.lab.client, tunnels, |number| {
            let mut stream = connect(self.subject, Order::Echo)?;
            // Past the moment at which `auto` moves it.
            for _ in 0..20 {
                round_trip(&mut stream)?;
            }
            // Not all at once.
            let start = Instant::now() + pace.mul_f64(number as f64 / tunnels as f64);
            let mut times = Vec::with_capacity(each as usize);
            for message in 0..each {
                let due = start + pace * message;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                round_trip(&mut stream)?;
                // From when it was due: who is late once makes the next wait as well.
                times.push(due.elapsed());
            }
            Ok(times)
        })?;
        let cpu = cpu_seconds() - cpu;
        let mut times: Vec<_> = times.concat().iter().map(Duration::as_secs_f64).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (times.len() as f64 * share) as usize;
            times.get(place).copied().unwrap_or_default() * 1e6
        };
        Ok(Sample(vec![
            (Metric::RoundTrip, at(0.5)),
            (Metric::RoundTrip99, at(0.99)),
            (Metric::CpuPerMessage, cpu * 1e6 / times.len() as f64),
        ]))
    }

    fn short_tunnels(&self, count: usize) -> io::Result<Sample> {
        let cpu = cpu_seconds();
        let start = Instant::now();
        let done = clients(&self.lab.client, count, |_| {
            let mut done = 0_u32;
            while start.elapsed() < self.length {
                let mut stream = connect(self.subject, Order::Echo)?;
                round_trip(&mut stream)?;
                done += 1;
            }
            Ok(done)
        })?;
        let elapsed = start.elapsed().as_secs_f64();
        let tunnels = f64::from(done.iter().sum::<u32>());
        Ok(Sample(vec![
            (Metric::Tunnels, tunnels / elapsed),
            (Metric::CpuPerTunnel, (cpu_seconds() - cpu) * 1e6 / tunnels),
        ]))
    }

    fn idle(&self, tunnels: usize) -> io::Result<Sample> {
        let open = |count| -> io::Result<Vec<TcpStream>> {
            let streams = clients(&self.lab.client, 1, |_| {
                let opened: io::Result<Vec<_>> = (0..count)
                    .map(|_| {
                        let mut stream = connect(self.subject, Order::Idle)?;
                        round_trip(&mut stream)?;
                        Ok(stream)
                    })
                    .collect();
                opened
            })?;
            // For what is freed late.
            thread::sleep(Duration::from_millis(700));
            Ok(streams.into_iter().flatten().collect())
        };
        // What a process allocates once is there already.
        let first = open(100)?;
        let measure = || (resident_bytes(&self.subject.processes()), slab_bytes());
        let before = measure();
        let rest = open(tunnels);
        let after = measure();
        drop(first);
        let opened = rest.map(|streams| streams.len());
        self.origin.drop_idle();
        thread::sleep(Duration::from_millis(500));
        opened?;
        let tunnels = tunnels as f64;
        Ok(Sample(vec![
            (Metric::Resident, (after.0 - before.0) / tunnels),
            (Metric::Kernel, (after.1 - before.1) / tunnels),
        ]))
    }
}

const _: () = assert!(MESSAGE == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<_> = Scenario::all().iter().map(Scenario::name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
