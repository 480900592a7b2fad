//! Bytes across bad cables: delay, loss, duplication and reordering by `sch_netem`, which few kernels of test machines
//! have built in. So these tests are ignored, unless one asks for them; `cargo xtask test vm` does, since Debian's
//! kernels have it.

use std::{net::Shutdown, thread};

use proxy_tests::{
    lab::{Family, Lab},
    netns::run,
    payload::Payload,
    require_root_or_skip,
};

use crate::scene::{Direction, Engine, Scene, Tunnel};

/// What each end of each cable does to the packets that leave it.
const IMPAIRMENTS: [&str; 6] = [
    "delay 2ms loss 1%",
    "delay 2ms loss 2%",
    "delay 2ms loss 5%",
    "delay 2ms duplicate 10%",
    "delay 4ms 2ms reorder 25% 50%",
    "delay 3ms 1ms loss 2% duplicate 2% reorder 10% 50%",
];

/// Bytes each way; a tunnel that loses 5 % of its packets moves some hundred KB a second.
const LEN: u64 = 300_000;

fn impair(lab: &Lab, impairment: &str) {
    for (netns, cable) in [
        (&lab.client, "cable1"),
        (&lab.proxy, "cable1"),
        (&lab.proxy, "cable2"),
        (&lab.origin, "cable2"),
    ] {
        let mut tc = std::process::Command::new("tc");
        tc.args([
            "-n",
            netns.name(),
            "qdisc",
            "replace",
            "dev",
            cable,
            "root",
            "netem",
        ]);
        run(tc.args(impairment.split(' ')));
    }
}

/// Both ends send at once, and close their half when they are done.
fn cross(tunnel: &Tunnel) {
    thread::scope(|scope| {
        for direction in [Direction::Up, Direction::Down] {
            let (sender, receiver) = tunnel.towards(direction);
            let payload = Payload::new(direction as u64);
            scope.spawn(move || {
                payload.send(&mut &*sender, LEN).unwrap();
                sender.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let len = payload.receive_to_end(&mut &*receiver, 0).unwrap();
                assert_eq!(len, LEN, "{direction:?}");
            });
        }
    });
}

fn bad_cables(engine: Engine) {
    require_root_or_skip!();
    for family in [Family::V4, Family::V6] {
        Scene::play(engine, family, "", |scene| {
            for impairment in IMPAIRMENTS {
                impair(scene.lab(), impairment);
                let tunnel = scene.tunnel();
                tunnel.chat(5, 3000);
                cross(&tunnel);
                // Many that are over as soon as they have begun.
                for _ in 0..10 {
                    scene.tunnel().chat(1, 100);
                }
            }
        });
    }
}

#[test]
#[ignore = "needs sch_netem"]
fn copy_delivers_every_byte_once() {
    bad_cables(Engine::Copy);
}

#[test]
#[ignore = "needs sch_netem"]
fn splice_delivers_every_byte_once() {
    bad_cables(Engine::Splice);
}

#[test]
#[ignore = "needs sch_netem"]
fn sockmap_delivers_every_byte_once() {
    bad_cables(Engine::Sockmap);
}

#[test]
#[ignore = "needs sch_netem"]
fn auto_delivers_every_byte_once() {
    bad_cables(Engine::Auto);
}
