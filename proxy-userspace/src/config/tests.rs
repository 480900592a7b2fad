use std::fmt::Write as _;

use clap::Parser as _;

use super::{
    cli::{Cli, Command},
    *,
};
use crate::{
    authority::Authority,
    http::Strictness,
    policy::{Facts, Guard, Moment, NetworkSet, Policy, Step, User, Verdict},
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
    assert_eq!(config.access_log, Destination::Stdout);
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
    assert!(guard.port(22).is_ok());
    assert!(guard.port(443).is_err(), "lists are replaced, not joined");
    assert_eq!(live.strictness, Strictness::Relaxed);
    assert_eq!(live.limits.idle.as_secs(), 3600);
    assert_eq!(
        config.access_log,
        Destination::File("/var/log/underpass.log".into())
    );
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
        ("[[outgoing]]\n", "test.toml:1: the entry has no address"),
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
        (2, 1, 1)
    );
    assert!(live.auth.is_some() && live.quotas.all == Some(10_000));
}

/// What a policy says of a request by what is known of it, in a few words.
fn decide(
    live: &Live,
    client: &str,
    target: &str,
    user: User<'_>,
    addresses: Option<&[&str]>,
) -> String {
    let authority = Authority::parse(target.as_bytes()).unwrap();
    let addresses: Option<Vec<IpAddr>> =
        addresses.map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect());
    let facts = Facts {
        client: client.parse().unwrap(),
        listener: DEFAULT_LISTEN,
        listener_name: "127.0.0.1:3128",
        method: "CONNECT",
        scheme: None,
        host: authority.host(),
        port: authority.port().get(),
        url: target,
        user,
        // Wednesday, noon.
        now: Moment {
            weekday: 3,
            minute: 12 * 60,
        },
        addresses: addresses.as_deref(),
        reverse_name: None,
        own_address: false,
        connections: 3,
        mark: 0x12,
        dice: 1,
    };
    match live.policy.decide(&facts) {
        Step::Needs(need) => format!("needs {need:?}"),
        Step::Decided(decision) => {
            let verdict = match decision.verdict {
                Verdict::Allow => "allow",
                Verdict::Deny(_) => "deny",
                Verdict::Shut(_) => "shut",
                Verdict::Challenge => "challenge",
            };
            let would: Vec<&str> = decision.would_deny.iter().map(|rule| &*rule.name).collect();
            let would = if would.is_empty() {
                String::new()
            } else {
                format!(", {} would deny", would.join(" "))
            };
            format!("{verdict} by {}{would}", decision.rule_name())
        }
    }
}

/// Rules, client, target, user, addresses, and what is decided.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    User<'static>,
    Option<&'static [&'static str]>,
    &'static str,
);

const LOCAL: &str = "127.0.0.1";

const DECISIONS: &[Case] = &[
    // Names decide before anything is resolved.
    (
        "deny host='.bad.test'",
        LOCAL,
        "a.bad.test:443",
        User::Unchecked,
        None,
        "deny by r0",
    ),
    (
        "deny host='bad.test'",
        LOCAL,
        "a.bad.test:443",
        User::Unchecked,
        None,
        "allow by default",
    ),
    // Addresses after it; but not if the rest of the rule fails anyway.
    (
        "deny destination='10.0.0.0/8'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "needs Addresses",
    ),
    (
        "deny destination='10.0.0.0/8' port=22",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "allow by default",
    ),
    (
        "deny destination='1.2.3.0/24'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        Some(&["1.2.3.4"]),
        "deny by r0",
    ),
    (
        "deny destination='1.2.3.0/24'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        Some(&["1.2.4.4"]),
        "allow by default",
    ),
    // An allowing rule opens what it names.
    (
        "allow host='a.test'",
        LOCAL,
        "a.test:22",
        User::Unchecked,
        None,
        "shut by allow_port",
    ),
    (
        "allow host='a.test' port=22",
        LOCAL,
        "a.test:22",
        User::Unchecked,
        None,
        "allow by r0",
    ),
    (
        "allow host='a.test'",
        "10.0.0.1",
        "a.test:443",
        User::Unchecked,
        None,
        "shut by allow_client",
    ),
    (
        "allow client='10.0.0.0/8'",
        "10.0.0.1",
        "a.test:443",
        User::Unchecked,
        None,
        "allow by r0",
    ),
    (
        "allow host='a.test'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        Some(&["10.0.0.1"]),
        "shut by r0",
    ),
    (
        "allow destination='10.0.0.1'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        Some(&["10.0.0.1"]),
        "allow by r0",
    ),
    (
        "allow destination='64:ff9b::/96'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        Some(&["64:ff9b::a00:1"]),
        "shut by r0",
    ),
    // Users are asked for where it matters.
    (
        "deny port=22; allow user='*'; deny",
        LOCAL,
        "a.test:22",
        User::Unchecked,
        None,
        "deny by r0",
    ),
    (
        "deny port=22; allow user='*'; deny",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "needs User",
    ),
    (
        "deny port=22; allow user='*'; deny",
        LOCAL,
        "a.test:443",
        User::Nobody,
        None,
        "challenge by r1",
    ),
    (
        "allow user='anna'; deny",
        LOCAL,
        "a.test:443",
        User::Known("bob"),
        None,
        "deny by r1",
    ),
    (
        "allow user_regex='^a'; deny",
        LOCAL,
        "a.test:443",
        User::Known("anna"),
        None,
        "allow by r0",
    ),
    (
        "report user='anna'",
        LOCAL,
        "a.test:443",
        User::Nobody,
        None,
        "allow by default",
    ),
    // A report changes nothing.
    (
        "report host='a.test'; deny host='.test'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "deny by r1, r0 would deny",
    ),
    (
        "report",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "allow by default, r0 would deny",
    ),
    (
        "deny time='mon-fri 08:00-18:00'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "deny by r0",
    ),
    (
        "deny time='sat'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "allow by default",
    ),
    (
        "deny mark='0x2/0xf'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "deny by r0",
    ),
    (
        "deny listener='127.0.0.1:3128'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "deny by r0",
    ),
    (
        "deny host_regex='^a' not.port=443",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "allow by default",
    ),
    (
        "deny when='!lan'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "deny by r0",
    ),
    (
        "deny when='lan'",
        "10.0.0.1",
        "a.test:443",
        User::Unchecked,
        None,
        "deny by r0",
    ),
    (
        "deny url_regex='test:443$'",
        LOCAL,
        "a.test:443",
        User::Unchecked,
        None,
        "deny by r0",
    ),
];

#[test]
fn decisions() {
    for &(rules, client, target, user, addresses, expected) in DECISIONS {
        let live = live_of(rules);
        let found = decide(&live, client, target, user, addresses);
        assert_eq!(
            found, expected,
            "{rules} {client} {target} {user:?} {addresses:?}"
        );
    }
}

/// Rules in a shorthand: an action with its conditions, with semicolons between rules.
fn live_of(rules: &str) -> Live {
    let directory = std::env::temp_dir().join(format!("underpass-rules-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("users"), "").unwrap();
    let mut text = "listen = [\"127.0.0.1:3128\"]\nauth.htpasswd = \"users\"\n[match.lan]\nclient = [\"10.0.0.0/8\"]\n".to_owned();
    for (index, rule) in rules.split(';').enumerate() {
        let (action, conditions) = rule.trim().split_once(' ').unwrap_or((rule.trim(), ""));
        writeln!(text, "[[rule]]\nname = \"r{index}\"\naction = \"{action}\"").unwrap();
        let mut rest = conditions;
        while let Some((key, value)) = rest.split_once('=') {
            let end = value.strip_prefix('\'').map_or_else(
                || value.find(' ').unwrap_or(value.len()),
                |quoted| quoted.find('\'').unwrap() + 2,
            );
            let (value, behind) = value.split_at(end);
            writeln!(text, "{key} = [{value}]").unwrap();
            rest = behind.trim_start();
        }
    }
    let path = directory.join("rules.toml");
    let loaded = load::parse(&text, &path).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let config = Config::join(&settings(&[]), loaded, &path);
    config
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
        .live
}
