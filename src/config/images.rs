//! What the owner says of tasks and images.

use std::path::PathBuf;

use crate::node::allow::ImagePolicy;
use crate::node::image::parse_registry;

use super::error::ConfigError;
use super::layers::Layers;
use super::value::shown;

/// A list that a person writes.
const MAX_REGISTRIES: usize = 64;

/// `HIVEMIND_TASK_IMAGES`.
pub(super) fn policy(layers: &Layers<'_>) -> Result<ImagePolicy, ConfigError> {
    const KEY: &str = "HIVEMIND_TASK_IMAGES";
    let source = layers.raw(KEY).map(|raw| raw.place.to_string()).unwrap_or_default();
    Ok(layers.read(KEY, |text| ImagePolicy::parse(text, &source))?.unwrap_or_default())
}

/// `HIVEMIND_REGISTRY_AUTH_FILE` and `HIVEMIND_TASK_REGISTRIES`, which are of no use one without the other: a file of
/// credentials is used for nothing that its owner did not name.
pub(super) fn login(layers: &Layers<'_>) -> Result<Option<(PathBuf, Vec<String>)>, ConfigError> {
    let (file_key, list_key) = ("HIVEMIND_REGISTRY_AUTH_FILE", "HIVEMIND_TASK_REGISTRIES");
    match (layers.path(file_key), layers.read(list_key, registries)?) {
        (Some(file), Some(list)) => Ok(Some((file, list))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(layers.refuse(file_key, &format!("is set without {list_key}: set both"))),
        (None, Some(_)) => Err(layers.refuse(list_key, &format!("is set without {file_key}: set both"))),
    }
}

fn registries(text: &str) -> Result<Vec<String>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let one = |part: &str| {
        parse_registry(part).map_err(|problem| format!("{} {problem}: write ghcr.io or host:port", shown(part)))
    };
    let list: Vec<String> = parts.map(one).collect::<Result<_, _>>()?;
    if (1..=MAX_REGISTRIES).contains(&list.len()) {
        Ok(list)
    } else {
        Err(format!("has {} registries, must have 1 to {MAX_REGISTRIES}", list.len()))
    }
}
