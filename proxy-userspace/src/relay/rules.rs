//! Which engine a tunnel is for: the one of the first rule that fits its target, else the default.
//! Pure.

use std::net::SocketAddr;

use super::selection::EngineChoice;
use crate::policy::{NetworkSet, PortSet};

/// An engine for some targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineRule {
    /// Networks of the address that is connected to; `None` for all.
    pub destinations: Option<NetworkSet>,
    /// Its ports; `None` for all.
    pub ports: Option<PortSet>,
    /// The engine.
    pub engine: EngineChoice,
}

/// The rules in order, and what applies where none fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineRules {
    /// The first that fits decides.
    pub rules: Vec<EngineRule>,
    /// For all other targets.
    pub default: EngineChoice,
}

impl EngineRule {
    fn fits(&self, target: SocketAddr) -> bool {
        let ip = target.ip().to_canonical();
        let destination = self
            .destinations
            .as_ref()
            .is_none_or(|networks| networks.contains(ip));
        let port = self
            .ports
            .as_ref()
            .is_none_or(|ports| ports.contains(target.port()));
        destination && port
    }
}

impl EngineRules {
    /// The engine for a tunnel that is connected to this address.
    pub fn choose(&self, target: SocketAddr) -> EngineChoice {
        self.rules
            .iter()
            .find(|rule| rule.fits(target))
            .map_or(self.default, |rule| rule.engine)
    }

    /// Every engine that a tunnel can be for.
    pub fn choices(&self) -> impl Iterator<Item = EngineChoice> + '_ {
        let of_rules = self.rules.iter().map(|rule| rule.engine);
        of_rules.chain([self.default])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks() -> NetworkSet {
        [(
            "10.0.0.0".parse().unwrap(),
            "10.255.255.255".parse().unwrap(),
        )]
        .into_iter()
        .collect()
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules = EngineRules {
            rules: vec![
                EngineRule {
                    destinations: Some(networks()),
                    ports: Some(PortSet::from_iter(["22".parse().unwrap()])),
                    engine: EngineChoice::Sockmap,
                },
                EngineRule {
                    destinations: Some(networks()),
                    ports: None,
                    engine: EngineChoice::Splice,
                },
                EngineRule {
                    destinations: None,
                    ports: Some(PortSet::from_iter(["8000-8099".parse().unwrap()])),
                    engine: EngineChoice::Copy,
                },
            ],
            default: EngineChoice::Auto,
        };
        for (target, engine) in [
            ("10.1.2.3:22", EngineChoice::Sockmap),
            ("[::ffff:10.1.2.3]:22", EngineChoice::Sockmap),
            ("10.1.2.3:8000", EngineChoice::Splice),
            ("192.0.2.1:8000", EngineChoice::Copy),
            ("[2001:db8::1]:8099", EngineChoice::Copy),
            ("192.0.2.1:22", EngineChoice::Auto),
        ] {
            assert_eq!(rules.choose(target.parse().unwrap()), engine, "{target}");
        }
        assert_eq!(rules.choices().count(), 4);
    }
}
