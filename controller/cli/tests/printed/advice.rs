//! Invalid input, and helpful advice: it names what is wrong, and never destroys anything.

use super::*;

/// A command, text of its refusal, and text that would be wrong there.
type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str]);

#[tokio::test(flavor = "multi_thread")]
async fn advice_fits_its_cause() {
    let (folder, given, _) = fleet().await;
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("junk"), "junk").unwrap();
    std::fs::write(at("empty"), "").unwrap();
    std::fs::write(at("binary"), [0xff, 0xfe, 0]).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    let operator = muster(folder.path(), &["keys", "public"]);
    let operator = String::from_utf8(operator.stdout).unwrap().trim().to_owned();
    given.lock().unwrap().insert("/v1/operator/machines/lead".into(), (404, json!({
        "code": "unknown-machine", "message": "there is no machine lead: `muster machines list --all` shows \
         who is known",
    })));

    let cases: &[Case] = &[
        (&["keys", "threshold", "operator", "0", "--yes"], &["operator takes 1 to 1"], &["add a key"]),
        (
            &["keys", "threshold", "operator", "5", "--yes"],
            &["would have 1 key,", "add a key first"],
            &["1 keys"],
        ),
        (&["keys", "threshold", "operator", "1", "--yes"], &["nothing to change"], &["good until"]),
        (&["keys", "threshold", "online", "2", "--yes"], &["no threshold"], &[]),
        (
            &["keys", "threshold", "operator", "1", "--threshold", "2", "--yes"],
            &["--threshold goes with"],
            &[],
        ),
        (
            &["keys", "remove", "operator", &operator, "--yes"],
            &["would have 0 keys", "muster keys add", "muster keys rotate"],
            &["--threshold", "fewer"],
        ),
        (&["keys", "remove", "operator", "nobody", "--yes"], &["no operator key is called 'nobody'"], &[]),
        (&["keys", "add", "operator", "junk", "--yes"], &["junk holds no private key"], &["chmod"]),
        (&["keys", "add", "operator", "empty", "--yes"], &["empty holds no private key"], &["chmod"]),
        (
            &["keys", "add", "operator", "binary", "--yes"],
            &["binary holds no private key"],
            &["chmod", "UTF-8"],
        ),
        (&["keys", "add", "operator", "folder", "--yes"], &["'folder' is not a public key"], &[]),
        (&["keys", "renew", "--root-key", "folder", "--yes"], &["private key folder", "directory"], &[]),
        (&["keys", "renew", "--root-key", "nowhere", "--yes"], &["private key nowhere", "No such file"], &[]),
        (
            &["keys", "renew", "--root-key", "fleet/keys/operator.pem", "--yes"],
            &["is not a root key", "muster keys list"],
            &["good until"],
        ),
        (&["keys", "publish", "junk"], &["junk holds no root", "N.root.json"], &["enough"]),
        (&["keys", "publish", "empty"], &["empty holds no root"], &["enough"]),
        (&["keys", "publish", "binary"], &["binary is not text", "N.root.json"], &[]),
        (&["keys", "publish", "folder"], &["cannot read folder"], &[]),
        (&["keys", "generate", "junk", "--plain"], &["never written over"], &[]),
        (&["keys", "generate", "nowhere/key", "--plain"], &["a folder that is there"], &["written over"]),
        (&["keys", "generate", "new", "--passphrase-file", "folder"], &["passphrase from folder"], &[]),
        (&["keys", "generate", "new", "--passphrase-file", "empty"], &["fewer than 12"], &[]),
        (&["init", "--dir", "junk", "--plain-keys"], &["junk is not a folder", "--dir"], &[]),
        (&["drafts", "show", "folder"], &["neither a file nor a draft's id"], &[]),
        (&["drafts", "show", "empty"], &["empty: this is not a draft", "muster drafts export"], &[]),
        (&["drafts", "drop", "junk"], &["junk: this is not a draft"], &["published or dropped"]),
        (&["drafts", "drop", "nothing"], &["neither a file nor a draft's id"], &["published or dropped"]),
        (&["drafts", "drop", "abababab"], &["published or dropped", "muster audit"], &[]),
        (&["drafts", "publish", "abababab"], &["published or dropped", "muster audit"], &[]),
        (&["sign", "junk"], &["junk: this is not a draft"], &[]),
        (&["machines", "show", "lead"], &["no machine lead", "machines list --all"], &[]),
        (&["history", "tin", "--limit", "0"], &["1..=1000"], &[]),
        (&["audit", "--limit", "0"], &["a whole number from 1 on"], &["0 is not in"]),
        (&["machines", "add", "tin", "--class", "nixos", "--hours", "0"], &["1..=8760"], &[]),
        (&["machines", "add", "tin", "--class", "windows"], &["write nixos or darwin"], &[]),
    ];
    for (arguments, words, wrong) in cases {
        let output = muster(folder.path(), arguments);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!output.status.success(), "{arguments:?} was accepted: {said}");
        for word in *words {
            assert!(said.contains(word), "{arguments:?} lacks '{word}': {said}");
        }
        for word in *wrong {
            assert!(!said.contains(word), "{arguments:?} says '{word}': {said}");
        }
        assert!(!said.contains("panicked") && said.lines().count() <= 9, "{arguments:?}: {said}");
    }
    // It changed nothing.
    assert_eq!(std::fs::read(at("junk")).unwrap(), b"junk");
    assert!(!at("new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_of_another_fleet_is_said_to_be_that() {
    let (folder, given, _) = fleet().await;
    let refusal =
        json!({ "code": "unauthorised", "message": "the key is not an operator key in the current root" });
    let said = |given: &Answers| {
        let all = ["/v1/operator/machines", "/v1/operator/machines/tin"];
        given.lock().unwrap().extend(all.map(|path| (path.to_owned(), (403, refusal.clone()))));
        let status = muster(folder.path(), &["status"]);
        assert!(!status.status.success(), "{status:?}");
        String::from_utf8(status.stderr).unwrap()
    };
    let own = said(&given);
    assert!(own.contains("not an operator key") && !own.contains("another fleet"), "{own}");
    given.lock().unwrap().get_mut("/v1/fleet").unwrap().1["fleet"] = json!("cd".repeat(32));
    let other = said(&given);
    assert!(
        other.contains("serves another fleet (cdcdcdcdcdcd, not") && other.contains("--config"),
        "{other}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_answers_in_the_place_of_a_controller_is_told_by_what_it_says() {
    let (folder, given, _) = fleet().await;
    for (status, words, wrong) in [
        (413, "raise its limit", "free some space"),
        (502, "does not reach it", "portal"),
        (407, "a proxy on the way wants a password", "portal"),
        (404, "a portal or another program", "machines add"),
        (302, "a portal or another program", "limit"),
    ] {
        given.lock().unwrap().insert("/v1/operator/machines".into(), (status, json!("<html>")));
        let output = muster(folder.path(), &["machines", "list"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(words), "{status}: {said}");
        assert!(said.contains(&status.to_string()) && !said.contains(wrong), "{status}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_told_with_the_line_that_puts_it_right() {
    let (folder, _, _) = fleet().await;
    let good = std::fs::read_to_string(folder.path().join("fleet/muster.toml")).unwrap();
    std::fs::write(folder.path().join("junk"), "junk").unwrap();
    let with = |line: &str| {
        let name = line.split(' ').next().unwrap();
        let kept = good.lines().filter(|known| !known.starts_with(name)).collect::<Vec<_>>().join("\n");
        format!("{kept}\n{line}\n")
    };
    for (text, words, wrong) in [
        (String::new(), &["missing field", "muster init"][..], &[][..]),
        (with("colour = \"red\""), &["unknown field `colour`"], &[]),
        (with("tls_ca = \"nowhere.pem\""), &["certificate authority", "set tls_ca in muster.toml"], &[]),
        (with("tls_ca = \"../junk\""), &["junk", "no PEM certificate"], &[]),
        (with("operator_key = \"nowhere\""), &["set operator_key in muster.toml"], &[]),
        (with("operator_key = \"../junk\""), &["holds no private key"], &["chmod"]),
        (with("operator_key = \"..\""), &["cannot read the private key", "directory"], &[]),
        (with("url = \"http://example.org\""), &["neither https nor on this machine"], &[]),
        (with("url = \"http://127.0.0.1:1\""), &["cannot reach the controller", "muster serve"], &[]),
    ] {
        std::fs::write(folder.path().join("fleet/muster.toml"), &text).unwrap();
        let output = muster(folder.path(), &["machines", "list"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{text}");
        for word in words {
            assert!(said.contains(word), "'{word}' is missing: {said}: {text}");
        }
        for word in wrong {
            assert!(!said.contains(word), "{said}: {text}");
        }
    }
}
