//! Rules on the name in a ClientHello: the client is told that its tunnel is open, then judged by what it says.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use proxy_tests::{
    client::connect_head,
    daemon::{Daemon, Setup, binary, run_to_end},
    lab::{Family, Lab},
    ordeal::Ordeal,
    payload::{Payload, Random},
    require_root_or_skip, require_tool_or_skip,
    tls::{Pages, TlsOrigin, page},
};
use rustix::process::Signal;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName,
};

use crate::scene::{OPEN, Scene, client, configured, for_every_engine, origin_on};

const NO_BAD: &str = "[[rule]]\nname = \"no-bad\"\naction = \"deny\"\nsni = [\".bad.test\"]\n";

const TARGET: &str = "10.77.2.1:443";

fn daemon(lab: &Lab, rules: &str) -> Daemon {
    configured(lab, &format!("timeouts.client_hello = \"700ms\"\n{rules}"))
}

/// What a real client begins with that wants to talk to this server.
fn client_hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// What the peer sees is a reset, and nothing before it.
fn expect_reset(mut stream: &TcpStream) {
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn read_exactly(mut stream: &TcpStream, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).unwrap();
    assert!(read == expected, "{} bytes differ", read.len());
}

/// The hello comes in pieces and is passed on whole; what follows is a tunnel as any other.
fn tunnels_that_were_judged_live_and_die_in_every_way(scene: &Scene) {
    scene.may_decline(usize::MAX);
    let hello = client_hello("www.good.test");
    let mut random = Random::new(9);
    for _ in 0..8 {
        let ordeals = [(); 3].map(|()| Ordeal::draw(&mut random, 1 << 20));
        thread::scope(|scope| {
            for ordeal in &ordeals {
                let origin = scene.origin();
                let mut client = scene.counted(|| scene.client().tunnel(&origin.target()));
                let mut rest = hello.as_slice();
                while !rest.is_empty() {
                    let (piece, behind) = rest.split_at(random.between(1, rest.len()));
                    client.write_all(piece).unwrap();
                    rest = behind;
                    thread::sleep(Duration::from_millis(2));
                }
                let upstream = origin.accept();
                read_exactly(&upstream, &hello);
                scope.spawn(move || {
                    if let Err(wrong) = ordeal.play(client, upstream) {
                        panic!("{wrong}: {ordeal:?}");
                    }
                });
            }
        });
    }
}

for_every_engine!(
    config = crate::sni::NO_BAD;
    tunnels_that_were_judged_live_and_die_in_every_way
);

#[test]
fn the_name_in_the_hello_decides() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = daemon(&lab, NO_BAD);
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    for name in ["bad.test", "WWW.bad.test"] {
        let mut stream = client(&lab).tunnel(TARGET);
        stream.write_all(&client_hello(name)).unwrap();
        expect_reset(&stream);
    }
    let line = daemon.wait_access_lines(2).remove(0);
    assert!(line.contains(" TCP_DENIED/200 39 CONNECT "), "{line}");
    assert!(line.contains(" HIER_NONE/- "), "{line}");
    assert!(!origin.is_called_within(Duration::from_millis(200)));

    let hello = client_hello("www.good.test");
    let mut stream = client(&lab).tunnel(TARGET);
    stream.write_all(&hello).unwrap();
    let mut upstream = origin.accept();
    read_exactly(&upstream, &hello);
    Payload::new(1).send(&mut upstream, 100_000).unwrap();
    Payload::new(1).receive(&mut stream, 100_000).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    drop(upstream);
    let record = daemon.wait_tunnel_records(1).remove(0);
    assert_eq!((record.up, record.down), (hello.len() as u64, 100_000));
    let line = daemon.wait_access_line(|line| line.contains("TCP_TUNNEL/200"));
    assert!(line.contains(" TCP_TUNNEL/200 100039 CONNECT "), "{line}");
}

/// Without a rule that asks for it.
#[test]
fn another_name_than_the_host_s_is_reset_if_that_is_asked_for() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "good.test")]);
    let daemon = daemon(&lab, "strict_sni = true\n");
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    for (target, hello, is_let_through) in [
        ("good.test:443", client_hello("other.test"), false),
        ("good.test:443", client_hello("10.77.2.1"), false),
        ("good.test:443", client_hello("GOOD.test"), true),
        ("good.test.:443", client_hello("good.test"), true),
        ("good.test:443", b"no TLS at all".to_vec(), true),
        // There is no name to compare with.
        (TARGET, client_hello("other.test"), true),
    ] {
        let mut stream = client(&lab).tunnel(target);
        stream.write_all(&hello).unwrap();
        if is_let_through {
            let upstream = origin.accept();
            read_exactly(&upstream, &hello);
        } else {
            expect_reset(&stream);
        }
    }
    let line = daemon.wait_access_lines(2).remove(0);
    assert!(
        line.contains(" TCP_DENIED/200 39 CONNECT good.test:443 "),
        "{line}"
    );
}

/// Who sends it with the request is judged before there is an answer, and told what is wrong.
#[test]
fn a_hello_that_is_there_already_is_judged_at_once() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = daemon(&lab, NO_BAD);
    let bad = [connect_head(TARGET).as_bytes(), &client_hello("bad.test")].concat();
    client(&lab)
        .exchange("bad.test", &bad)
        .check_refusal(403, "http_request_denied")
        .unwrap();
    let hello = client_hello("good.test");
    // Nobody is there: the answer is the one without rules.
    let good = [connect_head(TARGET).as_bytes(), &hello].concat();
    assert_eq!(client(&lab).exchange("good.test", &good).status, 502);
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    let stream = client(&lab).tunnel_with_early_data(TARGET, &hello);
    let upstream = origin.accept();
    read_exactly(&upstream, &hello);
    drop((stream, upstream));
    daemon.wait_tunnel_records(1);
}

#[test]
fn what_is_no_hello_is_not_taken_for_one() {
    require_root_or_skip!();
    let lab = Lab::new();
    let daemon = daemon(&lab, NO_BAD);
    let hello = client_hello("good.test");
    // Silence, half of one, half of one and the end, and nonsense.
    let silent = client(&lab).tunnel(TARGET);
    let mut half = client(&lab).tunnel(TARGET);
    half.write_all(&hello[..hello.len() / 2]).unwrap();
    let mut ended = client(&lab).tunnel(TARGET);
    ended.write_all(&hello[..9]).unwrap();
    ended.shutdown(Shutdown::Write).unwrap();
    let mut nonsense = client(&lab).tunnel(TARGET);
    nonsense.write_all(&[22, 3, 1, 0, 4, 2, 0, 0, 0]).unwrap();
    for stream in [&ended, &nonsense, &silent, &half] {
        expect_reset(stream);
    }
    let lines = daemon.wait_access_lines(4);
    assert!(
        lines
            .iter()
            .all(|line| line.contains(" TCP_DENIED/200 39 ")),
        "{lines:#?}"
    );
    let said = daemon.stderr_lines().join("\n");
    assert!(
        said.contains("there was no ClientHello within 700ms"),
        "{said}"
    );

    // What is no TLS has no name.
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    let mut stream = client(&lab).tunnel(TARGET);
    stream.write_all(b"S").unwrap();
    let upstream = origin.accept();
    stream.write_all(b"SH-2.0").unwrap();
    read_exactly(&upstream, b"SSH-2.0");
    // Nor has one that only listens.
    let stream = client(&lab).tunnel(TARGET);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut upstream = origin.accept();
    upstream.write_all(b"220 ready").unwrap();
    read_exactly(&stream, b"220 ready");
}

/// What can be told is told before the `200`; the rest is a reset.
#[test]
fn what_is_wrong_anyway_is_told_first() {
    require_root_or_skip!();
    let lab = Lab::new();
    lab.scratch().write(
        "users",
        "anna:$2y$05$YUyKgEl8vfXzjqHarPyLXeaeetdDpvpRIGlY4etQktn3QB866VU4u\n",
    );
    let daemon = daemon(
        &lab,
        &format!(
            "auth.htpasswd = \"users\"\n{NO_BAD}
            [[rule]]\naction = \"deny\"\nport = [81]
            [[rule]]\naction = \"allow\"\nport = [82]\nuser = [\"anna\"]\n"
        ),
    );
    for (target, status) in [
        ("10.77.2.1:81", 403),
        ("10.77.2.1:82", 407),
        ("10.77.9.9:443", 403),
        ("nowhere.invalid:443", 502),
    ] {
        assert_eq!(client(&lab).refusal(target).status, status, "{target}");
    }
    // Nobody listens there, which is not known until the hello was heard.
    let mut stream = client(&lab).tunnel(TARGET);
    stream.write_all(&client_hello("good.test")).unwrap();
    expect_reset(&stream);
    let line = daemon.wait_access_line(|line| line.contains("/200 39 "));
    assert!(line.contains(" TCP_TUNNEL/200 39 CONNECT "), "{line}");
    assert!(line.contains(" HIER_DIRECT/10.77.2.1 "), "{line}");
}

/// Under the name of one host to the address of another, as domain fronting does.
#[test]
fn curl_is_judged_by_the_name_that_it_wants() {
    require_root_or_skip!();
    require_tool_or_skip!("curl", "--version");
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
    let body = page("Tunnels", 100_000);
    let web = TlsOrigin::start(
        &lab.origin,
        &["10.77.2.1:443".parse().unwrap()],
        &["origin.test", "front.bad.test"],
        Pages::from([("/".to_owned(), body.clone())]),
    );
    let daemon = daemon(&lab, NO_BAD);
    let curl = |url: &str| {
        let mut command = lab.client.command("curl");
        command.args(["-sS", "-x", "http://10.77.1.2:3128", "--cacert"]);
        command.arg(web.authority());
        command.args(["--connect-to", "front.bad.test:443:origin.test:443", url]);
        run_to_end(&mut command)
    };
    assert!(curl("https://origin.test/").stdout == body);
    let output = curl("https://front.bad.test/");
    assert_eq!(output.status.code(), Some(35), "{output:?}");
    let line = daemon.wait_access_line(|line| line.contains("TCP_DENIED"));
    assert!(line.contains(" CONNECT origin.test:443 "), "{line}");
}

#[test]
fn a_tunnel_is_judged_again_by_the_name_that_was_heard() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = lab.scratch().path().join("underpass.toml");
    let write = |name: &str| {
        let rules = NO_BAD.replace(".bad.test", name);
        fs::write(
            &path,
            format!("{OPEN}\nwatch = false\nenforce_on_live = true\n{rules}"),
        )
        .unwrap();
    };
    write("other.test");
    let daemon = Setup::bare(&lab.proxy)
        .option("--config", &path)
        .listeners(2)
        .start();
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    let open = |name: &str| {
        let hello = client_hello(name);
        let mut stream = client(&lab).tunnel(TARGET);
        stream.write_all(&hello).unwrap();
        let upstream = origin.accept();
        read_exactly(&upstream, &hello);
        (stream, upstream)
    };
    let (first, _first_upstream) = open("one.test");
    let (mut second, second_upstream) = open("two.test");
    write("one.test");
    daemon.signal(Signal::HUP);
    expect_reset(&first);
    second.write_all(b"still here").unwrap();
    read_exactly(&second_upstream, b"still here");
}

#[test]
fn explain_assumes_the_name_of_the_target() {
    require_root_or_skip!();
    let lab = Lab::new();
    let path = lab.scratch().write("underpass.toml", NO_BAD);
    let explain = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["explain", "--config"]).arg(&path);
        let output = run_to_end(command.args(arguments));
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (code, text) = explain(&["CONNECT", "1.1.1.1:443"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("sni       none (assumed; --sni NAME is another)"),
        "{text}"
    );
    let (code, text) = explain(&["--sni", "www.Bad.test", "CONNECT", "1.1.1.1:443"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("verdict   deny, with a reset behind the 200")
            && text.contains("no-bad")
            && text.contains("sni       www.Bad.test"),
        "{text}"
    );
}
