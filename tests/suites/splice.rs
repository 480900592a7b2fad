//! What is particular to the splice engine: no copies, pipes only while bytes are in them, and what happens without.

use std::{fs, thread, time::Duration};

use proxy_tests::{
    daemon::{Daemon, Setup},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    origin::Origin,
    payload::Payload,
    require_root_or_skip, require_tool_or_skip,
};

use crate::{
    backpressure::send_until_held_back,
    kernel_path::{HOUSEKEEPING, Transfer},
    scene::{Direction, Engine, Tunnel, client},
};

const MIB: u64 = 1 << 20;

/// Descriptors that a daemon has open.
fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .unwrap()
        .count()
}

fn tunnel(lab: &Lab, origin: &Origin) -> Tunnel {
    Tunnel {
        client: client(lab).tunnel(&origin.target()),
        origin: origin.accept(),
    }
}

/// Bytes both ways.
fn talk(tunnel: &Tunnel) {
    for direction in [Direction::Up, Direction::Down] {
        let (sender, receiver) = tunnel.towards(direction);
        Payload::new(3).send(&mut &*sender, 30_000).unwrap();
        Payload::new(3).receive(&mut &*receiver, 30_000).unwrap();
    }
}

#[test]
fn every_byte_is_moved_through_a_pipe() {
    require_root_or_skip!();
    require_tool_or_skip!("strace", "-V");
    let transfer = Transfer {
        engine: Engine::Splice,
        family: Family::V4,
        direction: Direction::Down,
        len: 100 * MIB,
        pause: Duration::ZERO,
    };
    let (work, record) = transfer.trace();
    assert!(work.received < HOUSEKEEPING, "read: {work:?} {record:?}");
    // Into the pipe, and out of it.
    assert!(
        work.sent.abs_diff(2 * transfer.len) < HOUSEKEEPING,
        "{work:?} {record:?}"
    );
    assert_eq!(record.declined, None);
}

#[test]
fn an_idle_tunnel_holds_two_descriptors() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = Setup::open(&lab).option("--engine", "splice").start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    // The first leaves the pipes that it used to those that follow.
    let first = tunnel(&lab, &origin);
    talk(&first);
    thread::sleep(Duration::from_millis(100));
    let before = descriptors(&daemon);
    let tunnels = (0..50)
        .map(|_| {
            let tunnel = tunnel(&lab, &origin);
            talk(&tunnel);
            tunnel
        })
        .collect::<Vec<_>>();
    wait_for("two descriptors for each", PATIENCE, || {
        (descriptors(&daemon) == before + 2 * tunnels.len()).then_some(())
    });
}

/// With more directions in flight than there are pipes, some are copied, say so, and lose nothing.
#[test]
fn who_finds_no_pipe_copies() {
    require_root_or_skip!();
    require_tool_or_skip!("prlimit", "--version");
    let lab = Lab::new();
    // 192 are reserved; of the 44 others, one in 22 is a pipe.
    let daemon = Setup::open(&lab)
        .option("--engine", "splice")
        .through(&["prlimit", "--nofile=236"])
        .start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let tunnels = (0..5).map(|_| tunnel(&lab, &origin)).collect::<Vec<_>>();
    let payload = Payload::new(4);
    // Readers that do not read keep bytes in the pipes.
    let held = thread::scope(|scope| {
        let senders = tunnels
            .iter()
            .map(|tunnel| scope.spawn(|| send_until_held_back(payload, &tunnel.origin, 0)))
            .collect::<Vec<_>>();
        senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .collect::<Vec<_>>()
    });
    for (tunnel, held) in tunnels.into_iter().zip(held) {
        let Tunnel { client, origin } = tunnel;
        drop(origin);
        assert_eq!(payload.receive_to_end(&mut &client, 0).unwrap(), held);
    }
    let records = daemon.wait_tunnel_records(5);
    let copied = records
        .iter()
        .filter_map(|record| record.declined.as_deref())
        .filter(|reason| reason.ends_with("bytes copied for want of a pipe"))
        .count();
    assert!(copied >= 3, "{records:#?}");
    assert!(
        records
            .iter()
            .all(|record| record.engine == "splice" && record.end == "closed"),
        "{records:#?}"
    );
}
