use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Authority, AuthorityError> {
    Authority::parse(text.as_bytes())
}

#[test]
fn accepts_names_and_addresses_and_normalises_them() {
    let long_label = format!("{}.example:1", "a".repeat(63));
    let long_name = format!(
        "{}.{}.{}.{}:443",
        "a".repeat(63),
        "b".repeat(63),
        "c".repeat(63),
        "d".repeat(61)
    );
    let long_rooted = long_name.replace(':', ".:");
    for (raw, shown) in [
        ("example.com:443", "example.com:443"),
        ("EXAMPLE.Com:1", "example.com:1"),
        ("localhost:65535", "localhost:65535"),
        ("example.com.:443", "example.com.:443"),
        ("_dmarc.a-b.example:443", "_dmarc.a-b.example:443"),
        ("XN--bcher-kva.example:443", "xn--bcher-kva.example:443"),
        ("1password.com:443", "1password.com:443"),
        ("1.2.3.4.example:443", "1.2.3.4.example:443"),
        ("0xg:443", "0xg:443"),
        ("a.0xfz:443", "a.0xfz:443"),
        ("face:443", "face:443"),
        ("192.0.2.1:443", "192.0.2.1:443"),
        ("0.0.0.0:443", "0.0.0.0:443"),
        ("[::1]:8443", "[::1]:8443"),
        ("[2001:DB8:0:0:0:0:0:1]:443", "[2001:db8::1]:443"),
        ("[::ffff:1.2.3.4]:443", "[::ffff:1.2.3.4]:443"),
        ("[64:ff9b::192.0.2.1]:443", "[64:ff9b::c000:201]:443"),
        (&long_label, &long_label),
        (&long_name, &long_name),
        (&long_rooted, &long_rooted),
    ] {
        let authority = parse(raw).unwrap_or_else(|error| panic!("{raw}: {error}"));
        assert_eq!(authority.to_string(), shown, "{raw}");
    }
}

#[test]
fn tells_names_from_addresses() {
    let is_address = |text: &str| matches!(parse(text).unwrap().host(), Host::Ip(_));
    assert!(is_address("192.0.2.1:443"));
    assert!(is_address("[::1]:443"));
    assert!(!is_address("192.0.2.1.example:443"));
    let mapped = parse("[::ffff:1.2.3.4]:443").unwrap();
    let Host::Ip(IpAddr::V6(_)) = mapped.host() else {
        panic!("an IPv4-mapped address must stay an IPv6 address, not {mapped}");
    };
}

#[test]
fn names_without_a_dot_can_be_in_a_domain() {
    for (target, expected) in [
        ("intra:443", "intra.corp.test:443"),
        ("a.b:443", "a.b:443"),
        ("intra.:443", "intra.:443"),
        ("[::1]:443", "[::1]:443"),
    ] {
        let target = Authority::parse(target.as_bytes()).unwrap();
        assert_eq!(target.in_domain("corp.test").to_string(), expected);
    }
}

#[test]
fn keeps_the_root_dot_for_the_resolver_and_drops_it_for_comparing() {
    let authority = parse("A.Example.:443").unwrap();
    let Host::Name(name) = authority.host() else {
        panic!("not a name: {authority}");
    };
    assert_eq!(name.as_str(), "a.example.");
    assert_eq!(name.without_root(), "a.example");
    assert_eq!(authority.port().get(), 443);
}

#[test]
fn refuses_everything_that_is_not_host_and_port_and_says_why() {
    use AuthorityError as E;
    let long_label = format!("{}.example:1", "a".repeat(64));
    let long_name = format!("{}a:443", "abc.".repeat(64));
    for (raw, reason) in [
        ("", E::Empty),
        ("a\0b:443", E::ControlCharacter),
        ("a\r\nb:443", E::ControlCharacter),
        ("a\tb:443", E::ControlCharacter),
        ("a\x7f:443", E::ControlCharacter),
        ("a b:443", E::Space),
        (" a:443", E::Space),
        ("a:443 ", E::Space),
        ("b\u{fc}cher.example:443", E::NonAscii),
        ("\u{ff11}27.0.0.1:443", E::NonAscii),
        ("https://h:1", E::Scheme),
        ("a:443/", E::Path),
        ("/a:443", E::Path),
        ("a:443?q", E::Path),
        ("a:443#f", E::Path),
        ("a#@b:443", E::Path),
        ("user@a:443", E::UserInfo),
        ("user:secret@a:443", E::UserInfo),
        ("[::1]@a:443", E::UserInfo),
        ("ex%61mple.com:443", E::PercentEscape),
        ("a%00:443", E::PercentEscape),
        (":443", E::MissingHost),
        ("[]:443", E::MissingHost),
        ("a", E::MissingPort),
        ("a:", E::MissingPort),
        ("[::1]", E::MissingPort),
        ("[::1]:", E::MissingPort),
        ("a:0", E::InvalidPort),
        ("a:0443", E::InvalidPort),
        ("a:+443", E::InvalidPort),
        ("a:-1", E::InvalidPort),
        ("a:65536", E::InvalidPort),
        ("a:99999999999999999999", E::InvalidPort),
        ("a:0x1bb", E::InvalidPort),
        ("a:https", E::InvalidPort),
        ("[::1]:443:443", E::InvalidPort),
        ("127.1:443", E::InvalidIpv4),
        ("2130706433:443", E::InvalidIpv4),
        ("0:443", E::InvalidIpv4),
        ("0x7f.1:443", E::InvalidIpv4),
        ("0x7f000001:443", E::InvalidIpv4),
        ("0X7F000001:443", E::InvalidIpv4),
        ("0x:443", E::InvalidIpv4),
        ("127.0.0.0x1:443", E::InvalidIpv4),
        ("0177.0.0.1:443", E::InvalidIpv4),
        ("127.0.0.01:443", E::InvalidIpv4),
        ("1.2.3.4.:443", E::InvalidIpv4),
        ("1.2.3.256:443", E::InvalidIpv4),
        ("1.2.3.4.5:443", E::InvalidIpv4),
        ("example.1:443", E::InvalidIpv4),
        ("example.09:443", E::InvalidIpv4),
        ("::1:443", E::BareIpv6),
        ("::", E::BareIpv6),
        ("2001:db8::1:443", E::BareIpv6),
        ("::ffff:1.2.3.4:443", E::BareIpv6),
        ("[::1:443", E::UnclosedBracket),
        ("[::1]443", E::AfterBracket),
        ("[::1].example:443", E::AfterBracket),
        ("[[::1]]:443", E::InvalidIpv6),
        ("[fe80::1%25eth0]:443", E::ZoneId),
        ("[fe80::1%eth0]:443", E::ZoneId),
        ("[v1.fe80::a]:443", E::FutureAddress),
        ("[1::2::3]:443", E::InvalidIpv6),
        ("[::12345]:443", E::InvalidIpv6),
        ("[::ffff:1.2.3.04]:443", E::InvalidIpv6),
        ("[192.0.2.1]:443", E::BracketedIpv4),
        ("[stripe.com]:443", E::BracketedName),
        ("a:b:443", E::BareIpv6),
        ("host:80:443", E::NameCharacter(':')),
        ("a,b:443", E::NameCharacter(',')),
        ("*.example:443", E::NameCharacter('*')),
        ("a]:443", E::NameCharacter(']')),
        ("a\\b:443", E::NameCharacter('\\')),
        (".:443", E::EmptyLabel),
        (".a:443", E::EmptyLabel),
        ("a..b:443", E::EmptyLabel),
        ("a..:443", E::EmptyLabel),
        (&long_label, E::LongLabel),
        (&long_name, E::LongName),
    ] {
        assert_eq!(parse(raw), Err(reason), "{raw:?}");
        let text = reason.to_string();
        assert!(
            !text.contains(['\r', '\n']) && !text.ends_with('.'),
            "{text}"
        );
    }
    assert_eq!(Authority::parse(b"\xff:443"), Err(E::NonAscii));
}

#[test]
fn a_host_field_is_checked_as_loosely_as_the_rfc_writes_it() {
    for valid in [
        "",
        ":",
        ":443",
        "a",
        "a:",
        "a:0",
        "a:00443",
        "a:65535",
        "EXAMPLE.com:443",
        "1.2.3.4",
        "[::1]",
        "[::1]:443",
        "[v1.a:b]",
        "ex%61mple.com",
        "a_b!$&'()*+,;=~",
        "..",
    ] {
        assert!(is_valid_host_field(valid.as_bytes()), "{valid:?}");
    }
    for invalid in [
        "a b",
        "a:b",
        "a:65536",
        "a:-1",
        "a:443:443",
        "::1",
        "[::1",
        "[::1]a",
        "[a]",
        "[]",
        "[fe80::1%25eth0]",
        "a@b",
        "a/b",
        "http://a",
        "a%",
        "a%4",
        "a%4g",
        "a\0",
        "a,b c",
        "a?b",
        "[v.a]",
        "[v1.]",
        "b\u{fc}cher",
    ] {
        assert!(!is_valid_host_field(invalid.as_bytes()), "{invalid:?}");
    }
    assert!(!is_valid_host_field(b"\xff"));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(authority) = Authority::parse(&raw) {
            prop_assert_eq!(Authority::parse(authority.to_string().as_bytes()), Ok(authority));
        }
        // A target that we accept is a Host that we accept.
        prop_assert!(Authority::parse(&raw).is_err() || is_valid_host_field(&raw));
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same(raw in "[]\\[0-9a-fA-FxX:._%v-]{0,24}(:[0-9]{1,5})?") {
        if let Ok(authority) = Authority::parse(raw.as_bytes()) {
            prop_assert_eq!(Authority::parse(authority.to_string().as_bytes()), Ok(authority));
            prop_assert!(is_valid_host_field(raw.as_bytes()));
        }
    }

    #[test]
    fn every_address_reads_back_as_itself(address: IpAddr, port in 1..=u16::MAX) {
        let shown = SocketAddr::new(address, port).to_string();
        let authority = Authority::parse(shown.as_bytes()).unwrap();
        prop_assert_eq!(authority.host(), &Host::Ip(address));
        prop_assert_eq!(authority.to_string(), shown);
    }

    #[test]
    fn no_accepted_name_is_an_address_to_a_resolver(raw in "(0[xX])?[0-9a-fA-F.]{1,16}:443") {
        if let Ok(authority) = Authority::parse(raw.as_bytes())
            && let Host::Name(name) = authority.host()
        {
            let last = name.without_root().rsplit('.').next().unwrap();
            prop_assert!(last.bytes().any(|byte| byte.is_ascii_alphabetic()));
            prop_assert!(!last.starts_with("0x"));
        }
    }
}
