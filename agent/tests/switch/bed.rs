//! A machine, its controller, and the agent between them.

use std::process::Child;

use muster_protocol::checkin::Phase;
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::report::EventKind;
use muster_protocol::target::{Action, HealthCheck, Probe, Target};

use super::controller::Controller;
use super::machine::Machine;

pub struct Bed {
    pub machine: Machine,
    pub controller: Controller,
    agent: Option<Child>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.kill_agent();
    }
}

impl Bed {
    /// With OLD installed manually, enrolled, and the agent running.
    pub fn new(class: Class) -> Self {
        Self::with(class, "")
    }

    /// The same, and the machine's own file contains this.
    pub fn with(class: Class, settings: &str) -> Self {
        let controller = Controller::start();
        let machine = Machine::with(class, settings);
        let old = machine.system("old", "");
        machine.install(&old);
        controller.enrol(&machine);
        let mut bed = Self { machine, controller, agent: None };
        bed.start_agent();
        bed
    }

    pub fn start_agent(&mut self) {
        self.agent = Some(self.machine.spawn(&["run"]));
    }
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }
    pub fn agent_lives(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.try_wait().unwrap().is_none())
    }
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            agent.wait().unwrap();
        }
    }

    /// A derivation whose output is a system that prints `what`; `body` runs in its activation.
    pub fn target(&self, number: u64, body: &str) -> Target {
        self.target_built_by(number, body, "")
    }

    pub fn target_built_by(&self, number: u64, body: &str, in_build: &str) -> Target {
        let template = self.machine.file(&format!("template-{number}"));
        self.machine.activation_script(&template, body);
        self.evaluate(number, in_build)
    }

    /// The target of the script in the folder with this number.
    pub fn evaluate(&self, number: u64, in_build: &str) -> Target {
        let template = self.machine.file(&format!("template-{number}"));
        let (script, place) = match self.machine.class {
            Class::Nixos => ("bin/switch-to-configuration", "bin/switch-to-configuration"),
            Class::Darwin => ("activate", "activate"),
        };
        let system = self.machine.config.stand_in.as_ref().unwrap().system.clone();
        // The derivation's platform must be one that this computer builds for.
        let expression = format!(
            r#"derivation {{ name = "system-{number}"; system = "{system}"; builder = "/bin/sh";
                script = builtins.path {{ path = {}; name = "script"; }};
                args = [ "-c" ''
                  {in_build}
                  /bin/busybox mkdir -p $out/bin
                  /bin/busybox cp $script $out/{place}
                '' ]; }}"#,
            template.join(script).display()
        );
        let file = self.machine.file("system.nix");
        std::fs::write(&file, expression).unwrap();
        let derivation: StorePath =
            self.machine.nix("nix-instantiate", &[file.to_str().unwrap()]).parse().unwrap();
        let output = self.machine.nix("nix-store", &["--query", "--outputs", derivation.as_str()]);
        Target {
            rollout: None,
            machine: self.controller.machine.clone(),
            class: self.machine.class,
            generation: Generation::new(number).unwrap(),
            system,
            derivation,
            output: output.parse().unwrap(),
            action: Action::Switch,
            deadline_seconds: 30,
            checks: vec![],
            trusted_nix_keys: vec![],
            policy: muster_protocol::policy::Policy::default(),
            requires: vec![],
            message: None,
            evaluation: Default::default(),
        }
    }

    pub fn until_event(&self, generation: u64, event: &str) -> EventKind {
        self.machine
            .until(&format!("{event} of generation {generation}"), || self.controller.last(generation, event))
    }

    pub fn until_phase(&self, phase: Phase) {
        self.machine.until(&format!("a check-in in {phase:?}"), || {
            (self.controller.check_ins().last()?.phase == phase).then_some(())
        });
    }

    pub fn publish(&self, number: u64, body: &str) -> Target {
        let target = self.target(number, body);
        self.controller.publish(&target);
        target
    }

    /// Confirmed, and nothing of the transaction is left.
    pub fn assert_confirmed(&self, target: &Target) {
        self.until_event(target.generation.get(), "confirmed");
        self.machine.assert_on(&target.output);
        self.until_phase(Phase::Confirmed);
        self.machine.until("a settled transaction", || {
            (!self.machine.config.state("transaction.json").exists()).then_some(())
        });
    }
}

pub fn check(command: &str) -> HealthCheck {
    let command = ["sh", "-c", command].map(str::to_owned).to_vec();
    HealthCheck { name: "check".into(), probe: Probe::Command { command }, timeout_seconds: 5, tries: 1 }
}
