use super::*;

fn class(address: &str) -> Option<AddressClass> {
    AddressClass::of(address.parse().unwrap())
}

#[test]
fn public_addresses_have_no_class() {
    for address in [
        "1.0.0.0",
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2000::",
        "2001:200::1",
        "2001:db7:ffff::1",
        "2001:db9::",
        "2003::1",
        "2606:4700:4700::1111",
        "2a00:1450::1",
        "3ffe::1",
        "3fff:1000::",
    ] {
        assert_eq!(class(address), None, "{address}");
    }
}

/// First address, last address, class.
const SPECIAL: &[(&str, &str, AddressClass)] = {
    use AddressClass as C;
    &[
        ("0.0.0.0", "0.255.255.255", C::Unspecified),
        ("10.0.0.0", "10.255.255.255", C::Private),
        ("100.64.0.0", "100.127.255.255", C::CarrierNat),
        ("127.0.0.0", "127.255.255.255", C::Loopback),
        ("169.254.0.0", "169.254.255.255", C::LinkLocal),
        ("172.16.0.0", "172.31.255.255", C::Private),
        ("192.0.0.0", "192.0.0.255", C::IetfProtocol),
        ("192.0.2.0", "192.0.2.255", C::Documentation),
        ("192.88.99.0", "192.88.99.255", C::SixToFourRelay),
        ("192.168.0.0", "192.168.255.255", C::Private),
        ("198.18.0.0", "198.19.255.255", C::Benchmarking),
        ("198.51.100.0", "198.51.100.255", C::Documentation),
        ("203.0.113.0", "203.0.113.255", C::Documentation),
        ("224.0.0.0", "239.255.255.255", C::Multicast),
        ("240.0.0.0", "255.255.255.254", C::Reserved),
        ("255.255.255.255", "255.255.255.255", C::Broadcast),
        ("::", "::", C::Unspecified),
        ("::1", "::1", C::Loopback),
        ("::2", "::255.255.255.255", C::Ipv4Compatible),
        ("::ffff:0.0.0.0", "::ffff:255.255.255.255", C::Ipv4Mapped),
        ("::ffff:0:0:0", "::ffff:0:255.255.255.255", C::Reserved),
        ("64:ff9b::", "64:ff9b::255.255.255.255", C::Nat64),
        (
            "64:ff9b::1:0:0",
            "64:ff9b:0:ffff:ffff:ffff:ffff:ffff",
            C::Reserved,
        ),
        (
            "64:ff9b:1::",
            "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
            C::Nat64,
        ),
        ("100::", "100::ffff:ffff:ffff:ffff", C::Discard),
        (
            "100:0:0:1::",
            "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::Reserved,
        ),
        ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", C::Teredo),
        (
            "2001:1::",
            "2001:1:ffff:ffff:ffff:ffff:ffff:ffff",
            C::IetfProtocol,
        ),
        (
            "2001:2::",
            "2001:2:0:ffff:ffff:ffff:ffff:ffff",
            C::Benchmarking,
        ),
        (
            "2001:2:1::",
            "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::IetfProtocol,
        ),
        (
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            C::Documentation,
        ),
        (
            "2002::",
            "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::SixToFour,
        ),
        (
            "3fff::",
            "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::Documentation,
        ),
        (
            "4000::",
            "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::Reserved,
        ),
        (
            "5f00::",
            "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::SegmentRouting,
        ),
        (
            "5f01::",
            "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::Reserved,
        ),
        (
            "fc00::",
            "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::UniqueLocal,
        ),
        (
            "fe00::",
            "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::Reserved,
        ),
        (
            "fe80::",
            "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::LinkLocal,
        ),
        (
            "fec0::",
            "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::SiteLocal,
        ),
        (
            "ff00::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            C::Multicast,
        ),
    ]
};

#[test]
fn special_addresses_have_theirs_from_the_first_to_the_last() {
    for (first, last, expected) in SPECIAL.iter().copied() {
        assert_eq!(class(first), Some(expected), "{first}");
        assert_eq!(class(last), Some(expected), "{last}");
    }
}

#[test]
fn no_block_hides_behind_an_earlier_one() {
    for (index, block) in BLOCKS.iter().enumerate() {
        assert_eq!(
            block.network,
            block.network.trunc(),
            "bits after the prefix"
        );
        let hidden = BLOCKS[..index]
            .iter()
            .find(|earlier| earlier.network.contains(&block.network));
        assert_eq!(hidden, None, "{} can not be reached", block.network);
    }
}

#[test]
fn finds_the_ipv4_address_inside_an_ipv6_address() {
    for (address, expected) in [
        ("::ffff:10.0.0.1", Some("10.0.0.1")),
        ("::10.0.0.1", Some("10.0.0.1")),
        ("64:ff9b::10.0.0.1", Some("10.0.0.1")),
        ("2002:a00:1::1", Some("10.0.0.1")),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", Some("10.0.0.1")),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", Some("192.0.2.45")),
        ("::", None),
        ("::1", None),
        ("64:ff9b:1::10.0.0.1", None),
        ("2001:db8::10.0.0.1", None),
        ("2606:4700::10.0.0.1", None),
        ("fe80::10.0.0.1", None),
    ] {
        let expected = expected.map(|text| text.parse::<Ipv4Addr>().unwrap());
        assert_eq!(
            embedded_ipv4(address.parse().unwrap()),
            expected,
            "{address}"
        );
    }
}
