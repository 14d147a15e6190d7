use std::fmt::Write as _;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;

const STAGES: [Stage; 5] = [
    Stage::Making,
    Stage::Ready,
    Stage::NotReady,
    Stage::Released,
    Stage::Removed,
];

const CHANGES: [Change; 5] = [
    Change::Made,
    Change::Kept,
    Change::Lost,
    Change::Released,
    Change::Removed,
];

#[test]
fn every_change_at_every_stage() {
    let mut table = String::new();
    for stage in STAGES {
        let _ = writeln!(table, "{stage:?} ({:?})", stage.state());
        for change in CHANGES {
            let (next, heard) = apply(stage, change);
            let outcome = if next == stage {
                "-".to_owned()
            } else {
                format!("{next:?}")
            };
            let heard = heard.map_or_else(String::new, |heard| format!("  [{heard:?}]"));
            let _ = writeln!(table, "    {change:?}: {outcome}{heard}");
        }
    }
    assert_snapshot!(table);
}

proptest! {
    #[test]
    fn no_stage_is_entered_twice_and_no_event_is_out_of_order(
        steps in prop::collection::vec(0..CHANGES.len(), 0..20),
    ) {
        let (mut stage, mut all) = (Stage::Making, Vec::new());
        for step in steps {
            let (next, heard) = apply(stage, CHANGES[step]);
            prop_assert!(next >= stage);
            all.extend(heard);
            stage = next;
        }
        let order = [Heard::Ready, Heard::NotReady, Heard::Removed];
        let places: Vec<usize> = all.iter().filter_map(|h| order.iter().position(|o| o == h)).collect();
        prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        if all.contains(&Heard::Ready) && stage > Stage::Ready {
            prop_assert!(all.contains(&Heard::NotReady));
        }
    }
}
