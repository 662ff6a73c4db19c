//! Settings of a machine's administrator: a proxy (a real one, tinyproxy) and a netrc of their own.

use std::process::{Child, Command, Stdio};

use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use muster_agent::client::{Client, ClientError};
use muster_agent::nix::BuildLimits;
use muster_agent::process::Plain;

use super::controller::{BEARER, Controller, Fleet};
use super::enrol::Site;
use super::nix::Bed;

struct Tinyproxy {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Tinyproxy {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = folder.path().join("tinyproxy.conf");
        let log = folder.path().join("log");
        let text = format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nAllow 127.0.0.1\nLogLevel \
             Info\nLogFile \"{}\"\n",
            log.display()
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.stderr(Stdio::null()).spawn();
        let process = process.expect("these tests need a proxy: apt-get install tinyproxy");
        let proxy = Self { process, folder, port };
        tokio::time::timeout(std::time::Duration::from_secs(60), async {
            while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
        proxy
    }
    fn url(&self) -> Option<String> {
        Some(format!("http://127.0.0.1:{}", self.port))
    }
    /// How often it was asked for this.
    fn asked(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains("Request") && line.contains(what)).count()
    }
}

fn enrolled_at(bed: &Bed, ca: Option<String>) -> Client {
    let (_, identity) = Fleet::new().enrol_pinned(&bed.config.state_dir, &bed.controller.url, ca);
    Client::of(&bed.config, &identity).unwrap()
}

#[tokio::test]
async fn the_controller_is_reached_through_the_proxy_end_to_end_and_the_cache_too() {
    let proxy = Tinyproxy::start().await;
    let (controller, ca) = Controller::start_tls().await;
    let mut bed = Bed::with(controller);
    (bed.config.proxy, bed.config.no_proxy) = (proxy.url(), Some(vec![]));
    let client = enrolled_at(&bed, Some(ca));
    bed.controller.put("/v1/x", "hello");
    let connect = format!("CONNECT {}", bed.controller.url.trim_start_matches("https://"));
    assert_eq!(client.get("/v1/x", 100).await.unwrap().unwrap(), b"hello");
    assert_eq!(proxy.asked(&connect), 1, "it went through the proxy");
    client.set_bearer(BEARER).unwrap();
    bed.client = client.clone();
    let target = bed.evaluate("x86_64-linux", "echo built > $out");
    bed.serve();
    bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
    assert_eq!(proxy.asked("127.0.0.1"), proxy.asked(&connect), "Nix reads the cache on loopback without it");
    // Exceptions are fetched without it.
    let before = proxy.asked("");
    bed.config.no_proxy = Some(vec!["127.0.0.0/8".into()]);
    let direct =
        Client::of(&bed.config, &muster_agent::identity::Identity::load(&bed.config).unwrap().unwrap());
    assert_eq!(direct.unwrap().get("/v1/x", 100).await.unwrap().unwrap(), b"hello");
    assert_eq!(proxy.asked(""), before);
}

#[tokio::test]
async fn the_proxy_of_the_environment_counts_where_the_file_names_none_and_one_that_is_away_is_said() {
    let proxy = Tinyproxy::start().await;
    let mut bed = Bed::new().await;
    bed.controller.put("/v1/x", "hello");
    let variable = |name: &str, value: String| (name.to_owned(), value);
    bed.config.environment =
        [variable("http_proxy", proxy.url().unwrap()), variable("no_proxy", "intern".into())].into();
    let client = enrolled_at(&bed, None);
    assert_eq!(client.get("/v1/x", 100).await.unwrap().unwrap(), b"hello");
    assert_eq!(proxy.asked("GET "), 1);
    drop(proxy);
    let error = enrolled_at(&bed, None).get("/v1/x", 100).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_machine_enrols_through_a_proxy() {
    let proxy = Tinyproxy::start().await;
    let mut site = Site::new().await;
    (site.config.proxy, site.config.no_proxy) = (proxy.url(), Some(vec![]));
    site.enrol(false).await.unwrap();
    assert!(proxy.asked("POST ") >= 1 && proxy.asked("GET ") >= 1);
}

/// `base64(own:secret)`
const OWN: &str = "Basic b3duOnNlY3JldA==";

#[tokio::test]
async fn the_machines_own_netrc_and_variables_count_beside_ours() {
    let mut bed = Bed::new().await;
    let own = Controller::start().await;
    let port = own.url.rsplit(':').next().unwrap().to_owned();
    let folder = bed.config.stand_in.as_ref().unwrap().root.join("etc/nix");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("netrc"), "machine localhost login own password secret\n").unwrap();
    let mut target = bed.evaluate("x86_64-linux", "echo built > $out");
    target.trusted_nix_keys = vec!["builder-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into()];
    for path in ["nix-cache-info".to_owned(), format!("{}.narinfo", target.output.hash_part())] {
        own.answer(&format!("/own/{path}"), |seen| match seen.headers.get("authorization") {
            Some(password) if password == OWN && seen.path.ends_with("nix-cache-info") => {
                "StoreDir: /nix/store\n".into_response()
            }
            Some(password) if password == OWN => StatusCode::NOT_FOUND.into_response(),
            _ => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"own\"")])
                .into_response(),
        });
    }
    let temporary = bed.config.state("temporary");
    let variable = |name: &str, path: &std::path::Path| (name.to_owned(), path.display().to_string());
    bed.config.environment = [variable("TMPDIR", &temporary), variable("NIX_CONF_DIR", &folder)].into();
    let stand_in = bed.config.stand_in.as_mut().unwrap();
    stand_in.nix_config += &format!("substituters = http://localhost:{port}/own\n");
    let client = enrolled_at(&bed, None);
    client.set_bearer(BEARER).unwrap();
    bed.client = client;
    bed.serve();
    bed.nix().fetch(&target.derivation, &bed.client, &mut Plain).await.unwrap();
    let lost = bed.nix().realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain).await;
    assert!(lost.unwrap_err().to_string().contains(temporary.to_str().unwrap()), "TMPDIR reaches Nix");
    std::fs::create_dir_all(&temporary).unwrap();
    bed.nix().realise(&target, &bed.client, &bed.link(), BuildLimits::default(), &mut Plain).await.unwrap();
    let narinfo = format!("/own/{}.narinfo", target.output.hash_part());
    let allowed = |seen: &super::controller::Received| {
        seen.path == narinfo && seen.headers.get("authorization").is_some_and(|password| password == OWN)
    };
    assert!(own.seen().iter().any(allowed), "its own cache is asked with its own password");
}
