//! A reader that stops holds its sender back: nothing piles up in the proxy or the kernel.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use proxy_tests::{
    deadline::uninterrupted,
    payload::{Payload, Step},
};

use socket2::SockRef;

use crate::scene::{Direction, Scene, for_every_engine};

const MIB: u64 = 1 << 20;

/// What a sender would like to send in total: far more than anybody may hold.
const OFFERED: u64 = 512 * MIB;

/// Bytes that may be between a sender and a reader that has stopped, the buffers of both included.
const MAX_IN_FLIGHT: u64 = 16 * MIB;

/// The buffers of the two ends; the kernel doubles it.
const END_BUFFER: usize = 256 * 1024;

/// A sender that makes no progress for this long is held back.
const HELD_BACK: Duration = Duration::from_millis(1500);

/// Sends from position `from` until nothing is taken any more; returns the new position.
pub(crate) fn send_until_held_back(payload: Payload, stream: &TcpStream, from: u64) -> u64 {
    stream.set_nonblocking(true).unwrap();
    let mut position = from;
    let mut progress = Instant::now();
    let mut buffer = vec![0; 256 * 1024];
    while position < OFFERED && progress.elapsed() < HELD_BACK {
        payload.fill(position, &mut buffer);
        match uninterrupted(|| (&*stream).write(&buffer)) {
            Ok(count) => {
                position += count as u64;
                progress = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("at byte {position}: {error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    position
}

/// The reader takes `first` bytes, stops until the sender is held back, then takes everything.
fn stalled_reader(scene: &Scene, direction: Direction, first: u64) {
    let tunnel = scene.tunnel();
    let (sender, receiver) = tunnel.towards(direction);
    // What the two ends themselves hold is little, so that the rest is the proxy's.
    SockRef::from(sender)
        .set_send_buffer_size(END_BUFFER)
        .unwrap();
    SockRef::from(receiver)
        .set_recv_buffer_size(END_BUFFER)
        .unwrap();
    let payload = Payload::new(9);
    let held_at = thread::scope(|scope| {
        let sender = scope.spawn(|| send_until_held_back(payload, sender, 0));
        payload.receive(&mut &*receiver, first).unwrap();
        sender.join().unwrap()
    });
    assert!(held_at > first, "held back while somebody reads");
    let in_flight = held_at - first;
    eprintln!("{direction:?} after {first} bytes: {in_flight} bytes in flight");
    assert!(
        in_flight < MAX_IN_FLIGHT,
        "{in_flight} bytes accepted for a reader that does not read"
    );

    let end = held_at + 20 * MIB;
    thread::scope(|scope| {
        scope.spawn(|| {
            payload
                .send_range(&mut &*sender, held_at, end, |_| Step::fast())
                .unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        payload
            .receive_range(&mut &*receiver, first, end, |_| Step::fast())
            .unwrap();
        assert_eq!(payload.receive_to_end(&mut &*receiver, end).unwrap(), end);
    });
}

fn a_client_that_never_reads_holds_the_origin_back(scene: &Scene) {
    stalled_reader(scene, Direction::Down, 0);
}

fn an_origin_that_never_reads_holds_the_client_back(scene: &Scene) {
    stalled_reader(scene, Direction::Up, 0);
}

fn a_client_that_stops_reading_holds_the_origin_back(scene: &Scene) {
    stalled_reader(scene, Direction::Down, 40 * MIB);
}

fn an_origin_that_stops_reading_holds_the_client_back(scene: &Scene) {
    stalled_reader(scene, Direction::Up, 40 * MIB);
}

/// The other direction of a tunnel with a stopped reader goes on.
fn a_stopped_direction_does_not_stop_the_other(scene: &Scene) {
    for direction in [Direction::Up, Direction::Down] {
        let tunnel = scene.tunnel();
        let (sender, receiver) = tunnel.towards(direction);
        let payload = Payload::new(9);
        let held_at = send_until_held_back(payload, sender, 0);
        // The stopped reader sends, the held-back sender reads.
        thread::scope(|scope| {
            scope.spawn(|| Payload::new(10).send(&mut &*receiver, 30 * MIB).unwrap());
            Payload::new(10).receive(&mut &*sender, 30 * MIB).unwrap();
        });
        payload.receive(&mut &*receiver, held_at).unwrap();
    }
}

/// Processor time that a process has used.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which is in brackets: utime and stime, in hundredths of a second.
    let fields = stat.rsplit_once(") ").unwrap().1.split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum::<u64>();
    Duration::from_millis(ticks * 10)
}

/// With both directions full, each waits behind the other's bytes. Both senders are held back, the proxy sleeps, and
/// every byte arrives once the ends read.
fn two_ends_that_do_not_read_are_both_held_back(scene: &Scene) {
    let tunnel = scene.tunnel();
    let (client, origin) = tunnel.towards(Direction::Up);
    for end in [client, origin] {
        SockRef::from(end).set_recv_buffer_size(4096).unwrap();
        SockRef::from(end).set_send_buffer_size(END_BUFFER).unwrap();
    }
    let (up, down) = (Payload::new(9), Payload::new(10));
    let (up_held, down_held) = thread::scope(|scope| {
        let up_held = scope.spawn(|| send_until_held_back(up, client, 0));
        let down_held = scope.spawn(|| send_until_held_back(down, origin, 0));
        (up_held.join().unwrap(), down_held.join().unwrap())
    });
    eprintln!("{up_held} bytes up and {down_held} bytes down in flight");
    assert!(up_held < MAX_IN_FLIGHT && down_held < MAX_IN_FLIGHT);

    let before = cpu_time(scene.daemon().pid());
    thread::sleep(Duration::from_secs(2));
    let used = cpu_time(scene.daemon().pid()).saturating_sub(before);
    assert!(
        used < Duration::from_millis(400),
        "{used:?} of processor time in two seconds of standstill"
    );

    client.shutdown(Shutdown::Write).unwrap();
    origin.shutdown(Shutdown::Write).unwrap();
    thread::scope(|scope| {
        let received = scope.spawn(|| up.receive_to_end(&mut &*origin, 0).unwrap());
        assert_eq!(down.receive_to_end(&mut &*client, 0).unwrap(), down_held);
        assert_eq!(received.join().unwrap(), up_held);
    });
}

for_every_engine!(
    a_client_that_never_reads_holds_the_origin_back,
    an_origin_that_never_reads_holds_the_client_back,
    a_client_that_stops_reading_holds_the_origin_back,
    an_origin_that_stops_reading_holds_the_client_back,
    a_stopped_direction_does_not_stop_the_other,
    two_ends_that_do_not_read_are_both_held_back,
);
