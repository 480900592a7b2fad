//! `underpass check`, `underpass explain` and `underpass config`: a configuration, asked beforehand.

use std::{fmt::Write as _, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use tokio::sync::Semaphore;

use crate::{
    access::{self, Access, Cause, Claim, Known, Outcome, Permit, Refused, Request},
    authority::{Authority, Host},
    config::{
        Config, ConfigError, File, Live,
        cli::{Explain, Settings},
        schema, squid,
    },
    http::AbsoluteTarget,
    parent::Hop,
    policy::{ServerName, audit::audit},
};

/// What `underpass check` prints about a configuration, and how many warnings it has.
///
/// # Errors
/// The configuration is wrong.
pub fn check(settings: &Settings) -> Result<(String, usize), ConfigError> {
    let config = Config::load(settings)?;
    let listeners: Vec<SocketAddr> = config
        .listen
        .iter()
        .map(|listener| listener.address)
        .collect();
    let mut report = String::new();
    for notice in &config.notices {
        let _ = writeln!(report, "note: {notice}");
    }
    let warnings = audit(&config.live.policy, &listeners);
    for warning in &warnings {
        let _ = writeln!(report, "{}", warning.in_words("warning: "));
    }
    let place = settings
        .config
        .as_deref()
        .or(settings.squid_conf.as_deref());
    let name = place.map_or("the configuration".into(), Path::to_string_lossy);
    let count = match warnings.len() {
        0 => "no warnings".to_owned(),
        1 => "1 warning".to_owned(),
        n => format!("{n} warnings"),
    };
    let _ = write!(report, "{name} is valid: {}, {count}", config.live);
    Ok((report, warnings.len()))
}

/// What a request asks for.
struct Asked {
    scheme: Option<String>,
    target: Authority,
    url: String,
}

fn asked(method: &str, url: &str, live: &Live) -> anyhow::Result<Asked> {
    if method == "CONNECT" {
        let target = Authority::parse(url.as_bytes())
            .with_context(|| format!("'{url}' is no target of CONNECT"))?;
        let target = live.meant(target);
        return Ok(Asked {
            scheme: None,
            url: target.to_string(),
            target,
        });
    }
    let Some(absolute) = AbsoluteTarget::parse(url) else {
        bail!("'{url}' is no URL; write http://host/path, or CONNECT host:port");
    };
    let meant = AbsoluteTarget {
        authority: live.meant(absolute.authority),
        ..absolute
    };
    Ok(Asked {
        url: meant.to_string(),
        scheme: Some(meant.scheme),
        target: meant.authority,
    })
}

/// What would become of a request, and whether it would be served.
///
/// # Errors
/// The configuration or the request is wrong.
pub async fn explain(arguments: &Explain) -> anyhow::Result<(String, bool)> {
    let config = Config::load(&arguments.settings)?;
    let listeners: Vec<SocketAddr> = config
        .listen
        .iter()
        .map(|listener| listener.address)
        .collect();
    let listener = config.listen.first();
    let method = arguments.method.as_str();
    let Asked {
        scheme,
        target,
        url,
    } = asked(method, &arguments.target, &config.live)?;
    let claim = match &arguments.user {
        Some(user) => Claim::Verified(user.clone()),
        None => Claim::Nothing,
    };
    // As clients have it.
    let usual = match target.host() {
        Host::Name(name) => ServerName::Is(name.without_root()),
        Host::Ip(_) => ServerName::None,
    };
    let server_name = arguments.sni.as_deref().map_or(usual, ServerName::Is);
    let process = arguments.process();
    let mut request = Request {
        client: arguments.from.to_canonical(),
        listener: listener.map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |listener| {
            listener.address
        }),
        listener_name: listener.map_or("", |listener| &listener.name),
        method,
        scheme: scheme.as_deref(),
        target: &target,
        url: &url,
        claim: &claim,
        certificate: (!arguments.certificate.is_empty()).then_some(&arguments.certificate),
        process: process.as_ref(),
        server_name: if method == "CONNECT" {
            ServerName::Unheard
        } else {
            ServerName::None
        },
        connections: 1,
        mark: 0,
        dice: 0,
    };
    let room = Arc::new(Semaphore::new(1)).acquire_owned().await?;
    let access = Access {
        live: &config.live,
        listeners: &listeners,
        deadline: access::deadline(config.live.connect_timeout),
        checks: &Arc::new(Semaphore::new(1)),
        room: &Arc::new(room),
    };
    let mut known = Known::default();
    let mut decided = match config.live.policy.client(request.client) {
        Ok(()) => access.decide(&request, &mut known, true).await,
        Err(denial) => {
            let refused = Refused {
                refusal: denial.into(),
                cause: Cause::Option("allow_client"),
                reset: false,
                user: None,
                addresses: Box::default(),
            };
            Err(refused)
        }
    };
    let is_answered = matches!(decided, Ok(Outcome::NeedsServerName));
    if is_answered {
        request.server_name = server_name;
        decided = access.decide(&request, &mut known, true).await;
    }
    let is_served = decided.is_ok();
    let mut lines = match decided {
        Ok(Outcome::Permit(permit)) => {
            permitted(&permit, known.hops(), &config.live, request.scheme)
        }
        Ok(Outcome::NeedsServerName) => bail!("the rules ask for more than was said"),
        Err(refused) => denied(&refused, is_answered),
    };
    if is_answered {
        let name = match server_name {
            ServerName::Is(name) => name,
            ServerName::None | ServerName::Unheard => "none",
        };
        let assumed = if arguments.sni.is_some() {
            ""
        } else {
            " (assumed; --sni NAME is another)"
        };
        lines.push(("sni", format!("{name}{assumed}")));
    }
    let lines: Vec<String> = lines
        .into_iter()
        .map(|(name, text)| format!("{name:<10}{text}"))
        .collect();
    Ok((lines.join("\n"), is_served))
}

type Lines = Vec<(&'static str, String)>;

fn permitted(permit: &Permit, hops: &[Hop], live: &Live, scheme: Option<&str>) -> Lines {
    let first = permit.candidates.first();
    let rule = first
        .map_or(permit.rule, |first| first.rule)
        .and_then(|index| live.policy.rules().get(index));
    let rule = rule.map_or("none; what is open by default".to_owned(), |rule| {
        format!("{} ({})", rule.name, rule.place)
    });
    let mut lines = vec![
        ("verdict", "allow".to_owned()),
        ("rule", rule),
        ("reason", permit.reason.clone()),
    ];
    for rule in &permit.would_deny {
        lines.push(("report", format!("rule {rule} would deny it")));
    }
    for (index, hop) in hops.iter().enumerate() {
        lines.push((if index == 0 { "way" } else { "else" }, hop.to_string()));
    }
    let is_direct = matches!(permit.hop, Hop::Direct);
    for candidate in permit.candidates.iter().filter(|_| is_direct) {
        let engine = live.engine(candidate.rule, candidate.address);
        lines.push((
            "address",
            format!("{} (engine {engine})", candidate.address),
        ));
    }
    if scheme.is_some_and(|scheme| scheme != "http") {
        let note = "only http URLs are forwarded; the client would be told 501";
        lines.push(("note", note.to_owned()));
    }
    lines
}

/// `is_answered`: the client has its `200` by then.
fn denied(refused: &Refused, is_answered: bool) -> Lines {
    let status = refused.refusal.status();
    let (verb, rule) = match &refused.cause {
        Cause::Rule(rule) => ("deny", rule.to_string()),
        Cause::Option(option) => ("deny", (*option).to_owned()),
        Cause::Opening => ("deny", "none".to_owned()),
        Cause::Failure => ("fail", "none".to_owned()),
    };
    let verdict = if is_answered {
        format!("{verb}, with a reset behind the 200")
    } else if refused.reset {
        format!("{verb}, with a reset")
    } else {
        format!("{verb}, with {status}")
    };
    let mut lines = vec![
        ("verdict", verdict),
        ("rule", rule),
        ("reason", refused.refusal.reason().to_owned()),
    ];
    for address in &refused.addresses {
        lines.push(("address", address.to_string()));
    }
    lines
}

/// The TOML that is equivalent to a squid.conf, and what was left out.
///
/// # Errors
/// The squid.conf is wrong or not supported.
pub fn convert(path: &Path) -> anyhow::Result<(String, Vec<String>)> {
    let translated = squid::translate(path)?;
    Ok((to_toml(&translated.file, path)?, translated.notices))
}

fn to_toml(file: &File, path: &Path) -> anyhow::Result<String> {
    let text = toml::to_string(file).context("the configuration cannot be written as TOML")?;
    Ok(format!(
        "# Made from {} by underpass config convert.\n\n{text}",
        path.display()
    ))
}

/// The JSON Schema of `underpass.toml`.
#[must_use]
pub fn json_schema() -> String {
    schema()
}
