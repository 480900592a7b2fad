//! Bandwidth: token buckets, which tunnels take their bytes from.
//!
//! Bytes flow into a bucket at its rate, up to its size; a tunnel may read as much as there is in each of
//! its buckets, and waits while one of them is empty. Which tunnels share a bucket is said by its
//! [`Sharing`]. Buckets outlive a reload, so that a new configuration gives nobody a second helping.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use crate::config::file::Sharing;

/// A bucket as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketSpec {
    /// Its name.
    pub name: String,
    /// Bytes that flow into it, in a second.
    pub rate: u64,
    /// Bytes that it holds.
    pub size: u64,
    /// Who shares one.
    pub per: Sharing,
    /// Whose bytes count.
    pub direction: Direction,
}

/// Which bytes of a tunnel count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the client.
    Down,
    /// From the client.
    Up,
    /// Both.
    Both,
}

impl BucketSpec {
    /// A bucket that holds the bytes of a second.
    #[must_use]
    pub fn simple(name: &str, rate: u64, per: Sharing) -> Self {
        Self {
            name: name.to_owned(),
            rate,
            size: rate,
            per,
            direction: Direction::Both,
        }
    }
}

/// Who takes from a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Sharer {
    All,
    Address(IpAddr),
    User(String),
}

/// The buckets that are in use.
#[derive(Debug, Default)]
pub struct Buckets(Mutex<HashMap<(String, Sharer), Weak<Bucket>>>);

/// The buckets of one tunnel.
#[derive(Debug, Default)]
pub struct Shaper {
    up: Vec<Arc<Bucket>>,
    down: Vec<Arc<Bucket>>,
}

impl Buckets {
    /// The buckets of a tunnel of this client and user; none if it has no limit.
    pub fn shaper(
        &self,
        specs: &[&Arc<BucketSpec>],
        client: IpAddr,
        user: Option<&str>,
    ) -> Option<Arc<Shaper>> {
        let mut shaper = Shaper::default();
        for spec in specs {
            let bucket = self.bucket(spec, client, user);
            if spec.direction != Direction::Down {
                shaper.up.push(Arc::clone(&bucket));
            }
            if spec.direction != Direction::Up {
                shaper.down.push(bucket);
            }
        }
        let is_limited = !shaper.up.is_empty() || !shaper.down.is_empty();
        is_limited.then(|| Arc::new(shaper))
    }

    fn bucket(&self, spec: &BucketSpec, client: IpAddr, user: Option<&str>) -> Arc<Bucket> {
        let sharer = match (spec.per, user) {
            (Sharing::Tunnel, _) => return Arc::new(Bucket::new(spec)),
            (Sharing::All, _) => Sharer::All,
            (Sharing::Client, _) | (Sharing::User, None) => Sharer::Address(client),
            (Sharing::Network, _) => Sharer::Address(network(client)),
            (Sharing::User, Some(user)) => Sharer::User(user.to_owned()),
        };
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (spec.name.clone(), sharer);
        let known = buckets.get(&key).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| known.is_of(spec)) {
            return known;
        }
        if buckets.len() == buckets.capacity() {
            buckets.retain(|_, bucket| bucket.strong_count() > 0);
        }
        let bucket = Arc::new(Bucket::new(spec));
        buckets.insert(key, Arc::downgrade(&bucket));
        bucket
    }
}

impl Shaper {
    /// The buckets of the bytes from the client.
    pub(crate) fn up(&self) -> &[Arc<Bucket>] {
        &self.up
    }

    /// The buckets of the bytes to the client.
    pub(crate) fn down(&self) -> &[Arc<Bucket>] {
        &self.down
    }
}

/// Waits until so many bytes may pass, and takes them. What is more than there is will be waited for by those behind.
pub(crate) async fn pass(buckets: &[Arc<Bucket>], bytes: usize) {
    loop {
        let now = Instant::now();
        let waits = buckets
            .iter()
            .filter_map(|bucket| bucket.available(now).err());
        let Some(wait) = waits.max() else { break };
        tokio::time::sleep(wait).await;
    }
    let now = Instant::now();
    for bucket in buckets {
        bucket.take(bytes, now);
    }
}

/// A bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: u64,
    size: u64,
    level: Mutex<Level>,
}

/// How full a bucket was.
#[derive(Debug)]
struct Level {
    /// Bytes, in billionths, so that slow buckets fill as well. Below nothing where several tunnels read at
    /// once what there was once: they have to wait for it, or the rate would be exceeded by each of them.
    nanobytes: i128,
    at: Instant,
}

const NANO: i128 = 1_000_000_000;

impl Bucket {
    fn new(spec: &BucketSpec) -> Self {
        Self {
            rate: spec.rate,
            size: spec.size,
            level: Mutex::new(Level {
                nanobytes: i128::from(spec.size) * NANO,
                at: Instant::now(),
            }),
        }
    }

    fn is_of(&self, spec: &BucketSpec) -> bool {
        (self.rate, self.size) == (spec.rate, spec.size)
    }

    /// How much may be read, or how long to wait until it is worth while.
    pub(crate) fn available(&self, now: Instant) -> Result<u64, Duration> {
        let level = self.level(now).nanobytes;
        // Some 20 ms of it at once: less would be a wake-up for every few bytes.
        let worth = i128::from((self.rate / 50).clamp(1, self.size)) * NANO;
        if level >= worth {
            return Ok(u64::try_from(level / NANO).unwrap_or(u64::MAX));
        }
        let missing = (worth - level) / i128::from(self.rate.max(1)) + 1;
        Err(Duration::from_nanos(
            u64::try_from(missing).unwrap_or(u64::MAX),
        ))
    }

    /// Takes bytes out that were read.
    pub(crate) fn take(&self, bytes: usize, now: Instant) {
        let mut level = self.level(now);
        let bytes = i128::try_from(bytes).unwrap_or(i128::MAX / NANO);
        level.nanobytes = level.nanobytes.saturating_sub(bytes * NANO);
    }

    fn level(&self, now: Instant) -> std::sync::MutexGuard<'_, Level> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(level.at).as_nanos();
        // Centuries of it fill any bucket.
        let passed = i128::from(u64::try_from(passed).unwrap_or(u64::MAX));
        let inflow = passed.saturating_mul(i128::from(self.rate));
        let full = i128::from(self.size) * NANO;
        level.nanobytes = level.nanobytes.saturating_add(inflow).min(full);
        level.at = level.at.max(now);
        level
    }
}

/// The network of a client, where one stands for all of a household or an office.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (!0 << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(per: Sharing) -> Arc<BucketSpec> {
        Arc::new(BucketSpec::simple("b", 1000, per))
    }

    fn client(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_bucket_gives_its_rate_and_its_size_once() {
        let bucket = Bucket::new(&spec(Sharing::All));
        let begin = bucket.level.lock().unwrap().at;
        assert_eq!(bucket.available(begin), Ok(1000));
        bucket.take(1000, begin);
        let wait = bucket.available(begin).unwrap_err();
        assert!(
            wait > Duration::from_millis(19) && wait < Duration::from_millis(21),
            "{wait:?}"
        );
        let later = begin + Duration::from_millis(500);
        assert_eq!(bucket.available(later), Ok(500));
        // Another tunnel was as quick: both wait for what was too much.
        bucket.take(500, later);
        bucket.take(500, later);
        let wait = bucket.available(later).unwrap_err();
        assert!(
            wait > Duration::from_millis(519) && wait < Duration::from_millis(521),
            "{wait:?}"
        );
        assert_eq!(bucket.available(later + Duration::from_secs(60)), Ok(1000));
        // Over ten seconds no more than rate and size.
        let (mut now, mut given) = (later + Duration::from_secs(60), 0);
        let end = now + Duration::from_secs(10);
        while now < end {
            match bucket.available(now) {
                Ok(bytes) => {
                    bucket.take(usize::try_from(bytes).unwrap(), now);
                    given += bytes;
                }
                Err(pause) => now += pause,
            }
        }
        assert!((10_900..=11_100).contains(&given), "{given}");
    }

    #[test]
    fn buckets_are_shared_as_they_say() {
        let buckets = Buckets::default();
        let same = |per, (one, one_user), (other, other_user)| {
            let spec = spec(per);
            let one = buckets.bucket(&spec, client(one), one_user);
            let other = buckets.bucket(&spec, client(other), other_user);
            Arc::ptr_eq(&one, &other)
        };
        assert!(same(Sharing::All, (1, None), (2, None)));
        assert!(same(Sharing::Client, (1, None), (1, Some("a"))));
        assert!(!same(Sharing::Client, (1, None), (2, None)));
        assert!(same(Sharing::Network, (1, None), (2, None)));
        assert!(same(Sharing::User, (1, Some("a")), (2, Some("a"))));
        assert!(!same(Sharing::User, (1, Some("a")), (1, Some("b"))));
        assert!(!same(Sharing::Tunnel, (1, None), (1, None)));
    }

    #[test]
    fn what_is_not_used_any_more_is_forgotten() {
        let buckets = Buckets::default();
        for n in 0..10_000_u32 {
            drop(buckets.bucket(&spec(Sharing::Client), Ipv4Addr::from_bits(n).into(), None));
        }
        assert!(buckets.0.lock().unwrap().len() < 100);
    }
}
