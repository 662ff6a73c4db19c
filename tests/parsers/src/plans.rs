//! Plans of rollouts, what machines say of them, and the gate.

use std::collections::BTreeSet;

use muster_protocol::ids::{Epoch, MachineName, Sha256};
use muster_protocol::keys::SecretKey;
use muster_protocol::plan::{
    After, Claim, Failure, Gate, Leave, Plan, Said, Statement, Statements, Vouch, Voucher, Wave, gate,
};

use crate::input;
use crate::world::{key, name, target};

/// A fleet of three waves: two canaries, two machines of which one comes after the other, and one at last.
/// The machine at each place has the key of that number.
const MACHINES: [&str; 5] = ["canary-1", "canary-2", "early-1", "early-2", "late"];
const WAVES: [usize; 5] = [0, 0, 1, 1, 2];
const SAID: [Said; 3] = [Said::Confirmed, Said::Soaked, Said::Withdrawn];

fn secret(place: usize) -> SecretKey {
    key(u8::try_from(place).expect("few machines"))
}

/// The fleet's plan, of this nonce.
pub fn plan(nonce: u8) -> Plan {
    let wave = |number: usize, at_least: u32| {
        let members = (0..5).filter(|place| WAVES[*place] == number);
        let voucher = |place: usize| Voucher {
            machine: name(MACHINES[place]),
            key: secret(place).public(),
            output: target("x", 1).output,
        };
        Wave {
            name: format!("wave-{number}"),
            members: members.clone().map(|place| name(MACHINES[place])).collect(),
            vouchers: members.map(voucher).collect(),
            at_least,
            percent: 50,
            soak_seconds: 60,
            max_in_flight: 1,
            windows: vec![],
        }
    };
    Plan {
        fleet: Sha256::of(b"fleet"),
        epoch: Epoch::default(),
        name: "weekly".parse().expect("a name"),
        nonce: Sha256::of(&[nonce]),
        waves: vec![wave(0, 2), wave(1, 1), wave(2, 0)],
        after: vec![After { machine: name(MACHINES[3]), first: name(MACHINES[2]) }],
        budget: 1,
        failures: Failure::all(),
    }
}

/// A plan, or one of the documents that go with it.
pub fn documents(data: &[u8]) -> bool {
    let other = input::json::<Vouch>(data) | input::json::<Statements>(data) | input::json::<Leave>(data);
    let Ok(plan) = Plan::parse(data) else { return other };
    let bytes = plan.to_bytes().expect("a plan can be written");
    if bytes.len() as u64 <= muster_protocol::plan::MAX_PLAN_BYTES {
        assert_eq!(
            Plan::parse_named(&bytes, Sha256::of(&bytes)).expect("what was written can be read"),
            plan
        );
    }
    let hash = Sha256::of(data);
    for (machine, wave) in plan.waves_of() {
        let found = gate((hash, &plan), machine, wave, &[]);
        let waits = plan.first_of(machine).next().is_some();
        assert_eq!(found == Gate::Open, wave == 0 && !waits, "nobody said anything, and {machine} may begin");
    }
    true
}

/// Four bytes are a statement: who signed, as whom, what was signed and what is claimed, of which plan. The
/// gate must be open exactly where those that count were really said.
pub fn gates(data: &[u8]) -> bool {
    let (own, other) = (plan(0), plan(1));
    let hash_of = |plan: &Plan| Sha256::of(&plan.to_bytes().expect("a plan can be written"));
    let mut statements = Vec::new();
    // The first word of each machine of a kind counts, and the others do not.
    let (mut seen, mut true_words) = (BTreeSet::new(), BTreeSet::new());
    for four in data.chunks_exact(4).take(48) {
        let [by, of, said, variant] = [four[0], four[1], four[2], four[3]].map(usize::from);
        let (by, of) = (by % 8, of % 5);
        let (signed, claimed) = (SAID[said % 3], SAID[said / 3 % 3]);
        let plan = if variant % 4 == 0 { &other } else { &own };
        let voucher = plan.voucher(&name(MACHINES[of])).expect("all vouch");
        let claim = Claim { hash: hash_of(plan), plan, voucher, said: signed };
        statements.push(Statement {
            machine: name(MACHINES[of]),
            said: claimed,
            signature: claim.sign(&secret(by)),
        });
        if seen.insert((of, claimed)) && by == of && signed == claimed && variant % 4 != 0 {
            true_words.insert((of, claimed));
        }
    }
    let said = |place: usize, said: Said| true_words.contains(&(place, said));
    let soaked = |place: usize| said(place, Said::Soaked) && !said(place, Said::Withdrawn);
    let canaries = soaked(0) && soaked(1);
    let first = (said(2, Said::Confirmed) || said(2, Said::Soaked)) && !said(2, Said::Withdrawn);
    let expected = [true, true, canaries, canaries && first, canaries && (soaked(2) || soaked(3))];
    for (place, expected) in expected.into_iter().enumerate() {
        let machine: MachineName = name(MACHINES[place]);
        let found = gate((hash_of(&own), &own), &machine, WAVES[place], &statements);
        assert_eq!(found == Gate::Open, expected, "{machine}: {found:?}");
    }
    expected[4]
}

/// Statements that open every gate, for the corpus.
pub fn honest() -> Vec<u8> {
    // Soaked, signed and claimed: 1 + 3 * 1.
    (0..5_u8).flat_map(|place| [place, place, 4, 1]).collect()
}
