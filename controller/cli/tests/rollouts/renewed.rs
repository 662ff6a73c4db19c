//! `muster update` where a controller lies about what machines were given last: nobody loses its gate by it.

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::operator::{MachinePublication, Publications};
use muster_protocol::target::Target;

use super::*;

const NAMES: [&str; 3] = ["tin", "lead", "zinc"];

/// What was published, and where it is served.
pub struct Published {
    pub bed: Bed,
    machines: [Value; 3],
    last: Vec<MachinePublication>,
}

impl Published {
    /// Every machine is given generation 1, without a rollout.
    pub async fn at_once() -> Self {
        let bed = Bed::new().await;
        std::fs::create_dir(bed.at("repository")).unwrap();
        std::fs::write(bed.at("repository/flake.nix"), FLAKE).unwrap();
        bed.says("/v1/operator/session", json!({ "bearer": "b", "expires_in": 3600 }));
        bed.says("/v1/operator/plans", Value::Null);
        bed.says("/v1/operator/rollouts", json!([]));
        bed.says("/v1/operator/generations", json!({ "published": 3, "unchanged": 0 }));
        bed.says("/v1/operator/changes", json!({ "cursor": 1, "machines": [] }));
        bed.file("/cache/nix-cache-info", "StoreDir: /nix/store\n".to_owned());
        let machines = [bed.proved("tin"), bed.machine("lead", &json!({})), bed.machine("zinc", &json!({}))];
        bed.says("/v1/operator/machines", json!(machines));
        let mut published = Self { bed, machines, last: Vec::new() };
        let (done, said) = published.update(&["--at-once"]);
        assert!(done, "{said}");
        published.take();
        published
    }

    /// They are given generation 2, in waves.
    async fn in_waves() -> Self {
        let mut published = Self::at_once().await;
        published.show(&|_| {});
        let (done, said) = published.update(&["--force", "--rollout", "weekly"]);
        assert!(done, "{said}");
        published.take();
        published
    }

    pub fn update(&self, more: &[&str]) -> (bool, String) {
        let output = self.bed.muster(&[&["update", "--yes", "--flake", "./repository"], more].concat());
        (output.status.success(), out(&output))
    }

    /// What was sent, which is served from now on.
    fn take(&mut self) {
        self.last = self.sent();
        for MachinePublication { machine, publication } in &self.last {
            let target = Target::parse(publication.target.as_bytes()).unwrap();
            let (tuf, number) = (format!("/v1/machines/{machine}/tuf"), publication.generation.get());
            let hash = Sha256::of(publication.target.as_bytes());
            let kind = if target.rollout.is_some() { "gated" } else { "generation" };
            self.bed.file(&format!("{tuf}/{number}.targets.json"), publication.targets.clone());
            self.bed.file(&format!("{tuf}/{number}.snapshot.json"), publication.snapshot.clone());
            let path = format!("{tuf}/targets/{machine}/{hash}.{kind}.json");
            self.bed.file(&path, publication.target.clone());
        }
    }

    fn sent(&self) -> Vec<MachinePublication> {
        let mut asked = self.bed.asked();
        let (path, last) = asked.pop().unwrap();
        assert_eq!(path, "/v1/operator/generations");
        serde_json::from_value::<Publications>(last).unwrap().generations
    }

    fn places(of: &[MachinePublication]) -> Vec<(String, Option<(Sha256, u32)>)> {
        let one = |one: &MachinePublication| {
            let target = Target::parse(one.publication.target.as_bytes()).unwrap();
            assert_eq!(target.requires.is_empty(), target.rollout.is_none());
            (one.machine.to_string(), target.rollout.map(|place| (place.plan, place.wave)))
        };
        of.iter().map(one).collect()
    }

    /// The machines as the controller shows them, and how it lies.
    pub fn show(&self, lie: &dyn Fn(&mut Value)) {
        let soon = SystemClock::new().unix_seconds() + 86_400;
        let shown = self.last.iter().map(|MachinePublication { machine, publication }| {
            let name = machine.as_str();
            let mut view = self.machines.iter().find(|view| view["machine"] == name).unwrap().clone();
            let target: Value = serde_json::from_str(&publication.target).unwrap();
            view["published"] = json!({
                "target": target, "at": 1, "by": self.bed.key, "expires": soon, "signers": [self.bed.key],
            });
            view["holds"]["targets"] = json!(publication.generation.get());
            lie(&mut view);
            view
        });
        self.bed.says("/v1/operator/machines", shown.collect());
    }

    /// This computer has seen nothing of it, as after a new checkout.
    fn forget(&self) {
        std::fs::remove_file(self.bed.at("fleet/generations-seen.json")).unwrap();
    }
}

fn stripped(view: &mut Value) {
    let target = view["published"]["target"].as_object_mut().unwrap();
    target.remove("rollout").unwrap();
    target.remove("requires").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_waits_keeps_its_gate_where_the_controller_shows_it_without_one() {
    let mut published = Published::in_waves().await;
    let waves = Published::places(&published.last);
    assert!(waves.len() == NAMES.len() && waves.iter().all(|(_, place)| place.is_some()), "{waves:?}");

    published.show(&stripped);
    let (done, said) = published.update(&["--refresh"]);
    assert!(done, "{said}");
    published.take();
    assert_eq!(Published::places(&published.last), waves);

    // Renewed without being asked for: it names a stranger as the signer. Nothing was seen here, either.
    let stranger = SecretKey::generate().unwrap().public();
    published.forget();
    published.show(&|view| {
        stripped(view);
        view["published"]["signers"] = json!([stranger]);
    });
    let (done, said) = published.update(&[]);
    assert!(done && said.contains("too few of today's operators"), "{said}");
    published.take();
    assert_eq!(Published::places(&published.last), waves);

    // Another place than the signed one.
    published.show(&|view| view["published"]["target"]["rollout"]["wave"] = json!(0));
    let (done, said) = published.update(&["--refresh"]);
    assert!(done, "{said}");
    assert_eq!(Published::places(&published.sent()), waves);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_verified_counts_as_gated_until_the_operator_says_otherwise() {
    let published = Published::in_waves().await;
    let refused = |arguments: &[&str], words: &str| {
        let (done, said) = published.update(arguments);
        assert!(!done && said.contains(words) && said.contains("give --at-once if that is meant"), "{said}");
        assert_eq!(published.bed.asked(), [], "nothing was sent");
    };
    // The generation before is genuine, with the same output and no gate; the machines hold a later one.
    let first = |view: &mut Value| {
        stripped(view);
        view["published"]["target"]["generation"] = json!(1);
    };
    published.show(&first);
    refused(&["--refresh"], "leaves the rollout of generation 2");
    published.forget();
    refused(&["--refresh"], "the machine may have a later one");
    // Its files are not there.
    published.show(&stripped);
    let lose = |name: &str| {
        published.bed.controller.lock().unwrap().files.retain(|path, _| !path.ends_with(name));
        published.forget();
    };
    lose("snapshot.json");
    refused(&["--refresh"], "leaves the rollout of generation 2");
    lose("targets.json");
    refused(&["--refresh"], "may wait in a rollout: the controller has no ");
    let (done, said) = published.update(&["--refresh", "--at-once"]);
    assert!(done && said.contains("may wait in a rollout"), "{said}");
    assert!(Published::places(&published.sent()).iter().all(|(_, place)| place.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_system_takes_no_gate_off_by_the_controllers_word() {
    let published = Published::in_waves().await;
    let other = FLAKE.replace("inherit name;", "name = \"other-${name}\";");
    std::fs::write(published.bed.at("repository/flake.nix"), other).unwrap();
    // Its list of rollouts is empty: all are done, it says, and machines run what they were given.
    let lies: [&dyn Fn(&mut Value); 3] = [&|_| {}, &stripped, &|view| {
        let runs = json!({ "running": view["published"]["target"]["output"], "generation": 2 });
        view["runs"] = runs;
    }];
    for lie in lies {
        for is_new_here in [false, true] {
            if is_new_here {
                published.forget();
            }
            published.show(lie);
            let (done, said) = published.update(&[]);
            assert!(!done && said.contains("tin leaves the rollout of plan"), "{said}");
            assert!(said.contains("give --at-once if that is meant"), "{said}");
            assert_eq!(published.bed.asked(), [], "nothing was sent");
        }
    }
    let (done, said) = published.update(&["--at-once"]);
    assert!(done && said.contains("zinc leaves the rollout of plan"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_where_no_machine_was_ever_in_a_rollout() {
    let mut published = Published::at_once().await;
    published.show(&|_| {});
    let renewed = published.update(&["--refresh"]);
    assert!(renewed.0, "{}", renewed.1);
    published.take();
    // A controller that was restored from a backup shows the generation before.
    published.show(&|view| view["published"]["target"]["generation"] = json!(1));
    let other = FLAKE.replace("inherit name;", "name = \"other-${name}\";");
    std::fs::write(published.bed.at("repository/flake.nix"), other).unwrap();
    let (done, said) = published.update(&[]);
    assert!(done && !said.contains("may still wait") && !said.contains("may wait"), "{said}");
    assert!(Published::places(&published.sent()).iter().all(|(_, place)| place.is_none()));
}
