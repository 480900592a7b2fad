//! A tunnel that is open shows its bytes in all places within two seconds, and the same ones in the end.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use proxy_tests::{
    client::connect_head,
    daemon::{Daemon, Setup},
    deadline::{PATIENCE, wait_for},
    lab::{Family, Lab},
    origin::Origin,
    payload::{Payload, Random},
    require_root_or_skip,
};
use serde_json::Value;

use crate::{
    admin::{get, metric, metrics},
    scene::client,
};

/// What a tunnel is told before its first byte.
const ESTABLISHED: u64 = "HTTP/1.1 200 Connection established\r\n\r\n".len() as u64;

/// Bytes up and down.
type Bytes = (u64, u64);

/// For how long it is watched, and how soon bytes are to be seen: two seconds is the promise, which
/// `UNDERPASS_WATCH_SECONDS=3600` holds for an hour. Beside other tests, which take all processors, it is more.
fn times() -> (Duration, Duration) {
    let wanted = std::env::var("UNDERPASS_WATCH_SECONDS").ok();
    match wanted.and_then(|text| text.parse().ok()) {
        Some(seconds) => (Duration::from_secs(seconds), Duration::from_secs(2)),
        None => (Duration::from_secs(5), Duration::from_secs(8)),
    }
}

fn pair(up: &Value, down: &Value) -> Option<Bytes> {
    Some((up.as_u64()?, down.as_u64()?))
}

/// The only tunnel of a listing.
fn listed(listing: &Value) -> Option<Bytes> {
    match listing["tunnels"].as_array()?.as_slice() {
        [tunnel] => pair(&tunnel["up"], &tunnel["down"]),
        _ => None,
    }
}

fn exposed(daemon: &Daemon) -> Option<Bytes> {
    let text = metrics(daemon);
    let all = |direction: &str| -> f64 {
        ["copy", "splice", "sockmap"]
            .into_iter()
            .map(|engine| {
                let labels = format!("{{engine=\"{engine}\",direction=\"{direction}\"}}");
                metric(&text, &format!("underpass_tunnel_bytes_total{labels}"))
            })
            .sum()
    };
    Some((
        all("up").to_string().parse().ok()?,
        all("down").to_string().parse().ok()?,
    ))
}

/// The last record of a log of JSON, and its payload.
fn logged(log: &Path, head: u64) -> Option<(Value, Bytes)> {
    let text = fs::read_to_string(log).ok()?;
    let complete = text.strip_suffix('\n')?;
    let record: Value = serde_json::from_str(complete.lines().last()?).unwrap();
    let (up, down) = pair(&record["bytes_received"], &record["bytes_sent"])?;
    Some((
        record,
        (up.checked_sub(head)?, down.checked_sub(ESTABLISHED)?),
    ))
}

/// Sends so many bytes each way at once, and checks them.
fn converse(client: &mut TcpStream, server: &mut TcpStream, seed: u64, (up, down): Bytes) {
    let (mut client_back, mut server_back) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::scope(|scope| {
        scope.spawn(move || Payload::new(seed).send(&mut client_back, up).unwrap());
        scope.spawn(move || Payload::new(!seed).send(&mut server_back, down).unwrap());
        scope.spawn(|| Payload::new(seed).receive(server, up).unwrap());
        Payload::new(!seed).receive(client, down).unwrap();
    });
}

/// Plays one tunnel and looks everywhere, until the end.
fn watch(engine: &str) {
    let lab = Lab::new();
    let log = lab.scratch().path().join("json");
    let config = format!(
        "[[access_log]]\nto = \"{}\"\nformat = \"json\"\ninterval = \"1s\"\n",
        log.display()
    );
    let daemon = Setup::open(&lab)
        .option("--engine", engine)
        .config(&lab, &config)
        .start();
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    let mut stream = client(&lab).tunnel(&origin.target());
    let mut server = origin.accept();
    let head = connect_head(&origin.target()).len() as u64;
    let mut random = Random::new(4711);
    let mut sum: Bytes = (0, 0);
    let (long, soon) = times();
    let begin = Instant::now();
    let mut round = 0;
    while begin.elapsed() < long {
        round += 1;
        let mut some = || random.between(1, 300_000) as u64;
        let more = (some(), some());
        converse(&mut stream, &mut server, round, more);
        sum = (sum.0 + more.0, sum.1 + more.1);
        let flowed = Instant::now();
        let left = || soon.saturating_sub(flowed.elapsed());
        let expect = |place: &str, look: &dyn Fn() -> Option<Bytes>| {
            let what = format!("{engine}, round {round}: {sum:?} in {place}");
            wait_for(&what, left(), || (look()? == sum).then_some(()));
        };
        expect("/tunnels", &|| listed(&get(&daemon, "/tunnels")));
        expect("/status", &|| {
            let status = get(&daemon, "/status");
            pair(&status["up"], &status["down"])
        });
        expect("/metrics", &|| exposed(&daemon));
        expect("top", &|| {
            let look = daemon.tell(&["top", "--once", "--json"]);
            listed(&serde_json::from_str::<Value>(&look).unwrap()["tunnels"])
        });
        expect("the log", &|| Some(logged(&log, head)?.1));
        thread::sleep(Duration::from_millis(500));
    }
    stream.shutdown(Shutdown::Write).unwrap();
    server.read_exact(&mut [0]).unwrap_err();
    server.write_all(b"last").unwrap();
    drop(server);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last");
    sum.1 += 4;
    let (record, bytes) = wait_for("the last record", PATIENCE, || {
        logged(&log, head).filter(|(record, _)| record["event"] == "end")
    });
    assert_eq!(bytes, sum, "{engine}: {record:#}");
    assert_eq!(record["end"], "closed", "{record:#}");
    assert_eq!(exposed(&daemon), Some(sum), "{engine}");
    let status = wait_for("a look at the end", soon, || {
        let status = get(&daemon, "/status");
        (pair(&status["up"], &status["down"])? == sum).then_some(status)
    });
    assert_eq!(status["tunnels"]["copy"], 0, "{status:#}");
    assert_eq!(get(&daemon, "/tunnels")["total"], 0);
}

#[test]
fn all_places_agree_while_a_tunnel_is_open() {
    require_root_or_skip!();
    thread::scope(|scope| {
        for engine in ["copy", "splice", "sockmap", "auto"] {
            scope.spawn(move || watch(engine));
        }
    });
}
