//! Engines under stress: bad cables, odd segment sizes, ends of all kinds at random, and very many tunnels.
//!
//! `cargo xtask soak` goes on with the ordeals for as long as one likes.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use proxy_tests::{
    cable::Weather,
    daemon::Setup,
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    netns::run,
    ordeal::Ordeal,
    origin::{Listen, Origin},
    payload::{Payload, Random},
    privilege::is_continuous_integration,
    require_sockmap_or_skip, require_tun_or_skip,
};
use rustix::{
    fs::{MemfdFlags, memfd_create, sendfile},
    net::{RecvFlags, SendFlags, recv, send},
    process::{Resource, Rlimit, Signal, getrlimit, setrlimit},
};

use crate::scene::{Direction, Engine, Scene, Tunnel, client, for_every_engine};

/// Some of everything that happens to packets.
const STORM: Weather = Weather {
    loss: 15,
    duplicate: 20,
    reorder: 40,
    overlap: 150,
};

/// Lives of tunnels, several at a time, drawn from `seed`.
fn ordeals(scene: &Scene, seed: u64, count: usize, most: usize) {
    let mut random = Random::new(seed);
    let drawn: Vec<_> = (0..count)
        .map(|_| Ordeal::draw(&mut random, most))
        .collect();
    for group in drawn.chunks(4) {
        thread::scope(|scope| {
            for ordeal in group {
                let tunnel = scene.tunnel();
                scope.spawn(move || {
                    if let Err(wrong) = ordeal.play(tunnel.client, tunnel.origin) {
                        panic!("seed {seed}: {wrong}: {ordeal:?}");
                    }
                });
            }
        });
    }
}

fn tunnels_live_and_die_in_every_way(scene: &Scene) {
    scene.may_decline(usize::MAX);
    ordeals(scene, 1, 60, 4 << 20);
}

for_every_engine!(tunnels_live_and_die_in_every_way);

/// Which only one engine can do; the others have to give their tunnels to it.
fn tunnels_of_limited_bandwidth_live_and_die_in_every_way(scene: &Scene) {
    scene.may_decline(usize::MAX);
    ordeals(scene, 5, 40, 300_000);
    let records = scene.daemon().wait_tunnel_records(40);
    assert!(records.iter().all(|record| record.engine == "copy"));
}

for_every_engine!(
    config = "[limits]\nbandwidth_per_tunnel = \"4MB/s\"\n";
    tunnels_of_limited_bandwidth_live_and_die_in_every_way
);

/// Over cables that lose, repeat, reorder and re-segment.
fn in_a_storm(engine: Engine, family: Family) {
    require_tun_or_skip!();
    let lab = || Lab::in_weather(STORM, 7);
    Scene::play_in(lab, engine, family, "", |scene| {
        scene.may_decline(usize::MAX);
        ordeals(scene, 2, 24, 300_000);
        // A long flow each way, in which packets overlap in mid-stream.
        let tunnel = scene.tunnel();
        thread::scope(|scope| {
            for direction in [Direction::Up, Direction::Down] {
                let (sender, receiver) = tunnel.towards(direction);
                scope.spawn(move || {
                    // With pauses, so that the kernel carries it where it can.
                    for part in 0..200 {
                        let (from, to) = (part * 3000, (part + 1) * 3000);
                        let steps = |_| proxy_tests::payload::Step::fast();
                        Payload::new(5)
                            .send_range(&mut &*sender, from, to, steps)
                            .unwrap();
                        thread::sleep(Duration::from_millis(1));
                    }
                    sender.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || {
                    let len = Payload::new(5).receive_to_end(&mut &*receiver, 0).unwrap();
                    assert_eq!(len, 600_000, "{direction:?}");
                });
            }
        });
        let (lost, overlapped) = scene.lab().mishaps();
        assert!(
            lost > 10 && overlapped > 50,
            "{lost} lost, {overlapped} overlapped"
        );
        if engine == Engine::Sockmap {
            drop(tunnel);
            let records = scene.daemon().wait_tunnel_records(25);
            let trimmed: u64 = records.iter().map(|record| record.trimmed).sum();
            assert!(
                trimmed > 0,
                "overlaps never reached the program: {records:#?}"
            );
        }
    });
}

/// Makes a test for each engine and IP version of a function of both.
macro_rules! for_each {
    ($module:ident: $test:path) => {
        mod $module {
            use proxy_tests::lab::Family;

            use crate::scene::Engine;

            #[test]
            fn copy_ipv4() {
                $test(Engine::Copy, Family::V4);
            }

            #[test]
            fn copy_ipv6() {
                $test(Engine::Copy, Family::V6);
            }

            #[test]
            fn splice_ipv4() {
                $test(Engine::Splice, Family::V4);
            }

            #[test]
            fn splice_ipv6() {
                $test(Engine::Splice, Family::V6);
            }

            #[test]
            fn sockmap_ipv4() {
                $test(Engine::Sockmap, Family::V4);
            }

            #[test]
            fn sockmap_ipv6() {
                $test(Engine::Sockmap, Family::V6);
            }

            #[test]
            fn auto_ipv4() {
                $test(Engine::Auto, Family::V4);
            }

            #[test]
            fn auto_ipv6() {
                $test(Engine::Auto, Family::V6);
            }
        }
    };
}

for_each!(bad_cables_lose_and_repeat_nothing: super::in_a_storm);

/// Sets the largest packet of both ends of a cable.
fn set_mtu(scene: &Scene, cable: &str, bytes: u32) {
    let lab = scene.lab();
    let end = if cable == "cable1" {
        &lab.client
    } else {
        &lab.origin
    };
    for netns in [end, &lab.proxy] {
        let mut ip = Command::new("ip");
        ip.args(["-n", netns.name(), "link", "set", cable, "mtu"]);
        run(ip.arg(bytes.to_string()));
    }
}

/// Segments of 536 bytes (the least that IPv6 permits) at one side and of 9000 at the other.
fn segments_of_any_size_are_joined(scene: &Scene) {
    let small = match scene.family() {
        Family::V4 => 576,
        Family::V6 => 1280,
    };
    for (client_side, origin_side) in [(small, 9000), (9000, small)] {
        set_mtu(scene, "cable1", client_side);
        set_mtu(scene, "cable2", origin_side);
        let tunnel = scene.tunnel();
        thread::scope(|scope| {
            for direction in [Direction::Up, Direction::Down] {
                let (sender, receiver) = tunnel.towards(direction);
                scope.spawn(move || {
                    Payload::new(3).send(&mut &*sender, 6 << 20).unwrap();
                    sender.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || {
                    let len = Payload::new(3).receive_to_end(&mut &*receiver, 0).unwrap();
                    assert_eq!(len, 6 << 20, "{direction:?}");
                });
            }
        });
    }
}

for_every_engine!(segments_of_any_size_are_joined);

/// Sends this file `times`, without copying it.
fn send_again_and_again(stream: &TcpStream, file: &File, times: usize) {
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    for _ in 0..times {
        let mut offset = 0;
        let mut left = len;
        while left > 0 {
            left -= sendfile(stream, file, Some(&mut offset), left).unwrap();
        }
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Takes what is this block again and again; how many bytes it was. It looks at one read of 16 and discards
/// the others, which is faster.
fn receive_again_and_again(stream: &TcpStream, block: &[u8]) -> usize {
    let mut buffer = vec![0; block.len()];
    let mut total = 0;
    for number in 0_u32.. {
        let due = &block[total % block.len()..];
        let flags = match number % 16 {
            0 => RecvFlags::empty(),
            _ => RecvFlags::TRUNC,
        };
        let (_, len) = recv(stream, &mut buffer[..due.len()], flags).unwrap();
        if len == 0 {
            break;
        }
        if flags.is_empty() {
            assert!(buffer[..len] == due[..len], "after byte {total}");
        }
        total += len;
    }
    total
}

/// Both ends send and receive as fast as the machine lets them, so that the kernel's backlog workers
/// have to wait for a processor while megabytes arrive.
fn both_ways_at_full_speed_nothing_breaks(scene: &Scene) {
    const TIMES: usize = 48;
    let block = Payload::new(9).bytes(1 << 20);
    let mut file = File::from(memfd_create("block", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&block).unwrap();
    let (block, file) = (block.as_slice(), &file);
    for _ in 0..40 {
        let tunnel = scene.tunnel();
        thread::scope(|scope| {
            for end in [&tunnel.client, &tunnel.origin] {
                scope.spawn(move || send_again_and_again(end, file, TIMES));
                scope.spawn(move || {
                    assert_eq!(receive_again_and_again(end, block), TIMES << 20);
                });
            }
        });
    }
}

for_every_engine!(both_ways_at_full_speed_nothing_breaks);

/// A byte and a FIN in one segment, both ways; 10 000 times for each engine, both IP versions together.
fn a_last_byte_with_its_fin_arrives(scene: &Scene) {
    // Some tunnels are over before the kernel has taken them.
    scene.may_decline(usize::MAX);
    let origin = scene.origin();
    for number in 0..2500_u32 {
        let tunnel = Tunnel {
            client: scene.counted(|| scene.client().tunnel(&origin.target())),
            origin: origin.accept(),
        };
        for direction in [Direction::Up, Direction::Down] {
            let (mut sender, mut receiver) = tunnel.towards(direction);
            if number % 2 == 0 {
                sender.write_all(b"first").unwrap();
                receiver.read_exact(&mut [0; 5]).unwrap();
            }
            // Held back until the FIN goes with it.
            send(sender, b"x", SendFlags::MORE).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            receiver.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, b"x", "tunnel {number}, {direction:?}");
        }
    }
}

for_every_engine!(a_last_byte_with_its_fin_arrives);

/// Kilobytes of memory that are in use.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// A short exchange.
fn short(scene: &Scene, origin: &Origin) {
    let mut tunnel = Tunnel {
        client: scene.counted(|| scene.client().tunnel(&origin.target())),
        origin: origin.accept(),
    };
    tunnel.client.write_all(&[1; 64]).unwrap();
    tunnel.origin.read_exact(&mut [0; 64]).unwrap();
    tunnel.origin.write_all(&[2; 64]).unwrap();
    tunnel.client.read_exact(&mut [0; 64]).unwrap();
}

fn many_short_tunnels_leave_nothing_behind(scene: &Scene) {
    // Some are over before the kernel has taken them.
    scene.may_decline(usize::MAX);
    let pid = scene.daemon().pid();
    let origins: Vec<_> = (0..2).map(|_| scene.origin()).collect();
    let wave = |tunnels| {
        thread::scope(|scope| {
            for origin in &origins {
                scope.spawn(move || (0..tunnels).for_each(|_| short(scene, origin)));
            }
        });
    };
    let settled = |most| {
        wait_for("descriptors to be closed", PATIENCE, || {
            let open = descriptors(pid);
            (open <= most).then_some(open)
        })
    };
    // Some pipes are kept for the next who needs one.
    let idle = descriptors(pid) + 128;
    wave(500);
    settled(idle);
    let before = resident(pid);
    // Fifty thousand for each engine, in both families together; a quarter where everything is tested each time.
    let tunnels = if is_continuous_integration() {
        3_000
    } else {
        12_000
    };
    wave(tunnels);
    settled(idle);
    let after = resident(pid);
    assert!(after < before + 2000, "from {before} to {after} KB");
    // There are fewer places in the kernel than there were tunnels, and one is free.
    scene.tunnel().chat(20, 100);
    let record = scene
        .daemon()
        .wait_tunnel_records(2 * (500 + tunnels) + 1)
        .pop()
        .unwrap();
    let expected = match scene.engine() {
        Engine::Auto => Engine::Sockmap,
        engine => engine,
    };
    assert_eq!(record.engine, expected.name());
}

for_every_engine!(many_short_tunnels_leave_nothing_behind);

/// How many tunnels the limit of descriptors allows, both ends of which are ours.
fn affordable() -> usize {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let most = most.map_or(usize::MAX, |most| {
        usize::try_from(most).unwrap_or(usize::MAX)
    });
    (most.saturating_sub(1500) / 2).min(9000)
}

/// Thousands of tunnels that say nothing for a while, and then something.
fn idle_tunnels_stay_alive(engine: Engine) {
    require_sockmap_or_skip!();
    let count = affordable();
    if count < 1000 {
        return proxy_tests::privilege::skip("the limit of open files (ulimit -Hn) is too low");
    }
    let lab = Lab::alone();
    let daemon = Setup::open(&lab).option("--engine", engine.name()).start();
    let origin = Origin::bind_with(&lab.origin, Family::V4.origin(), Listen::default());
    let client = client(&lab);
    let tunnels: Vec<_> = (0..count)
        .map(|_| Tunnel {
            client: client.tunnel(&origin.target()),
            origin: origin.accept(),
        })
        .collect();
    thread::sleep(Duration::from_secs(2));
    for (number, tunnel) in tunnels.iter().enumerate() {
        for direction in [Direction::Up, Direction::Down] {
            let (sender, receiver) = tunnel.towards(direction);
            let message = Payload::new(number as u64);
            message.send(&mut &*sender, 200).unwrap();
            message.receive(&mut &*receiver, 200).unwrap();
        }
    }
    assert!(descriptors(daemon.pid()) >= 2 * count);
    drop(tunnels);
    let records = daemon.wait_tunnel_records(count);
    assert!(records.iter().all(|record| record.end == "closed"));
}

#[test]
fn idle_tunnels_in_the_kernel_stay_alive() {
    idle_tunnels_stay_alive(Engine::Sockmap);
}

#[test]
fn idle_tunnels_by_evidence_stay_alive() {
    idle_tunnels_stay_alive(Engine::Auto);
}

/// The kernel does not wait for a process that sleeps.
fn flows_on_without_the_process(engine: Engine) {
    require_sockmap_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab).option("--engine", engine.name()).start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let tunnel = Tunnel {
        client: client(&lab).tunnel(&origin.target()),
        origin: origin.accept(),
    };
    tunnel.chat(100, 100);
    daemon.signal(Signal::STOP);
    tunnel.chat(100, 1000);
    // An end that comes meanwhile is passed on as soon as the process can.
    tunnel.client.shutdown(Shutdown::Write).unwrap();
    daemon.signal(Signal::CONT);
    assert_eq!((&tunnel.origin).read(&mut [0]).unwrap(), 0);
    Payload::new(1).send(&mut &tunnel.origin, 10_000).unwrap();
    Payload::new(1)
        .receive(&mut &tunnel.client, 10_000)
        .unwrap();
    drop(tunnel);
    let record = daemon.wait_tunnel_records(1).remove(0);
    assert_eq!(
        (record.engine.as_str(), record.end.as_str()),
        ("sockmap", "closed")
    );
}

#[test]
fn a_spliced_tunnel_flows_on_while_the_process_is_stopped() {
    flows_on_without_the_process(Engine::Sockmap);
}

#[test]
fn a_tunnel_that_moved_flows_on_while_the_process_is_stopped() {
    flows_on_without_the_process(Engine::Auto);
}

/// What is killed leaves nothing that keeps the next one from its port, or a tunnel from its end.
fn the_next_start_works_after_a_kill(scene: &Scene) {
    let tunnel = scene.tunnel_unrecorded();
    tunnel.chat(50, 100);
    scene.daemon().signal(Signal::KILL);
    for mut end in [&tunnel.client, &tunnel.origin] {
        end.read(&mut [0]).expect_err("a reset");
    }
    let next = Setup::open(scene.lab()).start();
    let origin = scene.origin();
    let tunnel = Tunnel {
        client: scene.client().tunnel(&origin.target()),
        origin: origin.accept(),
    };
    tunnel.chat(50, 100);
    drop(tunnel);
    assert_eq!(next.wait_tunnel_records(1)[0].end, "closed");
}

for_every_engine!(the_next_start_works_after_a_kill);
