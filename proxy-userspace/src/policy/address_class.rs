//! The addresses that are not simply a public host, by the registries of IANA (RFC 6890), and one
//! that a cloud uses otherwise.
//!
//! The registries are [IPv4 special-purpose], [IPv6 special-purpose] and [IPv6 address space]; of
//! the last, `2000::/3` alone is given out, and all the rest counts as reserved. Stricter than
//! "globally reachable": an address that stands for an IPv4 address is special too, because it
//! would be a second spelling of a destination that is denied by its first.
//!
//! [IPv4 special-purpose]: https://www.iana.org/assignments/iana-ipv4-special-registry
//! [IPv6 special-purpose]: https://www.iana.org/assignments/iana-ipv6-special-registry
//! [IPv6 address space]: https://www.iana.org/assignments/ipv6-address-space

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

#[cfg(test)]
mod tests;

/// What a special address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// "This network", which the kernel takes for the host itself.
    Unspecified,
    /// The host itself.
    Loopback,
    /// A network of its own.
    Private,
    /// The provider's side of carrier-grade NAT.
    CarrierNat,
    /// The neighbours; in clouds, the metadata service that hands out credentials.
    LinkLocal,
    /// The service of a cloud that hands out credentials, at a public address.
    CloudMetadata,
    /// Private IPv6 of old.
    SiteLocal,
    /// Private IPv6.
    UniqueLocal,
    /// Many hosts at once.
    Multicast,
    /// All hosts of the link.
    Broadcast,
    /// Not given out.
    Reserved,
    /// For examples in documents.
    Documentation,
    /// For benchmarks of network devices.
    Benchmarking,
    /// For protocols of the IETF.
    IetfProtocol,
    /// The deprecated anycast address of 6to4 relays.
    SixToFourRelay,
    /// Packets to it are dropped.
    Discard,
    /// IPv4 in the notation of IPv6.
    Ipv4Mapped,
    /// The deprecated predecessor of IPv4-mapped.
    Ipv4Compatible,
    /// IPv4 behind a translator.
    Nat64,
    /// IPv6 in IPv4 packets to the embedded address.
    SixToFour,
    /// IPv6 in UDP to the embedded address.
    Teredo,
    /// Segment routing identifiers.
    SegmentRouting,
}

/// A block of special addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialBlock {
    /// Its addresses; a block within it may be of another class.
    pub network: IpNet,
    /// What they are for.
    pub class: AddressClass,
}

/// All blocks; the first that contains an address is the one that counts.
const BLOCKS: &[SpecialBlock] = {
    use AddressClass as C;
    &[
        v4([0, 0, 0, 0], 8, C::Unspecified),               // RFC 791 §3.2
        v4([10, 0, 0, 0], 8, C::Private),                  // RFC 1918
        v4([100, 64, 0, 0], 10, C::CarrierNat),            // RFC 6598
        v4([127, 0, 0, 0], 8, C::Loopback),                // RFC 1122 §3.2.1.3
        v4([168, 63, 129, 16], 32, C::CloudMetadata),      // Azure's WireServer
        v4([169, 254, 0, 0], 16, C::LinkLocal),            // RFC 3927
        v4([172, 16, 0, 0], 12, C::Private),               // RFC 1918
        v4([192, 0, 0, 0], 24, C::IetfProtocol),           // RFC 6890 §2.1
        v4([192, 0, 2, 0], 24, C::Documentation),          // RFC 5737
        v4([192, 88, 99, 0], 24, C::SixToFourRelay),       // RFC 7526
        v4([192, 168, 0, 0], 16, C::Private),              // RFC 1918
        v4([198, 18, 0, 0], 15, C::Benchmarking),          // RFC 2544
        v4([198, 51, 100, 0], 24, C::Documentation),       // RFC 5737
        v4([203, 0, 113, 0], 24, C::Documentation),        // RFC 5737
        v4([224, 0, 0, 0], 4, C::Multicast),               // RFC 5771
        v4([255, 255, 255, 255], 32, C::Broadcast),        // RFC 919
        v4([240, 0, 0, 0], 4, C::Reserved),                // RFC 1112 §4
        v6([0, 0, 0, 0, 0, 0, 0, 0], 128, C::Unspecified), // RFC 4291 §2.5.2
        v6([0, 0, 0, 0, 0, 0, 0, 1], 128, C::Loopback),    // RFC 4291 §2.5.3
        v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, C::Ipv4Mapped), // RFC 4291 §2.5.5.2
        v6([0, 0, 0, 0, 0, 0, 0, 0], 96, C::Ipv4Compatible), // RFC 4291 §2.5.5.1
        v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, C::Nat64), // RFC 6052
        v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, C::Nat64), // RFC 8215
        v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, C::Discard),  // RFC 6666
        v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, C::Teredo),  // RFC 4380
        v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, C::Benchmarking), // RFC 5180
        v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, C::IetfProtocol), // RFC 2928
        v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, C::Documentation), // RFC 3849
        v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, C::SixToFour), // RFC 3056
        v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, C::Documentation), // RFC 9637
        v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, C::SegmentRouting), // RFC 9602
        v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, C::UniqueLocal), // RFC 4193
        v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, C::LinkLocal), // RFC 4291 §2.5.6
        v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, C::SiteLocal), // RFC 3879
        v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, C::Multicast), // RFC 4291 §2.7
        // All that is left outside of 2000::/3 (RFC 4291 §2.4).
        v6([0, 0, 0, 0, 0, 0, 0, 0], 3, C::Reserved),
        v6([0x4000, 0, 0, 0, 0, 0, 0, 0], 2, C::Reserved),
        v6([0x8000, 0, 0, 0, 0, 0, 0, 0], 1, C::Reserved),
    ]
};

impl AddressClass {
    /// The class of an address; none if it is a public host's.
    #[must_use]
    pub fn of(address: IpAddr) -> Option<Self> {
        SpecialBlock::of(address).map(|block| block.class)
    }
}

impl SpecialBlock {
    /// The block that an address belongs to; none if it is a public host's.
    #[must_use]
    pub fn of(address: IpAddr) -> Option<Self> {
        BLOCKS
            .iter()
            .find(|block| block.network.contains(&address))
            .copied()
    }
}

/// As it stands in "10.0.0.5 is ...".
impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "an unspecified address",
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::CarrierNat => "a carrier-grade NAT address",
            Self::LinkLocal => "a link-local address (cloud metadata services live there)",
            Self::CloudMetadata => "a cloud's metadata service",
            Self::SiteLocal => "a site-local address",
            Self::UniqueLocal => "a unique local address",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
            Self::Reserved => "a reserved address",
            Self::Documentation => "a documentation address",
            Self::Benchmarking => "a benchmarking address",
            Self::IetfProtocol => "an IETF protocol address",
            Self::SixToFourRelay => "a 6to4 relay address",
            Self::Discard => "a discard-only address",
            Self::Ipv4Mapped => "an IPv4-mapped address",
            Self::Ipv4Compatible => "an IPv4-compatible address",
            Self::Nat64 => "a NAT64 address",
            Self::SixToFour => "a 6to4 address",
            Self::Teredo => "a Teredo address",
            Self::SegmentRouting => "a segment routing address",
        })
    }
}

/// The IPv4 address that packets to this address end up at, or pass through.
///
/// Not for `64:ff9b:1::/48`: where in it the IPv4 address stands is the network operator's choice
/// (RFC 8215, RFC 6052 §2.2), so allowing that block allows whatever its translator reaches.
#[must_use]
pub fn embedded_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [first, second, third, .., seventh, eighth] = address.segments();
    match AddressClass::of(IpAddr::V6(address))? {
        AddressClass::Ipv4Mapped | AddressClass::Ipv4Compatible => Some(joined(seventh, eighth)),
        AddressClass::Nat64 if [first, second, third] == [0x64, 0xff9b, 0] => {
            Some(joined(seventh, eighth))
        }
        AddressClass::SixToFour => Some(joined(second, third)),
        // RFC 4380 §4: the client's address, inverted.
        AddressClass::Teredo => Some(joined(!seventh, !eighth)),
        AddressClass::Unspecified
        | AddressClass::Loopback
        | AddressClass::Private
        | AddressClass::CarrierNat
        | AddressClass::LinkLocal
        | AddressClass::CloudMetadata
        | AddressClass::SiteLocal
        | AddressClass::UniqueLocal
        | AddressClass::Multicast
        | AddressClass::Broadcast
        | AddressClass::Reserved
        | AddressClass::Documentation
        | AddressClass::Benchmarking
        | AddressClass::IetfProtocol
        | AddressClass::SixToFourRelay
        | AddressClass::Discard
        | AddressClass::Nat64
        | AddressClass::SegmentRouting => None,
    }
}

fn joined(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

const fn v4(octets: [u8; 4], prefix: u8, class: AddressClass) -> SpecialBlock {
    let [a, b, c, d] = octets;
    let network = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix));
    SpecialBlock { network, class }
}

#[expect(
    clippy::many_single_char_names,
    reason = "the groups of an IPv6 address have no better names"
)]
const fn v6(segments: [u16; 8], prefix: u8, class: AddressClass) -> SpecialBlock {
    let [a, b, c, d, e, f, g, h] = segments;
    let network = IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(a, b, c, d, e, f, g, h),
        prefix,
    ));
    SpecialBlock { network, class }
}
