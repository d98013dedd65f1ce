//! Every pair of state and call, and every sequence of a few of them.

use super::*;
use Action::{Answer, Await, Begin, Free, Keep, Park, Refuse, Release};
use StartError::{AlreadyStarted, Busy, LeaveFailed, NotStarted};
use State::{Failed, Monitoring, Starting, Stopped, Stopping};
use proptest::prelude::*;

#[test]
fn every_pair_has_its_answer() {
    let table = [
        (
            Call::Start,
            [
                Begin(Starting),
                Refuse(Busy),
                Refuse(AlreadyStarted),
                Refuse(Busy),
                Refuse(LeaveFailed),
            ],
        ),
        (
            Call::Stop,
            [
                Refuse(NotStarted),
                Refuse(Busy),
                Begin(Stopping),
                Refuse(Busy),
                Refuse(LeaveFailed),
            ],
        ),
        (Call::Status, [Answer; 5]),
        (Call::Wait, [Park, Park, Park, Park, Answer]),
        (Call::Evidence, [Answer; 5]),
        (Call::Cancel, [Release; 5]),
        (Call::Cleanup, [Release; 5]),
        (Call::Shutdown, [Free, Await, Begin(Stopping), Await, Keep]),
        (Call::Unload, [Free, Await, Begin(Stopping), Await, Keep]),
    ];
    assert_eq!(table.map(|(call, _)| call), Call::ALL);
    for (call, row) in table {
        for (state, expected) in State::ALL.iter().zip(row) {
            assert_eq!(decide(*state, call), expected, "{call:?} in {state:?}");
        }
    }
}

#[test]
fn work_ends_well_or_not() {
    for (state, well, badly) in [
        (Stopped, Stopped, Stopped),
        (Starting, Monitoring, Stopped),
        (Monitoring, Monitoring, Monitoring),
        (Stopping, Stopped, Failed),
        (Failed, Failed, Failed),
    ] {
        assert_eq!(
            (finished(state, true), finished(state, false)),
            (well, badly)
        );
    }
}

/// A driver as the driver is: a state, and the one caller that works on it.
#[derive(Debug)]
struct Model {
    state: State,
    worker: Option<usize>,
    /// Cores that are guests.
    held: bool,
    freed: bool,
}

proptest! {
    /// Callers act in any order; each either calls or, if it works, ends its work.
    #[test]
    fn at_most_one_works_and_nothing_is_freed_under_a_guest(
        steps in prop::collection::vec((0..3_usize, 0..Call::ALL.len(), any::<bool>()), 0..60)
    ) {
        let mut model = Model { state: Stopped, worker: None, held: false, freed: false };
        for (caller, call, well) in steps {
            if model.freed {
                break;
            }
            if model.worker == Some(caller) {
                model.held = match (model.state, well) {
                    (Starting, true) => true,
                    (Starting, false) | (Stopping, true) => false,
                    (_, _) => model.held,
                };
                model.state = finished(model.state, well);
                model.worker = None;
            } else {
                let before = model.state;
                match decide(model.state, Call::ALL[call]) {
                    Begin(next) => {
                        prop_assert_eq!(model.worker, None, "one at a time");
                        prop_assert!(matches!(next, Starting | Stopping));
                        model.state = next;
                        model.worker = Some(caller);
                    }
                    Free => {
                        prop_assert!(!model.held && model.worker.is_none());
                        model.freed = true;
                    }
                    Keep => prop_assert!(model.held),
                    Await => prop_assert!(model.worker.is_some(), "it would wait for ever"),
                    Refuse(_) | Answer | Park | Release => {
                        prop_assert_eq!(model.state, before);
                    }
                }
            }
            prop_assert_eq!(model.worker.is_some(), matches!(model.state, Starting | Stopping));
            prop_assert_eq!(
                model.held && model.worker.is_none(),
                matches!(model.state, Monitoring | Failed)
            );
        }
    }
}
