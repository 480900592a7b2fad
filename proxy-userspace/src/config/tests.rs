mod decisions;

use clap::Parser as _;

use super::{
    cli::{Cli, Command},
    *,
};
use crate::{
    http::Strictness,
    lines::Destination,
    policy::{Guard, NetworkSet, Policy},
    relay::{rules::EngineRules, selection::EngineChoice},
};

fn settings(arguments: &[&str]) -> Settings {
    let arguments = [&["underpass", "run"], arguments].concat();
    match Cli::parse_from(arguments).command {
        Command::Run(settings) => settings,
        _ => unreachable!(),
    }
}

fn config(arguments: &[&str], text: &str) -> Result<Config, ConfigError> {
    let path = Path::new("test.toml");
    Config::join(&settings(arguments), load::parse(text, path)?, path)
}

fn error(text: &str) -> String {
    config(&[], text).unwrap_err().to_string()
}

fn destinations(live: &Live) -> Vec<Destination> {
    live.logs
        .iter()
        .map(|log| log.destination.clone())
        .collect()
}

#[test]
fn the_defaults_are_safe() {
    let config = config(&[], "").unwrap();
    assert_eq!(config.listen.len(), 1);
    assert_eq!(config.listen[0].address, DEFAULT_LISTEN);
    assert!(config.listen[0].address.ip().is_loopback());
    let live = config.live;
    assert_eq!(*live.policy.guard(), Guard::default());
    assert!(live.policy.guard().clients.is_loopback_only());
    assert_eq!(live.strictness, Strictness::Strict);
    assert_eq!(live.engines, EngineRules::default());
    assert_eq!(destinations(&live), [Destination::Stdout]);
    assert!(config.watch && !live.enforce_on_live);
}

#[test]
fn the_command_line_wins_setting_by_setting() {
    let text = r#"
        listen = ["[::]:8080"]
        engine = "copy"
        allow_client = ["10.0.0.0/8"]
        allow_port = [443, "8000-8100"]
        access_log = "/var/log/underpass.log"
        relaxed = true
        engine_rule = [{ port = [22], engine = "splice" }]
        [timeouts]
        idle = "1h"
    "#;
    let config = config(&["--allow-port", "22", "--engine", "auto"], text).unwrap();
    assert_eq!(config.listen[0].address, "[::]:8080".parse().unwrap());
    let live = config.live;
    assert_eq!(live.engines, EngineRules::default());
    let guard = live.policy.guard();
    assert!(!guard.clients.is_loopback_only());
    assert!(guard.port(22, None).is_ok());
    assert!(
        guard.port(443, None).is_err(),
        "lists are replaced, not joined"
    );
    assert_eq!(live.strictness, Strictness::Relaxed);
    assert_eq!(live.limits.idle.as_secs(), 3600);
    assert_eq!(
        destinations(&live),
        [Destination::File("/var/log/underpass.log".into())]
    );
}

#[test]
fn logs_have_their_format_and_their_requests() {
    let text = r#"
        [[access_log]]
        [[access_log]]
        to = "udp://192.0.2.1:514"
        format = "%ts %{X-A}>h"
        client = ["10.0.0.0/8"]
        only = "refused"
        start = true
        interval = "1m"
        [[access_log]]
        to = "syslog:daemon.info"
        format = "json"
    "#;
    let live = config(&["--listen", "127.0.0.1:1"], text).unwrap().live;
    let formats: Vec<_> = live.logs.iter().map(|log| log.format.to_string()).collect();
    assert_eq!(formats, ["squid", "%ts %{X-A}>h", "json"]);
    assert_eq!(destinations(&live)[0], Destination::Stdout);
    assert!(config(&[], "access_log = []").unwrap().live.logs.is_empty());
    let replaced = config(&["--access-log", "/x"], text).unwrap().live;
    assert_eq!(destinations(&replaced), [Destination::File("/x".into())]);
    for (text, part) in [
        (
            "format = \"nonsense\"",
            "test.toml:2:10: there is no log format",
        ),
        (
            "format = \"%nonsense\"",
            "test.toml:2:10: the code at '%nonsense",
        ),
        (
            "interval = \"1ms\"",
            "test.toml:1: an interval is one second",
        ),
        ("to = \"udp://x\"", "has no port"),
        ("sni = [\"a.test\"]", "only rules can ask for `sni`"),
        ("mark = [\"1\"]", "not known any more"),
        ("connections_above = 3", "not known any more"),
        ("when = [\"nobody\"]", "nobody"),
        ("formats = \"squid\"", "did you mean"),
    ] {
        let error = error(&format!("[[access_log]]\n{text}"));
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn a_single_address_is_a_network_of_one() {
    assert_eq!(
        parse_network("10.1.2.3"),
        Ok("10.1.2.3/32".parse().unwrap())
    );
    assert_eq!(parse_network("::1"), Ok("::1/128".parse().unwrap()));
    assert!(parse_network("10.0.0.0/33").is_err());
    assert!(
        parse_network("example.com")
            .unwrap_err()
            .contains("10.0.0.0/8")
    );
}

#[test]
fn what_cannot_be_is_refused_with_its_line() {
    for (text, message) in [
        ("[[rule]]\n", "test.toml:1: the rule has no action"),
        (
            "\n[capture]\nports = [80]",
            "test.toml:2: [capture] needs cgroups",
        ),
        (
            "[capture]\ncgroups = [\"app.service\"]",
            "test.toml:1: 'app.service' is no path of a cgroup",
        ),
        (
            "\n[[rule]]\naction = \"deny\"\nwhen = [\"x\"]",
            "test.toml:2: there is no match 'x'",
        ),
        (
            "[match.lan]\nclient = [\"::1\"]\n[[rule]]\naction = \"deny\"\nwhen = [\"!lam\"]",
            "test.toml:3: there is no match 'lam'; did you mean 'lan'?",
        ),
        (
            "[match.a]\nwhen = [\"a\"]",
            "test.toml:1: the match 'a' refers to itself",
        ),
        (
            "[match.a]\nany = [\"b\"]\n[match.b]\nwhen = [\"!a\"]",
            "test.toml:1: the match 'a' refers to itself",
        ),
        ("[match.a]\n", "test.toml:1: the match 'a' has no condition"),
        (
            "[[rule]]\naction = \"allow\"\nstatus = 404",
            "test.toml:1: status, message, redirect and reset belong to action = \"deny\"",
        ),
        (
            "[[rule]]\naction = \"deny\"\nengine = \"copy\"",
            "test.toml:1: engine and limits belong to action = \"allow\"",
        ),
        (
            "[[rule]]\naction = \"deny\"\nstatus = 200",
            "test.toml:1: the status of a denial is from 300 to 599",
        ),
        (
            "[[rule]]\naction = \"deny\"\nstatus = 302",
            "test.toml:1: a status below 400 and `redirect` belong together",
        ),
        (
            "[[rule]]\naction = \"deny\"\nuser = [\"a\"]",
            "test.toml:1: there is a condition on users",
        ),
        (
            "[[rule]]\naction = \"deny\"\nhost = [\"@none\"]",
            "test.toml:1: cannot read the list none",
        ),
        (
            "[[rule]]\naction = \"deny\"\nlistener = [\"x\"]\n",
            "test.toml:1: there is no listener 'x'",
        ),
        (
            "[[rule]]\nname = \"a\"\naction = \"deny\"\n[[rule]]\nname = \"a\"\naction = \"deny\"",
            "test.toml:4: the rule 'a' is defined in test.toml:1 already",
        ),
        (
            "[[shape]]\nbucket = [\"x\"]",
            "test.toml:1: there is no bucket 'x'",
        ),
        ("[[outgoing]]\n", "test.toml:1: the entry sets nothing"),
        ("[[outgoing]]\ndscp = 64\n", "test.toml:2:8: a DSCP is"),
        (
            "[parent.a]\nurl = \"http://a.test:1\"\n",
            "test.toml:1: nothing goes through the parent",
        ),
        (
            "[parent.a]\nurl = \"http://a.test:1\"\nca = \"x\"\n[[route]]\nvia = [\"a\"]",
            "test.toml:1: ca, certificate",
        ),
        (
            "[parent.a]\nurl = \"http://a.test:1\"\nlogin = \"anna\"\n[[route]]\nvia = [\"a\"]",
            "test.toml:1: the login is not",
        ),
        (
            "[parent.corp]\nurl = \"http://a.test:1\"\n[[route]]\nvia = [\"crop\"]",
            "test.toml:3: there is no parent 'crop'; did you mean 'corp'?",
        ),
        ("[[route]]\n", "test.toml:1: the route leads nowhere"),
        (
            "[dns]\nservers = [\"dns.example\"]",
            "test.toml:2:12: 'dns.example' is not a name server",
        ),
        (
            "time_zone = \"Mars/Olympus\"",
            "test.toml:1: no time zone 'Mars/Olympus'",
        ),
        (
            "[auth]\nhtpasswd = \"none\"",
            "test.toml:1: cannot read none",
        ),
    ] {
        let found = error(text);
        assert!(found.starts_with(message), "{text}\n{found}");
    }
}

#[test]
fn the_schema_knows_every_setting() {
    let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
    let properties = schema["properties"].as_object().unwrap();
    for key in [
        "listen", "rule", "match", "timeouts", "limits", "auth", "bucket",
    ] {
        assert!(properties.contains_key(key), "{key}");
    }
    assert_eq!(schema["additionalProperties"], false);
}

/// What is not said is not there: a policy from an empty file is the default policy.
#[test]
fn without_rules_the_guard_decides() {
    let config = config(&[], "").unwrap();
    assert!(config.live.policy.rules().is_empty());
    let default = Policy::default();
    assert_eq!(config.live.policy.guard(), default.guard());
    assert_eq!(NetworkSet::default(), default.guard().destinations);
    assert_eq!(config.live.engine(None, DEFAULT_LISTEN), EngineChoice::Auto);
}

/// What is commented out in the example that we hand out is right as well.
#[test]
fn the_example_is_right_to_its_last_comment() {
    let text = include_str!("../../../deploy/config/underpass.example.toml");
    let is_setting = |line: &str| {
        let begins = |start: char| start == '[' || start.is_ascii_lowercase();
        line.starts_with(begins) && (line.starts_with('[') || line.contains(" = "))
    };
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|rest| is_setting(rest))
                .unwrap_or(line)
        })
        // Files that do not exist.
        .filter(|line| !line.starts_with("include"))
        .collect();
    let text = uncommented.join("\n").replace(", \"@trackers.txt\"", "");
    let directory = std::env::temp_dir().join(format!("underpass-example-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("users"), "").unwrap();
    let path = directory.join("example.toml");
    let loaded = load::parse(&text, &path).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let config =
        Config::join(&settings(&[]), loaded, &path).unwrap_or_else(|error| panic!("{error}"));
    std::fs::remove_dir_all(&directory).unwrap();
    let live = config.live;
    assert_eq!(
        (
            live.policy.rules().len(),
            live.outgoing.len(),
            live.shapes.len()
        ),
        (4, 2, 1)
    );
    assert!(live.auth.is_some() && live.quotas.all == Some(10_000));
}
