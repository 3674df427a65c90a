//! What the worker itself may connect to for a task: never the owner's own networks, unless the owner says so. Pure: names
//! are resolved, and connections made, elsewhere, and each address is checked here in between.
//!
//! What can't be known here: prefixes of NAT64 that a network has chosen for itself, and public addresses of the owner's
//! that mean a private service. The one connected to must not be this machine's own, which only the connection tells.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::url::Url;

/// Entries of a list that a person writes.
const MAX_ALLOWED: usize = 256;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads `10.0.0.0/8`, `fd00::/8`, or an address.
    ///
    /// # Errors
    /// Says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network: write 10.1.0.0/16, fd00::/8 or an address");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|prefix| *prefix <= most).ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        Ok(Self { address, prefix })
    }

    /// Whether the address is in it. An IPv4 address in IPv6's clothes counts as what it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |bits: u8| u32::from(bits - self.prefix);
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What the owner allows beyond public addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// In lower case.
    hosts: Vec<String>,
    networks: Vec<Network>,
}

impl Allowed {
    /// Reads names of hosts, addresses and networks with commas between.
    ///
    /// # Errors
    /// Says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut allowed = Self::default();
        for part in text.split([',', ' ']).map(str::trim).filter(|part| !part.is_empty()) {
            if allowed.hosts.len() + allowed.networks.len() >= MAX_ALLOWED {
                return Err(format!("has more than {MAX_ALLOWED} entries"));
            }
            let bare = part.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(part);
            if bare.contains(['/', ':']) || bare.parse::<IpAddr>().is_ok() {
                allowed.networks.push(Network::parse(bare)?);
            } else {
                let url = Url::parse(&format!("https://{part}/"));
                let url =
                    url.map_err(|_| format!("{part:?} is no name of a host: write it without scheme and port"))?;
                allowed.hosts.push(url.host().to_owned());
            }
        }
        Ok(allowed)
    }

    fn has_host(&self, host: &str) -> bool {
        self.hosts.iter().any(|allowed| allowed == host)
    }

    fn has_address(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }
}

/// Checks what is about to be connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    allowed: Allowed,
    /// The tunnel's, which no key opens.
    tunnel: Vec<Network>,
}

impl Guard {
    /// With the owner's list, and the networks of the tunnel.
    pub fn new(allowed: Allowed, tunnel: Vec<Network>) -> Self {
        Self { allowed, tunnel }
    }

    /// Whether this may be asked for at all, before any name is resolved: HTTPS at port 443, but for hosts that the owner
    /// allows. Other ports would make the worker a scanner of what else a host has.
    ///
    /// # Errors
    /// In words.
    pub fn check_url(&self, url: &Url) -> Result<(), String> {
        let is_allowed = self.is_allowed(url);
        if !url.is_https() && !is_allowed {
            return Err(format!("{url}: only https:// is fetched, but for hosts in HIVEMIND_FETCH_ALLOW"));
        }
        if url.port() != 443 && !is_allowed {
            return Err(format!("{url}: only port 443 is fetched from, but for hosts in HIVEMIND_FETCH_ALLOW"));
        }
        Ok(())
    }

    /// Those of a host's addresses that may be connected to: a name may have private and public ones.
    ///
    /// # Errors
    /// None is left; in words.
    pub fn check_addresses(&self, url: &Url, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
        let mut refused = None;
        let mut left = Vec::new();
        for address in addresses {
            match self.refusal(url, *address) {
                None => left.push(*address),
                Some(why) => {
                    refused.get_or_insert_with(|| format!("{address}, which is {why}"));
                }
            }
        }
        match (left.is_empty(), refused) {
            (false, _) => Ok(left),
            (true, Some(refused)) => Err(format!(
                "{url}: {} leads to {refused}: not fetched, but for hosts in HIVEMIND_FETCH_ALLOW",
                url.host()
            )),
            (true, None) => Err(format!("{url}: {} has no address", url.host())),
        }
    }

    /// By its name, or by the address that it is.
    fn is_allowed(&self, url: &Url) -> bool {
        self.allowed.has_host(url.host()) || url.address().is_some_and(|address| self.allowed.has_address(address))
    }

    /// Whether the owner's list has this host or this address.
    pub fn allows(&self, url: &Url, address: IpAddr) -> bool {
        self.allowed.has_host(url.host()) || self.allowed.has_address(address)
    }

    fn refusal(&self, url: &Url, address: IpAddr) -> Option<&'static str> {
        if self.tunnel.iter().any(|network| network.contains(address)) {
            return Some("in the tunnel to the master");
        }
        if self.allows(url, address) { None } else { special(address) }
    }
}

/// Why an address is no public one (the special-purpose registries of IANA, and what clouds keep for themselves).
pub fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    const RANGES: [(u32, u8, &str); 19] = [
        (0x0000_0000, 8, "this network"),
        (0x0a00_0000, 8, "private"),
        (0x6440_0000, 10, "shared by a carrier"),
        (0x7f00_0000, 8, "this machine"),
        (0xa83f_8110, 32, "a cloud's metadata"),
        (0xa9fe_0000, 16, "link-local, or a cloud's metadata"),
        (0xac10_0000, 12, "private"),
        (0xc000_0000, 24, "reserved"),
        (0xc000_0200, 24, "for documentation"),
        (0xc01f_c400, 24, "reserved"),
        (0xc034_c100, 24, "reserved"),
        (0xc058_6300, 24, "reserved"),
        (0xc0a8_0000, 16, "private"),
        (0xc0af_3000, 24, "reserved"),
        (0xc612_0000, 15, "for benchmarks"),
        (0xc633_6400, 24, "for documentation"),
        (0xcb00_7100, 24, "for documentation"),
        (0xe000_0000, 4, "multicast"),
        (0xf000_0000, 4, "reserved"),
    ];
    let bits = address.to_bits();
    let is_in = |(start, prefix, _): &&(u32, u8, &str)| (bits ^ start) >> (32 - u32::from(*prefix)) == 0;
    RANGES.iter().find(is_in).map(|(_, _, why)| *why)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(embedded) = embedded_v4(address) {
        return special_v4(embedded);
    }
    const RANGES: [(u128, u8, &str); 9] = [
        (0x1, 128, "this machine"),
        (0x0, 96, "reserved"),
        (0xfc00 << 112, 7, "private"),
        (0xfe80 << 112, 10, "link-local"),
        (0xff00 << 112, 8, "multicast"),
        // Teredo, ORCHID, benchmarks and anycast services: no server is there.
        (0x2001 << 112, 23, "reserved"),
        (0x2001_0db8 << 96, 32, "for documentation"),
        (0x3fff << 112, 20, "for documentation"),
        (0x2620_004f_8000 << 80, 48, "reserved"),
    ];
    let bits = address.to_bits();
    let is_in = |(start, prefix, _): &&(u128, u8, &str)| (bits ^ start) >> (128 - u32::from(*prefix)) == 0;
    let is_global = bits >> 125 == 1;
    RANGES.iter().find(is_in).map(|(_, _, why)| *why).or((!is_global).then_some("reserved"))
}

/// The IPv4 address that an IPv6 one leads to: mapped (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056), ISATAP (RFC 5214).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    let low = |shift: u32| Some(Ipv4Addr::from_bits(u32::try_from(bits >> shift & 0xffff_ffff).unwrap_or_default()));
    let is_isatap = (bits >> 32) & 0xfcff_ffff == 0x5efe;
    match bits >> 32 {
        0xffff => low(0),
        0x0064_ff9b_0000_0000_0000_0000 => low(0),
        _ if bits >> 112 == 0x2002 => low(80),
        _ if is_isatap => low(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_public_addresses_are_public() {
        // First, last, and one inside of each range, by hand from the registries.
        for text in [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "169.254.0.0",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.31.196.1",
            "192.52.193.1",
            "192.88.99.1",
            "192.168.0.1",
            "192.175.48.1",
            "198.18.0.0",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.255",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::2",
            "::7f00:1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:0:4136:e378::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:1ff:ffff::",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:c0a8:101::1",
            "2620:4f:8000::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "2a00:1450::5efe:10.0.0.1",
            "2a00:1450::200:5efe:127.0.0.1",
            "8000::1",
            "1fff::1",
        ] {
            assert!(special(address(text)).is_some(), "{text}");
        }
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.101.0",
            "203.0.114.0",
            "223.255.255.255",
            "2001:200::",
            "2001:db9::",
            "2606:4700::1111",
            "2a00:1450::1",
            "2000::1",
            "3ffe::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "2003::1",
            "2a00:1450::5efe:8.8.8.8",
        ] {
            assert_eq!(special(address(text)), None, "{text}");
        }
    }

    fn guard(allowed: &str) -> Guard {
        Guard::new(Allowed::parse(allowed).unwrap(), vec![Network::parse("10.8.0.0/24").unwrap()])
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn of_mixed_answers_the_allowed_ones_are_used() {
        let mixed = ["10.0.0.1", "1.1.1.1", "::1", "2606:4700::1111"].map(address);
        let public = ["1.1.1.1", "2606:4700::1111"].map(address);
        let host = url("https://data.example/x");
        assert_eq!(guard("").check_addresses(&host, &mixed).unwrap(), public);
        let told = guard("").check_addresses(&host, &mixed[..1]).unwrap_err();
        assert!(told.contains("data.example leads to 10.0.0.1, which is private"), "{told}");
        assert!(guard("").check_addresses(&host, &[]).unwrap_err().contains("has no address"));
        assert_eq!(guard("10.0.0.0/30").check_addresses(&host, &mixed).unwrap().len(), 3);
        assert_eq!(guard("Data.Example").check_addresses(&host, &mixed).unwrap().len(), 4);
        assert_eq!(guard("example, sub.data.example").check_addresses(&host, &mixed).unwrap(), public);
    }

    #[test]
    fn the_tunnel_stays_shut_whatever_is_allowed() {
        let tunnel = ["10.8.0.1", "::ffff:10.8.0.1"].map(address);
        let told =
            guard("data.example, 10.0.0.0/8").check_addresses(&url("https://data.example/"), &tunnel).unwrap_err();
        assert!(told.contains("in the tunnel to the master"), "{told}");
    }

    #[test]
    fn plain_http_and_other_ports_need_the_owners_word() {
        for (allowed, text, is_fine) in [
            ("", "https://data.example/x", true),
            ("", "http://data.example/x", false),
            ("", "https://data.example:8443/x", false),
            ("data.example", "http://data.example:8080/x", true),
            ("data.example", "http://other.example/x", false),
            ("10.0.0.0/8", "http://10.1.2.3:9000/x", true),
            ("10.0.0.0/8", "http://11.1.2.3/x", false),
            ("[fd00::1]", "http://[fd00::1]/x", true),
            ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/x", true),
        ] {
            assert_eq!(guard(allowed).check_url(&url(text)).is_ok(), is_fine, "{allowed} {text}");
        }
    }

    #[test]
    fn lists_and_networks_are_read_strictly() {
        for text in [
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "fd00::/129",
            "a/8",
            "https://h",
            "h:80",
            "*",
            "*.h",
            "user@h",
            "1.2.3",
        ] {
            assert!(Allowed::parse(text).is_err(), "{text}");
        }
        assert_eq!(Allowed::parse(" , ").unwrap(), Allowed::default());
        assert!(Network::parse("0.0.0.0/0").unwrap().contains(address("1.2.3.4")));
        assert!(Network::parse("::/0").unwrap().contains(address("fd00::1")));
        assert!(!Network::parse("::/0").unwrap().contains(address("1.2.3.4")));
        let net = Network::parse("192.168.4.0/22").unwrap();
        assert!(net.contains(address("192.168.7.255")) && !net.contains(address("192.168.8.0")));
        assert_eq!(net.to_string(), "192.168.4.0/22");
    }
}
