//! A real Nix, with one store for the operator and one for the machine, and a cache between them that may
//! lie.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_agent::client::Client;
use muster_agent::config::{Config, StandIn};
use muster_agent::nix::{BuildLimits, Nix, NixError};
use muster_agent::platform::Layout;
use muster_agent::process::{Plain, ProcessError};
use muster_protocol::ids::{Sha256, StorePath, nix_base32};
use muster_protocol::machine::Class;
use muster_protocol::report::Attack;
use muster_protocol::target::Target;

use super::controller::{BEARER, Controller, Fleet};

/// Lets builders find a shell where a sandbox has nothing else.
const NIX_CONFIG: &str = "substituters =\nsandbox = false\nbuild-users-group =\n\
    experimental-features = nix-command\nsandbox-paths = /bin/sh=/bin/busybox\n";

pub(super) struct Bed {
    folder: tempfile::TempDir,
    pub(super) controller: Controller,
    pub(super) client: Client,
    pub(super) config: Config,
    layout: Layout,
}

impl Bed {
    pub(super) async fn new() -> Self {
        Self::with(Controller::start().await)
    }
    pub(super) fn with(controller: Controller) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("machine");
        let mut config = Config::parse("", "/nowhere/agent.toml".into()).unwrap();
        config.state_dir = folder.path().join("state");
        config.build_seconds = 300;
        config.stand_in = Some(StandIn {
            store: Some(format!("local?root={}", root.display())),
            root,
            path: "/nowhere".into(),
            system: "x86_64-linux".parse().unwrap(),
            nix_config: NIX_CONFIG.into(),
        });
        std::fs::create_dir_all(&config.state_dir).unwrap();
        let url = if controller.url.starts_with("https") { "http://127.0.0.1:1" } else { &controller.url };
        let client = Client::anonymous(url, None).unwrap();
        client.set_bearer(BEARER).unwrap();
        let layout = Layout::new(&config, Class::Nixos);
        Self { folder, controller, client, config, layout }
    }
    pub(super) fn nix(&self) -> Nix {
        Nix::new(&self.config, &self.layout)
    }
    pub(super) fn link(&self) -> PathBuf {
        self.layout.gcroots().join("new")
    }
    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Runs a Nix program on the operator's store.
    fn operator(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments).env("HOME", self.folder.path()).env("NIX_CONFIG", NIX_CONFIG);
        command.env("NIX_REMOTE", format!("local?root={}", self.folder.path().join("operator").display()));
        let output = command.output().expect("these tests need Nix: apt-get install nix-bin busybox-static");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What an operator signs: this expression's derivation and output, with the derivation's closure in the
    /// cache.
    pub(super) fn evaluate(&self, system: &str, script: &str) -> Target {
        let expression = format!(
            r#"derivation {{ name = "system"; system = "{system}"; builder = "/bin/sh";
                args = [ "-c" ''{script}'' ]; src = builtins.toFile "source" "a source"; }}"#
        );
        let file = self.folder.path().join("system.nix");
        std::fs::write(&file, expression).unwrap();
        let derivation = self.operator("nix-instantiate", &[file.to_str().unwrap()]);
        let output = self.operator("nix-store", &["--query", "--outputs", &derivation]);
        self.copy(&["--derivation", &derivation], "");
        serde_json::from_value(serde_json::json!({
            "machine": "cinnabar", "class": "nixos", "generation": 1, "system": "x86_64-linux",
            "derivation": derivation, "output": output,
        }))
        .unwrap()
    }
    fn copy(&self, what: &[&str], parameters: &str) {
        let cache = format!("file://{}?compression=none{parameters}", self.cache().display());
        self.operator("nix", &[&["copy", "--to", &cache], what].concat());
    }

    /// Serves the cache in its current state, to holders of the bearer.
    pub(super) fn serve(&self) {
        for file in files(&self.cache()) {
            let path = format!("/cache/{}", file.strip_prefix(self.cache()).unwrap().display());
            let bytes = std::fs::read(&file).unwrap();
            self.controller.answer(&path, move |seen| {
                use axum::response::IntoResponse as _;
                match seen.headers.get("authorization") {
                    Some(said) if said == &format!("Bearer {BEARER}") => bytes.clone().into_response(),
                    _ => axum::http::StatusCode::UNAUTHORIZED.into_response(),
                }
            });
        }
    }

    /// Changes the NAR of a path in the cache, and its narinfo so that all hashes fit the change.
    fn forge(&self, path: &StorePath, from: &str, to: &str) {
        assert_eq!(from.len(), to.len());
        let info = self.cache().join(format!("{}.narinfo", path.hash_part()));
        let text = std::fs::read_to_string(&info).unwrap();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].trim().to_owned()
        };
        let nar = self.cache().join(field("URL:"));
        let bytes = std::fs::read(&nar).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let bytes = [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat();
        let hash = format!("sha256:{}", nix_base32(&Sha256::of(&bytes)));
        let url = format!("nar/{}.nar", &hash["sha256:".len()..]);
        let text = text.replace(&field("URL:"), &url);
        let text = text.replace(&field("FileHash:"), &hash).replace(&field("NarHash:"), &hash);
        std::fs::remove_file(nar).unwrap();
        std::fs::write(self.cache().join(url), bytes).unwrap();
        std::fs::write(info, text).unwrap();
    }

    fn built(&self, target: &Target) -> String {
        std::fs::read_to_string(self.layout.physical(&target.output)).unwrap()
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_derivation_is_fetched_built_kept_and_made_the_profile() {
    let bed = Bed::new().await;
    let target = bed.evaluate("x86_64-linux", "echo built > $out");
    bed.serve();
    let nix = bed.nix();
    assert!(!nix.is_valid(&target.derivation).unwrap());
    nix.fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
    assert!(nix.is_valid(&target.derivation).unwrap() && !nix.is_valid(&target.output).unwrap());
    assert_eq!(
        nix.realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain).await.unwrap(),
        target.output
    );
    assert_eq!(bed.built(&target), "built\n");
    nix.set_profile(&target.output).unwrap();
    let generation = std::fs::read_link(bed.layout.profile()).unwrap();
    let profile = std::fs::read_link(bed.layout.profile().with_file_name(generation)).unwrap();
    assert_eq!(bed.layout.logical(&profile), Some(target.output.clone()));

    // Everything is in place, so a repetition needs neither the cache nor a build.
    let seen = bed.controller.seen().len();
    nix.fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
    nix.realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain).await.unwrap();
    assert_eq!(bed.controller.seen().len(), seen);

    // Nix's own view: both are protected from garbage collection, the derivation while it is in use.
    let mut command = Command::new("nix-store");
    command.args(["--gc", "--print-roots"]).env("NIX_CONFIG", NIX_CONFIG);
    command.env("NIX_REMOTE", bed.config.stand_in.clone().unwrap().store.unwrap());
    let roots = String::from_utf8(command.output().unwrap().stdout).unwrap();
    for (link, path) in [("muster/new", &target.output), ("muster/derivation", &target.derivation)] {
        assert!(roots.contains(&format!("{link} -> {path}")), "{roots}");
    }
}

#[tokio::test]
async fn the_cache_is_read_with_the_bearer_and_with_no_other() {
    let bed = Bed::new().await;
    let target = bed.evaluate("x86_64-linux", "echo built > $out");
    bed.serve();
    bed.client.set_bearer("old").unwrap();
    let error = bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap_err();
    assert!(matches!(&error, NixError::Fetch { .. }) && error.attack().is_none(), "{error}");
    assert!(!error.is_permanent(), "a new bearer may help");
    assert!(error.to_string().contains("refused it") || error.to_string().contains("401"), "{error}");
}

#[tokio::test]
async fn i1_a_derivation_that_was_changed_in_the_cache_is_refused_though_its_file_may_lie_in_the_store() {
    let bed = Bed::new().await;
    let target = bed.evaluate("x86_64-linux", "echo built > $out");
    bed.forge(&target.derivation, "echo built", "echo owned");
    bed.serve();
    let error = bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap_err();
    assert!(matches!(&error, NixError::Fetch { .. } | NixError::NotValid(_)), "{error}");
    assert!(!bed.nix().is_valid(&target.derivation).unwrap());
    // Placed there manually it is no better: only Nix's database tells.
    let file = bed.layout.physical(&target.derivation);
    let _ = std::fs::remove_file(&file);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "Derive([(\"out\",\"x\",\"\",\"\")],[],[],\"x86_64-linux\")").unwrap();
    let error = bed
        .nix()
        .realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain)
        .await
        .unwrap_err();
    assert!(matches!(error, NixError::NotValid(_)), "{error}");
}

#[tokio::test]
async fn i1_a_derivation_without_its_content_address_is_refused() {
    let bed = Bed::new().await;
    let target = bed.evaluate("x86_64-linux", "echo built > $out");
    bed.forge(&target.derivation, "echo built", "echo owned");
    let info = bed.cache().join(format!("{}.narinfo", target.derivation.hash_part()));
    let text = std::fs::read_to_string(&info).unwrap();
    let text: String =
        text.lines().filter(|line| !line.starts_with("CA:")).map(|line| format!("{line}\n")).collect();
    std::fs::write(info, text).unwrap();
    bed.serve();
    let error = bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::AlteredArchive), "{error}");
    assert!(!bed.nix().is_valid(&target.derivation).unwrap());
}

/// What a thief of the controller would have root's Nix do. Nothing of it reaches Nix, nobody else is
/// contacted, and the machine's message is the same whether anybody listens there or not.
#[tokio::test]
async fn a_description_that_leads_out_of_the_cache_never_reaches_nix() {
    let elsewhere = Controller::start().await;
    elsewhere.put("/nar", "found");
    let mut said = std::collections::BTreeSet::new();
    for url in [
        "file:///dev/zero",
        &format!("{}/nar", elsewhere.url),
        "http://127.0.0.1:1/nar",
        "/cache/nar/x",
        "../x",
    ] {
        let bed = Bed::new().await;
        let target = bed.evaluate("x86_64-linux", "echo built > $out");
        let info = bed.cache().join(format!("{}.narinfo", target.derivation.hash_part()));
        let text = std::fs::read_to_string(&info).unwrap();
        let text = text.lines().map(|line| match line.split_once(": ") {
            Some(("URL", _)) => format!("URL: {url}\n"),
            _ => format!("{line}\n"),
        });
        std::fs::write(&info, text.collect::<String>()).unwrap();
        bed.serve();
        let error = bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap_err();
        assert_eq!(error.attack(), Some(Attack::AlteredArchive), "{url}: {error}");
        said.insert(error.to_string().replace(url, "URL").replace(target.derivation.hash_part(), "HASH"));
        assert!(!bed.config.state("netrc").exists(), "the password ends with its run");
    }
    assert!(elsewhere.seen().is_empty());
    assert_eq!(said.len(), 1, "{said:?}");
}

#[tokio::test]
async fn another_output_than_the_signed_one_is_refused_before_anything_is_built() {
    let bed = Bed::new().await;
    let mut target = bed.evaluate("x86_64-linux", "echo built > $out");
    bed.serve();
    bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
    let real = target.output.clone();
    target.output = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap();
    let error = bed
        .nix()
        .realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain)
        .await
        .unwrap_err();
    assert_eq!(error.attack(), Some(Attack::WrongOutput), "{error}");
    assert!(error.is_permanent());
    assert!(!bed.nix().is_valid(&real).unwrap() && !bed.link().exists());
}

#[tokio::test]
async fn i6_a_derivation_for_another_platform_is_refused_before_anything_is_built() {
    for system in ["aarch64-darwin", "aarch64-linux", "builtin"] {
        let bed = Bed::new().await;
        let target = bed.evaluate(system, "echo built > $out");
        bed.serve();
        bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
        let error = bed
            .nix()
            .realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain)
            .await
            .unwrap_err();
        assert!(matches!(error, NixError::Platform { .. }), "{system}: {error}");
        assert_eq!(error.attack(), Some(Attack::WrongClass));
    }
}

#[tokio::test]
async fn a_build_that_fails_tells_the_end_of_its_output() {
    let bed = Bed::new().await;
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo it is broken; exit 7";
    let target = bed.evaluate("x86_64-linux", script);
    bed.serve();
    bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
    let error = bed
        .nix()
        .realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain)
        .await
        .unwrap_err();
    assert!(error.is_permanent() && error.attack().is_none(), "{error}");
    assert!(error.to_string().contains("exit code 7") && error.to_string().len() < 1000, "{error}");
    let detail = error.detail();
    assert!(detail.contains("it is broken") && detail.len() <= 4096, "{detail}");
}

/// A build host's output arrives only under a key that the signed target names.
#[tokio::test]
async fn outputs_come_from_the_cache_under_the_signed_keys_alone() {
    for (signed, named, comes) in
        [(true, true, true), (true, false, false), (false, true, false), (false, false, false)]
    {
        let bed = Bed::new().await;
        let mut target = bed.evaluate("x86_64-linux", "echo built here > $out");
        // Content that no build of this derivation produces shows where it came from.
        bed.operator("nix-store", &["--realise", target.derivation.as_str()]);
        let key = bed.folder.path().join("key");
        let public = bed.folder.path().join("key.pub");
        let (key, public) = (key.to_str().unwrap(), public.to_str().unwrap());
        bed.operator("nix-store", &["--generate-binary-cache-key", "builder-1", key, public]);
        let output = target.output.as_str().to_owned();
        if signed {
            replace_output(&bed, &target, "built away\n");
            bed.copy(&[&output], &format!("&secret-key={key}"));
        } else {
            bed.copy(&[&output], "");
            bed.forge(&target.output, "built here", "built away");
        }
        if named {
            target.trusted_nix_keys = vec![std::fs::read_to_string(public).unwrap().trim().to_owned()];
        }
        bed.serve();
        bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
        bed.nix()
            .realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain)
            .await
            .unwrap();
        let wanted = if comes { "built away\n" } else { "built here\n" };
        assert_eq!(bed.built(&target), wanted, "signed: {signed}, named: {named}");
    }
}

/// Makes the operator's store believe that the output has this content.
fn replace_output(bed: &Bed, target: &Target, content: &str) {
    let output = target.output.as_str();
    let scratch = bed.folder.path().join("scratch");
    std::fs::write(&scratch, content).unwrap();
    let hash = bed.operator("nix-hash", &["--type", "sha256", scratch.to_str().unwrap()]);
    bed.operator("nix-store", &["--delete", output]);
    let file = bed.folder.path().join("operator").join(&output[1..]);
    std::fs::copy(&scratch, &file).unwrap();
    let size = bed.operator("sh", &["-c", &format!("nix-store --dump {} | wc -c", scratch.display())]);
    let registration = bed.folder.path().join("registration");
    // The format of `nix-store --load-db`: path, hash, size, deriver, and no references.
    std::fs::write(&registration, format!("{output}\n{hash}\n{size}\n\n0\n")).unwrap();
    bed.operator("sh", &["-c", &format!("nix-store --load-db < {}", registration.display())]);
}

/// The token's authority is enough for Nix: for the derivation, and for outputs, which may also come from
/// elsewhere.
#[tokio::test]
async fn the_cache_is_read_over_tls_by_the_pinned_authority_alone() {
    let (controller, ca) = Controller::start_tls().await;
    let mut bed = Bed::with(controller);
    let fleet = Fleet::new();
    let mut target = bed.evaluate("x86_64-linux", "echo built > $out");
    target.trusted_nix_keys = vec!["builder-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into()];
    bed.serve();
    let (_, other) = Controller::start_tls().await;
    for (authority, good) in [(other, false), (ca, true)] {
        let (_, identity) = fleet.enrol_pinned(&bed.config.state_dir, &bed.controller.url, Some(authority));
        bed.client = Client::new(&identity).unwrap();
        bed.client.set_bearer(BEARER).unwrap();
        let fetched = bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await;
        match fetched {
            Err(error) => assert!(!good && matches!(error, NixError::Fetch { .. }), "{error}"),
            Ok(()) => assert!(good),
        }
    }
    bed.nix().realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain).await.unwrap();
    let asked = bed.controller.seen();
    let output = format!("/cache/{}.narinfo", target.output.hash_part());
    assert!(asked.iter().any(|seen| seen.path == output), "the cache was asked for the output too");
}

#[tokio::test]
async fn a_build_that_is_not_wanted_any_more_is_ended() {
    let bed = Bed::new().await;
    let target = bed.evaluate("x86_64-linux", "while :; do :; done");
    bed.serve();
    let nix = bed.nix();
    nix.fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
    let link = bed.link();
    let works = || processes(link.to_str().unwrap());
    let (mut plain, limits) = (Plain, BuildLimits::default());
    tokio::select! {
        result = nix.realise(&target, &bed.client, &link, limits, &mut plain) => panic!("it ended by \
            itself: {result:?}"),
        () = until(|| works() > 0) => {}
    }
    until(|| works() == 0).await;
}

#[tokio::test]
async fn a_build_that_takes_too_long_is_ended() {
    let mut bed = Bed::new().await;
    let target = bed.evaluate("x86_64-linux", "while :; do :; done");
    bed.serve();
    bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
    bed.config.build_seconds = 1;
    let error = bed
        .nix()
        .realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain)
        .await
        .unwrap_err();
    assert!(matches!(error, NixError::Process(ProcessError::TimedOut { .. })), "{error}");
    let link = bed.link();
    until(|| processes(link.to_str().unwrap()) == 0).await;
}

#[tokio::test]
async fn a_machine_without_nix_says_so() {
    let bed = Bed::new().await;
    let error = bed.nix().find("no-such-nix").unwrap_err();
    assert!(error.to_string().contains("install Nix"), "{error}");
    let version = bed.nix().version().unwrap();
    assert!(version.starts_with("nix-store (Nix"), "{version:?}");
}

/// The number of processes with this text in their command line.
fn processes(text: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(text)).count()
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it never came true");
}
