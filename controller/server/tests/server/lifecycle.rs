//! Starting, stopping, and TLS.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::support::{Answer, Fleet, LIMIT, make_root};
use muster_protocol::api;
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::FleetView;
use muster_server::config::ServerConfig;
use muster_server::server::{self, Server, ServerError};

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

/// A certificate for 127.0.0.1 in `tls/`, and a client that trusts only that.
fn certify(folder: &Path) -> reqwest::Client {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::create_dir_all(folder.join("tls")).unwrap();
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

    // Its files are looked at every ten seconds; connections that are open go on.
    let renewed = certify(fleet.dir.path());
    let found = async {
        while renewed.get(&url).send().await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, found).await.unwrap();
    assert_eq!(Answer::of(client.get(&url)).await.status, reqwest::StatusCode::OK);
    fleet.down().await;

    std::fs::write(fleet.dir.path().join("tls/server.pem"), "nonsense").unwrap();
    assert!(matches!(start_error(&fleet).await, ServerError::Certificate(..)));
}
