//! Volumes and networks.

use serde::Deserialize;

use super::Docker;
use super::call::{Call, operation};
use super::containers::{Change, label_filter};
use super::create::{NetworkCreate, VolumeCreate};
use super::error::Error;
use super::model::{Created, Network, Volume, or_default};
use super::target::Target;

impl Docker {
    /// Creates a volume. One of that name that exists is returned as it is: compare its labels.
    pub fn create_volume(&self, volume: &VolumeCreate) -> Result<Volume, Error> {
        let target = Target::new("volumes").word("create");
        self.fetch(Call::post(target, operation("create volume", &volume.name)).json(volume)?)
    }

    /// Reads everything about a volume.
    pub fn inspect_volume(&self, name: &str) -> Result<Volume, Error> {
        self.fetch(Call::get(Target::new("volumes").name(name), operation("inspect volume", name)))
    }

    /// Removes a volume. One that a container mounts is a conflict.
    pub fn remove_volume(&self, name: &str) -> Result<Change, Error> {
        let call = Call::delete(Target::new("volumes").name(name), operation("remove volume", name));
        self.changed(call.within(self.timeouts().slow), 404)
    }

    /// All volumes that have each of these labels (`name` or `name=value`).
    pub fn list_volumes(&self, labels: &[&str]) -> Result<Vec<Volume>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default, deserialize_with = "or_default")]
            volumes: Vec<Volume>,
        }
        let target = Target::new("volumes").query("filters", &label_filter(labels));
        self.fetch::<Answer>(Call::get(target, "list volumes".to_owned())).map(|answer| answer.volumes)
    }

    /// Creates a network.
    pub fn create_network(&self, network: &NetworkCreate) -> Result<Created, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            id: String,
            #[serde(default, deserialize_with = "or_default")]
            warning: String,
        }
        let target = Target::new("networks").word("create");
        let call = Call::post(target, operation("create network", &network.name)).json(network)?;
        let answer: Answer = self.fetch(call.within(self.timeouts().slow))?;
        let warnings = if answer.warning.is_empty() { Vec::new() } else { vec![answer.warning] };
        Ok(Created { id: answer.id, warnings })
    }

    /// Removes a network. One with containers on it is refused with 403.
    pub fn remove_network(&self, name: &str) -> Result<Change, Error> {
        let call = Call::delete(Target::new("networks").name(name), operation("remove network", name));
        self.changed(call.within(self.timeouts().slow), 404)
    }

    /// All networks that have each of these labels (`name` or `name=value`); without labels all there are.
    pub fn list_networks(&self, labels: &[&str]) -> Result<Vec<Network>, Error> {
        let target = Target::new("networks").query("filters", &label_filter(labels));
        self.fetch(Call::get(target, "list networks".to_owned()))
    }
}
