//! Parents that are talked to over TLS.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    thread,
    time::Duration,
};

use proxy_tests::{
    deadline::{PATIENCE, uninterrupted, wait_for},
    lab::{Family, Lab},
    payload::{Payload, Step},
    peer::Peer,
    require_root_or_skip, require_tool_or_skip,
    tls::certify,
};

use super::{behind, expect_tunnel, parent_by_hand, read_head, squid};
use crate::scene::{client, origin_on};

/// What a server shows, in files.
struct Certificates {
    authority: String,
    certificate: String,
    key: String,
}

fn certificates(lab: &Lab, name: &str) -> Certificates {
    let certified = certify(&[name]);
    let write = |file: &str, text: &str| {
        let path = lab.scratch().write(&format!("{name}-{file}"), text);
        path.display().to_string()
    };
    Certificates {
        authority: write("authority.pem", &certified.authority),
        certificate: write("certificate.pem", &certified.certificate),
        key: write("key.pem", &certified.key),
    }
}

/// HAProxy takes the TLS off in front of a Squid, and asks for our certificate.
#[test]
fn a_parent_is_talked_to_over_tls() {
    require_root_or_skip!();
    require_tool_or_skip!("squid", "--version");
    require_tool_or_skip!("haproxy", "-v");
    let lab = Lab::new();
    lab.origin.set_hosts(&[("10.77.2.1", "origin.test")]);
    lab.proxy.set_hosts(&[("10.77.2.1", "parent.test")]);
    let (theirs, ours) = (
        certificates(&lab, "parent.test"),
        certificates(&lab, "we.test"),
    );
    let squid_config = squid(&lab, "http_port 3128\nhttp_access allow all\n");
    let mut command = lab.origin.command("squid");
    command.args(["-N", "-f"]).arg(squid_config);
    let at = |port| SocketAddr::new(Family::V4.origin(), port);
    let _squid = Peer::listening(&lab.origin, &mut command, at(3128));
    let binds = format!(
        "bind 10.77.2.1:3129 ssl crt {{pem}}\n bind 10.77.2.1:3130 ssl crt {{pem}} ca-file {} verify required",
        ours.authority
    );
    let _haproxy = haproxy(&lab, &theirs, &binds, 3128);
    let origin = origin_on(&lab, Family::V4.origin(), 8443);
    let ca = format!("ca = \"{}\"\n", theirs.authority);
    {
        let daemon = behind(&lab, "https://parent.test:3129", &ca);
        expect_tunnel(&lab, "origin.test:8443", &origin);
        let record = daemon.wait_tunnel_records(1).remove(0);
        assert_eq!((record.up, record.down), (3_000_000, 2_000_000));
        assert_eq!(record.engine, "copy");
    }
    let identity = format!(
        "{ca}certificate = \"{}\"\nkey = \"{}\"\n",
        ours.certificate, ours.key
    );
    {
        let _daemon = behind(&lab, "https://parent.test:3130", &identity);
        expect_tunnel(&lab, "origin.test:8443", &origin);
    }
    // Limited, too.
    {
        let more = format!("{ca}[limits]\nbandwidth_per_tunnel = \"20MB/s\"\n");
        let _daemon = behind(&lab, "https://parent.test:3129", &more);
        expect_tunnel(&lab, "origin.test:8443", &origin);
    }
    for (url, more) in [
        // Nobody's certificate, and not for this name.
        ("https://parent.test:3129", String::new()),
        ("https://10.77.2.1:3129", ca.clone()),
        // Without ours.
        ("https://parent.test:3130", ca.clone()),
        // No TLS at all.
        ("https://parent.test:3128", ca),
    ] {
        let _daemon = behind(&lab, url, &more);
        let reply = client(&lab).refusal("origin.test:8443");
        assert!(
            [500, 502, 504].contains(&reply.status),
            "{url}: {}",
            reply.status
        );
        assert!(!origin.is_called_within(Duration::from_millis(20)));
    }
}

/// HAProxy takes the TLS off in front of a parent by hand: hashed payloads, each end in its time, readers at their own pace.
#[test]
fn half_closes_and_slow_readers_over_tls() {
    require_root_or_skip!();
    require_tool_or_skip!("haproxy", "-v");
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "parent.test")]);
    let theirs = certificates(&lab, "parent.test");
    let _haproxy = haproxy(&lab, &theirs, "bind 10.77.2.1:3129 ssl crt {pem}", 3999);
    let parent = parent_by_hand(&lab, 3999);
    let daemon = behind(
        &lab,
        "https://parent.test:3129",
        &format!("ca = \"{}\"\n", theirs.authority),
    );
    for (seed, (up_len, down_len)) in [(1_000_000, 3_000_000), (3_000_000, 500), (0, 2_000_000)]
        .into_iter()
        .enumerate()
    {
        let (client, origin) = thread::scope(|scope| {
            let client = scope.spawn(|| client(&lab).tunnel("far.test:443"));
            let origin = loop {
                let mut stream = parent.accept();
                // HAProxy looks at nobody; but the one that waited for it did.
                if uninterrupted(|| stream.peek(&mut [0])).unwrap_or(0) == 1 {
                    read_head(&mut stream);
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                    break stream;
                }
            };
            (client.join().unwrap(), origin)
        });
        let seed = seed as u64;
        let (up, down) = (Payload::new(seed), Payload::new(seed + 100));
        let slow = |_| Step {
            pause: Duration::from_millis(2),
            ..Step::fast()
        };
        let (client, origin) = (&client, &origin);
        thread::scope(|scope| {
            scope.spawn(move || {
                up.send(&mut &*client, up_len).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                down.send(&mut &*origin, down_len).unwrap();
                origin.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                up.receive_range(&mut &*origin, 0, up_len, slow).unwrap();
                assert_eq!(uninterrupted(|| (&*origin).read(&mut [0])).unwrap(), 0);
            });
            scope.spawn(move || {
                down.receive_range(&mut &*client, 0, down_len, slow)
                    .unwrap();
                assert_eq!(uninterrupted(|| (&*client).read(&mut [0])).unwrap(), 0);
            });
        });
    }
    for record in daemon.wait_tunnel_records(3) {
        assert_eq!(record.end, "closed", "{record:?}");
    }
}

/// An HAProxy that takes the TLS off for whoever listens on this port.
fn haproxy(lab: &Lab, theirs: &Certificates, binds: &str, port: u16) -> Peer {
    let pem = [&theirs.certificate, &theirs.key]
        .map(|path| std::fs::read_to_string(path).unwrap())
        .concat();
    let pem = lab.scratch().write("haproxy.pem", pem);
    let binds = binds.replace("{pem}", &pem.display().to_string());
    let config = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen tls\n {binds}\n server parent 10.77.2.1:{port}\n"
    );
    let config = lab.scratch().write("haproxy.cfg", config);
    let mut command = lab.origin.command("haproxy");
    command.arg("-db").arg("-f").arg(config);
    let at = SocketAddr::new(Family::V4.origin(), 3129);
    Peer::listening(&lab.origin, &mut command, at)
}

/// Ends over TLS: a half-close is a `close_notify`, and a cut connection is no end.
#[test]
fn ends_are_truthful_over_tls() {
    require_root_or_skip!();
    require_tool_or_skip!("openssl", "version");
    let lab = Lab::new();
    lab.proxy.set_hosts(&[("10.77.2.1", "parent.test")]);
    let theirs = certificates(&lab, "parent.test");
    let daemon = behind(
        &lab,
        "https://parent.test:3129",
        &format!("ca = \"{}\"\n", theirs.authority),
    );
    // It is given its answers, and shows what it gets.
    let mut server = lab.origin.command("openssl");
    server
        .args([
            "s_server",
            "-quiet",
            "-naccept",
            "1",
            "-accept",
            "10.77.2.1:3129",
        ])
        .args(["-cert", &theirs.certificate, "-key", &theirs.key]);
    for is_cut in [false, true] {
        let mut server = server
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let at = SocketAddr::new(Family::V4.origin(), 3129);
        await_listener(&lab, at);
        let (mut stdin, mut stdout) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
        stdin.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").unwrap();
        let mut tunnel = client(&lab).tunnel("far.test:443");
        let mut hello = [0; 5];
        tunnel.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        tunnel.write_all(b"from the client").unwrap();
        if is_cut {
            server.kill().unwrap();
            server.wait().unwrap();
            // Whatever has arrived, this is no end of file.
            let error = tunnel.read(&mut [0]).map(|n| assert_ne!(n, 0, "an end"));
            assert!(error.is_err());
            continue;
        }
        // It answers the end with its own, and has had its one connection.
        tunnel.shutdown(Shutdown::Write).unwrap();
        assert_eq!(tunnel.read(&mut [0]).unwrap(), 0);
        wait_for("s_server ends", PATIENCE, || server.try_wait().unwrap());
        drop(stdin);
        let mut received = String::new();
        stdout.read_to_string(&mut received).unwrap();
        assert!(received.ends_with("from the client"), "{received}");
    }
    let records = daemon.wait_tunnel_records(2);
    assert_eq!(records[1].end, "upstream-reset");
}

fn await_listener(lab: &Lab, address: SocketAddr) {
    // By looking, since each connection would be a session.
    wait_for("s_server listens", PATIENCE, || {
        let mut ss = lab.origin.command("ss");
        let listening = ss.args(["-ltnH"]).output().unwrap().stdout;
        let listening = String::from_utf8_lossy(&listening).into_owned();
        listening.contains(&address.to_string()).then_some(())
    });
}
