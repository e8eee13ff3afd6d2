//! Addresses: the network of each, and how many connections come from it.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use parking_lot::Mutex;

use switchyard_types::keyed_hash::KeyedMap;

/// A network: addresses with a common prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u32,
}

impl FromStr for Network {
    type Err = ();

    /// Such as `10.0.0.0/8`; without a length it is one address.
    fn from_str(text: &str) -> Result<Network, ()> {
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base, Some(bits.parse().map_err(|_| ())?)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| ())?;
        let all = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        match base.to_canonical() {
            _ if bits > all => Err(()),
            // Addresses are compared in their canonical form, so a network must have it, too.
            IpAddr::V4(v4) if base.is_ipv6() && bits >= 96 => {
                Ok(Network { base: v4.into(), bits: bits - 96 })
            }
            _ => Ok(Network { base, bits }),
        }
    }
}

impl Network {
    /// Whether the address belongs to it. An IPv4-mapped IPv6 address counts as the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let difference = base.to_bits() ^ address.to_bits();
                difference.leading_zeros() >= self.bits
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let difference = base.to_bits() ^ address.to_bits();
                difference.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

/// The number of connections from each address.
#[derive(Default)]
pub struct AddressCounts {
    counts: Mutex<KeyedMap<IpAddr, usize>>,
}

impl AddressCounts {
    /// Counts one more connection from this address. False: the limit is reached, and it is not
    /// counted.
    pub fn add(&self, address: IpAddr, max: usize) -> bool {
        let mut counts = self.counts.lock();
        let count = counts.entry(counted_as(address)).or_default();
        if *count >= max {
            return false;
        }
        *count += 1;
        true
    }

    /// How many there are from this address.
    pub fn of(&self, address: IpAddr) -> usize {
        self.counts.lock().get(&counted_as(address)).copied().unwrap_or(0)
    }

    /// Counts one connection less from this address.
    pub fn remove(&self, address: IpAddr) {
        let mut counts = self.counts.lock();
        let address = counted_as(address);
        if let Some(count) = counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

/// The address that is counted for this one. A host with an IPv6 address usually has the whole
/// /64, so these are counted by their first 64 bits.
pub fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_network_holds_what_begins_like_it() {
        let check = |network: &str, inside: &str, is_inside| {
            let network: Network = network.parse().expect("a network");
            assert_eq!(network.contains(address(inside)), is_inside, "{network:?} {inside}");
        };
        check("127.0.0.0/8", "127.9.9.9", true);
        check("127.0.0.0/8", "::ffff:127.0.0.1", true);
        check("127.0.0.0/8", "128.0.0.1", false);
        check("0.0.0.0/0", "9.9.9.9", true);
        check("0.0.0.0/0", "::1", false);
        check("fd00::/8", "fd12::1", true);
        check("::1", "::1", true);
        check("::1", "::2", false);
        check("::ffff:10.0.0.0/104", "10.9.9.9", true);
        check("::ffff:10.0.0.0/104", "::ffff:10.9.9.9", true);
        check("::ffff:10.0.0.0/104", "11.0.0.0", false);
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "host"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ipv6_addresses_are_counted_by_their_first_64_bits() {
        let counts = AddressCounts::default();
        assert!(counts.add(address("2001:db8::1"), 2));
        assert!(counts.add(address("2001:db8::ffff:1"), 2));
        assert!(!counts.add(address("2001:db8::2"), 2));
        assert!(counts.add(address("2001:db8:0:1::2"), 2));
        assert!(counts.add(address("10.0.0.1"), 1));
        assert!(!counts.add(address("::ffff:10.0.0.1"), 1));
        counts.remove(address("2001:db8::2"));
        assert!(counts.add(address("2001:db8::3"), 2));
        counts.remove(address("10.0.0.1"));
        assert_eq!(counts.counts.lock().len(), 2);
    }
}
