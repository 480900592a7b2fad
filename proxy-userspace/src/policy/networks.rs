//! A set of addresses, asked in logarithmic time however many networks made it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The union of some address ranges. IPv4 and IPv6 are apart: `::/0` holds no IPv4 address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

/// Disjoint ranges, both ends included, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges<T>(Vec<(T, T)>);

impl NetworkSet {
    /// Whether the address is in one of the networks.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(address.to_bits()),
            IpAddr::V6(address) => self.v6.contains(address.to_bits()),
        }
    }

    /// Whether no address but those of this host's loopback is in it.
    #[must_use]
    pub fn is_loopback_only(&self) -> bool {
        let v4 = |&(first, last): &(u32, u32)| {
            Ipv4Addr::from_bits(first).is_loopback() && Ipv4Addr::from_bits(last).is_loopback()
        };
        let v6 = |&(first, last): &(u128, u128)| {
            Ipv6Addr::from_bits(first).is_loopback() && first == last
        };
        self.v4.0.iter().all(v4) && self.v6.0.iter().all(v6)
    }

    /// Whether everybody on the Internet is in it, of one IP version at least.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.v4.0 == [(0, u32::MAX)] || self.v6.0 == [(0, u128::MAX)]
    }

    /// Whether every address of `other` is in this set.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.v4.covers(&other.v4) && self.v6.covers(&other.v6)
    }
}

impl FromIterator<IpNet> for NetworkSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let ends = |network: IpNet| (network.network(), network.broadcast());
        networks.into_iter().map(ends).collect()
    }
}

/// From ranges whose ends belong to them. A range whose ends are of two IP versions has no address.
impl FromIterator<(IpAddr, IpAddr)> for NetworkSet {
    fn from_iter<I: IntoIterator<Item = (IpAddr, IpAddr)>>(ranges: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for range in ranges {
            match range {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    v4.push((first.to_bits(), last.to_bits()));
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    v6.push((first.to_bits(), last.to_bits()));
                }
                _ => {}
            }
        }
        Self {
            v4: Ranges::new(v4),
            v6: Ranges::new(v6),
        }
    }
}

impl<T: Copy + Ord> Ranges<T> {
    fn new(mut ranges: Vec<(T, T)>) -> Self {
        ranges.retain(|(first, last)| first <= last);
        ranges.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    fn contains(&self, item: T) -> bool {
        self.around(item).is_some()
    }

    /// The range that holds the item.
    fn around(&self, item: T) -> Option<(T, T)> {
        let above = self.0.partition_point(|&(first, _)| first <= item);
        let range = *self.0.get(above.checked_sub(1)?)?;
        (range.1 >= item).then_some(range)
    }

    fn covers(&self, other: &Self) -> bool {
        let is_within =
            |&(first, last): &(T, T)| self.around(first).is_some_and(|(_, end)| end >= last);
        other.0.iter().all(is_within)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(networks: &[&str]) -> NetworkSet {
        networks
            .iter()
            .map(|text| text.parse::<IpNet>().unwrap())
            .collect()
    }

    #[test]
    fn the_ip_versions_are_apart() {
        let all = set(&["::/0"]);
        assert!(all.contains("::1".parse().unwrap()));
        assert!(!all.contains("127.0.0.1".parse().unwrap()));
        assert!(all.is_everything() && !all.is_loopback_only());
        assert!(set(&["127.0.0.0/8", "::1/128"]).is_loopback_only());
        assert!(!set(&["127.0.0.0/8", "::/127"]).is_loopback_only());
    }

    #[test]
    fn a_set_covers_what_is_within_one_of_its_ranges() {
        let set_of = |texts: &[&str]| set(texts);
        let wide = set_of(&["10.0.0.0/8", "192.168.0.0/16"]);
        assert!(wide.covers(&set_of(&["10.1.0.0/16", "192.168.3.4/32"])));
        assert!(!wide.covers(&set_of(&["10.1.0.0/16", "172.16.0.0/12"])));
        assert!(!wide.covers(&set_of(&["0.0.0.0/0"])));
        assert!(wide.covers(&NetworkSet::default()));
    }

    proptest! {
        #[test]
        fn a_set_holds_what_one_of_its_networks_holds(
            networks in prop::collection::vec((any::<u32>(), 0u8..=32), 0..30),
            addresses in prop::collection::vec(any::<u32>(), 30),
        ) {
            let networks: Vec<IpNet> = networks
                .into_iter()
                .map(|(bits, length)| {
                    IpNet::new(Ipv4Addr::from_bits(bits).into(), length).unwrap().trunc()
                })
                .collect();
            let set: NetworkSet = networks.iter().copied().collect();
            let ends = networks.iter().flat_map(|net| [net.network(), net.broadcast()]);
            let others = addresses.into_iter().map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
            for address in ends.chain(others) {
                let expected = networks.iter().any(|network| network.contains(&address));
                prop_assert_eq!(set.contains(address), expected, "{}", address);
            }
        }
    }
}
