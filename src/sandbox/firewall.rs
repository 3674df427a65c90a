//! The rules that keep tasks with egress from this machine, its networks and each other: their text, and whether what the
//! kernel has is what was written. Pure.
//!
//! ```text
//! packet from a task's bridge --prerouting--> egress --routed--> forward --> egress --> the engine's own rules
//!                                               \--to this machine--> input: dropped
//! ```
//!
//! `egress` is passed twice: before the engine's address translation, where this machine's published ports still have its
//! own address, and behind it, where something else may have changed the destination. A drop in any chain of a hook is
//! final, whatever the engine's or the owner's chains of that hook say; an accept only ends our own chain. So our verdicts
//! hold whether we come first or not, and whether the engine writes with iptables or nft.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use serde_json::Value;

use crate::node::net::{Destination, NEVER_V4, Net, NetworkPolicy, PRIVATE_V4};

/// What the rules are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Name of the table, of the family inet.
    pub table: String,
    /// Name servers of tasks without a list.
    pub dns: Vec<Ipv4Addr>,
    /// The owner's word, which opens private networks to tasks that name them.
    pub policy: NetworkPolicy,
    /// The networks that this machine is on: closed also where their addresses are public.
    pub connected: Vec<Net>,
    /// Bridges of tasks, and where each leads.
    pub bridges: BTreeMap<String, Access>,
}

/// Where a bridge leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// To every public address.
    Public,
    /// To these only; to nowhere, where there are none.
    Only(Vec<Destination>),
}

impl Access {
    /// That of a task with this list.
    pub fn of(list: &[Destination]) -> Self {
        if list.is_empty() { Self::Public } else { Self::Only(list.to_vec()) }
    }
}

/// The name of a node's table: two nodes on one machine have one each.
pub fn table_name(node_key: &str) -> String {
    format!("hivemind_{node_key}")
}

/// Removes the table; it is made first, so that it is no error where there is none.
pub fn removal(table: &str) -> String {
    format!("table inet {table} {{ }}\ndelete table inet {table}\n")
}

impl Rules {
    /// The whole table anew, in one transaction: at no moment are the old rules gone and the new ones not there.
    pub fn text(&self) -> String {
        let mut text = removal(&self.table);
        text.push_str(&format!("table inet {} {{\n", self.table));
        self.write_sets(&mut text);
        for (bridge, list) in self.lists() {
            self.write_list(&mut text, bridge, list);
        }
        self.write_egress(&mut text);
        // Before the engine translates addresses (-100), and before connections are tracked (-200).
        write_hook(&mut text, "before", "prerouting", -310, &["iifname @bridges jump egress"]);
        // Nobody begins a connection to a task: what comes back to it is all that comes to it.
        let inward = "oifname @bridges ct state != { established, related } counter drop";
        write_hook(&mut text, "forward", "forward", -10, &["iifname @bridges jump egress", inward]);
        write_hook(&mut text, "input", "input", -10, &["iifname @bridges counter drop"]);
        text.push_str("}\n");
        text
    }

    fn lists(&self) -> impl Iterator<Item = (&String, &Vec<Destination>)> {
        self.bridges.iter().filter_map(|(bridge, access)| match access {
            Access::Public => None,
            Access::Only(list) => Some((bridge, list)),
        })
    }

    fn write_sets(&self, text: &mut String) {
        let bridges: Vec<String> = self.bridges.keys().map(|bridge| format!("\"{bridge}\"")).collect();
        write_set(text, "bridges", "ifname", &bridges);
        for (name, nets) in self.nets() {
            write_set(text, name, "ipv4_addr; flags interval", &texts(&nets));
        }
    }

    /// What each set of networks has in it.
    fn nets(&self) -> [(&'static str, Vec<Net>); 3] {
        [("never", NEVER_V4.to_vec()), ("private", PRIVATE_V4.to_vec()), ("connected", outermost(&self.connected))]
    }

    /// What the owner opens to who names it comes before the private networks, the rest behind them.
    fn write_list(&self, text: &mut String, bridge: &str, list: &[Destination]) {
        let (opened, public): (Vec<_>, Vec<_>) =
            list.iter().filter(|entry| entry.net.is_v4()).partition(|entry| self.policy.opens(&entry.net));
        let _ = writeln!(text, "\tchain list_{bridge} {{");
        opened.into_iter().for_each(|entry| write_entry(text, entry));
        text.push_str("\t\tip daddr @private counter drop\n\t\tip daddr @connected counter drop\n");
        public.into_iter().for_each(|entry| write_entry(text, entry));
        text.push_str("\t\tcounter drop\n\t}\n");
    }

    fn write_egress(&self, text: &mut String) {
        text.push_str("\tchain egress {\n");
        // Tasks have no IPv6; whatever makes some all the same gets nowhere, this machine's link-local address included.
        text.push_str("\t\tmeta nfproto != ipv4 counter drop\n");
        // Nothing else is translated on its way out, and tunnels would carry what the rules can't see.
        text.push_str("\t\tmeta l4proto != { tcp, udp, icmp } counter drop\n");
        // Local, broadcast, multicast: by the kernel's own tables, which know each new address at once.
        text.push_str("\t\tfib daddr type != unicast counter drop\n");
        text.push_str("\t\tip daddr @never counter drop\n");
        for (bridge, _) in self.lists() {
            let _ = writeln!(text, "\t\tiifname \"{bridge}\" goto list_{bridge}");
        }
        for server in &self.dns {
            let _ = writeln!(text, "\t\tip daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept");
        }
        text.push_str("\t\tip daddr @private counter drop\n\t\tip daddr @connected counter drop\n\t}\n");
    }

    /// How many rules each chain has, by what they do at their end.
    fn verdicts(&self) -> BTreeMap<String, Vec<&'static str>> {
        let mut chains = BTreeMap::new();
        let mut egress = vec!["drop"; 4];
        for (bridge, list) in self.lists() {
            let accepts = |is_opened: bool| {
                let entries = list.iter().filter(move |entry| entry.net.is_v4());
                entries.filter(move |entry| self.policy.opens(&entry.net) == is_opened).map(|_| "accept")
            };
            let chain = accepts(true).chain(["drop", "drop"]).chain(accepts(false)).chain(["drop"]);
            chains.insert(format!("list_{bridge}"), chain.collect());
            egress.push("goto");
        }
        egress.extend(self.dns.iter().map(|_| "accept"));
        egress.extend(["drop", "drop"]);
        chains.insert("egress".to_owned(), egress);
        chains.insert("before".to_owned(), vec!["jump"]);
        chains.insert("forward".to_owned(), vec!["jump", "drop"]);
        chains.insert("input".to_owned(), vec!["drop"]);
        chains
    }

    /// Whether a listing of the table by `nft -j` has what [`Self::text`] wrote: its hooks, its sets, and what each rule of
    /// each chain does. What it does not look into, the conditions, is the same as at the first listing: see
    /// [`fingerprint`].
    ///
    /// # Errors
    /// What is not as it was written.
    pub fn check(&self, listing: &str) -> Result<(), String> {
        let objects = objects(listing)?;
        let find = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
        for (name, hook, priority) in
            [("before", "prerouting", -310), ("forward", "forward", -10), ("input", "input", -10)]
        {
            let is_it = |chain: &Value| chain["name"] == name && chain["hook"] == hook && chain["prio"] == priority;
            if !find("chain").any(is_it) {
                return Err(format!("the chain {name} at the hook {hook} is missing"));
            }
        }
        let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for rule in find("rule") {
            let chain = rule["chain"].as_str().unwrap_or_default().to_owned();
            found.entry(chain).or_default().push(verdict(rule));
        }
        let wanted = self.verdicts();
        if let Some((chain, _)) = wanted.iter().find(|(chain, rules)| found.get(*chain) != Some(rules)) {
            return Err(format!("the chain {chain} has not the rules that it was given"));
        }
        let elements = |name: &str| find("set").find(|set| set["name"] == name).map(elements);
        let bridges: BTreeSet<String> = self.bridges.keys().cloned().collect();
        if elements("bridges") != Some(bridges) {
            return Err("the set of bridges is not as it was written".to_owned());
        }
        for (name, nets) in self.nets() {
            if elements(name) != Some(texts(&nets).into_iter().collect()) {
                return Err(format!("the set of {name} networks is not as it was written"));
            }
        }
        Ok(())
    }
}

/// A listing without what changes by itself: numbers that the kernel gives, and counters.
///
/// # Errors
/// It is no listing.
pub fn fingerprint(listing: &str) -> Result<Vec<Value>, String> {
    let mut objects = objects(listing)?;
    objects.retain(|object| object.get("metainfo").is_none());
    objects.iter_mut().for_each(strip);
    Ok(objects)
}

/// The bridges that a listing's rules are for.
pub fn bridges(listing: &str) -> BTreeSet<String> {
    let objects = objects(listing).unwrap_or_default();
    let set = objects.iter().filter_map(|object| object.get("set")).find(|set| set["name"] == "bridges");
    set.map(elements).unwrap_or_default()
}

/// Packets that the rules have dropped on their way out, the same packet never twice.
pub fn dropped(listing: &str) -> u64 {
    let Ok(objects) = objects(listing) else { return 0 };
    let is_ours = |rule: &&Value| rule["chain"] == "egress" || rule["chain"] == "input";
    let counters = |rule: &Value| -> u64 {
        let parts = rule["expr"].as_array().into_iter().flatten();
        parts.filter_map(|part| part["counter"]["packets"].as_u64()).sum()
    };
    objects.iter().filter_map(|object| object.get("rule")).filter(is_ours).map(counters).sum()
}

fn objects(listing: &str) -> Result<Vec<Value>, String> {
    let listing: Value = serde_json::from_str(listing).map_err(|error| format!("no listing of nft: {error}"))?;
    match listing.get("nftables") {
        Some(Value::Array(objects)) => Ok(objects.clone()),
        _ => Err("no listing of nft".to_owned()),
    }
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("handle");
            if let Some(counter) = map.get_mut("counter") {
                *counter = Value::Null;
            }
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

fn verdict(rule: &Value) -> &str {
    let last = rule["expr"].as_array().and_then(|parts| parts.last()).and_then(Value::as_object);
    last.and_then(|part| part.keys().next()).map_or("nothing", String::as_str)
}

fn elements(set: &Value) -> BTreeSet<String> {
    let text = |element: &Value| match element {
        Value::String(text) if text.contains('.') => format!("{text}/32"),
        Value::String(text) => text.clone(),
        other => {
            let prefix = &other["prefix"];
            format!("{}/{}", prefix["addr"].as_str().unwrap_or_default(), prefix["len"])
        }
    };
    set["elem"].as_array().into_iter().flatten().map(text).collect()
}

/// Without those that are in another one, and those that are closed anyway.
fn outermost(nets: &[Net]) -> Vec<Net> {
    let is_closed = |net: &Net| NEVER_V4.iter().chain(&PRIVATE_V4).any(|closed| closed.contains(net));
    let is_inner = |net: &Net| nets.iter().any(|other| other != net && other.contains(net));
    let mut nets: Vec<Net> = nets.iter().filter(|net| !is_closed(net) && !is_inner(net)).copied().collect();
    nets.sort_unstable();
    nets.dedup();
    nets
}

fn texts(nets: &[Net]) -> Vec<String> {
    nets.iter().map(Net::to_string).collect()
}

fn write_set(text: &mut String, name: &str, kind: &str, elements: &[String]) {
    let _ = write!(text, "\tset {name} {{ type {kind};");
    if !elements.is_empty() {
        let _ = write!(text, " elements = {{ {} }};", elements.join(", "));
    }
    text.push_str(" }\n");
}

fn write_entry(text: &mut String, entry: &Destination) {
    let _ = match entry.port {
        None => writeln!(text, "\t\tip daddr {} accept", entry.net),
        Some(port) => writeln!(text, "\t\tip daddr {} meta l4proto {{ tcp, udp }} th dport {port} accept", entry.net),
    };
}

fn write_hook(text: &mut String, name: &str, hook: &str, priority: i32, rules: &[&str]) {
    let _ = writeln!(text, "\tchain {name} {{ type filter hook {hook} priority {priority}; policy accept;");
    rules.iter().for_each(|rule| {
        let _ = writeln!(text, "\t\t{rule}");
    });
    text.push_str("\t}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nft 1.0.6 lists after it was given the text of [`rules`]; kernel 6.18.
    const LISTING: &str = include_str!("firewall_listing.json");

    fn rules() -> Rules {
        let list = ["10.9.0.0/16:22", "203.0.113.0/24:443", "198.51.100.7", "2001:db8::/32"];
        let list = list.iter().map(|text| text.parse().unwrap()).collect();
        Rules {
            table: table_name("0123456789abcdef"),
            dns: vec![Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)],
            policy: NetworkPolicy { is_egress_allowed: true, allow: vec!["10.0.0.0/8".parse().unwrap()] },
            connected: ["192.0.2.0/24", "192.0.2.128/25", "172.17.0.0/16"].map(|text| text.parse().unwrap()).to_vec(),
            bridges: [
                ("hm000000000001".to_owned(), Access::Public),
                ("hm000000000002".to_owned(), Access::Only(list)),
                ("hm000000000003".to_owned(), Access::Only(Vec::new())),
            ]
            .into(),
        }
    }

    fn at(text: &str, line: &str) -> usize {
        text.find(line).unwrap_or_else(|| panic!("{line:?} is not in\n{text}"))
    }

    #[test]
    fn closed_networks_come_before_what_opens_others() {
        let text = rules().text();
        let chain = &text[at(&text, "chain egress")..at(&text, "chain before")];
        let order = [
            "meta nfproto != ipv4 counter drop",
            "meta l4proto != { tcp, udp, icmp } counter drop",
            "fib daddr type != unicast counter drop",
            "ip daddr @never counter drop",
            "iifname \"hm000000000002\" goto list_hm000000000002",
            "iifname \"hm000000000003\" goto list_hm000000000003",
            "ip daddr 9.9.9.9 meta l4proto { tcp, udp } th dport 53 accept",
            "ip daddr 1.1.1.1 meta l4proto { tcp, udp } th dport 53 accept",
            "ip daddr @private counter drop",
            "ip daddr @connected counter drop",
        ];
        let lines: Vec<&str> =
            chain.lines().map(str::trim).filter(|line| line.contains(' ') && !line.contains("chain")).collect();
        assert_eq!(lines, order);
        let chain = &text[at(&text, "chain list_hm000000000002")..at(&text, "chain list_hm000000000003")];
        let lines: Vec<&str> =
            chain.lines().map(str::trim).filter(|line| line.contains(' ') && !line.contains("chain")).collect();
        assert_eq!(
            lines,
            [
                "ip daddr 10.9.0.0/16 meta l4proto { tcp, udp } th dport 22 accept",
                "ip daddr @private counter drop",
                "ip daddr @connected counter drop",
                "ip daddr 203.0.113.0/24 meta l4proto { tcp, udp } th dport 443 accept",
                "ip daddr 198.51.100.7/32 accept",
                "counter drop",
            ]
        );
    }

    #[test]
    fn the_sets_have_what_must_stay_closed() {
        let text = rules().text();
        for part in [
            "set bridges { type ifname; elements = { \"hm000000000001\", \"hm000000000002\", \"hm000000000003\" }; }",
            "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4",
            "10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15",
            // Without the one in it and the private one.
            "set connected { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }",
            "type filter hook prerouting priority -310; policy accept;\n\t\tiifname @bridges jump egress",
            "type filter hook forward priority -10; policy accept;\n\t\tiifname @bridges jump egress\n\t\toifname @bridges ct state != { established, related } counter drop",
            "type filter hook input priority -10; policy accept;\n\t\tiifname @bridges counter drop",
        ] {
            at(&text, part);
        }
        assert!(
            text.starts_with("table inet hivemind_0123456789abcdef { }\ndelete table inet hivemind_0123456789abcdef\n")
        );
        let nowhere = Rules { table: "t".to_owned(), ..Rules::default() }.text();
        at(&nowhere, "set connected { type ipv4_addr; flags interval; }");
    }

    #[test]
    fn what_the_kernel_has_is_what_was_written() {
        assert_eq!(rules().check(LISTING), Ok(()));
        assert_eq!(bridges(LISTING), ["hm000000000001", "hm000000000002", "hm000000000003"].map(str::to_owned).into());
        for (old, new, problem) in [
            ("\"prio\": -310", "\"prio\": 310", "the chain before at the hook prerouting is missing"),
            ("\"hook\": \"forward\"", "\"hook\": \"output\"", "the chain forward at the hook forward is missing"),
            (
                "\"addr\": \"169.254.0.0\"",
                "\"addr\": \"169.255.0.0\"",
                "the set of never networks is not as it was written",
            ),
            (
                "\"addr\": \"192.0.2.0\", \"len\": 24",
                "\"addr\": \"192.0.2.0\", \"len\": 25",
                "the set of connected networks",
            ),
            ("\"elem\": [\"hm000000000001\", ", "\"elem\": [", "the set of bridges is not as it was written"),
            ("{\"drop\": null}", "{\"accept\": null}", "has not the rules that it was given"),
            (
                "{\"goto\": {\"target\": \"list_hm000000000002\"}}",
                "{\"accept\": null}",
                "the chain egress has not the rules",
            ),
            ("{\"jump\": {\"target\": \"egress\"}}", "{\"accept\": null}", "the chain before has not the rules"),
        ] {
            let listing = LISTING.replacen(old, new, 1);
            assert_ne!(listing, LISTING, "{old}");
            let found = rules().check(&listing).unwrap_err();
            assert!(found.contains(problem), "{old}: {found}");
        }
        let fewer = Rules { bridges: [("hm000000000001".to_owned(), Access::Public)].into(), ..rules() };
        assert!(fewer.check(LISTING).is_err());
        for odd in ["", "{}", "[]", "{\"nftables\": []}", "{\"nftables\": [1, null, {\"rule\": 3}]}"] {
            assert!(rules().check(odd).is_err(), "{odd}");
            assert!(bridges(odd).is_empty() && dropped(odd) == 0);
        }
    }

    #[test]
    fn only_counters_and_handles_may_change() {
        let before = fingerprint(LISTING).unwrap();
        let later = LISTING.replacen("\"packets\": 0, \"bytes\": 0", "\"packets\": 7, \"bytes\": 588", 1);
        let later = later.replacen("\"handle\": 1", "\"handle\": 901", 1);
        assert_ne!(later, LISTING);
        assert_eq!(fingerprint(&later).unwrap(), before);
        for (old, new) in [
            ("\"!=\"", "\"==\""),
            ("@private", "@never"),
            ("203.0.113.0", "0.0.0.0"),
            ("\"right\": 22", "\"right\": 23"),
        ] {
            let other = LISTING.replacen(old, new, 1);
            assert_ne!(other, LISTING, "{old}");
            assert_ne!(fingerprint(&other).unwrap(), before, "{old}");
        }
        assert!(fingerprint("nft: command not found").is_err());
    }

    #[test]
    fn dropped_packets_are_counted() {
        assert_eq!(dropped(LISTING), 0);
        let counted = LISTING.replace("\"packets\": 0", "\"packets\": 2");
        // Six rules that drop in the chain egress, one in input; those of lists and of the way back don't count.
        assert_eq!(dropped(&counted), 14);
    }
}
