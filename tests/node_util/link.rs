//! A cable between two network name spaces that the test makes, and cuts without a word to either end.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use super::until_true;

/// The master's end.
pub const MASTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// What of the cable is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Both,
    ToMaster,
    FromMaster,
}

/// The cable. Its other end is in the name space of a process that does nothing.
pub struct Link {
    holder: Child,
}

impl Link {
    /// Only within [`super::namespace::in_namespace`].
    pub fn make() -> Self {
        let holder =
            Command::new("unshare").args(["--net", "sleep", "infinity"]).stdout(Stdio::null()).spawn().unwrap();
        let link = Self { holder };
        let space = |id: &str| fs::read_link(format!("/proc/{id}/ns/net")).ok();
        let (ours, id) = (space("self"), link.holder.id().to_string());
        until_true("the other name space is there", || space(&id).is_some_and(|other| Some(other) != ours));
        here(&["ip", "link", "set", "lo", "up"]);
        here(&["ip", "link", "add", "name", "hm0", "type", "veth", "peer", "name", "hm1", "netns", &id]);
        here(&["ip", "address", "add", &format!("{MASTER}/30"), "dev", "hm0"]);
        here(&["ip", "link", "set", "hm0", "up"]);
        link.there(&["ip", "link", "set", "lo", "up"]);
        link.there(&["ip", "address", "add", "10.77.0.2/30", "dev", "hm1"]);
        link.there(&["ip", "link", "set", "hm1", "up"]);
        link
    }

    /// What leads a command to the node's end.
    pub fn prefix(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", self.holder.id())]
    }

    /// Drops all packets of this way, in silence.
    pub fn cut(&self, cut: Cut) {
        if cut != Cut::FromMaster {
            here(&["iptables", "-I", "INPUT", "-i", "hm0", "-j", "DROP"]);
        }
        if cut != Cut::ToMaster {
            self.there(&["iptables", "-I", "INPUT", "-i", "hm1", "-j", "DROP"]);
        }
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        here(&["iptables", "-F", "INPUT"]);
        self.there(&["iptables", "-F", "INPUT"]);
    }

    fn there(&self, words: &[&str]) {
        let prefix = self.prefix();
        let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
        here(&[&prefix, words].concat());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs a command to its end, which must be a good one.
pub fn here(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}: scripts/faults.sh installs what is needed"));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
