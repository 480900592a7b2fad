//! A bad cable: loses, repeats, reorders and re-segments packets, by chance that repeats from its seed.
//!
//! Two TUN devices and a thread for each way between them, so it needs nothing of the kernel but those.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    netns::Netns,
    payload::Random,
    segment::{self, Segment},
    tun,
};

/// What happens to packets, each in so many of 1000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Lost.
    pub loss: usize,
    /// Arrive twice.
    pub duplicate: usize,
    /// Arrive after one or more that were sent later.
    pub reorder: usize,
    /// Begin with bytes of the one before, as a sender's retransmission may.
    pub overlap: usize,
}

/// What has happened to packets so far.
#[derive(Debug, Default)]
pub struct Mishaps {
    /// Lost.
    pub lost: AtomicU64,
    /// Arrived with bytes of the one before.
    pub overlapped: AtomicU64,
}

/// The cable; unplugged on drop.
#[derive(Debug)]
pub struct BadCable {
    stop: Arc<AtomicBool>,
    /// What it did.
    pub mishaps: Arc<Mishaps>,
    ways: Vec<JoinHandle<()>>,
}

impl BadCable {
    /// Joins two namespaces, with a device `name` in each.
    ///
    /// # Panics
    ///
    /// When there are no TUN devices.
    pub fn plug(ends: [&Netns; 2], name: &str, weather: Weather, seed: u64) -> Self {
        let [one, other] = ends.map(|netns| Arc::new(tun::open(netns, name)));
        let stop = Arc::new(AtomicBool::new(false));
        let mishaps = Arc::new(Mishaps::default());
        let ways = [(&one, &other, seed), (&other, &one, !seed)].map(|(from, to, seed)| {
            let way = Way {
                from: Arc::clone(from),
                to: Arc::clone(to),
                weather,
                random: Random::new(seed),
                mishaps: Arc::clone(&mishaps),
                held: None,
                before: None,
            };
            let stop = Arc::clone(&stop);
            thread::spawn(move || way.run(&stop))
        });
        Self {
            stop,
            mishaps,
            ways: ways.into(),
        }
    }
}

impl Drop for BadCable {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for way in self.ways.drain(..) {
            // Its panic has been printed.
            drop(way.join());
        }
    }
}

/// One way through the cable.
struct Way {
    from: Arc<File>,
    to: Arc<File>,
    weather: Weather,
    random: Random,
    mishaps: Arc<Mishaps>,
    /// A packet that waits to be overtaken.
    held: Option<Vec<u8>>,
    /// The last segment with payload.
    before: Option<Segment>,
}

impl Way {
    fn run(mut self, stop: &AtomicBool) {
        let mut buffer = vec![0; 65536];
        let patience = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        while !stop.load(Relaxed) {
            let mut readable = [PollFd::new(&self.from, PollFlags::IN)];
            if poll(&mut readable, Some(&patience)).is_ok_and(|ready| ready == 0) {
                // Nothing overtakes it any more.
                if let Some(packet) = self.held.take() {
                    self.put(&packet);
                }
                continue;
            }
            while let Ok(len) = (&*self.from).read(&mut buffer) {
                let packet = buffer.get(..len).unwrap_or_default();
                self.pass(packet);
            }
        }
    }

    /// Whether something happens that does in so many of 1000.
    fn chance(&mut self, of_1000: usize) -> bool {
        of_1000 > 0 && self.random.between(1, 1000) <= of_1000
    }

    fn pass(&mut self, packet: &[u8]) {
        // A reset is sent once: who misses it would have to wait for a keepalive.
        if self.chance(self.weather.loss) && !segment::is_reset(packet) {
            self.mishaps.lost.fetch_add(1, Relaxed);
            return;
        }
        let segment = Segment::parse(packet);
        if let Some(segment) = &segment {
            let overlap = self.chance(self.weather.overlap);
            let back = self.random.between(1, 700);
            if overlap
                && let Some(before) = &self.before
                && let Some(longer) = segment.reaching_back(before, back)
            {
                self.mishaps.overlapped.fetch_add(1, Relaxed);
                self.put(&longer);
                self.before = Some(segment.clone());
                return;
            }
        }
        if segment.is_some() {
            self.before = segment;
        }
        if self.held.is_none() && self.chance(self.weather.reorder) {
            self.held = Some(packet.to_owned());
            return;
        }
        self.put(packet);
        if self.chance(self.weather.duplicate) {
            self.put(packet);
        }
        if self.chance(500)
            && let Some(packet) = self.held.take()
        {
            self.put(&packet);
        }
    }

    fn put(&self, packet: &[u8]) {
        // A full queue loses it, as queues do.
        drop((&*self.to).write(packet));
    }
}
