//! Every byte arrives once, in order and unchanged, however the two ends behave, with every engine.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use proxy_tests::{
    client::reset,
    deadline::{PATIENCE, uninterrupted, wait_for},
    payload::{Payload, Random, Step},
};

use underpass::net::sockopt;

use crate::scene::{Direction, Scene, Tunnel, for_every_engine};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What the client sends.
fn up() -> Payload {
    Payload::new(1)
}

/// What the origin sends.
fn down() -> Payload {
    Payload::new(2)
}

/// Sends everything, then says so by a half-close.
fn send_all(
    payload: Payload,
    stream: &TcpStream,
    from: u64,
    len: u64,
    step: impl FnMut(u64) -> Step,
) {
    payload.send_range(&mut &*stream, from, len, step).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Receives and verifies everything up to a clean end at the right place.
fn receive_all(payload: Payload, stream: &TcpStream, len: u64, step: impl FnMut(u64) -> Step) {
    payload.receive_range(&mut &*stream, 0, len, step).unwrap();
    expect_end(stream);
}

/// The next thing to read is a clean end.
fn expect_end(mut stream: &TcpStream) {
    let mut byte = [0];
    assert_eq!(
        uninterrupted(|| stream.read(&mut byte)).unwrap(),
        0,
        "a byte behind the last one: {byte:?}"
    );
}

/// Exchanges both payloads over an open tunnel; `up_sent` bytes of the client's went ahead of it.
fn exchange(tunnel: &Tunnel, up_sent: u64, up_len: u64, down_sent: u64, down_len: u64) {
    let Tunnel { client, origin } = tunnel;
    thread::scope(|scope| {
        scope.spawn(|| send_all(up(), client, up_sent, up_len, |_| Step::fast()));
        scope.spawn(|| send_all(down(), origin, down_sent, down_len, |_| Step::fast()));
        scope.spawn(|| receive_all(up(), origin, up_len, |_| Step::fast()));
        scope.spawn(|| receive_all(down(), client, down_len, |_| Step::fast()));
    });
}

/// One payload in one direction, the receiver at its own pace.
fn transfer(tunnel: &Tunnel, direction: Direction, len: u64, pace: impl FnMut(u64) -> Step + Send) {
    let (sender, receiver) = tunnel.towards(direction);
    thread::scope(|scope| {
        scope.spawn(|| send_all(up(), sender, 0, len, |_| Step::fast()));
        scope.spawn(|| receive_all(up(), receiver, len, pace));
    });
}

/// The only tunnel ended cleanly and its record has the bytes of the payloads.
fn expect_record(scene: &Scene, up: u64, down: u64) {
    let record = scene.record();
    assert_eq!(
        (record.up, record.down, record.end.as_str()),
        (up, down, "closed"),
        "{record:?}"
    );
}

fn random_bytes_cross_both_ways_at_once(scene: &Scene) {
    let tunnel = scene.tunnel();
    exchange(&tunnel, 0, 32 * MIB, 0, 32 * MIB);
    expect_record(scene, 32 * MIB, 32 * MIB);
}

fn a_quarter_gigabyte_comes_down(scene: &Scene) {
    transfer(&scene.tunnel(), Direction::Down, 256 * MIB, |_| {
        Step::of(256 * 1024)
    });
}

fn a_quarter_gigabyte_goes_up(scene: &Scene) {
    transfer(&scene.tunnel(), Direction::Up, 256 * MIB, |_| {
        Step::of(256 * 1024)
    });
}

/// With early data of this size in the segment of the request.
fn early_data(scene: &Scene, early: u64) {
    let ahead = up().bytes(usize::try_from(early).unwrap());
    let tunnel = scene.tunnel_between(scene.client(), &scene.origin(), &ahead);
    // The origin has all of it before the client says another word.
    up().receive(&mut &tunnel.origin, early).unwrap();
    let Tunnel { client, origin } = &tunnel;
    thread::scope(|scope| {
        scope.spawn(|| send_all(up(), client, early, MIB, |_| Step::fast()));
        scope.spawn(|| send_all(down(), origin, 0, MIB, |_| Step::fast()));
        scope.spawn(|| {
            up().receive_range(&mut &*origin, early, MIB, |_| Step::fast())
                .unwrap();
            expect_end(origin);
        });
        scope.spawn(|| receive_all(down(), client, MIB, |_| Step::fast()));
    });
    expect_record(scene, MIB, MIB);
}

fn one_byte_of_early_data_is_first(scene: &Scene) {
    early_data(scene, 1);
}

fn a_kibibyte_of_early_data_is_first(scene: &Scene) {
    early_data(scene, KIB);
}

fn forty_kibibytes_of_early_data_are_first(scene: &Scene) {
    early_data(scene, 40 * KIB);
}

/// The origin talks as soon as it has accepted; the client sends `early` bytes with its request.
fn banner(scene: &Scene, banner: u64, early: u64) {
    let origin = scene.origin();
    thread::scope(|scope| {
        let greeter = scope.spawn(|| {
            let stream = origin.accept();
            down().send(&mut &stream, banner).unwrap();
            stream
        });
        let ahead = up().bytes(usize::try_from(early).unwrap());
        let client = scene.counted(|| {
            scene
                .client()
                .tunnel_with_early_data(&origin.target(), &ahead)
        });
        if early == 0 {
            // The whole greeting arrives although the client has not said a word.
            down().receive(&mut &client, banner).unwrap();
            let origin = greeter.join().unwrap();
            scope.spawn(move || {
                down()
                    .send_range(&mut &origin, banner, banner + MIB, |_| Step::fast())
                    .unwrap();
                origin.shutdown(Shutdown::Write).unwrap();
                receive_all(up(), &origin, MIB, |_| Step::fast());
            });
            send_all(up(), &client, 0, MIB, |_| Step::fast());
            down()
                .receive_range(&mut &client, banner, banner + MIB, |_| Step::fast())
                .unwrap();
            expect_end(&client);
        } else {
            let origin = greeter.join().unwrap();
            exchange(&Tunnel { client, origin }, early, MIB, banner, banner + MIB);
        }
    });
    expect_record(scene, MIB, banner + MIB);
}

fn the_origin_may_speak_first(scene: &Scene) {
    banner(scene, 24, 0);
}

fn the_origin_may_send_a_mebibyte_first(scene: &Scene) {
    banner(scene, MIB, 0);
}

fn both_ends_may_speak_first(scene: &Scene) {
    // Together less than both ends hold without reading, since neither reads yet.
    banner(scene, 100 * KIB, 40 * KIB);
}

/// Slow for the first third, so that everything before the reader fills up, then fast.
fn slow_then_fast(len: u64) -> impl FnMut(u64) -> Step {
    move |position| {
        if position < len / 3 {
            Step::after(Duration::from_millis(2), 64 * 1024)
        } else {
            Step::fast()
        }
    }
}

fn a_slow_client_gets_every_byte(scene: &Scene) {
    transfer(
        &scene.tunnel(),
        Direction::Down,
        48 * MIB,
        slow_then_fast(48 * MIB),
    );
}

fn a_slow_origin_gets_every_byte(scene: &Scene) {
    transfer(
        &scene.tunnel(),
        Direction::Up,
        48 * MIB,
        slow_then_fast(48 * MIB),
    );
}

/// Slow readers at both ends at once, so that both directions are held back together.
fn slow_readers_at_both_ends_do_not_block_each_other(scene: &Scene) {
    let Tunnel { client, origin } = &scene.tunnel();
    let len = 24 * MIB;
    thread::scope(|scope| {
        scope.spawn(|| send_all(up(), client, 0, len, |_| Step::fast()));
        scope.spawn(|| send_all(down(), origin, 0, len, |_| Step::fast()));
        scope.spawn(|| receive_all(up(), origin, len, slow_then_fast(len)));
        scope.spawn(|| receive_all(down(), client, len, slow_then_fast(len)));
    });
    expect_record(scene, len, len);
}

fn a_client_with_a_tiny_receive_buffer_gets_every_byte(scene: &Scene) {
    let tunnel = scene.tunnel_between(
        scene.client().receive_buffer(8 * 1024),
        &scene.origin(),
        b"",
    );
    transfer(&tunnel, Direction::Down, 4 * MIB, |_| Step::fast());
}

fn an_origin_with_a_tiny_receive_buffer_gets_every_byte(scene: &Scene) {
    let tunnel = scene.tunnel_between(
        scene.client(),
        &scene.origin_with_receive_buffer(8 * 1024),
        b"",
    );
    transfer(&tunnel, Direction::Up, 4 * MIB, |_| Step::fast());
}

fn a_stop_and_go_reader_gets_every_byte(scene: &Scene) {
    for direction in [Direction::Down, Direction::Up] {
        let mut random = Random::new(5);
        let mut next_stop = 0;
        transfer(&scene.tunnel(), direction, 24 * MIB, |position| {
            let bytes = random.between(1, 200_000);
            if position < next_stop {
                return Step::of(bytes);
            }
            next_stop = position + random.between(100_000, 3_000_000) as u64;
            Step::after(Duration::from_millis(random.between(1, 80) as u64), bytes)
        });
    }
}

fn random_chunk_sizes_make_no_difference(scene: &Scene) {
    for seed in [11, 12, 13] {
        // Shown when the test fails.
        eprintln!("seed {seed}");
        let Tunnel { client, origin } = &scene.tunnel();
        let len = 8 * MIB;
        let chunks = |seed| {
            let mut random = Random::new(seed);
            move |_| {
                // Many small ones, some around the sizes of segments, pages and pipes, a few large ones.
                let bound = [10, 1500, 9000, 70_000, 300_000][random.between(0, 4)];
                Step::of(random.between(1, bound))
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| send_all(up(), client, 0, len, chunks(seed)));
            scope.spawn(|| send_all(down(), origin, 0, len, chunks(seed + 100)));
            scope.spawn(|| receive_all(up(), origin, len, chunks(seed + 200)));
            scope.spawn(|| receive_all(down(), client, len, chunks(seed + 300)));
        });
    }
}

/// Single bytes up, each answered by another.
fn ping_pong(tunnel: &Tunnel, rounds: usize) {
    let Tunnel { client, origin } = tunnel;
    let bytes = up().bytes(rounds);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut origin = origin;
            for _ in 0..rounds {
                let mut byte = [0];
                origin.read_exact(&mut byte).unwrap();
                origin.write_all(&[!byte[0]]).unwrap();
            }
        });
        let mut client = client;
        for (round, byte) in bytes.iter().enumerate() {
            client.write_all(&[*byte]).unwrap();
            let mut answer = [0];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [!byte], "round {round}");
        }
    });
}

fn single_bytes_go_back_and_forth(scene: &Scene) {
    const ROUNDS: u64 = 2000;
    ping_pong(&scene.tunnel(), 2000);
    let record = scene.record();
    assert_eq!((record.up, record.down), (ROUNDS, ROUNDS), "{record:?}");
    // All but what came before the kernel took over.
    assert!(
        !scene.is_spliced() || record.spliced > 2 * ROUNDS * 9 / 10,
        "{record:?}"
    );
}

/// Lost segments are sent again together with such as had arrived, whose acknowledgements were lost: one segment that
/// overlaps what was passed on already.
fn segments_that_overlap_are_delivered_once(scene: &Scene) {
    let mut tunnels = 0;
    for direction in [Direction::Down, Direction::Up] {
        // The sender's timers decide whether it repeats bytes in a longer segment; a slow machine can be
        // too late for them.
        let overlapped = (0..15).any(|_| {
            overlap(scene, direction);
            tunnels += 1;
            let records = scene.daemon().wait_tunnel_records(tunnels);
            !scene.is_spliced() || records.last().is_some_and(|record| record.trimmed > 0)
        });
        assert!(overlapped, "{direction:?}: no overlap was trimmed");
    }
}

fn overlap(scene: &Scene, direction: Direction) {
    const PIECE: u64 = 100;
    let (lab, family) = (scene.lab(), scene.family());
    let (host, address, proxy, cable) = match direction {
        Direction::Up => (&lab.client, family.client(), family.proxy().ip(), "cable1"),
        Direction::Down => (
            &lab.origin,
            family.origin(),
            family.proxy_outside(),
            "cable2",
        ),
    };
    let tunnel = scene.tunnel();
    // The kernel carries it from here on.
    ping_pong(&tunnel, 20);
    let (sender, mut receiver) = tunnel.towards(direction);
    let mut position = 0;
    let mut send = |pieces: u64| {
        for _ in 0..pieces {
            let end = position + PIECE;
            down()
                .send_range(&mut &*sender, position, end, |_| Step::fast())
                .unwrap();
            position = end;
        }
    };
    for round in 0..3 {
        let begin = round * 4 * PIECE;
        // Else a sender that has just recovered could wait for an acknowledgement that is lost.
        wait_for("every byte is acknowledged", PATIENCE, || {
            (sockopt::unacknowledged(sender).unwrap() == 0).then_some(())
        });
        let acknowledgements = lab.proxy.lose_packets_to(address, cable);
        send(2);
        down()
            .receive_range(&mut receiver, begin, begin + 2 * PIECE, |_| Step::fast())
            .unwrap();
        // The sender's only tail loss probe (RFC 8985 section 7) goes out meanwhile and tells it nothing.
        thread::sleep(Duration::from_millis(40));
        let data = host.lose_packets_to(proxy, cable);
        send(2);
        drop((data, acknowledgements));
        down()
            .receive_range(&mut receiver, begin + 2 * PIECE, begin + 4 * PIECE, |_| {
                Step::fast()
            })
            .unwrap();
    }
    sender.shutdown(Shutdown::Write).unwrap();
    expect_end(receiver);
}

/// The first to speak sends and ends its direction; the other answers only after it has seen that end.
fn late_answer(scene: &Scene, first: Direction) {
    let tunnel = scene.tunnel();
    let (asker, answerer) = tunnel.towards(first);
    thread::scope(|scope| {
        scope.spawn(|| send_all(up(), asker, 0, 12 * MIB, |_| Step::fast()));
        scope.spawn(|| {
            // Slow at first, so that the end is behind megabytes in flight.
            receive_all(up(), answerer, 12 * MIB, slow_then_fast(3 * MIB));
            send_all(down(), answerer, 0, 12 * MIB, |_| {
                Step::after(Duration::from_micros(100), 64 * 1024)
            });
        });
        scope.spawn(|| receive_all(down(), asker, 12 * MIB, |_| Step::fast()));
    });
    expect_record(scene, 12 * MIB, 12 * MIB);
}

fn a_half_closing_client_gets_its_late_answer(scene: &Scene) {
    late_answer(scene, Direction::Up);
}

fn a_half_closing_origin_gets_its_late_answer(scene: &Scene) {
    late_answer(scene, Direction::Down);
}

/// The FIN follows the last byte at once, in the same or the next segment, at every possible stage of the tunnel.
fn no_byte_before_a_fin_is_lost(scene: &Scene) {
    const ROUNDS: usize = 300;
    // In every other round nobody waits for the engine to take over: then it may have to refuse the pair.
    scene.may_decline(ROUNDS / 2);
    let origin = scene.origin();
    let mut random = Random::new(42);
    for round in 0..ROUNDS {
        let len = match round % 3 {
            0 => random.between(1, 3000),
            _ => random.between(1, 200_000),
        };
        let direction = if round % 4 < 2 {
            Direction::Up
        } else {
            Direction::Down
        };
        let tunnel = scene.tunnel_between(scene.client(), &origin, b"");
        if round % 2 == 0 {
            ping_pong(&tunnel, 2);
        }
        let (sender, receiver) = tunnel.split(direction);
        let payload = Payload::new(round as u64);
        thread::scope(|scope| {
            scope.spawn(move || {
                payload.send(&mut &sender, len as u64).unwrap();
                if round % 5 < 3 {
                    // Closes both directions at once.
                    drop(sender);
                } else {
                    sender.shutdown(Shutdown::Write).unwrap();
                    expect_end(&sender);
                }
            });
            let end = payload.receive_to_end(&mut &receiver, 0).unwrap();
            // The sender may wait for the end of the other direction.
            drop(receiver);
            assert_eq!(end, len as u64, "round {round} {direction:?}");
        });
    }
}

fn fifty_tunnels_at_once_do_not_mix(scene: &Scene) {
    let origin = scene.origin();
    let tunnels = (0..50)
        .map(|_| scene.tunnel_between(scene.client(), &origin, b""))
        .collect::<Vec<_>>();
    thread::scope(|scope| {
        for (number, Tunnel { client, origin }) in tunnels.iter().enumerate() {
            let number = number as u64;
            let (up, down) = (Payload::new(1000 + number), Payload::new(2000 + number));
            let (up_len, down_len) = (700 * KIB + number * 999, MIB + number * 777);
            scope.spawn(move || send_all(up, client, 0, up_len, |_| Step::of(20_000)));
            scope.spawn(move || send_all(down, origin, 0, down_len, |_| Step::of(30_000)));
            scope.spawn(move || receive_all(up, origin, up_len, |_| Step::fast()));
            scope.spawn(move || receive_all(down, client, down_len, |_| Step::fast()));
        }
    });
}

/// A reset must not look like a clean end, or a cut-off transfer would look complete.
fn reset_becomes_reset(scene: &Scene, from: Direction, end: &str) {
    // While nothing moves, and while the resetting end is sending.
    for busy in [false, true] {
        let tunnel = scene.tunnel();
        let (resetter, other) = tunnel.split(from);
        let payload = up();
        payload.send(&mut &resetter, 1000).unwrap();
        payload.receive(&mut &other, 1000).unwrap();
        if busy {
            payload
                .send_range(&mut &resetter, 1000, 500_000, |_| Step::fast())
                .unwrap();
        }
        reset(resetter);
        let error = payload
            .receive_to_end(&mut &other, 1000)
            .expect_err("no clean end after a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let records = scene.daemon().wait_tunnel_records(2);
    assert!(
        records.iter().all(|record| record.end == end),
        "{records:#?}"
    );
}

fn a_reset_by_the_client_reaches_the_origin(scene: &Scene) {
    reset_becomes_reset(scene, Direction::Up, "client-reset");
}

fn a_reset_by_the_origin_reaches_the_client(scene: &Scene) {
    reset_becomes_reset(scene, Direction::Down, "upstream-reset");
}

/// A reset by an end that does not read what the other is sending.
fn a_reset_reaches_an_end_that_is_sending(scene: &Scene) {
    for from in [Direction::Up, Direction::Down] {
        let (resetter, other) = scene.tunnel().split(from);
        thread::scope(|scope| {
            let sender = scope.spawn(move || up().send(&mut &other, 1 << 40));
            down().send(&mut &resetter, 1).unwrap();
            up().receive(&mut &resetter, 3 * MIB).unwrap();
            reset(resetter);
            let error = sender.join().unwrap().expect_err("cannot send for ever");
            assert!(
                [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()),
                "{error}"
            );
        });
    }
}

for_every_engine!(
    random_bytes_cross_both_ways_at_once,
    a_quarter_gigabyte_comes_down,
    a_quarter_gigabyte_goes_up,
    one_byte_of_early_data_is_first,
    a_kibibyte_of_early_data_is_first,
    forty_kibibytes_of_early_data_are_first,
    the_origin_may_speak_first,
    the_origin_may_send_a_mebibyte_first,
    both_ends_may_speak_first,
    a_slow_client_gets_every_byte,
    a_slow_origin_gets_every_byte,
    slow_readers_at_both_ends_do_not_block_each_other,
    a_client_with_a_tiny_receive_buffer_gets_every_byte,
    an_origin_with_a_tiny_receive_buffer_gets_every_byte,
    a_stop_and_go_reader_gets_every_byte,
    random_chunk_sizes_make_no_difference,
    single_bytes_go_back_and_forth,
    segments_that_overlap_are_delivered_once,
    a_half_closing_client_gets_its_late_answer,
    a_half_closing_origin_gets_its_late_answer,
    no_byte_before_a_fin_is_lost,
    fifty_tunnels_at_once_do_not_mix,
    a_reset_by_the_client_reaches_the_origin,
    a_reset_by_the_origin_reaches_the_client,
    a_reset_reaches_an_end_that_is_sending,
);
