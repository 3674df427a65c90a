//! Which subnet a task's own network gets, and what this machine is connected to: pure, from the kernel's routing tables.

use std::net::{IpAddr, Ipv4Addr};

use crate::node::net::Net;

/// Where subnets are taken from, in this order: one block of each private range, so that a machine whose local network
/// takes a whole range has the others. They end where nobody begins to count.
const POOL: [(Ipv4Addr, u8); 3] =
    [(Ipv4Addr::new(10, 231, 224, 0), 21), (Ipv4Addr::new(172, 31, 248, 0), 21), (Ipv4Addr::new(192, 168, 248, 0), 21)];
/// Six addresses: the machine's, the task's, and some to spare.
const SUBNET_LEN: u8 = 29;

/// What the kernel's routing tables say about IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Destinations of all tables, this machine's addresses among them; default routes are left out.
    pub all: Vec<Net>,
    /// Those that are reached without a gateway: the networks that this machine is on, tunnels among them.
    pub connected: Vec<Net>,
    /// This machine's own addresses.
    pub own: Vec<Ipv4Addr>,
}

impl Routes {
    /// Reads `/proc/net/fib_trie`, which has all tables: under each address the lines `/LEN SCOPE TYPE` of its routes.
    pub fn parse(fib_trie: &str) -> Self {
        let mut routes = Self::default();
        let mut address: Option<Ipv4Addr> = None;
        for line in fib_trie.lines().map(str::trim_start) {
            if let Some(text) = line.strip_prefix("|-- ") {
                address = text.trim().parse().ok();
            } else if let Some(route) = line.strip_prefix('/')
                && let Some(address) = address
            {
                routes.take(address, route);
            }
        }
        for list in [&mut routes.all, &mut routes.connected] {
            list.sort_unstable();
            list.dedup();
        }
        routes.own.sort_unstable();
        routes.own.dedup();
        routes
    }

    fn take(&mut self, address: Ipv4Addr, route: &str) {
        let mut words = route.split_whitespace();
        let len = words.next().and_then(|len| len.parse::<u8>().ok());
        let Some(net) = len.and_then(|len| Net::around(IpAddr::V4(address), len)) else { return };
        if net.prefix_len() == 0 {
            return;
        }
        match (words.next(), words.next()) {
            (_, Some("LOCAL")) if net.prefix_len() == 32 => self.own.push(address),
            (Some("link"), Some("UNICAST")) => self.connected.push(net),
            _ => {}
        }
        self.all.push(net);
    }
}

/// Subnets of the pool that overlap with nothing that this machine knows, in the order to try them. `start` spreads the
/// first choice, so that tasks that begin together seldom meet.
pub fn free_subnets(routes: &Routes, start: usize) -> impl Iterator<Item = Net> {
    POOL.iter().flat_map(move |(address, len)| {
        let count = 1usize << (SUBNET_LEN - len);
        (0..count).filter_map(move |index| {
            let offset = u32::try_from(start.wrapping_add(index) % count).ok()? << (32 - SUBNET_LEN);
            let subnet = Net::around(IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() + offset)), SUBNET_LEN)?;
            (!routes.all.iter().any(|route| route.overlaps(&subnet))).then_some(subnet)
        })
    })
}

/// The machine's address in a subnet: the first one.
pub fn gateway(subnet: &Net) -> Option<Ipv4Addr> {
    match subnet.address() {
        IpAddr::V4(address) => Some(Ipv4Addr::from_bits(address.to_bits() + 1)),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a machine with Docker shows it, and a second table as wg-quick makes it.
    const TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 10.0.0.0
        /8 universe UNICAST
     +-- 172.17.0.0/16 2 0 2
        +-- 172.17.0.0/31 1 0 0
           |-- 172.17.0.0
              /16 link UNICAST
           |-- 172.17.0.1
              /32 host LOCAL
        |-- 172.17.255.255
           /32 link BROADCAST
Local:
     |-- 127.0.0.0
        /8 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
Id 51820:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 link UNICAST
        /1 link UNICAST
     |-- 192.0.2.0
        /24 link UNICAST
        /25 universe UNICAST
        /26 link BLACKHOLE
";

    fn net(text: &str) -> Net {
        text.parse().unwrap()
    }

    #[test]
    fn reads_routes_addresses_and_connected_networks_of_all_tables() {
        let routes = Routes::parse(TRIE);
        assert_eq!(routes.connected, [net("0.0.0.0/1"), net("172.17.0.0/16"), net("192.0.2.0/24")]);
        assert_eq!(routes.own, [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(172, 17, 0, 1)]);
        for known in ["10.0.0.0/8", "172.17.0.1/32", "127.0.0.0/8", "192.0.2.0/25", "192.0.2.0/26"] {
            assert!(routes.all.contains(&net(known)), "{known}");
        }
        assert!(!routes.all.iter().any(|net| net.prefix_len() == 0));
    }

    #[test]
    fn odd_tables_give_no_panic() {
        let odd = "/8 link UNICAST\n|-- 10.0.0.0\n/\n/99 link UNICAST\n/8\n/-1 x\n|-- nonsense\n/8 link UNICAST\n";
        assert_eq!(Routes::parse(odd), Routes { all: vec![net("10.0.0.0/8")], ..Routes::default() });
        for end in (0..TRIE.len()).filter(|end| TRIE.is_char_boundary(*end)) {
            Routes::parse(&TRIE[..end]);
        }
    }

    #[test]
    fn a_subnet_overlaps_with_nothing_on_the_machine() {
        let first = |known: &[&str], start| {
            let routes = Routes { all: known.iter().map(|text| net(text)).collect(), ..Routes::default() };
            free_subnets(&routes, start).next().map(|subnet| subnet.to_string())
        };
        assert_eq!(first(&[], 0).as_deref(), Some("10.231.224.0/29"));
        assert_eq!(first(&[], 255).as_deref(), Some("10.231.231.248/29"));
        assert_eq!(first(&[], 256).as_deref(), Some("10.231.224.0/29"));
        // An address in it, a network around it, a route to a part of it.
        assert_eq!(first(&["10.231.224.1/32"], 0).as_deref(), Some("10.231.224.8/29"));
        assert_eq!(first(&["10.231.224.0/28"], 0).as_deref(), Some("10.231.224.16/29"));
        assert_eq!(first(&["10.231.224.4/30"], 0).as_deref(), Some("10.231.224.8/29"));
        assert_eq!(first(&["10.0.0.0/8"], 3).as_deref(), Some("172.31.248.24/29"));
        assert_eq!(first(&["10.0.0.0/8", "172.16.0.0/12"], 0).as_deref(), Some("192.168.248.0/29"));
        assert_eq!(first(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], 0), None);
        let all: std::collections::BTreeSet<Net> = free_subnets(&Routes::default(), 7).collect();
        assert_eq!(all.len(), 3 * 256);
    }

    #[test]
    fn the_gateway_is_the_first_address() {
        assert_eq!(gateway(&net("10.231.224.8/29")), Some(Ipv4Addr::new(10, 231, 224, 9)));
    }
}
