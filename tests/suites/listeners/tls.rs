//! The proxy as an https:// one.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    path::PathBuf,
    process::Output,
    thread,
    time::{Duration, Instant},
};

use proxy_tests::{
    client::Client,
    daemon::{Daemon, Setup, run_to_end},
    deadline::uninterrupted,
    lab::{Family, Lab},
    origin::Origin,
    payload::{Payload, Step},
    peer::Nginx,
    reply::Reply,
    require_root_or_skip, require_tool_or_skip,
    tls::{Certified, certify},
};

use super::haproxy;

/// A proxy at port 3129 with TLS.
struct Sealed {
    // Fields drop in this order.
    daemon: Daemon,
    lab: Lab,
}

impl Sealed {
    /// With a certificate of its own, and more in its table, `{clients}` being the authority of clients.
    fn new(tls: &str, rules: &str, clients: Option<&Certified>) -> Self {
        let lab = Lab::new();
        lab.client.set_hosts(&[("10.77.1.2", "proxy.test")]);
        lab.proxy.set_hosts(&[("10.77.2.1", "origin.test")]);
        show(&lab, &certify(&["proxy.test"]));
        if let Some(clients) = clients {
            lab.scratch().write("clients.pem", &clients.authority);
        }
        let text = format!(
            "listen = [{{ address = \"10.77.1.2:3129\", tls = {{ certificate = \"proxy.pem\", key = \"proxy.key\"{tls} }} }}]\n\
             allow_client = [\"10.77.1.0/24\"]\nallow_destination = [\"10.77.2.0/24\"]\n\
             allow_port = [\"1-65535\"]\n[timeouts]\nhead = \"2s\"\n{rules}"
        );
        let path = lab.scratch().write("underpass.toml", text);
        let daemon = Setup::bare(&lab.proxy).option("--config", path).start();
        Self { daemon, lab }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.lab.scratch().path().join(name)
    }

    /// curl through it to this URL.
    fn curl(&self, options: &[&str], url: &str) -> Output {
        let mut curl = self.lab.client.command("curl");
        curl.args([
            "-sS",
            "--max-time",
            "10",
            "-x",
            "https://proxy.test:3129",
            "--proxy-cacert",
        ]);
        curl.arg(self.at("authority.pem")).args(options);
        run_to_end(curl.arg(url))
    }
}

/// What the proxy shows from now on.
fn show(lab: &Lab, certified: &Certified) {
    lab.scratch().write("authority.pem", &certified.authority);
    lab.scratch().write("proxy.key", &certified.key);
    lab.scratch().write("proxy.pem", &certified.certificate);
}

/// curl in its manners: a tunnel, a plain request, an upload.
#[test]
fn curl_speaks_tls_to_the_proxy() {
    require_root_or_skip!();
    require_tool_or_skip!("nginx", "-v");
    let sealed = Sealed::new("", "", None);
    let at = SocketAddr::new(Family::V4.origin(), 80);
    let _nginx = Nginx::start(&sealed.lab.origin, sealed.lab.scratch().path(), [at]);
    let file = Payload::new(31).bytes(2_000_000);
    sealed.lab.scratch().write("www/file", &file);
    let upload = sealed
        .lab
        .scratch()
        .write("upload", &file)
        .display()
        .to_string();
    for options in [&[][..], &["--proxytunnel"], &["-0"]] {
        let output = sealed.curl(options, "http://origin.test/file");
        assert!(output.stdout == file, "{options:?}: {:?}", output.stderr);
        let options = [options, &["-T", &upload, "-w", "%{http_code}"]].concat();
        let url = format!("http://origin.test/up/{}", options.len());
        let output = sealed.curl(&options, &url);
        let code = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            ["201", "204"].iter().any(|good| code.ends_with(good)),
            "{options:?}: {code}"
        );
        assert!(std::fs::read(sealed.at(&format!("www/up/{}", options.len()))).unwrap() == file);
    }
    let line = sealed
        .daemon
        .wait_access_line(|line| line.contains("TCP_TUNNEL/200"));
    assert!(line.contains(" 10.77.1.1 "), "{line}");
    let record = sealed.daemon.wait_tunnel_records(1).remove(0);
    assert_eq!(record.engine, "copy");
    // It is told why, over TLS too.
    let output = sealed.curl(
        &["-w", "%{http_code}", "-o", "/dev/null"],
        "http://10.77.1.9/",
    );
    assert_eq!(output.stdout, b"403");
}

/// HAProxy puts the TLS on for clients without it: hashed payloads, each end in its time, readers at their own pace.
#[test]
fn half_closes_and_slow_readers() {
    require_root_or_skip!();
    require_tool_or_skip!("haproxy", "-v");
    let sealed = Sealed::new("", "", None);
    let ca = sealed.at("authority.pem");
    let line = format!(
        "server up 10.77.1.2:3129 ssl verify required verifyhost proxy.test ca-file {}",
        ca.display()
    );
    let lab = &sealed.lab;
    let _haproxy = haproxy(lab, &lab.client, 4003, &line);
    let through = Client::new(&lab.client, ([127, 0, 0, 1], 4003).into());
    let origin = Origin::bind(&lab.origin, Family::V4.origin());
    for (seed, (up_len, down_len)) in [(1_000_000, 3_000_000), (3_000_000, 500), (0, 2_000_000)]
        .into_iter()
        .enumerate()
    {
        let client = through.tunnel_with_early_data(&origin.target(), b"early");
        let origin_end = origin.accept();
        let mut early = [0; 5];
        uninterrupted(|| (&origin_end).read_exact(&mut early)).unwrap();
        assert_eq!(&early, b"early");
        let seed = seed as u64;
        let (up, down) = (Payload::new(seed), Payload::new(seed + 100));
        let slow = |_| Step {
            pause: Duration::from_millis(2),
            ..Step::fast()
        };
        let (client, origin_end) = (&client, &origin_end);
        thread::scope(|scope| {
            scope.spawn(move || {
                up.send(&mut &*client, up_len).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                down.send(&mut &*origin_end, down_len).unwrap();
                origin_end.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                up.receive_range(&mut &*origin_end, 0, up_len, slow)
                    .unwrap();
                assert_eq!(uninterrupted(|| (&*origin_end).read(&mut [0])).unwrap(), 0);
            });
            scope.spawn(move || {
                down.receive_range(&mut &*client, 0, down_len, slow)
                    .unwrap();
                assert_eq!(uninterrupted(|| (&*client).read(&mut [0])).unwrap(), 0);
            });
        });
    }
    for record in sealed.daemon.wait_tunnel_records(3) {
        assert_eq!(record.end, "closed", "{record:?}");
    }
}

/// Rules know the names in a client's certificate.
#[test]
fn clients_have_certificates() {
    require_root_or_skip!();
    let anna = certify(&["anna.test"]);
    let stranger = certify(&["anna.test"]);
    let rules = "[[rule]]\naction = \"deny\"\ncertificate = [\"anna.test\"]\nhost = [\"secret.test\"]\n\
                 [[rule]]\naction = \"allow\"\ncertificate = [\"anna.test\"]\n\
                 [[rule]]\naction = \"deny\"\nmessage = \"who are you\"\n";
    for (tls, is_optional) in [("", false), (", client_certificate = \"optional\"", true)] {
        let tls = format!(", client_ca = \"clients.pem\"{tls}");
        let sealed = Sealed::new(&tls, rules, Some(&anna));
        let at = SocketAddr::new(Family::V4.origin(), 80);
        let _nginx = Nginx::start(&sealed.lab.origin, sealed.lab.scratch().path(), [at]);
        sealed.lab.scratch().write("www/file", "content");
        for (name, certified) in [("anna", &anna), ("stranger", &stranger)] {
            sealed
                .lab
                .scratch()
                .write(&format!("{name}.pem"), &certified.certificate);
            sealed
                .lab
                .scratch()
                .write(&format!("{name}.key"), &certified.key);
        }
        let with = |name: &str, url: &str| {
            let path = |kind: &str| sealed.at(&format!("{name}.{kind}")).display().to_string();
            sealed.curl(
                &["--proxy-cert", &path("pem"), "--proxy-key", &path("key")],
                url,
            )
        };
        assert_eq!(with("anna", "http://origin.test/file").stdout, b"content");
        let denied = String::from_utf8(with("anna", "http://secret.test/").stdout).unwrap();
        assert!(denied.contains("denied by rule"), "{denied}");
        assert!(!with("stranger", "http://origin.test/file").status.success());
        let without = sealed.curl(&[], "http://origin.test/file");
        let told = String::from_utf8_lossy(&without.stdout).into_owned();
        assert_eq!(told == "who are you\n", is_optional, "{without:?}");
    }
}

/// A new certificate counts from the next connection on; a broken one changes nothing.
#[test]
fn certificates_are_read_again() {
    require_root_or_skip!();
    let sealed = Sealed::new("", "", None);
    let status = || {
        sealed
            .curl(
                &["-w", "%{http_code}", "-o", "/dev/null"],
                "http://10.77.1.9/",
            )
            .stdout
    };
    assert_eq!(status(), b"403");
    sealed.lab.scratch().write("proxy.pem", "nonsense");
    sealed.daemon.wait_said("the configuration is refused", 1);
    assert_eq!(status(), b"403");
    show(&sealed.lab, &certify(&["proxy.test"]));
    sealed
        .daemon
        .wait_said("the configuration was read again", 1);
    assert_eq!(status(), b"403");
}

/// Who does not speak TLS is told so in plain words; who says nothing is not waited for.
#[test]
fn what_is_no_tls() {
    require_root_or_skip!();
    let sealed = Sealed::new("", "", None);
    let client = Client::new(&sealed.lab.client, "10.77.1.2:3129".parse().unwrap());
    let reply = client.exchange(
        "plain",
        b"CONNECT origin.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    );
    reply.check_refusal(400, "http_request_error").unwrap();
    assert!(
        String::from_utf8(reply.body)
            .unwrap()
            .contains("this port speaks TLS")
    );
    for begin in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = client.open();
        stream.write_all(begin).unwrap();
        let start = Instant::now();
        assert_eq!(uninterrupted(|| stream.read(&mut [0])).unwrap_or(0), 0);
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    }
    let mut stream = client.open();
    stream
        .write_all(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")
        .unwrap();
    let mut alert = Vec::new();
    let _ = stream.read_to_end(&mut alert);
    assert_eq!(alert.first(), Some(&0x15), "{alert:?}");
}

/// A balancer announces the client in front of the TLS that it passes on.
#[test]
fn a_header_in_front_of_tls() {
    require_root_or_skip!();
    require_tool_or_skip!("haproxy", "-v");
    let lab = Lab::new();
    show(&lab, &certify(&["proxy.test"]));
    let text = "listen = [{ address = \"10.77.1.2:3129\", proxy_protocol = [\"10.77.1.1\"], tls = { certificate = \"proxy.pem\", key = \"proxy.key\" } }]\n\
                allow_client = [\"127.0.0.1\"]\n";
    let path = lab.scratch().write("underpass.toml", text);
    let daemon = Setup::bare(&lab.proxy).option("--config", path).start();
    let ca = lab.scratch().path().join("authority.pem");
    let line = format!(
        "server up 10.77.1.2:3129 send-proxy-v2 ssl verify required verifyhost proxy.test ca-file {}",
        ca.display()
    );
    let _haproxy = haproxy(&lab, &lab.client, 4004, &line);
    let through = Client::new(&lab.client, ([127, 0, 0, 1], 4004).into());
    let mut stream = through.open();
    stream
        .write_all(b"CONNECT 10.77.2.1:25 HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let reply = Reply::read_head(&mut stream).unwrap();
    assert_eq!(reply.status, 403);
    daemon.wait_access_line(|line| line.contains(" 127.0.0.1 TCP_DENIED/403 "));
}
