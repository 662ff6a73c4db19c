//! The health checks of a target: they only observe.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::target::{HealthCheck, Probe};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::core::health::CheckResult;
use crate::platform::{Layout, Platform};
use crate::process;

/// The pause before a failed check is retried.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest part of an output or an error in a result, in bytes, from its end.
const MAX_DETAIL: usize = 500;

/// Runs all checks at once, each with its own tries, and returns their results in the target's order.
pub async fn run(checks: &[HealthCheck], platform: &Arc<dyn Platform>) -> Vec<CheckResult> {
    let mut running = JoinSet::new();
    for (place, check) in checks.iter().cloned().enumerate() {
        let platform = Arc::clone(platform);
        running.spawn(async move { (place, tries(&check, &platform).await) });
    }
    let mut results = Vec::new();
    while let Some(done) = running.join_next().await {
        results.extend(done.ok());
    }
    results.sort_by_key(|(place, _)| *place);
    let mut results = results.into_iter().peekable();
    let result_of = |(place, check): (usize, &HealthCheck)| {
        let outcome = match results.next_if(|(of, _)| *of == place) {
            Some((_, outcome)) => outcome,
            None => Err("the check itself crashed; please report this".to_owned()),
        };
        CheckResult { name: check.name.clone(), outcome }
    };
    checks.iter().enumerate().map(result_of).collect()
}

async fn tries(check: &HealthCheck, platform: &Arc<dyn Platform>) -> Result<(), String> {
    let mut outcome = Err("it was never run".to_owned());
    for attempt in 1..=check.tries {
        outcome = once(check, platform).await;
        match &outcome {
            Ok(()) => break,
            Err(why) => tracing::info!(check = check.name, attempt, "not healthy: {why}"),
        }
        if attempt < check.tries {
            tokio::time::sleep(PAUSE).await;
        }
    }
    outcome
}

async fn once(check: &HealthCheck, platform: &Arc<dyn Platform>) -> Result<(), String> {
    let limit = Duration::from_secs(check.timeout_seconds.into());
    let late = || format!("no answer within {} s", limit.as_secs());
    match &check.probe {
        Probe::Command { command } => {
            let (command, platform) = (command.clone(), Arc::clone(platform));
            // It ends at its own limit, with everything it started, even when nobody waits for it any more.
            let ran = tokio::task::spawn_blocking(move || run_command(&command, limit, platform.layout()));
            ran.await.unwrap_or_else(|_| Err("the check itself crashed; please report this".to_owned()))
        }
        Probe::Unit { unit: name } | Probe::Label { label: name } => {
            let (name, platform) = (name.clone(), Arc::clone(platform));
            let asked = tokio::task::spawn_blocking(move || platform.service(&name));
            match timeout(limit, asked).await {
                Ok(answer) => {
                    answer.unwrap_or_else(|_| Err("the check itself crashed; please report this".to_owned()))
                }
                Err(_) => Err(late()),
            }
        }
        // A check of an unknown kind counts as failed.
        Probe::Unknown => Err("this muster-agent does not know this kind of check: update it".to_owned()),
        Probe::Http { url } => timeout(limit, http(url, limit)).await.unwrap_or_else(|_| Err(late())),
        Probe::Tcp { address } => match timeout(limit, tokio::net::TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("{address}: {error}")),
            Err(_) => Err(format!("{address}: {}", late())),
        },
    }
}

fn run_command(words: &[String], limit: Duration, layout: &Layout) -> Result<(), String> {
    run_with(words, &[], limit, layout)
}

/// Runs a program of the machine; returns its output if it failed. `facts` are environment variables.
pub fn run_with(
    words: &[String],
    facts: &[(&str, String)],
    limit: Duration,
    layout: &Layout,
) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else {
        return Err("the command is empty".to_owned());
    };
    let mut command = layout.command(program);
    command.args(arguments).envs(facts.iter().map(|(name, value)| (*name, value)));
    let finished = process::run(&mut command, limit, &layout.state(""))
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    if finished.timed_out {
        return Err(format!("{program} did not end within {} s and was ended", limit.as_secs()));
    }
    if finished.exit == 0 {
        return Ok(());
    }
    let output = finished.output.trim();
    let tail = &output[output.ceil_char_boundary(output.len().saturating_sub(MAX_DETAIL))..];
    Err(format!("{program} ended with {}: {tail}", finished.exit))
}

/// Any address may be used, with any certificate authority that is publicly trusted, without following
/// redirects: a status from 300 to 399 is an answer too.
#[allow(clippy::disallowed_methods)]
async fn http(url: &str, limit: Duration) -> Result<(), String> {
    let reason = |error: reqwest::Error| {
        let mut text = error.without_url().to_string();
        text.truncate(text.floor_char_boundary(MAX_DETAIL));
        format!("{url}: {text}")
    };
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .timeout(limit)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(reason)?;
    let status = client.get(url).send().await.map_err(reason)?.status().as_u16();
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("{url} answered {status}")) }
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::*;
    use crate::platform::Nixos;
    use crate::platform::testing::layout;

    fn check(name: &str, probe: Probe, tries: u32) -> HealthCheck {
        HealthCheck { name: name.into(), probe, timeout_seconds: 1, tries }
    }
    fn command(text: &str) -> Probe {
        Probe::Command { command: vec!["sh".into(), "-c".into(), text.into()] }
    }
    fn platform(folder: &std::path::Path) -> Arc<dyn Platform> {
        Arc::new(Nixos::new(layout(folder, Class::Nixos), vec![], folder))
    }

    #[tokio::test]
    async fn every_kind_of_check_tells_health_from_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let app = axum::Router::new()
            .route("/moved", axum::routing::get(|| async { (axum::http::StatusCode::FOUND, "") }))
            .route("/well", axum::routing::get(|| async { "" }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let url = |path: &str| Probe::Http { url: format!("http://{address}/{path}") };
        let checks = [
            check("true", command("true"), 1),
            check("false", command("echo broken; exit 3"), 1),
            check("missing", Probe::Command { command: vec!["/no/such/program".into()] }, 1),
            check("hangs", command("sleep 60"), 1),
            check("well", url("well"), 1),
            check("moved", url("moved"), 1),
            check("absent", url("absent"), 1),
            check("open", Probe::Tcp { address: address.to_string() }, 1),
            check("closed", Probe::Tcp { address: closed.to_string() }, 1),
            check("runs", Probe::Unit { unit: "sshd.service".into() }, 1),
            check("rests", Probe::Unit { unit: "x.service".into() }, 1),
            check("new", Probe::Unknown, 1),
        ];
        let systemctl = "test \"$1 $3\" = 'is-active sshd.service' && exit 0; echo failed; exit 3";
        crate::scripts::script(&folder.path().join("programs/systemctl"), systemctl);
        let results = run(&checks, &platform(folder.path())).await;
        let words: Vec<(&str, &str)> = results
            .iter()
            .map(|result| (result.name.as_str(), result.outcome.as_ref().err().map_or("", String::as_str)))
            .collect();
        for (found, (name, part)) in words.iter().zip([
            ("true", ""),
            ("false", "sh ended with 3: broken"),
            ("missing", "cannot be run"),
            ("hangs", "did not end within 1 s"),
            ("well", ""),
            ("moved", ""),
            ("absent", "answered 404"),
            ("open", ""),
            ("closed", "refused"),
            ("runs", ""),
            ("rests", "x.service is failed"),
            ("new", "does not know"),
        ]) {
            assert_eq!(found.0, name);
            assert!(found.1.contains(part) && found.1.is_empty() == part.is_empty(), "{found:?}");
        }
    }

    #[tokio::test]
    async fn a_check_that_heals_within_its_tries_is_healthy() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let text = format!("test -e {0} || {{ touch {0}; exit 1; }}", mark.display());
        let results = run(&[check("heals", command(&text), 2)], &platform(folder.path())).await;
        assert_eq!(results[0].outcome, Ok(()));
        std::fs::remove_file(mark).unwrap();
        let results = run(&[check("once", command(&text), 1)], &platform(folder.path())).await;
        assert!(results[0].outcome.is_err());
    }
}
