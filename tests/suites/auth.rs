//! Users and their passwords: who is asked, what the logs say of them, and what they never say.

use std::{io::Read as _, thread};

use proxy_tests::{
    lab::{Family, Lab},
    reply::Reply,
    require_root_or_skip, require_tool_or_skip,
};

use crate::scene::{client, configured, origin_on};

const USERS: &str = "# htpasswd -nbB; openssl passwd -6\n\
    anna:$2y$05$YUyKgEl8vfXzjqHarPyLXeaeetdDpvpRIGlY4etQktn3QB866VU4u\n\
    an%C3%A4:$apr1$xxxxxxxx$dxHfLAsjHkDRmG83UXe8K0\n\
    bob:$apr1$xxxxxxxx$dxHfLAsjHkDRmG83UXe8K0\n";

#[test]
fn users_are_asked_for_their_password() {
    require_root_or_skip!();
    require_tool_or_skip!("curl", "--version");
    let lab = Lab::new();
    lab.scratch().write("users", USERS);
    let daemon = configured(
        &lab,
        r#"
        [auth]
        htpasswd = "users"
        realm = "the \"lab\""
        [[rule]]
        action = "deny"
        port = [22]
        [[rule]]
        action = "allow"
        user = ["anna"]
        [[rule]]
        action = "deny"
        "#,
    );
    let origin = origin_on(&lab, Family::V4.origin(), 443);
    let reply = client(&lab).refusal("10.77.2.1:443");
    assert_eq!(reply.status, 407);
    assert_eq!(
        reply.header("proxy-authenticate"),
        Some("Basic realm=\"the \\\"lab\\\"\", charset=\"UTF-8\"")
    );
    // Nobody is asked where it does not matter.
    assert_eq!(client(&lab).refusal("10.77.2.1:22").status, 403);
    let curl = |user: &str| {
        let mut curl = lab.client.command("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--max-time",
            "10",
            "--write-out",
            "%{http_connect}",
        ]);
        curl.args([
            "--proxy",
            "http://10.77.1.2:3128",
            "--proxy-user",
            user,
            "https://10.77.2.1/",
        ]);
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    for (user, status) in [
        ("anna:wrong", "407"),
        ("carl:password", "407"),
        ("bob:password", "403"),
    ] {
        assert_eq!(curl(user), status, "{user}");
    }
    // The second time from memory.
    for _ in 0..2 {
        let hangs_up = thread::scope(|scope| {
            let curl = scope.spawn(|| curl("anna:password"));
            let mut stream = origin.accept();
            let mut hello = [0; 8];
            stream.read_exact(&mut hello).unwrap();
            drop(stream);
            curl.join().unwrap()
        });
        assert_eq!(hangs_up, "200");
    }
    daemon.wait_tunnel_records(2);
    // A tunnel that does not come about has a user all the same.
    drop(origin);
    assert_eq!(curl("anna:password"), "502");
    let log = daemon.wait_access_lines(8);
    let all = log.join("\n");
    assert!(all.contains("TCP_DENIED/407"), "{all}");
    assert!(
        all.contains(" CONNECT 10.77.2.1:443 anna HIER_DIRECT/10.77.2.1 -"),
        "{all}"
    );
    assert!(
        all.contains("TCP_TUNNEL/502") && all.contains(" anna HIER_DIRECT/10.77.2.1 text/plain"),
        "{all}"
    );
    assert!(
        all.contains(" CONNECT 10.77.2.1:443 bob HIER_NONE/- text/plain"),
        "{all}"
    );
    for secret in ["password", "YW5uYTp", "wrong"] {
        let said = format!("{all}\n{}", daemon.stderr_lines().join("\n"));
        assert!(!said.contains(secret), "{secret}: {said}");
    }
}

/// Nobody is told that a password is wrong which nobody has looked at.
#[test]
fn while_too_many_passwords_wait_a_client_is_told_when_to_try_again() {
    require_root_or_skip!();
    let lab = Lab::new();
    // Each takes a while.
    let slow = USERS.replace("$2y$05$", "$2y$11$");
    lab.scratch().write("users", slow);
    let _daemon = configured(
        &lab,
        "auth.htpasswd = \"users\"\ntimeouts.connect = \"100ms\"\n\
         [[rule]]\naction = \"deny\"\nnot.user = [\"*\"]\n",
    );
    let target = "10.77.2.1:443";
    // anna:wrong
    let request = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\
         Proxy-Authorization: Basic YW5uYTp3cm9uZw==\r\n\r\n"
    );
    let replies: Vec<Reply> = thread::scope(|scope| {
        let ask = || client(&lab).exchange("wrong", request.as_bytes());
        let asked: Vec<_> = (0..30).map(|_| scope.spawn(ask)).collect();
        asked
            .into_iter()
            .map(|reply| reply.join().unwrap())
            .collect()
    });
    let with = |status| replies.iter().filter(move |reply| reply.status == status);
    assert_eq!(with(407).count() + with(503).count(), 30, "{replies:?}");
    assert!(
        with(407).count() > 0 && with(503).count() > 0,
        "{replies:?}"
    );
    for reply in with(503) {
        reply
            .check_refusal(503, "connection_limit_reached")
            .unwrap();
        assert!(reply.header("retry-after").is_some(), "{reply:?}");
    }
}
