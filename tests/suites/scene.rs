//! The stage of most tests: a lab, a daemon with a chosen engine, and one IP version.

use std::{
    net::{IpAddr, TcpStream},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use proxy_tests::{
    client::Client,
    daemon::{Daemon, Setup},
    lab::{Family, Lab},
    origin::{Listen, Origin},
    payload::Payload,
    record::TunnelRecord,
    require_root_or_skip, require_sockmap_or_skip,
};

/// A client in the lab that talks IPv4 to the proxy.
pub(crate) fn client(lab: &Lab) -> Client<'_> {
    Client::new(&lab.client, Family::V4.proxy())
}

/// An origin in the lab, on this port of this address.
pub(crate) fn origin_on(lab: &Lab, address: IpAddr, port: u16) -> Origin {
    let listen = Listen {
        port,
        ..Listen::default()
    };
    Origin::bind_with(&lab.origin, address, listen)
}

/// Clients and origins of the lab; rules come behind.
pub(crate) const OPEN: &str = r#"
listen = ["10.77.1.2:3128", "[fd77:1::2]:3128"]
allow_client = ["10.77.1.0/24", "fd77:1::/64"]
allow_destination = ["10.77.2.0/24", "fd77:2::/64"]
allow_port = ["1-65535"]
"#;

/// A daemon with these settings behind those of the lab.
pub(crate) fn configured(lab: &Lab, text: &str) -> Daemon {
    Setup::bare(&lab.proxy)
        .config(lab, &format!("{OPEN}\n{text}"))
        .listeners(2)
        .start()
}

/// Fails with all that is wrong, if anything is.
pub(crate) fn expect_nothing_wrong(wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// The relay engine that a test demands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Engine {
    /// Bytes go through the proxy process.
    Copy,
    /// Bytes go through pipes.
    Splice,
    /// Bytes stay in the kernel.
    Sockmap,
    /// By how a tunnel behaves. Tunnels of a scene chat first, so that they move into the kernel in the
    /// middle of what follows.
    Auto,
}

impl Engine {
    /// Its name on the command line and in records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::Auto => "auto",
        }
    }
}

/// Makes a test of each function, for every engine over IPv4 and IPv6.
///
/// With `config = TEXT;` in front, the daemon gets that configuration file.
macro_rules! for_every_engine {
    (config = $config:expr; $($scenario:ident),+ $(,)?) => {
        $(mod $scenario {
            use proxy_tests::lab::Family;

            use crate::scene::{Engine, Scene};

            #[test]
            fn copy_ipv4() {
                Scene::play(Engine::Copy, Family::V4, $config, super::$scenario);
            }

            #[test]
            fn copy_ipv6() {
                Scene::play(Engine::Copy, Family::V6, $config, super::$scenario);
            }

            #[test]
            fn splice_ipv4() {
                Scene::play(Engine::Splice, Family::V4, $config, super::$scenario);
            }

            #[test]
            fn splice_ipv6() {
                Scene::play(Engine::Splice, Family::V6, $config, super::$scenario);
            }

            #[test]
            fn sockmap_ipv4() {
                Scene::play(Engine::Sockmap, Family::V4, $config, super::$scenario);
            }

            #[test]
            fn sockmap_ipv6() {
                Scene::play(Engine::Sockmap, Family::V6, $config, super::$scenario);
            }

            #[test]
            fn auto_ipv4() {
                Scene::play(Engine::Auto, Family::V4, $config, super::$scenario);
            }

            #[test]
            fn auto_ipv6() {
                Scene::play(Engine::Auto, Family::V6, $config, super::$scenario);
            }
        })+
    };
    ($($scenario:ident),+ $(,)?) => {
        $crate::scene::for_every_engine!(config = ""; $($scenario),+);
    };
}
pub(crate) use for_every_engine;

/// Both ends of one tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) client: TcpStream,
    pub(crate) origin: TcpStream,
}

impl Tunnel {
    /// The two ends, the one that sends first.
    pub(crate) fn towards(&self, direction: Direction) -> (&TcpStream, &TcpStream) {
        match direction {
            Direction::Up => (&self.client, &self.origin),
            Direction::Down => (&self.origin, &self.client),
        }
    }

    /// Exchanges messages, one at a time.
    pub(crate) fn chat(&self, rounds: usize, len: u64) {
        for seed in 0..rounds as u64 {
            for direction in [Direction::Up, Direction::Down] {
                let (sender, receiver) = self.towards(direction);
                Payload::new(seed).send(&mut &*sender, len).unwrap();
                Payload::new(seed).receive(&mut &*receiver, len).unwrap();
            }
        }
    }

    /// Takes it apart, the end that sends first.
    pub(crate) fn split(self, direction: Direction) -> (TcpStream, TcpStream) {
        match direction {
            Direction::Up => (self.client, self.origin),
            Direction::Down => (self.origin, self.client),
        }
    }
}

/// Way of bytes through a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    /// From client to origin.
    Up,
    /// From origin to client.
    Down,
}

/// Bytes of a message before a scenario.
const CHAT_BYTES: u64 = 40;

/// A lab with a daemon that lets its client reach its origin.
#[derive(Debug)]
pub(crate) struct Scene {
    // Fields drop in this order: the daemon ends before its namespace goes.
    daemon: Daemon,
    lab: Lab,
    engine: Engine,
    family: Family,
    tunnels: AtomicUsize,
    declines: AtomicUsize,
    /// Bytes each way that tunnels have said before a scenario.
    chatted: AtomicU64,
}

impl Scene {
    /// Runs `scenario`, then checks the record of every tunnel that it opened.
    pub(crate) fn play(engine: Engine, family: Family, config: &str, scenario: impl Fn(&Self)) {
        require_root_or_skip!();
        Self::play_in(Lab::new, engine, family, config, scenario);
    }

    /// The same in a lab of one's own making.
    pub(crate) fn play_in(
        make_lab: impl FnOnce() -> Lab,
        engine: Engine,
        family: Family,
        config: &str,
        scenario: impl Fn(&Self),
    ) {
        if matches!(engine, Engine::Sockmap | Engine::Auto) {
            require_sockmap_or_skip!();
        }
        let lab = make_lab();
        let mut setup = Setup::open(&lab).option("--engine", engine.name());
        if !config.is_empty() {
            setup = setup.config(&lab, config);
        }
        let scene = Self {
            daemon: setup.start(),
            lab,
            engine,
            family,
            tunnels: AtomicUsize::new(0),
            declines: AtomicUsize::new(0),
            chatted: AtomicU64::new(0),
        };
        scenario(&scene);
        scene.check_records();
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    /// Whether the kernel is to carry the bytes.
    pub(crate) fn is_spliced(&self) -> bool {
        self.engine == Engine::Sockmap
    }

    /// A client in the lab.
    pub(crate) fn client(&self) -> Client<'_> {
        Client::new(&self.lab.client, self.family.proxy())
    }

    /// An origin in the lab.
    pub(crate) fn origin(&self) -> Origin {
        Origin::bind(&self.lab.origin, self.family.origin())
    }

    /// An origin whose connections have a receive buffer of this size.
    pub(crate) fn origin_with_receive_buffer(&self, bytes: usize) -> Origin {
        let listen = Listen {
            receive_buffer: Some(bytes),
            ..Listen::default()
        };
        Origin::bind_with(&self.lab.origin, self.family.origin(), listen)
    }

    /// A tunnel whose both ends the test holds.
    pub(crate) fn tunnel(&self) -> Tunnel {
        self.tunnel_between(self.client(), &self.origin(), b"")
    }

    /// A tunnel of which no record is expected, since its proxy will not live to write one.
    pub(crate) fn tunnel_unrecorded(&self) -> Tunnel {
        let origin = self.origin();
        Tunnel {
            client: self.client().tunnel(&origin.target()),
            origin: origin.accept(),
        }
    }

    /// A tunnel between a given client and origin, with early data.
    pub(crate) fn tunnel_between(
        &self,
        client: Client<'_>,
        origin: &Origin,
        early: &[u8],
    ) -> Tunnel {
        let number = self.tunnels.load(Ordering::Relaxed);
        let client = self.counted(|| client.tunnel_with_early_data(&origin.target(), early));
        let tunnel = Tunnel {
            client,
            origin: origin.accept(),
        };
        if self.engine == Engine::Auto && early.is_empty() {
            // It moves after 32 messages: in one family before the scenario begins, in the other in the
            // middle of it.
            let rounds = number % 4
                + match self.family {
                    Family::V4 => 12,
                    Family::V6 => 17,
                };
            tunnel.chat(rounds, CHAT_BYTES);
            let bytes = rounds as u64 * CHAT_BYTES;
            self.chatted.fetch_add(bytes, Ordering::Relaxed);
        }
        tunnel
    }

    /// Runs something that opens one tunnel, so that its record is expected at the end.
    pub(crate) fn counted<T>(&self, open: impl FnOnce() -> T) -> T {
        self.tunnels.fetch_add(1, Ordering::Relaxed);
        open()
    }

    /// Allows the engine to refuse so many pairs with a reason, as it has to when an end closes before it takes over.
    pub(crate) fn may_decline(&self, pairs: usize) {
        self.declines.store(pairs, Ordering::Relaxed);
    }

    /// The record of the only tunnel, once it has ended; without what it said before the scenario began.
    pub(crate) fn record(&self) -> TunnelRecord {
        let mut records = self.daemon.wait_tunnel_records(1);
        assert_eq!(records.len(), 1, "{records:#?}");
        let mut record = records.remove(0);
        let chatted = self.chatted.load(Ordering::Relaxed);
        record.up -= chatted;
        record.down -= chatted;
        record
    }

    /// Every tunnel has a record, was carried by the engine we asked for, and its bytes added up.
    fn check_records(&self) {
        let wanted = self.engine.name();
        let tunnels = self.tunnels.load(Ordering::Relaxed);
        let records = self.daemon.wait_tunnel_records(tunnels);
        assert_eq!(
            records.len(),
            tunnels,
            "one record per tunnel: {records:#?}"
        );
        let mut declined = 0;
        for record in &records {
            if self.engine != Engine::Auto && record.engine != wanted {
                declined += 1;
                assert!(record.declined.is_some(), "without a reason: {record:?}");
            }
            assert!(
                !["integrity", "error"].contains(&record.end.as_str()),
                "{record:?}"
            );
        }
        let allowed = self.declines.load(Ordering::Relaxed);
        assert!(
            declined <= allowed,
            "{declined} tunnels not carried by {wanted}, up to {allowed} may be: {records:#?}"
        );
    }
}
