//! What the node has in stock for tasks: files of earlier ones, and installed packages.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::firewall::Access;
use crate::node::net::{Destination, Net};
use crate::node::url::Url;
use crate::store::{Kept, PackageLimits, Packages};

/// Of a PEM file that is read.
const MAX_PEM_BYTES: u64 = 4 << 20;

/// Where packages come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// `None`: pip's own.
    pub url: Option<Url>,
    /// Authorities for its certificate; `None`: those of the image.
    pub ca_file: Option<PathBuf>,
}

impl Index {
    /// The URL, or nothing.
    pub fn text(&self) -> String {
        self.url.as_ref().map(Url::exposed).unwrap_or_default()
    }

    /// What the container that installs may reach: an index that has an address and no name is all of it.
    pub(super) fn access(&self) -> Access {
        let address = self.url.as_ref().and_then(|url| Some((url.address()?, url.port())));
        match address {
            Some((address @ IpAddr::V4(_), port)) => {
                Access::Only(vec![Destination { net: Net::host(address), port: Some(port) }])
            }
            _ => Access::Public,
        }
    }

    /// The authorities' PEM text.
    pub(super) fn authorities(&self) -> Result<Option<Vec<u8>>, String> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let mut pem = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_PEM_BYTES).read_to_end(&mut pem));
        read.map_err(|error| format!("HIVEMIND_PACKAGE_INDEX_CA_FILE {}: {error}", path.display()))?;
        Ok(Some(pem))
    }
}

/// The owner's choices.
#[derive(Clone, Debug)]
pub struct StockSettings {
    /// Kept files, all together; 0: none are kept.
    pub kept_bytes: u64,
    /// Of installed packages.
    pub packages: PackageLimits,
    /// Where they come from.
    pub index: Index,
    /// Time of one install.
    pub prepare_limit: Duration,
}

impl Default for StockSettings {
    fn default() -> Self {
        Self {
            kept_bytes: 1 << 30,
            packages: PackageLimits::default(),
            index: Index::default(),
            prepare_limit: Duration::from_secs(600),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Stock {
    /// Files that tasks have put out.
    pub kept: Kept,
    /// Sets of packages.
    pub packages: Arc<Packages>,
    /// Where they come from.
    pub index: Index,
    /// Time of one install.
    pub prepare_limit: Duration,
}

impl Stock {
    /// That of a state folder, which this process has locked.
    pub fn open(state: &Path, settings: StockSettings) -> Self {
        Self {
            kept: Kept::open(state, settings.kept_bytes),
            packages: Packages::open(state, settings.packages),
            index: settings.index,
            prepare_limit: settings.prepare_limit,
        }
    }
}
