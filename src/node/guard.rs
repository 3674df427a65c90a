//! What the worker itself may connect to for a task: never the owner's own networks, unless the owner says so. Pure: names
//! are resolved, and connections made, elsewhere, and each address is checked here in between.
//!
//! What can't be known here: prefixes of NAT64 that a network has chosen for itself, and public addresses of the owner's
//! that mean a private service. The one connected to must not be this machine's own, which only the connection tells.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::net::{Net, v4, v6};
use super::url::Url;

/// Entries of a list that a person writes.
const MAX_ALLOWED: usize = 256;

/// What the owner allows beyond public addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// In lower case.
    hosts: Vec<String>,
    networks: Vec<Net>,
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
                allowed.networks.push(bare.parse().map_err(|error| format!("{bare:?} {error}"))?);
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
        self.networks.iter().any(|network| network.has(address))
    }
}

/// Checks what is about to be connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    allowed: Allowed,
    /// The tunnel's, which no key opens.
    tunnel: Vec<Net>,
}

impl Guard {
    /// With the owner's list, and the networks of the tunnel.
    pub fn new(allowed: Allowed, tunnel: Vec<Net>) -> Self {
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
        if self.tunnel.iter().any(|network| network.has(address)) {
            return Some("in the tunnel to the master");
        }
        if self.allows(url, address) { None } else { special(address) }
    }
}

/// What is not public (the special-purpose registries of IANA, and what clouds keep for themselves), and why.
const SPECIAL: [(Net, &str); 27] = [
    (v4([0, 0, 0, 0], 8), "this network"),
    (v4([10, 0, 0, 0], 8), "private"),
    (v4([100, 64, 0, 0], 10), "shared by a carrier"),
    (v4([127, 0, 0, 0], 8), "this machine"),
    (v4([168, 63, 129, 16], 32), "a cloud's metadata"),
    (v4([169, 254, 0, 0], 16), "link-local, or a cloud's metadata"),
    (v4([172, 16, 0, 0], 12), "private"),
    (v4([192, 0, 0, 0], 24), "reserved"),
    (v4([192, 0, 2, 0], 24), "for documentation"),
    (v4([192, 31, 196, 0], 24), "reserved"),
    (v4([192, 52, 193, 0], 24), "reserved"),
    (v4([192, 88, 99, 0], 24), "reserved"),
    (v4([192, 168, 0, 0], 16), "private"),
    (v4([192, 175, 48, 0], 24), "reserved"),
    (v4([198, 18, 0, 0], 15), "for benchmarks"),
    (v4([198, 51, 100, 0], 24), "for documentation"),
    (v4([203, 0, 113, 0], 24), "for documentation"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([240, 0, 0, 0], 4), "reserved"),
    (v6([0, 0, 0, 0], 96), "reserved"),
    (v6([0xfc00, 0, 0, 0], 7), "private"),
    (v6([0xfe80, 0, 0, 0], 10), "link-local"),
    (v6([0xff00, 0, 0, 0], 8), "multicast"),
    // Teredo, ORCHID, benchmarks and anycast services: no server is there.
    (v6([0x2001, 0, 0, 0], 23), "reserved"),
    (v6([0x2001, 0xdb8, 0, 0], 32), "for documentation"),
    (v6([0x3fff, 0, 0, 0], 20), "for documentation"),
    (v6([0x2620, 0x4f, 0x8000, 0], 48), "reserved"),
];

/// Addresses of IPv6 that are given out at all.
const GLOBAL_V6: Net = v6([0x2000, 0, 0, 0], 3);

/// Why an address is no public one; an IPv6 address that leads to an IPv4 one is judged as that.
pub fn special(address: IpAddr) -> Option<&'static str> {
    let address = match address {
        IpAddr::V6(v6) if v6.is_loopback() => return Some("this machine"),
        IpAddr::V6(v6) => embedded_v4(v6).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    };
    let is_unassigned = address.is_ipv6() && !GLOBAL_V6.has(address);
    let found = SPECIAL.iter().find(|(net, _)| net.has(address)).map(|(_, why)| *why);
    found.or(is_unassigned.then_some("reserved"))
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
        Guard::new(Allowed::parse(allowed).unwrap(), vec!["10.8.0.0/24".parse().unwrap()])
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
    fn lists_are_read_strictly() {
        for text in [
            "10.0.0.0/33",
            "10.0.0.1/8",
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
    }
}
