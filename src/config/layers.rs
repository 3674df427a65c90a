//! The layers: flag above environment above file. What no layer has is left to its reader, who knows the default.

use std::ffi::OsString;
use std::path::PathBuf;

use super::error::{ConfigError, Place};
use super::file::FileEntry;
use super::flags::FlagSetting;
use super::keys;

/// A value that a layer has, not yet read.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) value: OsString,
    pub(super) place: Place,
}

/// All layers of one start.
pub(super) struct Layers<'a> {
    pub(super) flags: &'a [FlagSetting],
    pub(super) env: &'a dyn Fn(&str) -> Option<OsString>,
    pub(super) file: Vec<FileEntry>,
    pub(super) file_path: PathBuf,
}

impl Layers<'_> {
    /// The value of the highest layer that has one. An empty one counts as absent, so that a template can name a key.
    pub(super) fn raw(&self, key: &str) -> Option<Raw> {
        let from_flag = self.flags.iter().rev().find(|setting| setting.key.name == key);
        if let Some(setting) = from_flag {
            return Some(Raw { value: setting.value.clone(), place: Place::Flag(setting.flag.clone()) });
        }
        let lower = keys::find(key).filter(|key| key.is_lower_too).map(|key| key.name.to_ascii_lowercase());
        for name in lower.into_iter().chain([key.to_owned()]) {
            if let Some(value) = (self.env)(&name).filter(|value| !value.is_empty()) {
                return Some(Raw { value, place: Place::Env(name) });
            }
        }
        let entry = self.file.iter().find(|entry| entry.key == key && !entry.value.is_empty())?;
        Some(Raw {
            value: entry.value.clone().into(),
            place: Place::File { path: self.file_path.clone(), line: entry.line },
        })
    }

    /// The value of a key as text, read by `parse`.
    pub(super) fn read<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(raw) = self.raw(key) else { return Ok(None) };
        let text = raw.value.to_str().ok_or_else(|| refuse(key, &raw.place, "is not UTF-8"))?;
        parse(text).map(Some).map_err(|message| refuse(key, &raw.place, &message))
    }

    /// The value of a key as a path.
    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        self.raw(key).map(|raw| raw.value.into())
    }

    /// An error at the place that set `key`.
    pub(super) fn refuse(&self, key: &str, message: &str) -> ConfigError {
        let place = self.raw(key).map_or(Place::Default, |raw| raw.place);
        refuse(key, &place, message)
    }

    /// Which keys are set, and where.
    pub(super) fn places(&self) -> Vec<(&'static str, Place)> {
        keys::KEYS.iter().filter_map(|key| self.raw(key.name).map(|raw| (key.name, raw.place))).collect()
    }
}

fn refuse(key: &str, place: &Place, message: &str) -> ConfigError {
    let message = match place {
        Place::File { .. } | Place::Default => format!("{key} {message}"),
        Place::Flag(_) | Place::Env(_) | Place::CommandLine => message.to_owned(),
    };
    ConfigError::new(place.clone(), message)
}
