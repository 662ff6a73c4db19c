//! Starting, stopping, TLS, and a full disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod server_support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use muster::server::{self, Server, ServerError};
use muster::server_config::ServerConfig;
use muster_protocol::api;
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::FleetView;
use server_support::{Answer, Fleet, make_root};

async fn start_error(fleet: &Fleet) -> ServerError {
    let config = ServerConfig::load(&fleet.config_file()).unwrap();
    match Server::start(config).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn run_serves_until_it_is_told_to_stop_and_says_why_it_does_not_start() {
    let mut fleet = Fleet::start().await;
    fleet.down().await;
    server::run(&fleet.config_file(), std::future::ready(())).await.unwrap();
    std::fs::write(fleet.config_file(), "listen = 8443").unwrap();
    let error = server::run(&fleet.config_file(), std::future::pending()).await.unwrap_err();
    assert!(error.to_string().contains("controller.toml"), "{error}");
}

#[tokio::test]
async fn a_second_controller_on_the_same_folder_is_refused() {
    let mut fleet = Fleet::start().await;
    assert!(matches!(start_error(&fleet).await, ServerError::Locked(_)));
    fleet.down().await;
    fleet.up().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let mut fleet = Fleet::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen = \"{}\"", taken.local_addr().unwrap());
    fleet.down().await;
    let text = std::fs::read_to_string(fleet.config_file()).unwrap();
    std::fs::write(fleet.config_file(), text.replace("listen = \"127.0.0.1:0\"", &listen)).unwrap();
    let error = start_error(&fleet).await.to_string();
    assert!(
        error.contains(&taken.local_addr().unwrap().to_string()) && error.contains("controller.toml"),
        "{error}"
    );
}

#[tokio::test]
async fn roots_that_do_not_fit_are_refused_at_the_start() {
    let mut fleet = Fleet::start().await;
    fleet.down().await;
    let root = fleet.dir.path().join("root");

    std::fs::write(root.join("2.root.json"), "<html>").unwrap();
    assert!(start_error(&fleet).await.to_string().contains("2.root.json"));
    let other_online = make_root(2, &fleet.root_key, &[&fleet.operator], &SecretKey::generate().unwrap());
    std::fs::write(root.join("2.root.json"), other_online).unwrap();
    assert!(start_error(&fleet).await.to_string().contains("online_key"));
    std::fs::remove_file(root.join("2.root.json")).unwrap();

    let other_fleet = make_root(1, &SecretKey::generate().unwrap(), &[&fleet.operator], &fleet.online);
    std::fs::write(root.join("1.root.json"), other_fleet).unwrap();
    let error = start_error(&fleet).await.to_string();
    assert!(error.contains("belongs to fleet"), "{error}");
    std::fs::remove_file(root.join("1.root.json")).unwrap();
    assert!(start_error(&fleet).await.to_string().contains("muster init"));
}

#[tokio::test]
async fn the_data_folder_is_the_controllers_alone() {
    let fleet = Fleet::start().await;
    let mode = std::fs::metadata(fleet.dir.path().join("data")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);
}

/// A certificate for 127.0.0.1 in `tls/`, and a client that believes it alone.
fn certify(folder: &Path) -> reqwest::Client {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::create_dir(folder.join("tls")).unwrap();
    std::fs::write(folder.join("tls/server.pem"), made.cert.pem()).unwrap();
    let key = folder.join("tls/server-key.pem");
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(config).build().unwrap()
}

#[tokio::test]
async fn with_a_certificate_it_speaks_tls_alone() {
    let mut fleet = Fleet::start().await;
    fleet.down().await;
    let client = certify(fleet.dir.path());
    let text = std::fs::read_to_string(fleet.config_file()).unwrap();
    let tls = "[tls]\ncertificate = \"tls/server.pem\"\nkey = \"tls/server-key.pem\"\n";
    std::fs::write(fleet.config_file(), format!("{text}{tls}")).unwrap();
    fleet.up().await;
    let url = format!("https://{}{}", fleet.address(), api::FLEET);
    let view: FleetView = Answer::of(client.get(&url)).await.good();
    assert_eq!(view.fleet, fleet.fleet_id());
    assert!(fleet.http.get(&url).send().await.is_err(), "a stranger's client does not believe it");
    assert!(fleet.http.get(fleet.url(api::FLEET)).send().await.is_err(), "it speaks no plain HTTP");
    fleet.down().await;

    std::fs::write(fleet.dir.path().join("tls/server.pem"), "nonsense").unwrap();
    assert!(matches!(start_error(&fleet).await, ServerError::Certificate(..)));
}

/// Runs again in a mount namespace of its own, where a small disk can be had.
#[cfg(target_os = "linux")]
mod small_disk {
    use super::server_support::Fleet;
    use muster_protocol::api::ProblemCode;
    use muster_protocol::checkin::CheckInReply;
    use muster_protocol::ids::{Sha256, nix_base32};
    use muster_protocol::machine::Class;
    use reqwest::StatusCode;
    use std::process::Command;

    const INSIDE: &str = "MUSTER_TEST_SMALL_DISK";

    #[tokio::test]
    async fn a_full_disk_is_told_keeps_nothing_half_and_works_again_when_there_is_room() {
        match std::env::var_os(INSIDE) {
            Some(_) => inside().await,
            None => outside(),
        }
    }

    fn outside() {
        let dir = tempfile::tempdir().unwrap();
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--map-root-user"]);
        let script = "mount -t tmpfs -o size=6m none \"$1\" && TMPDIR=\"$1\" exec \"$2\" --exact --nocapture \
                      small_disk::a_full_disk_is_told_keeps_nothing_half_and_works_again_when_there_is_room";
        let out = unshare
            .args(["sh", "-c", script, "sh"])
            .arg(dir.path())
            .arg(std::env::current_exe().unwrap())
            .env(INSIDE, "1")
            .output()
            .expect("unshare of util-linux is installed");
        let words =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && words.contains("1 passed"), "{words}");
    }

    async fn inside() {
        // The disk is what is to give out, not the machine's tokens.
        let fleet = Fleet::start_with("[limits]\nmachine_per_second = 0").await;
        let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
        let operator = fleet.session().await;
        let put = async |nar: Vec<u8>| {
            let path = format!("/cache/nar/{}.nar", nix_base32(&Sha256::of(&nar)));
            let request = fleet.http.put(fleet.url(&path)).bearer_auth(&operator);
            super::Answer::of(request.body(nar)).await
        };
        // Larger than what is left; small enough to be sent whole before the answer.
        let message = put(vec![1; 7_000_000]).await.refused(507, ProblemCode::StorageFull);
        assert!(message.contains("free some space"), "{message}");
        let nars = fleet.dir.path().join("data/blobs/nar");
        assert_eq!(std::fs::read_dir(&nars).unwrap().count(), 0);

        let filler = fleet.dir.path().join("filler");
        let mut size = 8 * 1024 * 1024_usize;
        let mut held = Vec::new();
        while size > 0 {
            let path = filler.with_extension(held.len().to_string());
            if std::fs::write(&path, vec![2; size]).is_err() {
                std::fs::remove_file(&path).unwrap();
                size /= 2;
                continue;
            }
            held.push(path);
        }
        // Some check-ins still find room in the write-ahead log; then one does not.
        let mut refused = None;
        for _ in 0..2000 {
            machine.seq += 1;
            let answer = machine.send_checkin(&fleet, &machine.checkin(&fleet, machine.seq)).await;
            if answer.status != StatusCode::OK {
                refused = Some(answer);
                break;
            }
        }
        refused.expect("the disk is full").refused(507, ProblemCode::StorageFull);
        for path in held {
            std::fs::remove_file(path).unwrap();
        }
        // The same check-in again: it was not kept, so it is no repetition.
        let again = machine.checkin(&fleet, machine.seq);
        machine.send_checkin(&fleet, &again).await.good::<CheckInReply>();
        assert_eq!(put(vec![1; 100_000]).await.status, StatusCode::CREATED);
        assert!(!fleet.view("cinnabar").await.clone_alarm);
    }
}
