//! What the owner says of tasks and the network.

use std::net::{IpAddr, Ipv4Addr};

use crate::node::net::{Net, NetworkPolicy};
use crate::node::url::Url;

use super::error::ConfigError;
use super::layers::Layers;
use super::value::shown;

/// As many as a resolver asks (resolv.conf(5), MAXNS).
const MAX_NAME_SERVERS: usize = 3;
/// A list that a person writes.
const MAX_NETWORKS: usize = 64;
/// Two operators who have nothing to do with each other or with the owner's network, at addresses that are the same
/// everywhere. The first one checks signatures, blocks known malware and keeps no record of who asked.
const NAME_SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)];

/// `HIVEMIND_TASK_NETWORK` and `HIVEMIND_EGRESS_ALLOW`.
pub(super) fn policy(layers: &Layers<'_>) -> Result<NetworkPolicy, ConfigError> {
    let is_egress_allowed = layers.read("HIVEMIND_TASK_NETWORK", word)?.unwrap_or(false);
    Ok(NetworkPolicy { is_egress_allowed, allow: layers.read("HIVEMIND_EGRESS_ALLOW", networks)?.unwrap_or_default() })
}

/// `HIVEMIND_EGRESS_DNS`.
pub(super) fn name_servers(layers: &Layers<'_>, policy: &NetworkPolicy) -> Result<Vec<Ipv4Addr>, ConfigError> {
    let read = |text: &str| servers(text, policy);
    Ok(layers.read("HIVEMIND_EGRESS_DNS", read)?.unwrap_or_else(|| NAME_SERVERS.to_vec()))
}

/// `HIVEMIND_PACKAGE_INDEX`.
pub(super) fn package_index(layers: &Layers<'_>, policy: &NetworkPolicy) -> Result<Option<Url>, ConfigError> {
    layers.read("HIVEMIND_PACKAGE_INDEX", |text| index(text, policy))
}

/// What reaches it is a container, which has IPv4 and what the firewall opens: the owner's word on private networks holds
/// for an index as for everything else.
fn index(text: &str, policy: &NetworkPolicy) -> Result<Url, String> {
    let url = Url::parse(text.trim())?;
    if url.exposed().contains('?') {
        return Err("must not have a query: write https://host[:port]/path/".to_owned());
    }
    let private = match url.address() {
        Some(IpAddr::V6(_)) => return Err("is at an IPv6 address, which tasks don't reach".to_owned()),
        Some(address) if Net::host(address).is_never() => {
            return Err(format!(
                "is at {address}: this machine, its own wire, or no single machine, which no task reaches"
            ));
        }
        Some(address) => Some(Net::host(address)).filter(Net::is_private),
        None => None,
    };
    if let Some(net) = private.filter(|net| !policy.opens(net)) {
        return Err(format!("is in a private network that HIVEMIND_EGRESS_ALLOW does not open: {net}"));
    }
    if !url.is_https() && private.is_none() {
        return Err("must begin with https://, but at a private address that HIVEMIND_EGRESS_ALLOW opens".to_owned());
    }
    Ok(url)
}

fn word(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "none" => Ok(false),
        "egress" => Ok(true),
        _ => Err(format!("{} is not right: write none or egress", shown(text))),
    }
}

fn networks(text: &str) -> Result<Vec<Net>, String> {
    let nets: Vec<Net> = parts(text).map(network).collect::<Result<_, _>>()?;
    if nets.len() > MAX_NETWORKS {
        return Err(format!("has {} networks, at most {MAX_NETWORKS} are allowed", nets.len()));
    }
    Ok(nets)
}

fn network(text: &str) -> Result<Net, String> {
    let net: Net = text.parse().map_err(|problem| format!("{} {problem}", shown(text)))?;
    if !net.is_v4() {
        Err(format!("{net} is of IPv6, which tasks don't have"))
    } else if net.is_never() {
        Err(format!("{net} is never opened: it is this machine, its own wire, or no single machine"))
    } else {
        Ok(net)
    }
}

fn servers(text: &str, policy: &NetworkPolicy) -> Result<Vec<Ipv4Addr>, String> {
    let servers: Vec<Ipv4Addr> = parts(text).map(|part| server(part, policy)).collect::<Result<_, _>>()?;
    if (1..=MAX_NAME_SERVERS).contains(&servers.len()) {
        Ok(servers)
    } else {
        Err(format!("has {} addresses, must have 1 to {MAX_NAME_SERVERS}", servers.len()))
    }
}

fn server(text: &str, policy: &NetworkPolicy) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr =
        text.parse().map_err(|_| format!("{} is no IPv4 address: write 9.9.9.9,1.1.1.1", shown(text)))?;
    let net = Net::host(IpAddr::V4(address));
    if net.is_never() {
        Err(format!("{address} can't be reached by tasks: it is this machine, its own wire, or no single machine"))
    } else if net.is_private() && !policy.opens(&net) {
        Err(format!("{address} is in a private network that HIVEMIND_EGRESS_ALLOW does not open"))
    } else {
        Ok(address)
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_private_networks_but_never_this_machine() {
        let nets = networks("192.168.7.0/24, 10.0.0.5").unwrap();
        assert_eq!(nets.iter().map(Net::to_string).collect::<Vec<_>>(), ["192.168.7.0/24", "10.0.0.5/32"]);
        for (text, problem) in [
            ("127.0.0.1", "never opened"),
            ("169.254.169.254", "never opened"),
            ("fd00::/8", "IPv6"),
            ("192.168.7.1/24", "write 192.168.7.0/24"),
            ("lan", "is no network"),
        ] {
            let error = networks(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
        assert!(networks(&"10.0.0.1,".repeat(65)).unwrap_err().contains("at most 64"));
    }

    #[test]
    fn name_servers_are_public_or_opened() {
        let closed = NetworkPolicy::default();
        let opened = NetworkPolicy { allow: networks("192.168.7.0/24").unwrap(), ..NetworkPolicy::default() };
        assert_eq!(servers("9.9.9.9, 1.1.1.1", &closed), Ok(NAME_SERVERS.to_vec()));
        assert!(servers("192.168.7.1", &closed).unwrap_err().contains("HIVEMIND_EGRESS_ALLOW"));
        assert_eq!(servers("192.168.7.1", &opened), Ok(vec![Ipv4Addr::new(192, 168, 7, 1)]));
        for text in
            ["127.0.0.53", "169.254.1.1", "0.0.0.0", "::1", "dns.example", "", "1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4"]
        {
            assert!(servers(text, &opened).is_err(), "{text}");
        }
    }

    #[test]
    fn a_package_index_is_https_or_where_the_owner_opened_a_private_network() {
        let opened = NetworkPolicy { allow: networks("192.168.7.0/24").unwrap(), ..NetworkPolicy::default() };
        for good in ["https://index.example/simple/", "https://203.0.113.10:8443/s", "http://192.168.7.2:3141/root/"] {
            assert!(index(good, &opened).is_ok(), "{good}");
        }
        for (wrong, words) in [
            ("http://index.example/simple/", "https://"),
            ("http://203.0.113.10/", "https://"),
            ("https://192.168.8.2/", "HIVEMIND_EGRESS_ALLOW"),
            ("https://127.0.0.1/", "no task reaches"),
            ("https://169.254.169.254/", "no task reaches"),
            ("https://[2001:db8::1]/", "IPv6"),
            ("https://user:word@h/", ""),
            ("https://h/?x", "query"),
            ("index.example", ""),
        ] {
            let error = index(wrong, &opened).expect_err(wrong);
            assert!(error.contains(words) && !error.contains("word@"), "{wrong}: {error}");
        }
    }
}
