//! Networks of addresses: their grammar, and which ones no task's traffic may reach by itself.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Never reached by a task, not even by the owner's word: this machine itself, what is on its own wire only (the metadata
/// address of clouds among it), and what is no single machine.
pub const NEVER_V4: [Net; 5] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
];

/// Somebody's own network: RFC 1918, the carriers' shared range (RFC 6598, which overlay networks use too), protocol
/// assignments (RFC 6890) and the range for benchmarks (RFC 2544), which test labs and tunnels use.
pub const PRIVATE_V4: [Net; 6] = [
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
];

/// As [`NEVER_V4`]; IPv4 in disguise (mapped, NAT64, 6to4, Teredo) among it, which would go round the rules for IPv4.
const NEVER_V6: [Net; 6] = [
    v6([0, 0, 0, 0], 8),
    v6([0x64, 0xff9b, 0, 0], 32),
    v6([0x2001, 0, 0, 0], 32),
    v6([0x2002, 0, 0, 0], 16),
    v6([0xfe80, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0], 8),
];

/// As [`PRIVATE_V4`]: unique local addresses (RFC 4193).
const PRIVATE_V6: [Net; 1] = [v6([0xfc00, 0, 0, 0], 7)];

pub(super) const fn v4(octets: [u8; 4], len: u8) -> Net {
    let [a, b, c, d] = octets;
    Net { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), len }
}

pub(super) const fn v6(start: [u16; 4], len: u8) -> Net {
    Net { address: IpAddr::V6(Ipv6Addr::new(start[0], start[1], start[2], start[3], 0, 0, 0, 0)), len }
}

/// Addresses with the same first bits; the bits behind them are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net {
    address: IpAddr,
    len: u8,
}

impl Net {
    /// The network of the first `len` bits of `address`; `None` where it has fewer.
    pub fn around(address: IpAddr, len: u8) -> Option<Self> {
        if len > width(address) {
            return None;
        }
        let keep = mask(width(address), len);
        let address = match address {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & u32::try_from(keep).unwrap_or(u32::MAX))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & keep)),
        };
        Some(Self { address, len })
    }

    /// One address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, len: width(address) }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the prefix in bits.
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Whether it is of IPv4.
    pub fn is_v4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether every address of `other` is in it.
    pub fn contains(&self, other: &Self) -> bool {
        self.is_v4() == other.is_v4()
            && self.len <= other.len
            && Self::around(other.address, self.len).is_some_and(|cut| cut.address == self.address)
    }

    /// Whether this address is in it. An IPv4 address in IPv6's clothes counts as what it is.
    pub fn has(&self, address: IpAddr) -> bool {
        self.contains(&Self::host(address.to_canonical()))
    }

    /// Whether they have an address in common: of two networks one is then in the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// Whether all of it is what no task may ever reach.
    pub fn is_never(&self) -> bool {
        NEVER_V4.iter().chain(&NEVER_V6).any(|net| net.contains(self))
    }

    /// Whether all of it is somebody's own network.
    pub fn is_private(&self) -> bool {
        PRIVATE_V4.iter().chain(&PRIVATE_V6).any(|net| net.contains(self))
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// `len` ones, then zeros, in the low `width` bits.
fn mask(width: u8, len: u8) -> u128 {
    let all = u128::MAX >> (128 - u32::from(width));
    let rest = u32::from(width - len);
    if rest == 128 { 0 } else { (all >> rest) << rest }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl FromStr for Net {
    type Err = String;

    /// `ADDRESS` or `ADDRESS/BITS`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "is no network: write ADDRESS or ADDRESS/BITS, such as 203.0.113.0/24".to_owned();
        let (address, len) = match text.split_once('/') {
            None => (text, None),
            Some((address, len)) => (address, Some(len)),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let Some(len) = len else { return Ok(Self::host(address)) };
        let is_number = matches!(len.len(), 1..=3) && len.bytes().all(|b| b.is_ascii_digit());
        let len: u8 = if is_number { len.parse().map_err(|_| wrong())? } else { return Err(wrong()) };
        let net = Self::around(address, len).ok_or_else(wrong)?;
        if net.address != address {
            return Err(format!("has bits behind its prefix: write {net}"));
        }
        Ok(net)
    }
}

/// An entry of a task's list: where it may connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    /// Addresses.
    pub net: Net,
    /// The only port, of TCP and UDP; `None`: everything.
    pub port: Option<u16>,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.net.is_v4()) {
            (None, _) => write!(f, "{}", self.net),
            (Some(port), true) => write!(f, "{}:{port}", self.net),
            (Some(port), false) => write!(f, "[{}]:{port}", self.net),
        }
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl TryFrom<String> for Destination {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Destination {
    type Err = String;

    /// `NET`, `NET:PORT` of IPv4, `[NET]:PORT` of IPv6.
    fn from_str(text: &str) -> Result<Self, String> {
        let (net, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (net, port) = rest.split_once("]:").ok_or("has a '[' without ']:PORT'")?;
                (net, Some(port))
            }
            None if text.matches(':').count() == 1 => {
                text.split_once(':').map_or((text, None), |(net, port)| (net, Some(port)))
            }
            None => (text, None),
        };
        let is_bracketed = text.starts_with('[');
        let net: Net = net.parse()?;
        if is_bracketed && net.is_v4() {
            return Err("has an IPv4 network in brackets, which are for IPv6".to_owned());
        }
        let wrong = || "has a port that is none: write a number from 1 to 65535".to_owned();
        let port = match port {
            None => None,
            Some(port) if matches!(port.len(), 1..=5) && port.bytes().all(|b| b.is_ascii_digit()) => {
                Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)?)
            }
            Some(_) => return Err(wrong()),
        };
        Ok(Self { net, port })
    }
}

/// What the owner says of tasks and the network: tighter than anything a master can ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Whether a task may have `egress`.
    pub is_egress_allowed: bool,
    /// Networks of the owner's that a task may name in its list.
    pub allow: Vec<Net>,
}

impl NetworkPolicy {
    /// For who leaves it to the node to judge.
    pub fn everything() -> Self {
        Self { is_egress_allowed: true, allow: vec![v4([0, 0, 0, 0], 0), v6([0, 0, 0, 0], 0)] }
    }

    /// Whether the owner opened all of this.
    pub fn opens(&self, net: &Net) -> bool {
        self.allow.iter().any(|allowed| allowed.contains(net))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Net {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_in_a_network_of_its_family() {
        for (network, address, is_in) in [
            ("0.0.0.0/0", "1.2.3.4", true),
            ("::/0", "fd00::1", true),
            ("::/0", "1.2.3.4", false),
            ("192.168.4.0/22", "192.168.7.255", true),
            ("192.168.4.0/22", "192.168.8.0", false),
            ("192.168.4.0/22", "::ffff:192.168.4.1", true),
        ] {
            assert_eq!(net(network).has(address.parse().unwrap()), is_in, "{network} {address}");
        }
    }

    #[test]
    fn networks_read_as_they_are_written() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "203.0.113.7/32", "::/0", "2001:db8::/32", "2001:db8::1/128"] {
            assert_eq!(net(text).to_string(), text);
        }
        assert_eq!(net("203.0.113.7").to_string(), "203.0.113.7/32");
        assert_eq!(net("::1").to_string(), "::1/128");
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0/8",
            "010.0.0.0/8",
            "::/129",
            "a.example",
            "10.0.0.0/ 8",
            "10.0.0.0/0008",
        ] {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
        assert_eq!("203.0.113.5/24".parse::<Net>(), Err("has bits behind its prefix: write 203.0.113.0/24".to_owned()));
        assert_eq!("2001:db8::1/32".parse::<Net>(), Err("has bits behind its prefix: write 2001:db8::/32".to_owned()));
    }

    #[test]
    fn one_network_is_in_another_by_its_first_bits() {
        assert!(net("10.0.0.0/8").contains(&net("10.255.0.0/16")));
        assert!(net("0.0.0.0/0").contains(&net("10.0.0.0/8")) && net("::/0").contains(&net("fe80::/10")));
        assert!(!net("10.0.0.0/9").contains(&net("10.128.0.0/9")) && !net("10.0.0.0/16").contains(&net("10.0.0.0/8")));
        assert!(!net("::/0").contains(&net("10.0.0.0/8")) && !net("0.0.0.0/0").overlaps(&net("::/0")));
        assert!(net("10.0.0.0/16").overlaps(&net("10.0.0.0/8")) && !net("10.0.0.0/16").overlaps(&net("10.1.0.0/16")));
        assert_eq!(Net::around("10.1.2.3".parse().unwrap(), 29), Some(net("10.1.2.0/29")));
        assert_eq!(Net::around("10.1.2.3".parse().unwrap(), 33), None);
    }

    #[test]
    fn own_and_private_networks_are_told_from_public_ones() {
        for never in [
            "0.0.0.0",
            "127.0.0.53",
            "169.254.169.254",
            "224.0.0.251",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:192.168.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(net(never).is_never() && !net(never).is_private(), "{never}");
        }
        for private in [
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "172.31.255.255",
            "192.168.178.1",
            "198.19.0.1",
            "192.0.0.8",
            "fd00::1",
            "fc00::1",
        ] {
            assert!(net(private).is_private() && !net(private).is_never(), "{private}");
        }
        for public in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "0.0.0.0/0",
        ] {
            assert!(!net(public).is_private() && !net(public).is_never(), "{public}");
        }
    }

    #[test]
    fn destinations_read_as_they_are_written() {
        for text in ["203.0.113.0/24", "203.0.113.7/32:443", "2001:db8::/32", "[2001:db8::/32]:443"] {
            let destination: Destination = text.parse().unwrap();
            assert_eq!(destination.to_string(), text);
        }
        let bare: Destination = "203.0.113.7:65535".parse().unwrap();
        assert_eq!((bare.net, bare.port), (net("203.0.113.7/32"), Some(65_535)));
        for text in [
            "203.0.113.7:0",
            "203.0.113.7:65536",
            "203.0.113.7:",
            "203.0.113.7:+1",
            "203.0.113.7:443:1",
            "[203.0.113.7]:443",
            "[2001:db8::1]",
            "[2001:db8::1]443",
            "[2001:db8::1",
            "host:443",
            "203.0.113.7 : 443",
            "*",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }
}
