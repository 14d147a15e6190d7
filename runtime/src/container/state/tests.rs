use std::fmt::Write as _;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::model::ExitReason;

type Named = Status<&'static str>;

fn process(pid: i32) -> Process {
    Process {
        pid,
        start_time: 1000,
    }
}

fn exit() -> ContainerExit {
    ContainerExit {
        code: 3,
        finished_at: 90,
        reason: ExitReason::Error,
        message: String::new(),
    }
}

/// Every change, with and without what it may bring.
fn changes() -> Vec<(&'static str, Change<&'static str>)> {
    let told = |started_at, starting| Change::Told {
        started_at,
        starting,
    };
    let ended = |started_at| Change::Ended {
        exit: exit(),
        started_at,
    };
    vec![
        ("Made", Change::Made { init: process(7) }),
        (
            "Attached",
            Change::Attached {
                monitor: "monitor",
                found: Some(process(6)),
            },
        ),
        ("Silent", Change::Silent),
        ("Told: not started", told(0, false)),
        ("Told: starting", told(0, true)),
        ("Told: started", told(50, false)),
        ("StartSent", Change::StartSent),
        ("Started", Change::Started { at: 51 }),
        ("StopSent", Change::StopSent),
        ("Ended: not started", ended(0)),
        ("Ended: started", ended(52)),
        ("Removed", Change::Removed),
    ]
}

/// Every stage, with a monitor that answers and with one that does not.
fn statuses() -> Vec<Named> {
    let at = |stage, silent| {
        let mut status = Named::new();
        status.stage = stage;
        status.silent = silent;
        if stage >= Stage::Created {
            status.init = Some(process(7));
        }
        if (Stage::Created..Stage::Exited).contains(&stage) && !silent {
            status.monitor = Some("monitor");
        }
        if stage >= Stage::Running {
            status.started_at = 40;
        }
        if stage >= Stage::Exited {
            status.exit = Some(exit());
        }
        status
    };
    vec![
        at(Stage::Making, false),
        at(Stage::Created, false),
        at(Stage::Created, true),
        at(Stage::Starting, false),
        at(Stage::Starting, true),
        at(Stage::Running, false),
        at(Stage::Running, true),
        at(Stage::Exited, false),
        at(Stage::Removed, false),
    ]
}

fn shown(status: &Named) -> String {
    let mut text = format!("{:?}", status.stage);
    let mut add = |is: bool, word: &str| {
        if is {
            let _ = write!(text, " {word}");
        }
    };
    add(status.silent, "silent");
    add(status.monitor.is_some(), "+monitor");
    add(status.stop_sent, "+stop");
    add(status.found.is_some(), "+found");
    add(
        status.started_at != 0,
        &format!("started={}", status.started_at),
    );
    add(status.exit.is_some(), "+exit");
    text
}

#[test]
fn every_change_in_every_state() {
    let mut table = String::new();
    for status in statuses() {
        let _ = writeln!(table, "{} ({:?})", shown(&status), status.state());
        for (name, change) in changes() {
            let (next, heard) = apply(status.clone(), change);
            let outcome = if next == status {
                "-".to_owned()
            } else {
                shown(&next)
            };
            let _ = write!(table, "    {name}: {outcome}");
            let _ = if heard.is_empty() {
                writeln!(table)
            } else {
                writeln!(table, "  {heard:?}")
            };
        }
    }
    assert_snapshot!(table);
}

#[test]
fn what_has_run_and_is_over_before_its_start_is_known_leaves_both_events() {
    let made = apply(Named::new(), Change::Made { init: process(7) }).0;
    let sent = apply(made, Change::StartSent).0;
    let ended = Change::Ended {
        exit: exit(),
        started_at: 52,
    };
    let (over, heard) = apply(sent, ended);
    assert_eq!(heard, [Heard::Started, Heard::Stopped]);
    // The answer to the start comes late.
    let (still, heard) = apply(over.clone(), Change::Started { at: 52 });
    assert_eq!((still, heard), (over, vec![]));
}

proptest! {
    #[test]
    fn no_stage_is_entered_twice_and_no_event_is_out_of_order(
        steps in prop::collection::vec(0..changes().len(), 0..40),
    ) {
        let (mut status, mut all) = (Named::new(), Vec::new());
        for step in steps {
            let (next, heard) = apply(status.clone(), changes().swap_remove(step).1);
            prop_assert!(next.stage >= status.stage, "{status:?} {next:?}");
            prop_assert!(status.exit.is_none() || next.exit == status.exit, "an end is told once");
            prop_assert!(status.started_at == 0 || next.started_at != 0, "a start is forgotten");
            prop_assert!(!status.stop_sent || next.stop_sent, "a signal would be sent twice");
            prop_assert_eq!(next.stage == Stage::Exited, next.is_over() && next.stage != Stage::Removed);
            prop_assert!(!next.is_over() || next.monitor.is_none());
            all.extend(heard);
            status = next;
        }
        let order = [Heard::Created, Heard::Started, Heard::Stopped, Heard::Removed];
        let places: Vec<usize> = all.iter().filter_map(|h| order.iter().position(|o| o == h)).collect();
        prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        prop_assert_eq!(all.contains(&Heard::Created), status.init.is_some());
        prop_assert_eq!(all.contains(&Heard::Started), status.started_at != 0);
        prop_assert_eq!(all.contains(&Heard::Stopped), status.exit.is_some());
    }
}
