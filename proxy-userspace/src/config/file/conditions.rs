//! The conditions that rules and all other entries share.

use super::super::values::{Chance, HostPattern, Item, MarkText, Network, Pattern, Text, Word};
use crate::policy::{PortRange, Window};

/// Makes a struct of some fields and of all conditions.
macro_rules! with_conditions {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $kind:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $kind,)*
            /// Names of matches that must hold too, before the other conditions; `!` negates.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub when: Vec<Text<Word>>,
            /// The client's address.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub client: Networks,
            /// The listener that was connected to, by name or address.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub listener: Vec<Text<Word>>,
            /// The method, such as CONNECT.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub method: Vec<Text<Word>>,
            /// The port that is asked for.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub port: Vec<PortRange>,
            /// The host that is asked for.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub host: Vec<Text<Item<HostPattern>>>,
            /// The same, by pattern.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub host_regex: Vec<Text<Item<Pattern>>>,
            /// The name in the client's TLS ClientHello (SNI), which only rules may ask for: the client is
            /// then told that its tunnel is open before it is connected, and whatever fails is a reset.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub sni: Vec<Text<Item<HostPattern>>>,
            /// The whole target: `host:port`, or a URL.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub url_regex: Vec<Text<Item<Pattern>>>,
            /// The target behind the host; a tunnel has none.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub path_regex: Vec<Text<Item<Pattern>>>,
            /// The scheme of the URL; a tunnel has none.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub scheme: Vec<Text<Word>>,
            /// When.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub time: Vec<Text<Window>>,
            /// The client has more connections open than this.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub connections_above: Option<u32>,
            /// This share of all requests, by chance.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub chance: Option<Chance>,
            /// The firewall's mark of the client's connection (`net.ipv4.tcp_fwmark_accept`).
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub mark: Vec<Text<MarkText>>,
            /// The authenticated user; `*` is any.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub user: Vec<Text<Item<Word>>>,
            /// The same, by pattern.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub user_regex: Vec<Text<Item<Pattern>>>,
            /// A name in the client's certificate (its DNS names, URIs, e-mail addresses, and common name), of a
            /// listener with `tls.client_ca`; `*` is any certificate.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub certificate: Vec<Text<Item<Word>>>,
            /// The user of the process that connects, by number; only of captured connections.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub uid: Vec<u32>,
            /// The cgroup of that process, or one above it, as a path such as "/system.slice/app.service".
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub cgroup: Vec<Text<Word>>,
            /// The name of that process (`comm`).
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub process: Vec<Text<Word>>,
            /// The address that is connected to.
            #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "lists::filled")]
            pub destination: Networks,
        }

        impl $name {
            /// The conditions among the fields.
            pub(in crate::config) fn conditions(&self) -> Conditions<'_> {
                let Self {
                    when, client, listener, method, port, host, host_regex, sni, url_regex,
                    path_regex, scheme, time, connections_above, chance, mark, user, user_regex,
                    certificate, uid, cgroup, process, destination, ..
                } = self;
                Conditions {
                    when, client, listener, method, port, host, host_regex, sni, url_regex,
                    path_regex, scheme, time, connections_above: *connections_above,
                    chance: *chance, mark, user, user_regex, certificate, uid, cgroup, process, destination,
                }
            }
        }
    };
}

/// The conditions of a rule or a match.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Conditions<'a> {
    pub(in crate::config) when: &'a [Text<Word>],
    pub(in crate::config) client: &'a [Text<Item<Network>>],
    pub(in crate::config) listener: &'a [Text<Word>],
    pub(in crate::config) method: &'a [Text<Word>],
    pub(in crate::config) port: &'a [PortRange],
    pub(in crate::config) host: &'a [Text<Item<HostPattern>>],
    pub(in crate::config) host_regex: &'a [Text<Item<Pattern>>],
    pub(in crate::config) sni: &'a [Text<Item<HostPattern>>],
    pub(in crate::config) url_regex: &'a [Text<Item<Pattern>>],
    pub(in crate::config) path_regex: &'a [Text<Item<Pattern>>],
    pub(in crate::config) scheme: &'a [Text<Word>],
    pub(in crate::config) time: &'a [Text<Window>],
    pub(in crate::config) connections_above: Option<u32>,
    pub(in crate::config) chance: Option<Chance>,
    pub(in crate::config) mark: &'a [Text<MarkText>],
    pub(in crate::config) user: &'a [Text<Item<Word>>],
    pub(in crate::config) user_regex: &'a [Text<Item<Pattern>>],
    pub(in crate::config) certificate: &'a [Text<Item<Word>>],
    pub(in crate::config) uid: &'a [u32],
    pub(in crate::config) cgroup: &'a [Text<Word>],
    pub(in crate::config) process: &'a [Text<Word>],
    pub(in crate::config) destination: &'a [Text<Item<Network>>],
}
