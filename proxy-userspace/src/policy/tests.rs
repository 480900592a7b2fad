use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::http::{ProxyError, Refusal};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn networks(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The default guard with these destinations allowed in addition.
fn allowing(destinations: &[&str]) -> Guard {
    Guard {
        destinations: networks(destinations).into_iter().collect(),
        ..Guard::default()
    }
}

/// The reason of a denial, or that there is none.
fn reason(answer: Result<(), Denial>) -> String {
    answer.map_or_else(|denial| denial.to_string(), |()| "permitted".to_owned())
}

#[test]
fn the_default_lets_this_host_reach_public_addresses_on_443() {
    let policy = Guard::default();
    for client in ["127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(policy.client(ip(client)), Ok(()), "{client}");
    }
    assert_eq!(policy.port(443, None), Ok(()));
    assert_eq!(policy.port(80, Some("http")), Ok(()));
    assert!(policy.port(80, None).is_err() && policy.port(443, Some("http")).is_err());
    for address in ["1.1.1.1", "2606:4700:4700::1111"] {
        assert_eq!(policy.address(ip(address)), Ok(()), "{address}");
    }
}

#[test]
fn a_denial_says_what_was_denied_and_which_option_would_permit_it() {
    let policy = Guard::default();
    for (answer, expected) in [
        (
            policy.client(ip("10.1.2.3")),
            "client 10.1.2.3 may not use this proxy; --allow-client 10.1.2.3/32 would permit it",
        ),
        (
            policy.client(ip("::ffff:10.1.2.3")),
            "client 10.1.2.3 may not use this proxy; --allow-client 10.1.2.3/32 would permit it",
        ),
        (
            policy.client(ip("2606:4700::1")),
            "client 2606:4700::1 may not use this proxy; --allow-client 2606:4700::1/128 would permit it",
        ),
        (
            policy.port(25, None),
            "port 25 is not allowed; --allow-port 25 would permit it",
        ),
        (
            policy.address(ip("10.0.0.5")),
            "10.0.0.5 is a private address; --allow-destination 10.0.0.0/8 would permit it",
        ),
        (
            policy.address(ip("169.254.169.254")),
            "169.254.169.254 is a link-local address (cloud metadata services live there); \
             --allow-destination 169.254.0.0/16 would permit it",
        ),
        (
            policy.address(ip("::1")),
            "::1 is a loopback address; --allow-destination ::1/128 would permit it",
        ),
        (
            policy.address(ip("168.63.129.16")),
            "168.63.129.16 is a cloud's metadata service; --allow-destination 168.63.129.16/32 would permit it",
        ),
        (
            policy.own_address(ip("8.8.4.4")),
            "8.8.4.4 is an address of the proxy's own host; --allow-destination 8.8.4.4/32 would permit it",
        ),
        (
            policy.address(ip("fd00::1")),
            "fd00::1 is a unique local address; --allow-destination fc00::/7 would permit it",
        ),
        (
            policy.address(ip("::ffff:8.8.8.8")),
            "::ffff:8.8.8.8 is an IPv4-mapped address; --allow-destination ::ffff:0.0.0.0/96 would permit it",
        ),
        (
            allowing(&["64:ff9b::/96"]).address(ip("64:ff9b::10.0.0.1")),
            "64:ff9b::a00:1 leads to 10.0.0.1, which is a private address; \
             --allow-destination 10.0.0.0/8 would permit it",
        ),
    ] {
        assert_eq!(reason(answer), expected);
    }
}

#[test]
fn an_allowed_destination_opens_its_own_network_only() {
    for (allowed, address, is_permitted) in [
        (&["10.0.0.0/8"][..], "10.0.0.5", true),
        (&["10.0.0.0/8"], "11.0.0.5", true),
        (&["10.0.0.0/8"], "192.168.0.1", false),
        (&["10.0.0.5/32"], "10.0.0.6", false),
        (&["127.0.0.0/8"], "::1", false),
        // An IPv4 network is about IPv4 addresses, not about other spellings of them.
        (&["10.0.0.0/8"], "::ffff:10.0.0.5", false),
        (&["0.0.0.0/0"], "::ffff:10.0.0.5", false),
        (&["0.0.0.0/0"], "::1", false),
        (&["::/0"], "10.0.0.5", false),
        // An IPv6 network does not open the IPv4 addresses inside of it.
        (&["::/0"], "fd00::1", true),
        (&["::/0"], "::ffff:10.0.0.5", false),
        (&["::/0"], "::10.0.0.5", false),
        (&["::/0"], "64:ff9b::10.0.0.5", false),
        (&["::/0"], "2002:a00:5::1", false),
        (&["::/0"], "2001:0:4136:e378:8000:63bf:f5ff:fffa", false),
        (&["64:ff9b::/96"], "64:ff9b::8.8.8.8", true),
        (&["64:ff9b::/96"], "64:ff9b::169.254.169.254", false),
        (&["64:ff9b::/96"], "64:ff9b::127.0.0.1", false),
        (&["64:ff9b::/96", "10.0.0.0/8"], "64:ff9b::10.0.0.5", true),
        (
            &["64:ff9b::/96", "10.0.0.0/8"],
            "64:ff9b::192.168.0.5",
            false,
        ),
    ] {
        let answer = allowing(allowed).address(ip(address));
        assert_eq!(
            answer.is_ok(),
            is_permitted,
            "{address} with {allowed:?}: {}",
            reason(answer)
        );
    }
}

#[test]
fn an_own_address_is_open_when_its_network_is_allowed() {
    let policy = allowing(&["8.8.4.0/24"]);
    assert_eq!(policy.own_address(ip("8.8.4.4")), Ok(()));
    assert!(policy.own_address(ip("8.8.5.4")).is_err());
}

#[test]
fn an_empty_list_of_clients_or_ports_permits_none() {
    let policy = Guard {
        clients: NetworkSet::default(),
        ports: PortSet::from_iter([]),
        ..Guard::default()
    };
    assert!(policy.client(ip("127.0.0.1")).is_err());
    assert!(policy.port(443, None).is_err());
}

#[test]
fn a_denial_becomes_a_403_with_the_error_of_its_kind() {
    let policy = Guard::default();
    let through_nat64 = allowing(&["64:ff9b::/96"]);
    for (answer, expected) in [
        (policy.client(ip("10.1.2.3")), ProxyError::HttpRequestDenied),
        (policy.port(25, None), ProxyError::HttpRequestDenied),
        (
            policy.address(ip("10.0.0.5")),
            ProxyError::DestinationIpProhibited,
        ),
        (
            policy.own_address(ip("8.8.4.4")),
            ProxyError::DestinationIpProhibited,
        ),
        (
            through_nat64.address(ip("64:ff9b::10.0.0.1")),
            ProxyError::DestinationIpProhibited,
        ),
    ] {
        let denial = answer.unwrap_err();
        let refusal = Refusal::from(denial);
        assert_eq!(refusal.status().code(), 403, "{denial}");
        assert_eq!(refusal.error(), expected, "{denial}");
        assert_eq!(refusal.reason(), denial.to_string());
    }
}

proptest! {
    #[test]
    fn the_option_that_a_denial_names_does_permit_the_address(address: IpAddr) {
        let mut allowed = Vec::new();
        // At most two steps: the address itself, then the IPv4 address inside it.
        for _step in 0..3 {
            let policy = Guard {
                destinations: allowed.iter().copied().collect(),
                ..Guard::default()
            };
            match policy.address(address) {
                Ok(()) => return Ok(()),
                Err(Denial::Address { block, .. } | Denial::Embedded { block, .. }) => allowed.push(block.network),
                Err(other) => panic!("{other}"),
            }
        }
        prop_assert!(false, "{address} is still denied with {allowed:?}");
    }

    #[test]
    fn no_spelling_of_a_denied_ipv4_address_is_permitted(inner: Ipv4Addr) {
        let policy = allowing(&["::/0"]);
        let plain = policy.address(IpAddr::V4(inner)).is_ok();
        let [a, b, c, d] = inner.octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        for spelling in [
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, 1, 2, 3, 4, !high, !low),
        ] {
            prop_assert_eq!(policy.address(IpAddr::V6(spelling)).is_ok(), plain, "{}", spelling);
        }
    }
}
