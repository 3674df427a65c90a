//! Credentials for the registries that the owner names for tasks, from a file as `docker login` writes it.
//!
//! The file may have more than is named: what it has of other registries is never used. An entry counts for its registry as
//! a whole; one for a part of it (`host/path`) is left alone. Credential helpers are other people's programs and are not run.
//! The file is read anew for each pull, so that a token can be renewed while the worker runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::docker::RegistryAuth;
use crate::node::image::{DEFAULT_REGISTRY, ImageRef};
use crate::sys::private::read_private;

/// Dozens of entries with long tokens.
const MAX_FILE_BYTES: u64 = 256 << 10;
/// The name that `docker login` and the engine have for Docker Hub.
const HUB_ADDRESS: &str = "https://index.docker.io/v1/";

/// See the module. The default has none.
#[derive(Clone, Default)]
pub struct Registries {
    file: PathBuf,
    hosts: Vec<String>,
}

/// As `docker login` writes it. Has no `Debug`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Login {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credsStore")]
    store: String,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    /// `user:password` in base 64.
    auth: String,
    username: String,
    password: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
    #[serde(rename = "registrytoken")]
    registry_token: String,
}

impl Registries {
    /// Those of the file, for these registries.
    pub fn new(file: PathBuf, hosts: Vec<String>) -> Self {
        Self { file, hosts }
    }

    /// Looks whether the file has something for each registry that is named.
    ///
    /// # Errors
    /// What is wrong with the file, and how to mend it; nothing of its content.
    pub fn check(&self) -> Result<(), String> {
        self.hosts.iter().try_for_each(|host| self.find(host).map(drop))
    }

    /// What the engine gets along for a pull of this image; nothing for a registry that is not named.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn auth_for(&self, image: &ImageRef) -> Result<Option<RegistryAuth>, String> {
        let host = image.registry();
        if self.hosts.contains(&host) { self.find(&host).map(Some) } else { Ok(None) }
    }

    fn find(&self, host: &str) -> Result<RegistryAuth, String> {
        let bytes = read_private(&self.file, MAX_FILE_BYTES).map_err(|error| with_causes(&error))?;
        find_in(&bytes, host).map_err(|problem| format!("{} {problem}", self.file.display()))
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

fn find_in(bytes: &[u8], host: &str) -> Result<RegistryAuth, String> {
    // The parser's own words could repeat a password.
    let login: Login = serde_json::from_slice(bytes).map_err(|error| {
        format!("is not as docker login writes it, at line {}, column {}", error.line(), error.column())
    })?;
    let is_of = |(key, _): &(&String, &Entry)| registry_of(key).as_deref() == Some(host);
    let mut known = login.auths.iter().filter(is_of).peekable();
    let is_known = known.peek().is_some();
    if let Some(auth) = known.find_map(|(_, entry)| entry.auth_for(host).transpose()) {
        return auth.map_err(|problem| format!("has for {host} {problem}"));
    }
    let helper = login.helpers.iter().find(|(key, _)| registry_of(key).as_deref() == Some(host));
    let helper = helper.map(|(_, helper)| helper.as_str()).or((!login.store.is_empty()).then_some(&login.store));
    Err(match helper {
        Some(helper) => format!(
            "leaves {host} to the credential helper {helper:?} (credsStore, credHelpers), which is not run: log in with a \
             file that has none, as by docker --config DIR login {host}"
        ),
        None if is_known => format!("has an entry for {host} without a password: docker login {host} makes one"),
        None => format!("has no entry for {host}: docker login {host} makes one"),
    })
}

impl Entry {
    fn auth_for(&self, host: &str) -> Result<Option<RegistryAuth>, &'static str> {
        let address = if host == DEFAULT_REGISTRY { HUB_ADDRESS } else { host };
        let empty = RegistryAuth { server_address: address.to_owned(), ..RegistryAuth::default() };
        if !self.identity_token.is_empty() {
            return Ok(Some(RegistryAuth { identity_token: self.identity_token.clone(), ..empty }));
        }
        if !self.registry_token.is_empty() {
            return Ok(Some(RegistryAuth { registry_token: self.registry_token.clone(), ..empty }));
        }
        let (username, password) = if self.auth.is_empty() {
            (self.username.clone(), self.password.clone())
        } else {
            let bytes = STANDARD.decode(self.auth.trim()).map_err(|_| "an auth that is not base 64")?;
            // The docker command ends older ones with a NUL byte.
            let text = String::from_utf8(bytes).map_err(|_| "an auth that is no text")?;
            let text = text.trim_end_matches('\0');
            let (user, password) = text.split_once(':').ok_or("an auth that is not user:password")?;
            (user.to_owned(), password.to_owned())
        };
        let is_whole = !username.is_empty() && !password.is_empty();
        Ok(is_whole.then_some(RegistryAuth { username, password, ..empty }))
    }
}

/// The registry that a key of the file stands for: `host`, `https://host/v1/` and the like. `None` for a part of one.
fn registry_of(key: &str) -> Option<String> {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !matches!(path.trim_end_matches('/'), "" | "v1" | "v2") {
        return None;
    }
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" => Some(DEFAULT_REGISTRY.to_owned()),
        host => Some(host.to_owned()),
    }
}

/// Whether a registry does not take what it got along.
pub fn is_not_taken(words: &str) -> bool {
    let words = words.to_lowercase();
    ["unauthorized", "authentication required", "incorrect username or password"]
        .iter()
        .any(|known| words.contains(known))
}

/// For the report of a task whose image its registry does not give to everybody.
pub fn hint(words: &str, image: &ImageRef) -> String {
    let is_it = is_not_taken(words) || words.contains("no basic auth credentials") || words.contains("access denied");
    if is_it {
        format!("; the owner of this node names no credentials for {} (HIVEMIND_TASK_REGISTRIES)", image.registry())
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The standard's example (RFC 7617, section 2): Aladdin, open sesame.
    const FILE: &str = r#"{"auths": {
        "https://index.docker.io/v1/": {"auth": "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="},
        "Registry.Example.org:5000": {"username": "u", "password": "p:q"},
        "https://token.example.org/v2/": {"auth": "MDA6", "identitytoken": "long"},
        "part.example.org/team": {"auth": "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="},
        "empty.example.org": {}, "half.example.org": {"auth": "QWxhZGRpbjo="},
        "broken.example.org": {"auth": "s3cret!"}
    }, "credHelpers": {"helped.example.org": "desktop"}, "HttpHeaders": {"User-Agent": "x"}}"#;

    fn find(host: &str) -> Result<(String, String, String, String), String> {
        find_in(FILE.as_bytes(), host)
            .map(|auth| (auth.username, auth.password, auth.identity_token, auth.server_address))
    }

    #[test]
    fn an_entry_is_found_by_its_registry_in_each_spelling() {
        let found = |words: [&str; 4]| Ok(words.map(str::to_owned).into());
        assert_eq!(find("docker.io"), found(["Aladdin", "open sesame", "", "https://index.docker.io/v1/"]));
        assert_eq!(find("registry.example.org:5000"), found(["u", "p:q", "", "registry.example.org:5000"]));
        assert_eq!(find("token.example.org"), found(["", "", "long", "token.example.org"]));
    }

    #[test]
    fn what_is_not_there_is_said_and_no_secret_with_it() {
        for (host, words) in [
            ("registry.example.org", "has no entry for registry.example.org: docker login"),
            ("part.example.org", "has no entry for"),
            ("empty.example.org", "has an entry for empty.example.org without a password"),
            ("half.example.org", "without a password"),
            ("broken.example.org", "has for broken.example.org an auth that is not base 64"),
            ("helped.example.org", "leaves helped.example.org to the credential helper \"desktop\""),
        ] {
            let error = find(host).unwrap_err();
            assert!(error.contains(words) && !error.contains("s3cret"), "{error}");
        }
        let store = br#"{"auths": {"h.org": {}}, "credsStore": "pass"}"#;
        assert!(
            find_in(store, "h.org")
                .err()
                .unwrap()
                .contains("helper \"pass\" (credsStore, credHelpers), which is not run")
        );
        let error = find_in(b"{\"auths\":\n {\"h.org\": \"s3cret\"}}", "h.org").err().unwrap();
        assert_eq!(error, "is not as docker login writes it, at line 2, column 19");
    }

    #[test]
    fn only_what_is_named_is_looked_for() {
        let registries = Registries::new(PathBuf::from("/none"), vec!["h.org:5000".to_owned()]);
        let auth = |image: &str| registries.auth_for(&ImageRef::parse(image).unwrap());
        for image in ["h.org/a", "h.org:5001/a", "python", "x.h.org:5000/a", "h.org.evil.net:5000/a"] {
            assert!(auth(image).is_ok_and(|auth| auth.is_none()), "{image}");
        }
        assert!(auth("H.org:5000/a").err().unwrap().contains("/none"), "this one is");
    }
}
