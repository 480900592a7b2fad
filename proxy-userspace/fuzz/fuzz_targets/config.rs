//! Any text is an `underpass.toml`, or is refused with a place in it; and what is accepted judges any
//! request without a panic.

#![no_main]

use std::{net::SocketAddr, path::Path};

use libfuzzer_sys::fuzz_target;
use underpass::{
    authority::Authority,
    config::{Config, ConfigError},
    policy::{Facts, Moment, ServerName, User, audit::audit},
};

fuzz_target!(|text: &str| {
    // What would be read from the disk is somebody else's.
    if ["include", "htpasswd", "@"]
        .iter()
        .any(|word| text.contains(word))
    {
        return;
    }
    let config = match Config::from_toml(text, Path::new("f.toml")) {
        Ok(config) => config,
        Err(ConfigError::Read { .. }) => panic!("nothing is read"),
        Err(error) => {
            assert!(error.to_string().starts_with("f.toml:"), "{error}");
            return;
        }
    };
    let authority = Authority::parse(b"www.example.com:443").unwrap();
    let address = [[192, 0, 2, 1].into()];
    let facts = Facts {
        client: [10, 0, 0, 1].into(),
        listener: SocketAddr::from(([127, 0, 0, 1], 3128)),
        listener_name: "x",
        method: "CONNECT",
        scheme: None,
        host: authority.host(),
        port: 443,
        url: "www.example.com:443",
        user: User::Nobody,
        certificate: None,
        process: None,
        server_name: ServerName::Is("www.example.com"),
        now: Moment::default(),
        addresses: Some(&address),
        reverse_name: Some("none"),
        own_address: false,
        connections: 1,
        mark: 0,
        dice: 7,
    };
    let _ = format!("{:?}", config.live.policy.decide(&facts));
    let _ = audit(&config.live.policy, &[facts.listener]);
});
