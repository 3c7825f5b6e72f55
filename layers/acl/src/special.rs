//! Addresses that need more than a comparison: IPv4 inside IPv6, and ranges that nobody means by "everything".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Ranges that a [guarded](crate::Policy::guarded) policy opens only to an entry that lies inside them.
///
/// Addresses of this host or link, of many hosts at once, and the places where clouds hand out credentials
/// (RFC 6890; the documentation of AWS, Google, Alibaba and Oracle, as far as they are not link-local anyway).
pub(crate) const GUARDED: [IpNet; 11] = [
    four(0, 0, 0, 0, 8),          // "this network"; Linux takes 0.0.0.0 for itself
    four(169, 254, 0, 0, 16),     // link-local, and most clouds' metadata
    four(192, 0, 0, 192, 32),     // metadata at Oracle
    four(100, 100, 100, 200, 32), // metadata at Alibaba
    four(224, 0, 0, 0, 4),        // multicast
    four(255, 255, 255, 255, 32), // broadcast
    six([0; 8], 128),             // unspecified
    six([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    six([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
    six([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), // metadata at AWS
    six([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),  // metadata at Google
];

const fn four(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn six(segments: [u16; 8], prefix: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = segments;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix))
}

/// The guarded range that holds `address`, as its place in [`GUARDED`].
pub(crate) fn guarded(address: IpAddr) -> Option<usize> {
    GUARDED.iter().position(|range| range.contains(&address))
}

/// Every IPv4 address that a packet to this IPv6 address may end at, by way of a translator or a tunnel.
pub(crate) fn embedded(address: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
    let found = match address {
        IpAddr::V4(_) => [None; 4],
        IpAddr::V6(address) => embedded_in(address.to_bits()),
    };
    found.into_iter().flatten()
}

fn embedded_in(bits: u128) -> [Option<Ipv4Addr>; 4] {
    const TRANSLATED: u128 = 0xffff_0000;
    const NAT64: u128 = 0x0064_ff9b << 64;
    let just = |address: u32| [Some(address.into()), None, None, None];
    #[expect(clippy::cast_possible_truncation, reason = "cutting the address out of the bits is the point")]
    let low = |shift: u32| (bits >> shift) as u32;
    match bits >> 32 {
        // `::` and `::1` are addresses of their own (RFC 4291 section 2.5.5.1).
        0 if bits > 1 => just(low(0)),
        // RFC 7915 (SIIT) and RFC 6052: the last 32 bits.
        TRANSLATED | NAT64 => just(low(0)),
        _ if bits >> 80 == 0x0064_ff9b_0001 => local_nat64(bits),
        // RFC 3056, 6to4: behind the first 16 bits.
        _ if bits >> 112 == 0x2002 => just(low(80)),
        // RFC 4380 section 4, Teredo: the server's address, and the client's with its bits inverted.
        _ if bits >> 96 == 0x2001_0000 => [Some(low(64).into()), Some((!low(0)).into()), None, None],
        _ => [None; 4],
    }
}

/// 64:ff9b:1::/48 (RFC 8215) leaves the length of the prefix to the network, and with it where the address is
/// (RFC 6052 section 2.2). Each place that fits counts, except that what begins with 0 is taken for one only where
/// there is nothing better: it is what the wrong places show.
#[expect(clippy::cast_possible_truncation, reason = "cutting the address out of the bits is the point")]
fn local_nat64(bits: u128) -> [Option<Ipv4Addr>; 4] {
    let octet_u_is_zero = bits >> 56 & 0xff == 0;
    let fits = |suffix: u32| octet_u_is_zero && bits & ((1 << suffix) - 1) == 0;
    let after_48 = (bits >> 64 << 16) as u32 | (bits >> 40 & 0xffff) as u32;
    let after_56 = (bits >> 64 << 24) as u32 | (bits >> 32 & 0x00ff_ffff) as u32;
    let after_64 = (bits >> 24) as u32;
    let places = [(fits(40), after_48), (fits(32), after_56), (fits(24), after_64), (true, bits as u32)];
    let found = places.map(|(fits, address)| (fits && address >> 24 != 0).then(|| address.into()));
    if found.iter().any(Option::is_some) { found } else { [Some((bits as u32).into()), None, None, None] }
}

/// The IPv4 address of an IPv4-compatible one (`::127.0.0.1`), a form so old that whoever writes it means the IPv4
/// address.
pub(crate) fn compatible(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V6(six) if six.to_bits() >> 32 == 0 => embedded(address).next(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(text: &str) -> Vec<String> {
        embedded(text.parse().unwrap()).map(|address| address.to_string()).collect()
    }

    #[test]
    fn a6_ipv4_is_found_in_every_form_that_carries_it() {
        assert_eq!(inside("::127.0.0.1"), ["127.0.0.1"]);
        assert_eq!(inside("::ffff:0:10.0.0.1"), ["10.0.0.1"]);
        assert_eq!(inside("64:ff9b::10.0.0.1"), ["10.0.0.1"]);
        assert_eq!(inside("2002:0a00:0001::1"), ["10.0.0.1"]);
        // RFC 4380 section 4: 65.54.227.120 serves 192.0.2.45.
        assert_eq!(inside("2001:0:4136:e378:8000:63bf:3fff:fdd2"), ["65.54.227.120", "192.0.2.45"]);
    }

    #[test]
    fn a6_a_network_s_own_translation_prefix_may_have_any_length() {
        // RFC 6052 section 2.4, for 192.0.2.33.
        for text in [
            "64:ff9b:1:c000:2:2100::",
            "64:ff9b:1:c0:0:221::",
            "64:ff9b:1:0:c0:2:2100:0",
            "64:ff9b:1::192.0.2.33",
        ] {
            assert!(inside(text).contains(&"192.0.2.33".to_owned()), "{text}: {:?}", inside(text));
        }
        assert_eq!(inside("64:ff9b:1::8.8.8.8"), ["8.8.8.8"]);
        assert_eq!(inside("64:ff9b:1::"), ["0.0.0.0"]);
    }

    #[test]
    fn plain_addresses_carry_nothing() {
        for text in ["10.0.0.1", "::", "::1", "2001:db8::1", "fe80::a00:1", "64:ff9b:2::a00:1", "2001:1::1"] {
            assert!(inside(text).is_empty(), "{text}");
        }
    }
}
