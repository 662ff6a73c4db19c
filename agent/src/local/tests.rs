use super::*;

fn a_status() -> Status {
    Status {
        agent_running: true,
        agent: "0.1.0".into(),
        machine: "cinnabar".parse().unwrap(),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        controller: "https://muster.example".into(),
        fleet: Sha256::of(b"fleet"),
        phase: Phase::Confirmed,
        phase_generation: Some(Generation::FIRST),
        note: Some("n".repeat(10_000)),
        verified: None,
        runs: None,
        holds: Holds::default(),
        refused: None,
        health: Health::default(),
        next: "waiting for a generation newer than 1".into(),
        last_contact: Some(1),
        reports_waiting: 3,
        shut_out: None,
        age: None,
        key: None,
        log: vec![],
        rollout: None,
        vouches: None,
    }
}

fn config(folder: &Path) -> Config {
    let mut config = Config::parse("", folder.join("agent.toml")).unwrap();
    config.state_dir = folder.to_path_buf();
    config.stand_in = Some(crate::config::StandIn {
        root: folder.to_path_buf(),
        store: None,
        path: folder.join("programs"),
        system: "x86_64-linux".parse().unwrap(),
        nix_config: String::new(),
    });
    config
}

/// A runner that answers everything; it lives as long as the listener.
fn runner(folder: &Path) -> Listener {
    runner_with(folder, READ_LIMIT)
}
fn runner_with(folder: &Path, patience: Duration) -> Listener {
    let (sender, mut commands) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Status(reply) => drop(reply.send(a_status())),
                Command::CheckNow(reply) => drop(reply.send(Ok("it asks now".into()))),
                Command::AtBoot(reply) => drop(reply.send(Err("nothing waits for a reboot".into()))),
                Command::Rollback(reply) => drop(reply.send(Err("there is nothing to go back to".into()))),
                Command::Pause { until, by, to } => drop(to.send(Ok(format!("{until:?} by {by:?}")))),
                Command::Resume { to, .. } => drop(to.send(Ok("resumed".into()))),
                Command::Retry { by, to } => drop(to.send(Ok(format!("retried by {by:?}")))),
                Command::RotateKey(reply) => drop(reply.send(Ok("the new key is made".into()))),
            }
        }
    });
    listen_within(folder, sender, patience).unwrap()
}

/// Sends these bytes and reads what comes back.
async fn raw(folder: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(folder.join(SOCKET)).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply).await;
    reply
}

#[tokio::test]
async fn each_request_reaches_the_runner_and_its_answer_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let _listener = runner(folder.path());
    assert_eq!(status(&config(folder.path())).await.unwrap(), a_status());
    assert!(check_now(&config(folder.path())).await.unwrap().contains("now"));
    let error = rollback(&config(folder.path())).await.unwrap_err();
    assert_eq!(error.to_string(), "there is nothing to go back to");
    assert_eq!(rotate_key(&config(folder.path())).await.unwrap(), "the new key is made");
    assert!(retry(&config(folder.path())).await.unwrap().starts_with("retried by Some("));
}

#[tokio::test]
async fn a_pause_carries_its_end_and_who_asked_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let _listener = runner(folder.path());
    let own = rustix::process::geteuid().as_raw();
    let config = config(folder.path());
    assert_eq!(pause(&config, Some(7)).await.unwrap(), format!("Some(7) by Some({own})"));
    assert_eq!(pause(&config, None).await.unwrap(), format!("None by Some({own})"));
    assert_eq!(resume(&config).await.unwrap(), "resumed");
}

#[tokio::test]
async fn failure_mode_37_a_group_gets_a_socket_of_its_own_only_where_it_is_named() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let (sender, _commands) = mpsc::channel(1);
    assert!(listen_to_group(&config, sender.clone()).unwrap().is_none());
    config.group = Some("daemon".into());
    let listener = listen_to_group(&config, sender.clone()).unwrap().unwrap();
    let socket = shared_socket(&config);
    for (path, mode) in [(socket.as_path(), 0o660), (socket.parent().unwrap(), 0o750)] {
        let data = std::fs::metadata(path).unwrap();
        assert_eq!((data.mode() & 0o777, data.gid()), (mode, 1), "{}", path.display());
    }
    drop(listener);
    assert!(!socket.exists());
    config.group = Some("no-such-group-here".into());
    assert!(listen_to_group(&config, sender).err().unwrap().to_string().contains("no such group"));
}

#[tokio::test]
async fn failure_mode_37_the_socket_is_roots_alone_and_goes_with_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(SOCKET), "left by a crash").unwrap();
    let listener = runner(folder.path());
    let mode = std::fs::metadata(folder.path().join(SOCKET)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(listener);
    assert!(matches!(status(&config(folder.path())).await, Err(LocalError::NotRunning)));
    assert!(!folder.path().join(SOCKET).exists());
}

#[tokio::test]
async fn a_socket_that_a_crash_left_counts_as_no_agent() {
    let folder = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(folder.path().join(SOCKET)).unwrap());
    assert!(folder.path().join(SOCKET).exists());
    assert!(matches!(check_now(&config(folder.path())).await, Err(LocalError::NotRunning)));
}

#[tokio::test]
async fn nonsense_on_the_socket_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let _listener = runner(folder.path());
    for nonsense in [&b"\n"[..], b"{}\n", b"{\"request\":\"format-the-disk\"}\n", b"\xff\xfe\n"] {
        assert!(raw(folder.path(), nonsense).await.contains("not understood"));
    }
    for nonsense in [&b""[..], b"no end", &[b'x'; 100_000]] {
        assert_eq!(raw(folder.path(), nonsense).await, "");
    }
    assert_eq!(status(&config(folder.path())).await.unwrap(), a_status());
}

#[tokio::test]
async fn a_runner_that_is_gone_gives_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let (sender, commands) = mpsc::channel(1);
    let _listener = listen(&config(folder.path()), sender).unwrap();
    drop(commands);
    assert!(status(&config(folder.path())).await.unwrap_err().to_string().contains("try again"));
}

#[tokio::test]
async fn clients_that_say_nothing_are_sent_away_and_others_get_their_turn() {
    let folder = tempfile::tempdir().unwrap();
    let _listener = runner_with(folder.path(), Duration::from_millis(50));
    let mut silent = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        silent.push(UnixStream::connect(folder.path().join(SOCKET)).await.unwrap());
    }
    assert_eq!(status(&config(folder.path())).await.unwrap(), a_status());
    let mut nothing = String::new();
    assert_eq!(silent[0].read_to_string(&mut nothing).await.unwrap(), 0);
}

#[test]
fn a_status_of_a_later_release_still_parses() {
    let mut later = serde_json::to_value(a_status()).unwrap();
    later["a field of the future"] = true.into();
    later["phase"] = "teleporting".into();
    let status: Status = serde_json::from_value(later).unwrap();
    assert_eq!(status.phase, Phase::Unknown);
}

/// An enrolled machine whose service manager reports this state of the agent. It records each time it is
/// asked.
fn enrolled(folder: &Path, says: &str) -> Config {
    let enrolment = crate::identity::Enrolment {
        version: 1,
        machine: "cinnabar".parse().unwrap(),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        fleet: Sha256::of(b"fleet"),
        url: "http://127.0.0.1:1".into(),
        lowest_generation: Generation::FIRST,
        tls_ca: None,
        enrolled_at: 1,
    };
    Identity::save(folder, &enrolment).unwrap();
    asked_of_systemd(folder, says);
    config(folder)
}

fn asked_of_systemd(folder: &Path, says: &str) {
    let program = folder.join("programs/systemctl");
    crate::scripts::script(&program, &format!("echo \"$@\" >> $0.asked; echo {says}"));
}

fn times_asked(folder: &Path) -> usize {
    let asked = std::fs::read_to_string(folder.join("programs/systemctl.asked")).unwrap_or_default();
    asked.lines().filter(|line| *line == "is-active muster-agent.service").count()
}

#[tokio::test]
async fn an_agent_that_is_being_started_is_waited_for_until_it_listens() {
    for says in ["active", "activating"] {
        let folder = tempfile::tempdir().unwrap();
        let config = enrolled(folder.path(), says);
        let listening = async {
            // By then the first look has found no socket.
            while times_asked(folder.path()) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            runner(folder.path())
        };
        let (status, _listener) = tokio::join!(status(&config), listening);
        assert_eq!(status.unwrap(), a_status());
    }
}

#[tokio::test]
async fn nobody_waits_for_an_agent_that_is_not_coming() {
    let folder = tempfile::tempdir().unwrap();
    let config = enrolled(folder.path(), "inactive");
    assert!(matches!(status(&config).await, Err(LocalError::NotRunning)));
    assert_eq!(times_asked(folder.path()), 1);
    // On a machine that is not enrolled nobody listens.
    let folder = tempfile::tempdir().unwrap();
    asked_of_systemd(folder.path(), "active");
    assert!(matches!(status(&self::config(folder.path())).await, Err(LocalError::NotRunning)));
    assert_eq!(times_asked(folder.path()), 0);
}

#[tokio::test]
async fn the_wait_for_an_agent_that_never_listens_has_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let config = enrolled(folder.path(), "activating");
    let asked = ask_within(&config, Request::CheckNow, Duration::from_millis(30)).await;
    let error = asked.unwrap_err();
    assert!(matches!(error, LocalError::NotListening(_)), "{error}");
    assert!(times_asked(folder.path()) > 1);
}
