//! The table of configuration keys: the one place that says what each means, its unit, range and default.

use super::near;

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Name in the environment and in the file.
    pub name: &'static str,
    /// What it decides.
    pub meaning: &'static str,
    /// Form and unit of the value.
    pub unit: &'static str,
    /// What is taken.
    pub range: &'static str,
    /// What holds when nobody sets it.
    pub default: &'static str,
    /// The flag that sets it, when there is one.
    pub flag: Option<&'static str>,
    /// Whether SIGHUP can change it while the worker runs.
    pub is_live: bool,
    /// Whether its value must not be shown.
    pub is_secret: bool,
    /// Whether the environment may have it in lower case too, which then wins: the custom of the `_proxy` variables.
    pub is_lower_too: bool,
}

const fn key(name: &'static str, meaning: &'static str, text: [&'static str; 3]) -> Key {
    Key {
        name,
        meaning,
        unit: text[0],
        range: text[1],
        default: text[2],
        flag: None,
        is_live: false,
        is_secret: false,
        is_lower_too: false,
    }
}

impl Key {
    const fn flag(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), ..self }
    }

    const fn live(self) -> Self {
        Self { is_live: true, ..self }
    }

    const fn secret(self) -> Self {
        Self { is_secret: true, ..self }
    }

    const fn lower_too(self) -> Self {
        Self { is_lower_too: true, ..self }
    }
}

/// All keys, in the order in which they are documented. The three texts are unit, range and default.
pub static KEYS: [Key; 53] = [
    key(
        "MASTER_NODE_URL",
        "Address of the master, for enrolment and gRPC",
        ["URL", "https://host[:port], or http:// on loopback", "none: the worker calls no stranger"],
    )
    .flag("master-url"),
    key(
        "MASTER_GRPC_URL",
        "Address of the master's gRPC service, when it is another; alone it is enough",
        ["URL", "as MASTER_NODE_URL", "MASTER_NODE_URL"],
    ),
    key(
        "MASTER_CA_FILE",
        "Certificate authorities for the master's certificate",
        ["path", "PEM file", "those of the system"],
    ),
    key(
        "MASTER_CLIENT_CERT_FILE",
        "Certificate that this node shows to a master which asks for one, then those up to its authority",
        ["path", "PEM file; needs MASTER_CLIENT_KEY_FILE", "none"],
    ),
    key(
        "MASTER_CLIENT_KEY_FILE",
        "Private key of that certificate",
        ["path", "PEM file without a passphrase; needs MASTER_CLIENT_CERT_FILE", "none"],
    ),
    key(
        "MASTER_SIGNING_KEY",
        "Ed25519 public key of the master: assignments that it has not signed are refused",
        ["hex", "64 digits", "the first that the master tells, kept in the state folder; without one, no signature is asked for"],
    ),
    key(
        "HTTPS_PROXY",
        "HTTP proxy to an https:// master, by CONNECT; in lower case too. Loopback never goes through one",
        ["URL", "http://[user:password@]host[:port]", "none"],
    )
    .secret()
    .lower_too(),
    key(
        "HTTP_PROXY",
        "The same to an http:// master",
        ["URL", "as HTTPS_PROXY", "none"],
    )
    .secret()
    .lower_too(),
    key(
        "NO_PROXY",
        "Masters that are reached without a proxy; in lower case too",
        ["list", "names (those below them too), addresses, networks as 10.0.0.0/8, or *, with commas between", "none"],
    )
    .lower_too(),
    key("HIVEMIND_TOKEN", "Token to join with", ["text", "visible ASCII without spaces, at most 4096 bytes", "none"]).secret(),
    key("HIVEMIND_TOKEN_FILE", "File that holds the token to join with", ["path", "readable file", "none"]),
    key(
        "HIVEMIND_ALLOW_PLAINTEXT",
        "Owner's word that http:// to another machine is fine",
        ["yes or no", "1, true, yes, on, 0, false, no, off", "no"],
    ),
    key(
        "NODE_ID",
        "Name of this node",
        [
            "text",
            "letter or digit, then up to 62 of letters, digits, '_', '.', '-'",
            "host name, with other characters as '-'",
        ],
    )
    .flag("node-id"),
    key(
        "NODE_LABELS",
        "Labels that the master can choose nodes by",
        ["k=v,k=v", "at most 32; keys and values as NODE_ID, values may be empty", "none"],
    ),
    key(
        "HIVEMIND_STATE",
        "Folder of key, token, database and spool, mode 0700",
        [
            "path",
            "absolute or relative path",
            "$STATE_DIRECTORY in a unit with StateDirectory=, /var/lib/hivemind as root, else $XDG_STATE_HOME/hivemind, else \
             ~/.local/state/hivemind",
        ],
    )
    .flag("state"),
    key(
        "DOCKER_HOST",
        "Socket of the container engine",
        ["URL", "unix:///path; npipe:////./pipe/name in Windows builds", "unix:///var/run/docker.sock"],
    ),
    key(
        "MONITOR_ADDRESS",
        "Address that the monitor page listens on; other than loopback, everything needs the token",
        ["IP address", "IPv4 or IPv6", "127.0.0.1"],
    ),
    key("MONITOR_PORT", "Port of the monitor page", ["port", "0 to 65535; 0 takes a free port and says which", "5001"])
        .flag("monitor-port"),
    key(
        "LOG_LEVEL",
        "Least important message that is logged",
        ["word", "off, error, warn, info, debug, trace; Python's names too, in any case", "info"],
    )
    .live(),
    key("LOG_FILE", "File that the log is appended to", ["path", "file in a folder that exists", "standard error"])
        .flag("log-file"),
    key(
        "RESOURCE_REPORT_INTERVAL",
        "Time between two reports of what the machine does",
        ["seconds", "5 to 3600", "30"],
    )
    .live(),
    key(
        "HIVEMIND_CPUS",
        "CPUs that are lent",
        ["number of CPUs", "0.01 to 1024, decimal; at most what the machine has", "all"],
    )
    .flag("cpus")
    .live(),
    key(
        "HIVEMIND_MEMORY",
        "Memory that is lent",
        ["size", "from 16MiB; at most what the machine has", "80 % of the memory"],
    )
    .flag("memory")
    .live(),
    key("HIVEMIND_DISK", "Disk that is lent", ["size", "from 1MiB", "half of what is free where the state folder is"])
        .live(),
    key("HIVEMIND_SLOTS", "Tasks at the same time", ["number", "1 to 256", "number of CPUs"]).flag("slots").live(),
    key("HIVEMIND_TIMEOUT", "Running time of a task that names none", ["duration", "1s to HIVEMIND_MAX_TIMEOUT", "1h"])
        .live(),
    key("HIVEMIND_MAX_TIMEOUT", "Longest running time that a task may ask for", ["duration", "1s to 365d", "24h"])
        .live(),
    key(
        "HIVEMIND_FETCH_ALLOW",
        "Hosts from which archives are fetched for tasks although their address is not public; also by http:// and at any port",
        ["list", "names of hosts, addresses, networks as 10.0.0.0/8, with commas between", "none: https:// at port 443 of public addresses"],
    ),
    key(
        "HIVEMIND_FETCH_CA_FILE",
        "Certificate authorities for what is fetched for tasks, beside those of the system",
        ["path", "PEM file", "none"],
    ),
    key("HIVEMIND_FETCH_LIMIT", "Largest archive that is fetched for a task", ["size", "1MiB to 1TiB", "1GiB"]).live(),
    key(
        "HIVEMIND_PULL_LIMIT",
        "Time in which a pull must come forward by 1 MiB or by a step of a layer; one that does not is broken off, and tried three times",
        ["duration", "1s to 24h", "10m"],
    ),
    key(
        "HIVEMIND_TASK_IMAGES",
        "Images that tasks may name; the base image always, unless an entry forbids it",
        ["list", "at most 64 patterns as docker.io/library/python:3.*, ghcr.io/acme/** or, to forbid, !acme/old, with commas between", "**: every image"],
    )
    .live(),
    key(
        "HIVEMIND_TASK_REGISTRIES",
        "Registries for which tasks' images are pulled with the owner's credentials; no other registry gets any",
        ["list", "at most 64 hosts as ghcr.io, registry.example.org:5000, docker.io, with commas between; needs HIVEMIND_REGISTRY_AUTH_FILE", "none"],
    ),
    key(
        "HIVEMIND_REGISTRY_AUTH_FILE",
        "Credentials for these registries; credential helpers are not run",
        ["path", "file as docker login writes it (auths), which nobody else may read; needs HIVEMIND_TASK_REGISTRIES", "none"],
    ),
    key(
        "HIVEMIND_TASK_NETWORK",
        "What tasks may reach at the most: nothing, or with egress those that ask for it public IPv4 addresses",
        ["word", "none or egress; egress needs nft, and the right to use it", "none"],
    ),
    key(
        "HIVEMIND_EGRESS_DNS",
        "Name servers of tasks with egress; they are asked from the task's own network, never by way of this machine",
        ["list", "1 to 3 IPv4 addresses with commas between; a private one must be in HIVEMIND_EGRESS_ALLOW", "9.9.9.9,1.1.1.1"],
    ),
    key(
        "HIVEMIND_EGRESS_ALLOW",
        "Private networks that a task with egress may name in its own list of destinations",
        ["list", "at most 64 IPv4 networks as 192.168.7.0/24, with commas between", "none"],
    ),
    key(
        "HIVEMIND_ALERTS",
        "From how much of the machine's CPU, memory and disk, and of a task's memory limit, in percent, an alert is raised, and after how long",
        [
            "name=value list",
            "cpu, memory, disk, task-memory: 1 to 100, or off; after: 0s to 1d",
            "cpu=90,memory=90,disk=90,task-memory=90,after=60s",
        ],
    )
    .live(),
    key(
        "HIVEMIND_RUNTIMES",
        "Runtimes of the engine that tasks may name, such as runsc, kata or nvidia; a task that names none has the engine's default",
        ["list", "at most 16 names that the engine has, with commas between", "none"],
    )
    .live(),
    key(
        "HIVEMIND_TASK_DISK",
        "What holds the disk limits of tasks: a volume of that size for each, which never takes a byte more, or a watch that looks each second",
        ["word", "auto (a volume where that can be, else the watch), volume (else refused) or watch", "auto"],
    ),
    key(
        "HIVEMIND_SHUTDOWN",
        "What a stop of the worker does with running tasks: stop them, finish them, or leave them to the next start",
        ["word", "stop, finish or leave", "stop"],
    )
    .flag("shutdown")
    .live(),
    key(
        "HIVEMIND_CRASH_LIMIT",
        "Crashes of the worker, early in its life or by a panic, after which an attempt that was there at each is given up; two more in a row, and it only delivers what it has",
        ["number", "1 to 1000000", "3"],
    ),
    key("HIVEMIND_LOG_BUDGET", "Output that is kept of each attempt", ["size", "64KiB to 16GiB", "64MiB"]),
    key(
        "HIVEMIND_WAITING_LOGS",
        "Output of all attempts together that waits for the master; beyond it the oldest of the least important attempts is dropped, and the gap told",
        ["size", "16MiB to 1TiB", "1GiB"],
    ),
    key(
        "HIVEMIND_BUNDLES",
        "Bundles of attempts that failed, all together: report, last output, the engine's word, files; beyond it the oldest go",
        ["size", "0 (none are kept) to 1TiB", "256MiB"],
    ),
    key("HIVEMIND_BUNDLE_AGE", "How long such a bundle is kept", ["duration", "1m to 365d", "7d"]),
    key(
        "HIVEMIND_KEPT",
        "Output files of tasks that succeeded, kept for later tasks of the same owner; beyond it those go that were not used for the longest time",
        ["size", "0 (none are kept) to 1TiB", "1GiB"],
    ),
    key(
        "HIVEMIND_PACKAGE_INDEX",
        "Index that the packages of tasks are installed from; needs HIVEMIND_TASK_NETWORK=egress",
        ["URL", "https://host[:port]/path/; a private IPv4 address, by http:// too, only where HIVEMIND_EGRESS_ALLOW opens it", "pip's own"],
    ),
    key(
        "HIVEMIND_PACKAGE_INDEX_CA_FILE",
        "Certificate authorities for that index, in place of the image's",
        ["path", "PEM file", "none"],
    ),
    key("HIVEMIND_PREPARE_LIMIT", "Time in which the packages of a task must be installed", ["duration", "1s to 24h", "10m"]),
    key(
        "HIVEMIND_PACKAGES",
        "Installed packages that are kept for later tasks, all together; beyond it those go that were not used for the longest time",
        ["size", "1MiB to 1PiB", "4GiB"],
    ),
    key("HIVEMIND_PACKAGE_AGE", "How long installed packages that no task uses are kept", ["duration", "1m to 365d", "30d"]),
    key(
        "WIREGUARD_CONFIG_PATH",
        "WireGuard configuration of the tunnel to the master; accepted, but this version builds no tunnel",
        ["path", "wg0.conf", "none"],
    ),
];

/// The key of this name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The key whose name is nearest to a wrong one.
pub fn nearest(name: &str) -> Option<&'static str> {
    near::nearest(name, KEYS.iter().map(|key| key.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_flags_are_unique() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(
                KEYS[index + 1..]
                    .iter()
                    .all(|other| other.name != key.name && (key.flag.is_none() || other.flag != key.flag))
            );
            for text in [key.meaning, key.unit, key.range, key.default] {
                assert!(!text.is_empty(), "{}", key.name);
            }
        }
    }
}
