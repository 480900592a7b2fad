use std::path::Path;

use super::*;

/// The configuration of the scenario that this project grew from.
const SEED: &str = "\
http_port 3128

acl SSL_ports port 443
acl CONNECT method CONNECT

http_access deny CONNECT !SSL_ports
http_access allow localhost manager
http_access deny manager
http_access allow all

coredump_dir /var/spool/squid
";

fn translated(text: &str) -> Result<Translated, ConfigError> {
    translate_with(Path::new("squid.conf"), &|_| Ok(text.to_owned()))
}

fn error(text: &str) -> String {
    translated(text).unwrap_err().to_string()
}

#[test]
fn the_seed_becomes_rules() {
    let Translated { file, notices, .. } = translated(SEED).unwrap();
    let text = toml::to_string(&file).unwrap();
    for part in [
        "compatibility = \"squid\"",
        "address = \"[::]:3128\"",
        "access_log = \"/var/log/squid/access.log\"",
        "when = [\"CONNECT\", \"!SSL_ports\"]",
        "when = [\"localhost\", \"manager\"]",
        "[match.SSL_ports]\nport = [443]",
        "name = \"no-http_access-matched\"\naction = \"deny\"",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert_eq!(notices.len(), 1);
    assert!(notices[0].contains("coredump_dir (line 11)"), "{notices:?}");
    // What is written reads back, and says the same.
    let again: File = toml::from_str(&text).unwrap();
    assert_eq!(toml::to_string(&again).unwrap(), text);
}

#[test]
fn what_is_wrong_is_named_with_its_line_all_at_once() {
    let text =
        "http_port 3128\nhttp_acces deny all\nacl x prot 1\nhttp_access deny y\nacl x src 1.2.3\n";
    let found = error(text);
    let lines: Vec<&str> = found.lines().collect();
    let expected = [
        "squid.conf:2: unknown directive http_acces; did you mean http_access?",
        "squid.conf:3: unknown acl type prot; did you mean proto?",
        "squid.conf:4: there is no acl 'y'",
        "squid.conf:5: '1.2.3' is not an address or a network",
    ];
    assert_eq!(lines.len(), expected.len(), "{found}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn what_would_matter_is_refused_and_what_cannot_is_listed() {
    for (line, part) in [
        ("cache_peer p parent 3128 0 carp", "the option carp"),
        ("cache_peer p parent 3128 0 weight=2", "the option weight=2"),
        ("cache_peer p parent 3128 0 login=PASS", "is not supported"),
        ("cache_peer_access p allow all", "there is no cache_peer p"),
        ("url_rewrite_program /bin/x", "there are no helper programs"),
        ("acl e external x", "there are no external helpers"),
        ("http_port 1 intercept", "clients have to ask for a tunnel"),
        ("http_port 1 magic", "no option magic"),
        ("http_port 1 tls-cert=/x", "no option tls-cert=/x"),
        ("https_port 1", "write tls-cert=FILE"),
        (
            "https_port 1 tls-cert=/x ssl-bump",
            "TLS is not looked into",
        ),
        ("forwarded_for maybe", "write forwarded_for on"),
        ("request_header_access All deny all", "name each field"),
        (
            "reply_header_access Server deny localhost",
            "for everybody or nobody",
        ),
        ("request_header_replace User-Agent x", "fields are not made"),
        ("request_body_max_size 1 MB", "bodies have no limit"),
        ("never_direct allow all", "there is no cache_peer"),
        ("access_log tcp://192.0.2.1:514", "is not supported"),
        ("access_log /x nonsense", "nonsense"),
        ("access_log /x logformat=x", "there is no log format x"),
        ("access_log /x colour=red", "has no option colour"),
        ("access_log none CONNECT localhost", "all-of"),
        ("logformat squid %ts", "cannot be redefined"),
        ("logformat x", "is empty"),
        (
            "auth_param digest program x",
            "authentication by digest is not supported",
        ),
        (
            "auth_param basic program /usr/lib/squid/basic_ldap_auth x",
            "is not run",
        ),
        ("connect_timeout soon", "is not a time"),
        ("acl x src", "needs a value"),
        ("acl localhost port 1", "is of type src already"),
        ("delay_class 1 1", "there is no delay pool 1"),
    ] {
        let found = error(&format!("http_port 3128\n{line}\n"));
        assert!(
            found.starts_with("squid.conf:2: ") && found.contains(part),
            "{line}: {found}"
        );
    }
    let text = "http_port 3128\ncache_dir ufs /x 1 1 1\nrefresh_pattern . 0 20% 1\nuri_whitespace strip\nnever_direct deny all\nhttp_access deny\nhttp_access maybe all\n";
    let notices = translated(text).unwrap().notices.join("\n");
    for part in [
        "since there is no cache: cache_dir (line 2), refresh_pattern (line 3)",
        "since plain HTTP is read and kept alive in another way: uri_whitespace (line 4)",
        "it names no acl, as Squid does: http_access (squid.conf:6)",
        "it says neither allow nor deny, as Squid does: http_access (squid.conf:7)",
    ] {
        assert!(notices.contains(part), "{part}\n{notices}");
    }
    assert_eq!(
        error("acl a port 1"),
        "squid.conf:1: no http_port; write http_port 3128"
    );
}

/// `calcImplicitAnswer`.
#[test]
fn what_no_line_matches_has_the_opposite_of_the_last_lines_answer() {
    for (lines, action) in [
        ("", "deny"),
        ("http_access allow localhost", "deny"),
        ("http_access deny localhost", "allow"),
    ] {
        let file = translated(&format!("http_port 3128\n{lines}\n"))
            .unwrap()
            .file;
        let last = toml::to_string(&file.rule.last().unwrap().value).unwrap();
        assert!(
            last.contains(&format!("action = \"{action}\"")),
            "{lines}: {last}"
        );
    }
}

#[test]
fn values_add_up_and_groups_nest() {
    let text = "http_port 3128\n\
        acl a port 1\nacl a port 2 0-3\n\
        acl b any-of a CONNECT\n\
        acl c all-of a !b\nacl c all-of localhost\n\
        http_access deny c\n";
    let file = translated(text).unwrap().file;
    let text = toml::to_string(&file).unwrap();
    for part in [
        "[match.a]\nport = [1, 2, \"1-3\"]",
        "[match.b]\nany = [\"a\", \"CONNECT\"]",
        "[match.c]\nany = [\"c#1\", \"c#2\"]",
        "[match.\"c#1\"]\nwhen = [\"a\", \"!b\"]",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn logs_have_their_counterparts() {
    let text = r#"
        http_port 3128
        acl inner src 10.0.0.0/8
        logformat mine "%ts.%03tu %>a %#ru"
        logformat other %>a [%tl] "%rm %ru"
        access_log none localhost
        access_log stdio:/a logformat=mine inner !CONNECT
        access_log daemon:/b combined
        access_log syslog:daemon.info squid all
        access_log udp://192.0.2.1:514 logformat=other
        access_log /c
        access_log none
        access_log /never
    "#;
    let text = toml::to_string(&translated(text).unwrap().file).unwrap();
    for part in [
        "to = \"/a\"\nformat = \"%ts.%03tu %>a %#ru\"\nwhen = [\"!localhost\", \"inner\", \"!CONNECT\"]",
        "to = \"/b\"\nformat = \"combined\"\nwhen = [\"!localhost\"]",
        "to = \"syslog:daemon.info\"\nwhen = [\"!localhost\"]",
        "to = \"udp://192.0.2.1:514\"\nformat = '%>a [%tl] \"%rm %ru\"'",
        "to = \"/c\"\nwhen",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("/never"), "{text}");
    super::super::Config::from_toml(&text, Path::new("x.toml")).unwrap();
    for (format, part) in [
        ("%nonsense", "'%nonsense' is not known"),
        ("hello", "has no code"),
    ] {
        let error = error(&format!(
            "http_port 1\nlogformat x {format}\naccess_log /x x"
        ));
        assert!(error.starts_with("squid.conf:3"), "{error}");
        assert!(error.contains(part), "{error}");
    }
    let none = translated("http_port 3128\naccess_log none").unwrap().file;
    assert!(toml::to_string(&none).unwrap().contains("access_log = []"));
    let one = translated("http_port 3128\naccess_log stdio:/a squid")
        .unwrap()
        .file;
    assert!(
        toml::to_string(&one)
            .unwrap()
            .contains("access_log = \"/a\"")
    );
}

#[test]
fn listeners_and_fields_have_their_counterparts() {
    let text = "http_port 3128 require-proxy-header name=lb\nacl balancers src 10.0.0.0/24\n\
        proxy_protocol_access allow balancers\nproxy_protocol_access allow localhost\nproxy_protocol_access deny all\n\
        https_port 3129 tls-cert=/c.pem tls-key=/k.pem clientca=/ca.pem\nhttps_port 3130 cert=/both.pem\n\
        via off\nrequest_header_access From deny all\nrequest_header_access Referer allow all\n\
        reply_header_access Server deny all\nclient_idle_pconn_timeout 1 minute\npconn_timeout 30 seconds\n\
        http_access allow all\n";
    let text = toml::to_string(&translated(text).unwrap().file).unwrap();
    for part in [
        "name = \"lb\"\nproxy_protocol = [\"10.0.0.0/24\", \"127.0.0.1/32\", \"::1/128\"]",
        "[listen.tls]\ncertificate = \"/c.pem\"\nkey = \"/k.pem\"\nclient_ca = \"/ca.pem\"",
        "[listen.tls]\ncertificate = \"/both.pem\"\nkey = \"/both.pem\"\n",
        "[http]\nvia = false\nforwarded_for = \"on\"\nremove_request_fields = [\"from\"]\n\
         remove_response_fields = [\"server\"]",
        "keep_alive = \"1m\"",
        "upstream_keep_alive = \"30s\"",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    for (lines, part) in [
        ("", "needs proxy_protocol_access allow"),
        (
            "proxy_protocol_access deny all\n",
            "needs proxy_protocol_access allow",
        ),
        (
            "acl p port 1\nproxy_protocol_access allow p\n",
            "one acl of type src",
        ),
    ] {
        let found = error(&format!("http_port 1 require-proxy-header\n{lines}"));
        assert!(found.contains(part), "{found}");
    }
}

#[test]
fn settings_have_their_counterparts() {
    let text = "http_port 127.0.0.1:3128 name=in\nconnect_timeout 10 seconds\nread_timeout 1 hour\n\
        client_lifetime 2 hours\nrequest_timeout 20 seconds\nshutdown_lifetime 5 seconds\nclient_ip_max_connections 7\n\
        tcp_outgoing_address 10.0.0.9 localhost\nacl slow src 10.0.0.0/8\n\
        delay_pools 2\ndelay_class 1 1\ndelay_parameters 1 8000/16000\ndelay_access 1 allow slow\ndelay_access 1 deny all\n\
        delay_class 2 2\ndelay_parameters 2 none 1000/1000\ndelay_access 2 deny slow\ndelay_access 2 allow all\n\
        acl web dstdomain .example.com\ndeny_info 404:ERR_X web\ndeny_info http://why/?%u slow\nhttp_access deny web\nhttp_access deny slow\n";
    let text = toml::to_string(&translated(text).unwrap().file).unwrap();
    for part in [
        "[[listen]]\naddress = \"127.0.0.1:3128\"\nname = \"in\"",
        "head = \"20s\"",
        "connect = \"10s\"",
        "idle = \"1h\"",
        "lifetime = \"2h\"",
        "drain = \"5s\"",
        "tunnels_per_client = 7",
        "address = \"10.0.0.9\"\nwhen = [\"localhost\"]",
        "[bucket.pool1-all]\nrate = \"8000B/s\"\nsize = \"16000B\"\nper = \"all\"\ndirection = \"down\"",
        "bucket = [\"pool1-all\"]\nwhen = [\"slow\"]",
        "[bucket.pool2-client]",
        "bucket = [\"pool2-client\"]\nwhen = [\"!pool2-denied#1\", \"all\"]",
        "status = 404",
        "redirect = \"http://why/?%u\"",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

/// Which ways the route of each request has, in its order, by a squid.conf with two parents.
fn ways(lines: &str, host: &str, method: &str) -> Vec<String> {
    use crate::{
        authority::Authority,
        config::Config,
        policy::{Facts, Moment, ServerName, User},
    };

    let text = format!(
        "http_port 3128\nacl in dstdomain .corp.test\nacl out dstdomain .out.test\n\
         cache_peer a.test parent 3128 0 no-query name=a\ncache_peer b.test parent 3128 0 name=b\n{lines}\n\
         http_access allow all\n"
    );
    let translated = translated(&text).unwrap();
    let live = Config::from_file(translated.file, "squid.conf".as_ref())
        .unwrap()
        .live;
    let host = Authority::parse(format!("{host}:443").as_bytes()).unwrap();
    let facts = Facts {
        client: [10, 0, 0, 1].into(),
        listener: ([10, 0, 0, 2], 3128).into(),
        listener_name: "3128",
        method,
        scheme: None,
        host: host.host(),
        port: 443,
        url: "",
        user: User::Unchecked,
        certificate: None,
        process: None,
        server_name: ServerName::Unheard,
        now: Moment::default(),
        addresses: None,
        reverse_name: None,
        own_address: false,
        connections: 1,
        mark: 0,
        dice: 0,
    };
    let hops = live.hops(live.route(&facts).unwrap(), &facts);
    hops.iter()
        .map(|hop| match hop {
            crate::parent::Hop::Direct => "direct".to_owned(),
            crate::parent::Hop::Parent(parent, _) => parent.name.to_string(),
        })
        .collect()
}

#[test]
fn parents_are_used_as_squid_uses_them() {
    for (lines, host, method, expected) in [
        ("", "x.test", "CONNECT", "direct a b"),
        ("", "x.test", "GET", "a b direct"),
        ("prefer_direct on", "x.test", "GET", "direct a b"),
        (
            "nonhierarchical_direct off",
            "x.test",
            "CONNECT",
            "a b direct",
        ),
        ("never_direct allow all", "x.test", "CONNECT", "a b"),
        ("never_direct allow out", "www.out.test", "CONNECT", "a b"),
        ("never_direct allow out", "x.test", "CONNECT", "direct a b"),
        // Where no line fits, the opposite of the last.
        ("never_direct deny in", "x.test", "CONNECT", "a b"),
        (
            "never_direct deny in",
            "in.corp.test",
            "CONNECT",
            "direct a b",
        ),
        (
            "always_direct allow in\nnever_direct allow all",
            "in.corp.test",
            "CONNECT",
            "direct",
        ),
        (
            "always_direct allow in\nnever_direct allow all",
            "x.test",
            "CONNECT",
            "a b",
        ),
        (
            "always_direct deny out\nalways_direct allow !in",
            "x.test",
            "CONNECT",
            "direct",
        ),
        (
            "always_direct deny out\nalways_direct allow !in",
            "out.test",
            "CONNECT",
            "direct a b",
        ),
        (
            "always_direct deny out\nalways_direct allow !in",
            "corp.test",
            "CONNECT",
            "direct a b",
        ),
        (
            "never_direct allow all\ncache_peer_access a allow in",
            "x.test",
            "CONNECT",
            "b",
        ),
        (
            "never_direct allow all\ncache_peer_access a allow in",
            "corp.test",
            "CONNECT",
            "a b",
        ),
        (
            "never_direct allow all\ncache_peer_access a deny all",
            "x.test",
            "CONNECT",
            "b",
        ),
        (
            "never_direct allow all\ncache_peer_access b deny in out\ncache_peer_access b allow in",
            "corp.test",
            "CONNECT",
            "a b",
        ),
    ] {
        assert_eq!(
            ways(lines, host, method).join(" "),
            expected,
            "{lines}: {host} {method}"
        );
    }
}
