//! Which tunnels are meant, and in which order. Pure.

use std::{cmp::Reverse, net::SocketAddr};

use ipnet::IpNet;

use super::TunnelView;
use crate::config::parse_network;

/// Which tunnels are meant: all that fit every condition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    id: Option<u64>,
    client: Option<IpNet>,
    user: Option<String>,
    target: Option<String>,
    upstream: Option<String>,
    parent: Option<String>,
    rule: Option<String>,
    listener: Option<String>,
    engine: Option<String>,
    /// Seconds.
    min_age: Option<f64>,
    /// Bytes both ways.
    min_bytes: Option<u64>,
    /// Nothing was said against any.
    all: bool,
    /// In which order.
    pub sort: Sort,
    /// The other way round.
    pub reverse: bool,
    /// How many at most.
    pub limit: Option<usize>,
}

/// An order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// The fastest first.
    #[default]
    Rate,
    /// The most bytes first.
    Bytes,
    /// The oldest first.
    Age,
    /// By client.
    Client,
    /// By target.
    Target,
    /// By engine.
    Engine,
}

/// What can be put in order.
pub(super) trait Sortable {
    /// Bytes in a second, both ways.
    fn rate(&self) -> f64;
    /// Bytes both ways.
    fn bytes(&self) -> u64;
    /// The client.
    fn client(&self) -> Option<SocketAddr>;
    /// What it asked for.
    fn target(&self) -> Option<String>;
    /// The engine's name.
    fn engine(&self) -> Option<String>;
}

impl Sortable for TunnelView {
    fn rate(&self) -> f64 {
        self.up_rate + self.down_rate
    }

    fn bytes(&self) -> u64 {
        self.up + self.down
    }

    fn client(&self) -> Option<SocketAddr> {
        self.client.parse().ok()
    }

    fn target(&self) -> Option<String> {
        Some(self.target.clone())
    }

    fn engine(&self) -> Option<String> {
        self.engine.clone()
    }
}

impl Filter {
    /// Puts what stands by age in the order that is meant; equal ones stay by age.
    pub(super) fn order<T: Sortable>(&self, items: &mut [T]) {
        match self.sort {
            Sort::Rate => items.sort_by(|one, other| other.rate().total_cmp(&one.rate())),
            Sort::Bytes => items.sort_by_key(|item| Reverse(item.bytes())),
            Sort::Age => {}
            Sort::Client => items.sort_by_cached_key(Sortable::client),
            Sort::Target => items.sort_by_cached_key(Sortable::target),
            Sort::Engine => items.sort_by_cached_key(Sortable::engine),
        }
        if self.reverse {
            items.reverse();
        }
    }

    /// Reads the query of a URL, `key=value&...`.
    ///
    /// # Errors
    /// A key is not known, or its value is not what it should be.
    pub fn from_query(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            filter.add(key, &decode(value))?;
        }
        Ok(filter)
    }

    /// Adds a condition.
    ///
    /// # Errors
    /// As above.
    pub fn add(&mut self, key: &str, value: &str) -> Result<(), String> {
        let wrong = || format!("{key}={value} makes no sense");
        let text = Some(value.to_owned());
        match key {
            "id" => self.id = Some(value.parse().map_err(|_| wrong())?),
            "client" => {
                self.client = Some(parse_network(value)?);
            }
            "user" => self.user = text,
            "target" => self.target = text,
            "upstream" => self.upstream = text,
            "parent" => self.parent = text,
            "rule" => self.rule = text,
            "listener" => self.listener = text,
            "engine" => self.engine = text,
            "min_age" => self.min_age = Some(value.parse().map_err(|_| wrong())?),
            "min_bytes" => self.min_bytes = Some(value.parse().map_err(|_| wrong())?),
            "all" => self.all = true,
            "sort" => {
                self.sort = clap::ValueEnum::from_str(value, true).map_err(|_| wrong())?;
            }
            "reverse" => self.reverse = value.parse().map_err(|_| wrong())?,
            "limit" => self.limit = Some(value.parse().map_err(|_| wrong())?),
            _ => {
                return Err(format!(
                    "there is no filter '{key}'; there are id, client, user, target, upstream, parent, rule, listener, engine, min_age, min_bytes, sort, reverse and limit"
                ));
            }
        }
        Ok(())
    }

    /// Whether it says anything of which tunnels are meant, or that all are.
    #[must_use]
    pub fn is_explicit(&self) -> bool {
        let anything = Self {
            sort: self.sort,
            reverse: self.reverse,
            limit: self.limit,
            ..Self::default()
        };
        *self != anything
    }

    /// Whether the tunnel is meant. A target or upstream fits if the text is a part of it.
    #[must_use]
    pub fn fits(&self, view: &TunnelView) -> bool {
        let is = |wanted: &Option<String>, value: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| value == Some(wanted))
        };
        let has = |wanted: &Option<String>, value: &str| {
            wanted
                .as_deref()
                .is_none_or(|wanted| value.contains(wanted))
        };
        let address = view.client.parse::<SocketAddr>();
        self.id.is_none_or(|id| id == view.id)
            && self
                .client
                .is_none_or(|network| address.is_ok_and(|address| network.contains(&address.ip())))
            && is(&self.user, view.user.as_deref())
            && is(&self.parent, view.parent.as_deref())
            && is(&self.rule, view.rule.as_deref())
            && is(&self.listener, Some(&view.listener))
            && is(&self.engine, view.engine.as_deref())
            && has(&self.target, &view.target)
            && has(&self.upstream, &view.upstream)
            && self.min_age.is_none_or(|age| view.age >= age)
            && self
                .min_bytes
                .is_none_or(|bytes| view.up + view.down >= bytes)
    }
}

/// Takes back what a query has escaped.
pub(super) fn decode(text: &str) -> String {
    let mut bytes = text.as_bytes().iter();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(&byte) = bytes.next() {
        let digits = |bytes: &[u8]| {
            let text = str::from_utf8(bytes.get(..2)?).ok()?;
            u8::from_str_radix(text, 16).ok()
        };
        match byte {
            b'+' => decoded.push(b' '),
            b'%' => match digits(bytes.as_slice()) {
                Some(value) => {
                    decoded.push(value);
                    bytes.nth(1);
                }
                None => decoded.push(b'%'),
            },
            byte => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(id: u64, client: &str, target: &str, bytes: u32) -> TunnelView {
        TunnelView {
            id,
            client: client.to_owned(),
            user: Some("anna".to_owned()),
            listener: "front".to_owned(),
            method: "CONNECT".to_owned(),
            target: target.to_owned(),
            sni: None,
            upstream: "192.0.2.1:443".to_owned(),
            parent: None,
            rule: Some("pods".to_owned()),
            engine: Some("copy".to_owned()),
            age: 10.0,
            up: bytes.into(),
            down: 0,
            up_rate: 0.0,
            down_rate: bytes.into(),
        }
    }

    #[test]
    fn conditions_hold_together() {
        let view = view(7, "10.1.2.3:4711", "www.example.com:443", 100);
        for (query, fits) in [
            ("", true),
            ("id=7", true),
            ("id=8", false),
            ("client=10.0.0.0/8&target=example.com", true),
            ("client=10.1.2.3", true),
            ("client=10.1.2.4", false),
            ("user=anna&rule=pods&engine=copy&listener=front", true),
            ("user=an", false),
            ("parent=x", false),
            ("min_age=11", false),
            ("min_bytes=100&min_age=9.5", true),
            ("target=www.example.com%3A443", true),
        ] {
            assert_eq!(
                Filter::from_query(query).unwrap().fits(&view),
                fits,
                "{query}"
            );
        }
        for query in [
            "id=x",
            "client=a",
            "colour=red",
            "sort=loud",
            "limit=-1",
            "reverse=up",
        ] {
            assert!(Filter::from_query(query).is_err(), "{query}");
        }
        assert!(
            !Filter::from_query("sort=age&reverse=true&limit=3")
                .unwrap()
                .is_explicit()
        );
        assert!(Filter::from_query("all").unwrap().is_explicit());
        assert!(Filter::from_query("user=").unwrap().is_explicit());
    }

    #[test]
    fn orders_are_total() {
        let by_age = [
            view(1, "10.0.0.10:1", "z", 1),
            view(2, "10.0.0.9:1", "y", 5),
            view(3, "10.0.0.9:2", "x", 1),
        ];
        for (query, ids) in [
            ("sort=rate", [2, 1, 3]),
            ("sort=bytes", [2, 1, 3]),
            ("sort=bytes&reverse=true", [3, 1, 2]),
            ("sort=age", [1, 2, 3]),
            ("sort=age&reverse=true", [3, 2, 1]),
            ("sort=client", [2, 3, 1]),
            ("sort=target", [3, 2, 1]),
            ("sort=engine", [1, 2, 3]),
        ] {
            let mut views = by_age.clone();
            Filter::from_query(query).unwrap().order(&mut views);
            assert_eq!(views.each_ref().map(|view| view.id), ids, "{query}");
        }
    }
}
