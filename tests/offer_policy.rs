//! What of an assignment is the owner's to allow: destinations of the network, and runtimes. Each refusal names the field, and
//! the key that would open it.
#![allow(clippy::unwrap_used)]

mod offer_support;

use std::time::Duration;

use hivemind_worker::coordinator::{Effect, Event};
use hivemind_worker::node::id::Id;
use hivemind_worker::node::net::NetworkPolicy;
use hivemind_worker::node::runtime::Runtimes;
use hivemind_worker::node::snapshot::EngineView;
use hivemind_worker::node::spec::{MAX_DESTINATIONS, SpecDefaults, TaskSpec};
use hivemind_worker::rpc::convert::decode_offer;
use offer_support::{node_of, with};

#[rustfmt::skip]
const ODD_DESTINATIONS: &[&str] = &[
    "", " ", "*", "any", "example.org", "example.org:443", "http://203.0.113.1", "203.0.113.1 ", " 203.0.113.1",
    "203.0.113.1\n", "203.0.113.1;", "203.0.113.1 } accept", "203.0.113.1/24", "203.0.113.0/33", "203.0.113.0/-1",
    "203.0.113.0/", "203.0.113.1:0", "203.0.113.1:65536", "203.0.113.1:-1", "203.0.113.1:443,80", "203.0.113.1:80-90",
    "203.0.113.1-203.0.113.9", "203.0.113", "0x7f.1", "2130706433", "0177.0.0.1", "203.0.113.001", "@private",
    "{ 0.0.0.0/0 }", "[203.0.113.1]:443", "[2001:db8::1]", "[2001:db8::1", "2001:db8::1%eth0", "2001:db8::1/32", ":::",
    // Right, but closed: this machine, its wire, no single machine, IPv4 in disguise, and private networks.
    "127.0.0.1", "0.0.0.0", "169.254.169.254:80", "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "ff02::1",
    "::ffff:10.0.0.1", "64:ff9b::a00:1", "10.0.0.1", "172.16.0.0/12", "192.168.1.1:445", "100.64.0.1", "198.18.0.1",
    "fc00::/7", "fd00::1",
];

#[test]
fn where_the_owner_allows_egress_a_list_is_judged_entry_by_entry() {
    let network = NetworkPolicy { is_egress_allowed: true, ..NetworkPolicy::default() };
    let defaults = SpecDefaults { network, ..SpecDefaults::default() };
    let offer = |entries: &[&str]| {
        let list: Vec<_> = entries.iter().map(|text| (*text).to_owned()).collect();
        decode_offer(&with(|a| (a.network, a.network_allow) = ("egress".to_owned(), list))).unwrap()
    };
    for text in ODD_DESTINATIONS {
        let error = TaskSpec::check(&offer(&["203.0.113.7", text]), &defaults).unwrap_err();
        assert_eq!(error.field, "network_allow[1]", "{text}: {error}");
    }
    let good = ["203.0.113.7", "203.0.113.0/24:443", "0.0.0.0/0:443", "2001:db8::/32", "[2001:db8::1]:65535"];
    let spec = TaskSpec::check(&offer(&good), &defaults).unwrap();
    let list: Vec<_> = spec.network_allow.iter().map(ToString::to_string).collect();
    let whole = ["203.0.113.7/32", "203.0.113.0/24:443", "0.0.0.0/0:443", "2001:db8::/32", "[2001:db8::1/128]:65535"];
    assert_eq!(list, whole);
    assert!(TaskSpec::check(&offer(&["203.0.113.7"; MAX_DESTINATIONS]), &defaults).is_ok());
    let error = TaskSpec::check(&offer(&["203.0.113.7"; MAX_DESTINATIONS + 1]), &defaults).unwrap_err();
    assert_eq!(error.to_string(), "network_allow has 65 entries, at most 64 are allowed");
    // A word of the owner's opens one network, and no other.
    let allow = vec!["192.168.7.0/24".parse().unwrap()];
    let network = NetworkPolicy { allow, ..defaults.network.clone() };
    let opened = SpecDefaults { network, ..defaults };
    assert!(TaskSpec::check(&offer(&["192.168.7.9:22"]), &opened).is_ok());
    assert!(TaskSpec::check(&offer(&["192.168.0.0/16"]), &opened).is_err());
    // Without that word, the refusal says which one it is.
    let error = TaskSpec::check(&offer(&[]), &SpecDefaults::default()).unwrap_err();
    assert_eq!(error.field, "network");
    assert!(error.reason.contains("HIVEMIND_TASK_NETWORK"), "{error}");
}

#[test]
fn a_runtime_is_judged_by_the_owners_list() {
    let ids = |names: &[&str]| Runtimes::Only(names.iter().map(|name| Id::parse(name).unwrap()).collect());
    let of = |name: &str, runtimes: Runtimes| {
        let offer = decode_offer(&with(|a| a.runtime = name.to_owned())).unwrap();
        TaskSpec::check(&offer, &SpecDefaults { runtimes, ..SpecDefaults::default() })
    };
    assert_eq!(of("", Runtimes::default()).unwrap().runtime, None);
    assert_eq!(of("runsc", ids(&["kata", "runsc"])).unwrap().runtime, Some(Id::parse("runsc").unwrap()));
    let error = of("runsc", ids(&["kata"])).unwrap_err();
    let words = "runtime is runsc, which the owner of this node does not allow: HIVEMIND_RUNTIMES=runsc would";
    assert_eq!(error.to_string(), words);
    // What the owner allows and the engine has not is refused, too, as something that another node may have.
    let mut node = node_of(SpecDefaults { runtimes: ids(&["runsc"]), ..SpecDefaults::default() });
    let mut effects = |poll, runtimes: &[&str]| {
        let runtimes = runtimes.iter().map(|name| (*name).to_owned()).collect();
        node.handle(
            Event::Engine(EngineView { is_usable: true, runtimes, ..EngineView::default() }),
            Duration::ZERO,
            0,
        );
        let offer = decode_offer(&with(|a| a.runtime = "runsc".to_owned())).unwrap();
        node.handle(Event::Offers { poll, offers: vec![(7, Ok(Box::new(offer)))] }, Duration::ZERO, 0);
        node.take_effects()
    };
    let [Effect::SettlePoll { refused, .. }] = &effects(1, &["kata", "runc"])[..] else { panic!("it is taken") };
    let words = "runtime is runsc, which the engine of this node does not know; it knows kata, runc";
    assert_eq!((refused[0].code, refused[0].reason.as_str()), ("policy", words));
    assert!(matches!(&effects(2, &["runc", "runsc"])[..], [Effect::Commit { .. }]), "it is taken");
}
