//! An administrator's settings for the machine's programs: a proxy, and what Nix reads besides our options.
//!
//! [`Config::load`] reads them once. Nothing else of the agent's environment reaches Nix except `PATH`.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::durable;

/// By default the proxy is not used for the machine itself.
const LOCAL: &str = "localhost,127.0.0.1,::1";
const MAX_SETTINGS_BYTES: u64 = 1024 * 1024;
/// How deep one file of settings may include others.
const MAX_INCLUDES: u32 = 4;

/// Which proxy to use for which addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    pub http: Option<String>,
    pub https: Option<String>,
    pub no_proxy: Option<String>,
}

impl Proxies {
    /// From agent.toml, or else the environment.
    pub fn of(config: &Config) -> Self {
        if let Some(proxy) = &config.proxy {
            let but = config.no_proxy.as_ref().map_or_else(|| LOCAL.to_owned(), |but| but.join(","));
            let no_proxy = Some(but).filter(|but| !but.is_empty());
            return Self { http: Some(proxy.clone()), https: Some(proxy.clone()), no_proxy };
        }
        let set = |name: &str| {
            let found = [name.to_owned(), name.to_ascii_uppercase()];
            found.iter().find_map(|name| config.environment.get(name).cloned())
        };
        let all = set("all_proxy");
        let (http, https) = (set("http_proxy").or(all.clone()), set("https_proxy").or(all));
        let asked = http.is_some() || https.is_some();
        let no_proxy = set("no_proxy").or_else(|| asked.then(|| LOCAL.to_owned()));
        Self { http, https, no_proxy }
    }

    /// For the HTTP client. Proxies of other kinds than HTTP are left to Nix, which supports more.
    pub fn set(&self, mut builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, reqwest::Error> {
        let but = || self.no_proxy.as_deref().and_then(reqwest::NoProxy::from_string);
        let usable = |url: &Option<String>| {
            let url = url.as_deref().map(|url| match url.contains("://") {
                true => url.to_owned(),
                false => format!("http://{url}"),
            });
            let (good, other): (Vec<_>, Vec<_>) = url.into_iter().partition(|url| url.starts_with("http://"));
            for url in other {
                let kind = url.split("://").next().unwrap_or_default().to_owned();
                tracing::warn!(
                    "the agent does not support {kind} proxies: set one with http:// in agent.toml"
                );
            }
            good.into_iter().next()
        };
        // Ignores proxies of the process environment.
        builder = builder.no_proxy();
        if let Some(url) = usable(&self.http) {
            builder = builder.proxy(reqwest::Proxy::http(url)?.no_proxy(but()));
        }
        if let Some(url) = usable(&self.https) {
            builder = builder.proxy(reqwest::Proxy::https(url)?.no_proxy(but()));
        }
        Ok(builder)
    }

    /// The same for Nix, which reads the controller's cache from 127.0.0.1: never through a proxy.
    #[must_use]
    pub fn beside_the_cache(mut self) -> Self {
        if self.http.is_some() || self.https.is_some() {
            let but = self.no_proxy.iter().map(String::as_str).chain(["127.0.0.1"]);
            self.no_proxy = Some(but.collect::<Vec<_>>().join(","));
        }
        self
    }

    /// For Nix and its downloads.
    pub fn variables(&self) -> Vec<(String, String)> {
        let named = [("http_proxy", &self.http), ("https_proxy", &self.https), ("no_proxy", &self.no_proxy)];
        let both = |(name, value): (&str, &Option<String>)| {
            let value = value.clone()?;
            Some([(name.to_owned(), value.clone()), (name.to_ascii_uppercase(), value)])
        };
        named.into_iter().filter_map(both).flatten().collect()
    }
}

/// The last line of a configuration of Nix that sets `name`.
fn setting(text: &str, name: &str, include: &mut dyn FnMut(&str) -> Option<String>) -> Option<String> {
    let mut found = None;
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(path) = line.strip_prefix("!include ").or_else(|| line.strip_prefix("include ")) {
            found = include(path.trim()).or(found);
        } else if let Some((key, value)) = line.split_once('=')
            && key.trim() == name
        {
            found = Some(value.trim().to_owned());
        }
    }
    found.filter(|value| !value.is_empty())
}

fn setting_in_file(file: &Path, name: &str, depth: u32) -> Option<String> {
    let bytes = durable::read(file, MAX_SETTINGS_BYTES).ok().flatten()?;
    let folder = file.parent().unwrap_or(Path::new("/")).to_path_buf();
    let mut include =
        |path: &str| (depth > 0).then(|| setting_in_file(&folder.join(path), name, depth - 1)).flatten();
    setting(&String::from_utf8_lossy(&bytes), name, &mut include)
}

impl Config {
    /// The folder of the machine's nix.conf.
    fn nix_folder(&self) -> PathBuf {
        match (self.environment.get("NIX_CONF_DIR"), &self.stand_in) {
            (Some(folder), _) => folder.into(),
            (None, Some(stand_in)) => stand_in.root.join("etc/nix"),
            (None, None) => "/etc/nix".into(),
        }
    }

    /// A setting in the machine's own Nix configuration.
    pub fn nix_setting(&self, name: &str) -> Option<String> {
        let stand_in = self.stand_in.as_ref().map(|stand_in| &stand_in.nix_config);
        let last = stand_in.filter(|text| !text.is_empty()).or_else(|| self.environment.get("NIX_CONFIG"));
        last.and_then(|text| setting(text, name, &mut |_| None))
            .or_else(|| setting_in_file(&self.nix_folder().join("nix.conf"), name, MAX_INCLUDES))
    }
}

/// Something that keeps a folder from being used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    pub problem: String,
    pub remedy: String,
}

/// With less free space than this, Nix itself blames the disk for a failed build.
const FULL_BYTES: u64 = 8 * 1024 * 1024;

/// What is observed of a folder.
#[derive(Debug, Clone, Copy)]
struct FolderFacts {
    read_only: bool,
    no_exec: bool,
    free_bytes: u64,
    no_inodes: bool,
}

/// Why nothing can be written in a folder, or, if `runs`, run from it.
pub fn obstacle(folder: &Path, runs: bool) -> Option<Obstacle> {
    use rustix::fs::StatVfsMountFlags as Flags;
    let stat = match rustix::fs::statvfs(folder) {
        Ok(stat) => stat,
        Err(error) => {
            let problem = format!("{} cannot be inspected: {error}", folder.display());
            return Some(Obstacle { problem, remedy: format!("create the folder {}", folder.display()) });
        }
    };
    let closed = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_err();
    let seen = FolderFacts {
        read_only: stat.f_flag.contains(Flags::RDONLY) || closed,
        no_exec: is_noexec(stat.f_flag),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        no_inodes: stat.f_files > 0 && stat.f_favail == 0,
    };
    judge(&folder.display().to_string(), seen, runs)
}

#[cfg(target_os = "linux")]
fn is_noexec(flags: rustix::fs::StatVfsMountFlags) -> bool {
    flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC)
}
/// Not available here on macOS.
#[cfg(not(target_os = "linux"))]
fn is_noexec(_: rustix::fs::StatVfsMountFlags) -> bool {
    false
}

fn judge(name: &str, seen: FolderFacts, runs: bool) -> Option<Obstacle> {
    let (problem, remedy) = if seen.read_only {
        let remedy = "check the disk for errors (dmesg), then mount it writable again, as root";
        (format!("{name} is read-only"), remedy.to_owned())
    } else if seen.free_bytes < FULL_BYTES {
        (format!("{name} is full"), "free some space there".to_owned())
    } else if seen.no_inodes {
        (format!("{name} has no inode left"), "remove some files there".to_owned())
    } else if runs && seen.no_exec {
        let remedy = format!(
            "mount {name} without noexec, or let Nix build elsewhere: build-dir in nix.conf, or TMPDIR in \
             the agent's unit"
        );
        (format!("{name} is mounted noexec, and builds run programs there"), remedy)
    } else {
        return None;
    };
    Some(Obstacle { problem, remedy })
}

impl Config {
    /// Where Nix builds: as set in nix.conf, the default of newer versions, or TMPDIR.
    pub fn build_folder(&self) -> PathBuf {
        const NEWER: &str = "/nix/var/nix/builds";
        if let Some(folder) = self.nix_setting("build-dir") {
            return folder.into();
        }
        if self.stand_in.is_none() && Path::new(NEWER).is_dir() {
            return NEWER.into();
        }
        self.environment.get("TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::of_environment;

    fn config(text: &str, variables: &[(&str, &str)]) -> Config {
        let mut config = Config::parse(text, "/etc/muster/agent.toml".into()).unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        config.environment = of_environment(variables);
        config
    }

    #[test]
    fn the_file_counts_before_the_environment_and_what_is_local_needs_no_proxy() {
        let proxies = |text, variables: &[_]| Proxies::of(&config(text, variables));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(proxies("", &[]), Proxies::default());
        let environment = [("HTTPS_PROXY", "http://env:1"), ("no_proxy", "intern")];
        let (https, no_proxy) = (some("http://env:1"), some("intern"));
        assert_eq!(proxies("", &environment), Proxies { http: None, https, no_proxy });
        let both = |no_proxy| {
            let url = some("http://p:3128");
            Proxies { http: url.clone(), https: url, no_proxy }
        };
        assert_eq!(proxies("proxy = 'http://p:3128'", &environment), both(some(LOCAL)));
        assert_eq!(proxies("proxy = 'http://p:3128'\nno_proxy = []", &environment), both(None));
        let listed = "proxy = 'http://p:3128'\nno_proxy = ['a.example', '10.0.0.0/8']";
        assert_eq!(proxies(listed, &[]), both(some("a.example,10.0.0.0/8")));
        assert_eq!(proxies("", &[("all_proxy", "p:1")]).no_proxy, some(LOCAL));
    }

    #[test]
    fn a_folder_that_cannot_be_built_in_is_said_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(obstacle(folder.path(), true), None);
        let missing = obstacle(&folder.path().join("missing"), true).unwrap();
        assert!(missing.remedy.contains("create the folder"), "{missing:?}");
        let build = config("", &[("NIX_CONFIG", "build-dir = /big"), ("TMPDIR", "/small")]).build_folder();
        assert_eq!(build, Path::new("/big"));
    }

    #[test]
    fn each_obstacle_has_its_words_and_noexec_matters_only_where_programs_run() {
        let well = FolderFacts { read_only: false, no_exec: false, free_bytes: u64::MAX, no_inodes: false };
        let problem = |seen, runs| judge("/tmp", seen, runs).map(|found| found.problem).unwrap_or_default();
        assert_eq!(judge("/tmp", well, true), None);
        assert!(problem(FolderFacts { read_only: true, ..well }, false).contains("read-only"));
        assert!(problem(FolderFacts { free_bytes: 4096, ..well }, false).contains("full"));
        assert!(problem(FolderFacts { no_inodes: true, ..well }, false).contains("inode"));
        assert!(problem(FolderFacts { no_exec: true, ..well }, true).contains("noexec"));
        assert_eq!(problem(FolderFacts { no_exec: true, ..well }, false), "");
    }

    #[test]
    fn nixs_own_settings_are_found_where_nix_finds_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("nix.conf", "# netrc-file = /no\nnetrc-file = /one\n!include more.conf\n!include missing\n");
        write("more.conf", "netrc-file=/two # why\ninclude nix.conf\n");
        let config = |more: &[(&str, &str)]| {
            config("", &[more, &[("NIX_CONF_DIR", folder.path().to_str().unwrap())]].concat())
        };
        assert_eq!(config(&[]).nix_setting("netrc-file").as_deref(), Some("/one"), "a loop has an end");
        assert_eq!(config(&[]).nix_setting("build-dir"), None);
        let over = [("NIX_CONFIG", "netrc-file = /three\nbuild-dir = /big")];
        assert_eq!(config(&over).nix_setting("netrc-file").as_deref(), Some("/three"));
        assert_eq!(config(&over).nix_setting("build-dir").as_deref(), Some("/big"));
        let but = |text: &str| Proxies::of(&super::tests::config(text, &[])).beside_the_cache().no_proxy;
        assert_eq!(but(""), None);
        assert_eq!(but("proxy = 'http://p:1'\nno_proxy = []").as_deref(), Some("127.0.0.1"));
        let listed = but("proxy = 'http://p:1'\nno_proxy = ['a.example']");
        assert_eq!(listed.as_deref(), Some("a.example,127.0.0.1"));
    }
}
