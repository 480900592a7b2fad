//! Directives about how names are resolved.

use std::time::Duration;

use super::{
    super::{
        file::Dns,
        values::{Span, Text},
    },
    Line,
    settings::{Translation, texts},
    words,
};
use crate::dns::Family;

/// What Squid does without a word: `positive_dns_ttl`, and `negative_dns_ttl`, for which an address is remembered
/// at least.
pub(super) fn defaults() -> Dns {
    let minute = Span(Duration::from_secs(60));
    Dns {
        min_ttl: Some(minute),
        max_ttl: Some(Span(Duration::from_secs(6 * 3600))),
        negative_ttl: Some(minute),
        ..Dns::default()
    }
}

fn dns<'a>(to: &'a mut Translation<'_>) -> &'a mut Dns {
    &mut to.file.dns.get_or_insert_default().value
}

/// `dns_nameservers ADDR ...`, which replaces those before it (`parse_wordlist` of one line adds up).
pub(super) fn dns_nameservers(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let servers = texts(line).into_iter().map(|text| text.parse().map(Text));
    let servers = servers.collect::<Result<Vec<_>, String>>()?;
    dns(to).servers.extend(servers);
    Ok(())
}

/// `hosts_file PATH`, or `none`.
pub(super) fn hosts_file(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    dns(to).hosts = match texts(line).as_slice() {
        ["none"] => Some("".into()),
        [path] => Some((*path).into()),
        _ => return Err("write hosts_file PATH, or hosts_file none".to_owned()),
    };
    Ok(())
}

/// `append_domain .DOMAIN`
pub(super) fn append_domain(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    dns(to).append_domain = match texts(line).as_slice() {
        [domain] if domain.starts_with('.') => Some(domain.parse().map(Text)?),
        _ => return Err("append_domain needs a domain that begins with a dot".to_owned()),
    };
    Ok(())
}

/// `dns_retransmit_interval TIME`
pub(super) fn dns_retransmit_interval(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    dns(to).timeout = Some(Span(words::duration(&texts(line))?));
    Ok(())
}

/// `positive_dns_ttl TIME`
pub(super) fn positive_dns_ttl(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    dns(to).max_ttl = Some(Span(words::duration(&texts(line))?));
    Ok(())
}

/// `negative_dns_ttl TIME`
pub(super) fn negative_dns_ttl(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    let span = Span(words::duration(&texts(line))?);
    (dns(to).min_ttl, dns(to).negative_ttl) = (Some(span), Some(span));
    Ok(())
}

/// `dns_v4_first on`, of Squid before 5.
pub(super) fn dns_v4_first(to: &mut Translation<'_>, line: &Line) -> Result<(), String> {
    dns(to).family = match texts(line).as_slice() {
        ["on"] => Some(Family::Ipv4First),
        ["off"] => None,
        _ => return Err("write dns_v4_first on, or off".to_owned()),
    };
    Ok(())
}
