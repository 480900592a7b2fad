//! How long a decision takes, with lists of 10 000 entries: `cargo bench --bench policy`.

#![expect(clippy::unwrap_used, reason = "a measurement fails by panicking")]

use std::{
    fmt::Write as _,
    hint::black_box,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Instant,
};

use underpass::{
    authority::Authority,
    config::Config,
    policy::{Facts, Moment, ServerName, User},
};

const ENTRIES: u32 = 10_000;
const DECISIONS: u32 = 200_000;

fn main() {
    let mut text = String::from("[[rule]]\naction = \"deny\"\nhost = [");
    for n in 0..ENTRIES {
        let _ = write!(text, "\".d{n}.example\", ");
    }
    text.push_str("]\n[[rule]]\naction = \"deny\"\ndestination = [");
    for n in 0..ENTRIES {
        let _ = write!(
            text,
            "\"{}/28\", ",
            Ipv4Addr::from_bits(0x0b00_0000 + n * 32)
        );
    }
    text.push_str("]\n");
    let begin = Instant::now();
    let config = Config::from_toml(&text, Path::new("bench.toml")).unwrap();
    say("to read two lists of 10 000 entries", begin, 1);
    for (what, target, address) in [
        ("a host in the list", "www.d9999.example:443", [9, 9, 9, 9]),
        ("an address in the list", "example.com:443", [11, 4, 226, 1]),
        ("neither", "a.b.c.example.com:443", [9, 9, 9, 9]),
    ] {
        let authority = Authority::parse(target.as_bytes()).unwrap();
        let addresses = [IpAddr::from(address)];
        let begin = Instant::now();
        for n in 0..DECISIONS {
            let facts = Facts {
                client: Ipv4Addr::LOCALHOST.into(),
                listener: SocketAddr::from(([127, 0, 0, 1], 3128)),
                listener_name: "",
                method: "CONNECT",
                scheme: None,
                host: authority.host(),
                port: 443,
                url: target,
                user: User::Nobody,
                certificate: None,
                process: None,
                server_name: ServerName::None,
                now: Moment::default(),
                addresses: Some(&addresses),
                reverse_name: None,
                own_address: false,
                connections: n,
                mark: 0,
                dice: 0,
            };
            black_box(config.live.policy.decide(black_box(&facts)));
        }
        say(what, begin, DECISIONS);
    }
}

fn say(what: &str, begin: Instant, times: u32) {
    let each = begin.elapsed() / times;
    let _ = writeln!(std::io::stdout(), "{what:<40}{each:?}");
}
