//! The same with few faults, for `cargo test`.

use std::rc::Rc;

use super::guard::Break;
use super::plans::{MOST, Signed};
use super::scenes::{scenes, without};
use crate::explore::{Scene as _, explore};
use muster_protocol::plan::{Claim, Said};

const LIMIT: usize = 400_000;

fn cast() -> Rc<crate::server::Cast> {
    Rc::new(crate::server::cast().unwrap())
}

/// The others are a part of `tests/model`.
#[test]
fn every_property_holds_in_the_smallest_scenes_and_each_is_walked_to_its_end() {
    let small = ["three waves", "one that comes first", "a thief, and one that comes first"];
    let scenes = scenes(&cast(), 0).unwrap().into_iter().filter(|scene| small.contains(&scene.name));
    let mut walked = 0;
    for scene in scenes {
        let found = explore(&scene, LIMIT);
        assert!(found.complete && found.broken.is_none(), "{}: {:?}", scene.name(), found.broken);
        assert!(found.states > 500, "{}: {} states", scene.name(), found.states);
        walked += 1;
    }
    assert_eq!(walked, small.len());
}

#[test]
fn a_guard_that_is_taken_out_of_gate_agent_or_engine_is_missed() {
    let cast = cast();
    for guard in [Break::SkipFirstWave, Break::BeginWithoutLeave, Break::IgnoreBudget] {
        let found = explore(&without(guard, &cast).unwrap(), LIMIT);
        assert!(found.broken.is_some(), "{guard:?}: {} states", found.states);
    }
}

#[test]
fn what_a_machine_is_said_to_have_signed_it_did_sign() {
    let cast = cast();
    let scene = scenes(&cast, 0).unwrap().remove(0);
    let planned = scene.plan(1).unwrap();
    for who in 0..MOST {
        let Some(voucher) = planned.plan.voucher(&scene.names[who]) else { continue };
        for said in [Said::Confirmed, Said::Soaked, Said::Withdrawn] {
            let claim = Claim { hash: planned.hash, plan: &planned.plan, voucher, said };
            let good = |by| claim.verify(&planned.word(who, said, by)).is_ok();
            assert!(good(Signed::Itself) && !good(Signed::Other) && !good(Signed::Stranger));
        }
    }
}
