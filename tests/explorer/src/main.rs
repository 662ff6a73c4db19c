//! Explores what the agent's own decisions (`muster_agent::core`, the code that ships) lead to, together
//! with a model of
//! the activator's steps, under every interleaving of crashes, reboots, outages, late deadlines, newer
//! generations and
//! reports that are sent again. The controller's own decisions (`muster_server::core`) are walked in
//! `server`. Then one guard
//! after the other is taken out, to show that each is missed.

#![allow(clippy::print_stdout)]

mod activator;
mod agent;
mod contact;
mod environment;
mod explore;
mod properties;
mod rolling;
mod scene;
mod server;
mod walk;
mod world;

use std::process::ExitCode;
use std::rc::Rc;

use clap::{Parser, ValueEnum as _};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::machine::Class;
use muster_protocol::target::Action;

use explore::{Counterexample, Found, explore};
use scene::{Behaviour, Break, Budget, Published, Scene};

/// The exploration that is no scene of a machine.
const CONTACT: &str = "the contact with the controller";

#[derive(Parser)]
#[command(about = "Explores every interleaving of the agent's and the controller's decisions with faults")]
struct Arguments {
    /// How many faults may come together in one run, whichever and whenever
    #[arg(long, default_value_t = 2)]
    faults: u8,
    /// Give an exploration up after so many states
    #[arg(long, default_value_t = 3_000_000)]
    limit: usize,
    /// Show the shortest trace that each missing guard leads to
    #[arg(long)]
    traces: bool,
    /// Only scenes with this in their names
    #[arg(long)]
    only: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(cast) = server::cast().map(Rc::new) else {
        eprintln!("the controller's half cannot begin: its keys and documents cannot be made");
        return ExitCode::FAILURE;
    };
    let mut agent = walk(&scenes(&arguments), &arguments);
    if arguments.wants(CONTACT) {
        // With one fault there are half a million states; with two, more than there is room for.
        agent.add(CONTACT, &contact::explore(arguments.faults.min(1), None, arguments.limit));
    }
    agent.close("agent");
    let controller = walk(&server::scenes::scenes(&cast, arguments.faults), &arguments);
    controller.close("controller");
    let Some(rollouts) = rolling::scenes::scenes(&cast, arguments.faults) else {
        eprintln!("the rollouts cannot begin: their plans cannot be made");
        return ExitCode::FAILURE;
    };
    let rollouts = walk(&rollouts, &arguments);
    rollouts.close("rollouts");
    let (bad, cut) = (agent.bad + controller.bad + rollouts.bad, agent.cut + controller.cut + rollouts.cut);
    if cut > 0 {
        println!(
            "{} explorations were given up at {} states: what those lead to was not looked at",
            cut, arguments.limit
        );
    }
    println!("\nwith one guard taken out each time:");
    let mut missed = 0;
    for guard in Break::value_variants() {
        missed += usize::from(!shown(guard, caught(*guard, &arguments), &arguments));
    }
    for guard in server::scenes::Break::value_variants() {
        let scene = server::scenes::without(*guard, &cast);
        let found = scene.and_then(|scene| breaks(&scene, &arguments));
        missed += usize::from(!shown(guard, found, &arguments));
    }
    for guard in rolling::Break::value_variants() {
        let scene = rolling::scenes::without(*guard, &cast);
        let found = scene.and_then(|scene| breaks(&scene, &arguments));
        missed += usize::from(!shown(guard, found, &arguments));
    }
    let broken = Break::value_variants().len()
        + server::scenes::Break::value_variants().len()
        + rolling::Break::value_variants().len();
    println!("{broken} broken cores, {} caught", broken - missed);
    if bad == 0 && missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|part| name.contains(part.as_str()))
    }
}

/// What some explorations found together.
struct Walked {
    clock: SystemClock,
    states: usize,
    deepest: usize,
    bad: usize,
    cut: usize,
}

fn walk<S: explore::Scene>(scenes: &[S], arguments: &Arguments) -> Walked {
    let mut walked = Walked { clock: SystemClock::new(), states: 0, deepest: 0, bad: 0, cut: 0 };
    for scene in scenes.iter().filter(|scene| arguments.wants(&scene.name())) {
        walked.add(&scene.name(), &explore(scene, arguments.limit));
    }
    walked
}

impl Walked {
    fn add(&mut self, name: &str, found: &Found) {
        self.states += found.states;
        self.deepest = self.deepest.max(found.depth);
        self.bad += usize::from(found.broken.is_some());
        self.cut += usize::from(!found.complete && found.broken.is_none());
        print(name, found);
        if let Some(counterexample) = &found.broken {
            print_trace(counterexample);
        }
    }

    fn close(&self, whose: &str) {
        let Self { states, deepest, bad, .. } = self;
        let seconds = self.clock.awake().as_secs();
        println!(
            "{whose}: {states} states visited, up to {deepest} steps deep, in {seconds} s; \
             {bad} explorations broke a property"
        );
    }
}

/// The name of the scene, and what is broken in it.
type Caught = Option<(String, Counterexample)>;

fn breaks<S: explore::Scene>(scene: &S, arguments: &Arguments) -> Caught {
    let found = explore(scene, arguments.limit);
    found.broken.map(|counterexample| (scene.name(), counterexample))
}

/// Whether the properties notice that the guard is gone.
fn shown(guard: &impl std::fmt::Debug, caught: Caught, arguments: &Arguments) -> bool {
    let Some((scene, counterexample)) = caught else {
        println!("  MISSED  {guard:?}: every property holds without it");
        return false;
    };
    let Counterexample { property, trace } = &counterexample;
    println!("  caught  {guard:?}: {property} ({scene}; {} steps)", trace.len());
    if arguments.traces {
        print_trace(&counterexample);
    }
    true
}

fn print(name: &str, found: &Found) {
    let end = match (&found.broken, found.complete) {
        (Some(_), _) => "BROKEN",
        (None, true) => "holds",
        (None, false) => "cut off",
    };
    println!(
        "{end:8}{name}: {} states, {} steps between them, depth {}",
        found.states, found.steps, found.depth
    );
}

fn print_trace(counterexample: &Counterexample) {
    println!("    {}", counterexample.property);
    println!("    {}", counterexample.trace.join(" "));
}

/// A scene in which the properties notice that the guard is gone, with one fault.
fn caught(guard: Break, arguments: &Arguments) -> Caught {
    use Behaviour as B;
    if guard.is_of_contact() {
        let found = contact::explore(1, Some(guard), arguments.limit);
        return found.broken.map(|counterexample| (CONTACT.to_owned(), counterexample));
    }
    let switch = |behaviour| Published { behaviour, action: Action::Switch };
    let (class, published) = match guard {
        Break::ForgetTried => (Class::Nixos, vec![switch(B::Good)]),
        Break::ForgetQuarantine | Break::RefuseInTwoSteps => {
            (Class::Nixos, vec![switch(B::ActivationFails), switch(B::SameAgain)])
        }
        Break::AcceptOlder | Break::IgnoreEpoch => (Class::Nixos, vec![switch(B::Good), switch(B::Good)]),
        Break::SkipGate => (Class::Nixos, vec![switch(B::Good)]),
        Break::TrustHalfActivation => (Class::Nixos, vec![switch(B::Good)]),
        Break::TrustBootLink => (Class::Darwin, vec![switch(B::Good)]),
        Break::LeaveDaemons => (Class::Darwin, vec![switch(B::ChangesBootJob)]),
        Break::ConfirmUnreached => (Class::Darwin, vec![switch(B::CutsNetwork)]),
        Break::UndoToProfile => (Class::Nixos, vec![switch(B::ActivationFails)]),
        Break::NoDeadline | Break::KeepOldAgent => (Class::Nixos, vec![switch(B::BreaksAgent)]),
        Break::LeaveAgentOut => (Class::Darwin, vec![switch(B::LosesAgent)]),
        Break::NoRestart | Break::NoStartAtBoot => (Class::Darwin, vec![switch(B::BreaksAgent)]),
        Break::TellTwice | Break::TellUnwritten | Break::ForgetReports => {
            (Class::Darwin, vec![switch(B::BuildFails)])
        }
        // Those of the contact, which are explored without a machine.
        Break::ForgetUnanswered
        | Break::SpinOnPolls
        | Break::ObeyRetryAfter
        | Break::ForgetToTell
        | Break::KeepDeadBearer => return None,
    };
    let budget = Budget { faults: 1, rollbacks: 0 };
    let foreign_profile = guard == Break::UndoToProfile;
    let scene = Scene {
        class,
        published,
        epoch_from: (guard == Break::IgnoreEpoch).then_some(2),
        budget,
        reports: true,
        foreign_profile,
        gated: guard == Break::SkipGate,
        old_fails: false,
        broken: Some(guard),
    };
    breaks(&scene, arguments)
}

fn scenes(arguments: &Arguments) -> Vec<Scene> {
    use Behaviour as B;
    let budget = Budget { faults: arguments.faults, rollbacks: 0 };
    let switch = |behaviour| Published { behaviour, action: Action::Switch };
    let boot = |behaviour| Published { behaviour, action: Action::Boot };
    let scene = |class, published: Vec<Published>| Scene {
        class,
        published,
        epoch_from: None,
        budget,
        reports: false,
        foreign_profile: false,
        gated: false,
        old_fails: false,
        broken: None,
    };
    let mut scenes = Vec::new();
    for class in Class::ALL {
        for pair in [
            [B::Good, B::Good],
            [B::ActivationFails, B::SameAgain],
            [B::Refuses, B::SameAgain],
            [B::Ill, B::SameAgain],
            [B::BuildFails, B::SameAgain],
            [B::Hangs, B::Good],
            [B::BreaksAgent, B::Good],
        ] {
            scenes.push(scene(class, pair.map(switch).to_vec()));
        }
        // By itself: it is tried again three times, and every newer generation could come at each moment of
        // that.
        scenes.push(scene(class, vec![switch(B::CutsNetwork)]));
        let once = Budget { rollbacks: 1, ..budget };
        scenes.push(Scene { budget: once, ..scene(class, vec![switch(B::Good)]) });
        scenes.push(Scene { reports: true, ..scene(class, vec![switch(B::Good)]) });
        scenes
            .push(Scene { reports: true, ..scene(class, vec![switch(B::BuildFails), switch(B::SameAgain)]) });
        // Root holders disown the first, whatever became of it by then.
        for pair in [[B::Good, B::Good], [B::ActivationFails, B::SameAgain]] {
            scenes.push(Scene { epoch_from: Some(2), ..scene(class, pair.map(switch).to_vec()) });
        }
        // Whatever the controller says, and takes back.
        scenes.push(Scene {
            gated: true,
            budget: Budget { faults: arguments.faults.min(1), rollbacks: 1 },
            ..scene(class, vec![switch(B::Good), switch(B::Good)])
        });
        // A reboot would bring up what somebody else set, which is nobody's OLD or NEW.
        let none = Budget { faults: 0, rollbacks: 0 };
        let foreign = scene(class, vec![switch(B::ActivationFails)]);
        scenes.push(Scene { foreign_profile: true, budget: none, ..foreign });
        scenes.push(Scene { old_fails: true, ..scene(class, vec![switch(B::Ill)]) });
    }
    scenes.push(scene(Class::Darwin, vec![switch(B::ReloadsAgent), switch(B::Ill)]));
    scenes.push(scene(Class::Darwin, vec![switch(B::LosesAgent), switch(B::Good)]));
    scenes.push(scene(Class::Darwin, vec![switch(B::ChangesBootJob), switch(B::Ill)]));
    scenes.push(scene(Class::Nixos, vec![boot(B::Good), switch(B::Good)]));
    scenes.push(Scene { epoch_from: Some(2), ..scene(Class::Nixos, vec![boot(B::Good), switch(B::Good)]) });
    scenes.push(scene(Class::Nixos, vec![boot(B::Ill)]));
    scenes.push(scene(Class::Nixos, vec![boot(B::DoesNotBoot), boot(B::SameAgain)]));
    scenes.push(scene(Class::Nixos, vec![switch(B::NeedsReboot), switch(B::Good)]));
    scenes
}
