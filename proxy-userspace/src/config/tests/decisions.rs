//! What rules decide, by what is known of a request.

use std::fmt::Write as _;

use super::*;
use crate::{
    authority::Authority,
    policy::{Facts, Moment, ServerName, Step, User, Verdict},
};

/// What a policy says of a request by what is known of it, in a few words.
fn decide(
    live: &Live,
    client: &str,
    target: &str,
    user: User<'_>,
    addresses: Option<&[&str]>,
) -> String {
    decide_heard(live, client, target, user, addresses, ServerName::Unheard)
}

/// The same, with what was heard of a ClientHello.
fn decide_heard(
    live: &Live,
    client: &str,
    target: &str,
    user: User<'_>,
    addresses: Option<&[&str]>,
    server_name: ServerName<'_>,
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
        certificate: None,
        process: None,
        server_name,
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

/// Rules, the name, user, addresses, and what is decided.
type Heard = (
    &'static str,
    ServerName<'static>,
    User<'static>,
    Option<&'static [&'static str]>,
    &'static str,
);

/// What the rules say before and after a ClientHello is heard, in the same way.
const HEARD: &[Heard] = &[
    (
        "deny sni='.bad.test'",
        ServerName::Unheard,
        User::Unchecked,
        None,
        "needs ServerName",
    ),
    (
        "deny sni='.bad.test'",
        ServerName::Is("a.bad.test"),
        User::Unchecked,
        None,
        "deny by r0",
    ),
    (
        "deny sni='.bad.test'",
        ServerName::Is("bad.tests"),
        User::Unchecked,
        None,
        "allow by default",
    ),
    (
        "deny sni='*'",
        ServerName::None,
        User::Unchecked,
        None,
        "allow by default",
    ),
    (
        "deny not.sni='.good.test'",
        ServerName::None,
        User::Unchecked,
        None,
        "deny by r0",
    ),
    (
        "deny not.sni='.good.test'",
        ServerName::Unheard,
        User::Unchecked,
        None,
        "needs ServerName",
    ),
    // Rather any other condition that does not hold.
    (
        "deny sni='.bad.test' port=444",
        ServerName::Unheard,
        User::Unchecked,
        None,
        "allow by default",
    ),
    // What else is to be found out, and what is refused anyway, comes first.
    (
        "deny sni='.bad.test'; deny destination='1.2.3.0/24'",
        ServerName::Unheard,
        User::Unchecked,
        None,
        "needs Addresses",
    ),
    (
        "deny sni='.bad.test'; deny destination='1.2.3.0/24'",
        ServerName::Unheard,
        User::Unchecked,
        Some(&["1.2.3.4"]),
        "deny by r1",
    ),
    (
        "allow sni='.good.test'; deny",
        ServerName::Unheard,
        User::Unchecked,
        None,
        "needs ServerName",
    ),
    (
        "allow sni='.good.test'; deny",
        ServerName::None,
        User::Unchecked,
        None,
        "deny by r1",
    ),
    (
        "deny sni='.bad.test'; allow user='*'",
        ServerName::Unheard,
        User::Unchecked,
        None,
        "needs User",
    ),
    (
        "deny sni='.bad.test'; allow user='*'",
        ServerName::Unheard,
        User::Nobody,
        None,
        "challenge by r1",
    ),
    (
        "deny sni='.bad.test'; allow user='*'",
        ServerName::Unheard,
        User::Known("anna"),
        None,
        "needs ServerName",
    ),
    (
        "deny user='anna' sni='.bad.test'",
        ServerName::Unheard,
        User::Unchecked,
        None,
        "needs User",
    ),
    (
        "report sni='.bad.test'",
        ServerName::Unheard,
        User::Unchecked,
        None,
        "needs ServerName",
    ),
    (
        "report sni='.bad.test'",
        ServerName::Is("bad.test"),
        User::Unchecked,
        None,
        "allow by default, r0 would deny",
    ),
    (
        "report sni='.bad.test'; deny",
        ServerName::Unheard,
        User::Unchecked,
        None,
        "deny by r1",
    ),
];

#[test]
fn the_name_in_a_hello_is_asked_for_last() {
    for &(rules, server_name, user, addresses, expected) in HEARD {
        let live = live_of(rules);
        let found = decide_heard(&live, LOCAL, "a.test:443", user, addresses, server_name);
        assert_eq!(found, expected, "{rules} {server_name:?} {user:?}");
    }
    let message = error("[[outgoing]]\naddress = \"10.0.0.1\"\nsni = [\"a.test\"]\n");
    let expected = "test.toml:1: only rules can ask for `sni`";
    assert!(message.starts_with(expected), "{message}");
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
