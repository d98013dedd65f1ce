//! All plans, walked exhaustively on a machine that knows rights only.

use ept::entry::Access;
use ept::wx::{
    Count, PageState, Plan, STEP_AFTER, Step, TURN_AFTER, WriteFacts, cooled, is_closed_to_user,
    on_fetch, on_review, on_user, on_write, stepped_access,
};

const STATES: [PageState; 4] = [
    PageState::Writable,
    PageState::Executable,
    PageState::Stepping,
    PageState::Exempt,
];

/// What any core may be able to do: the shared rights, and those that were
/// revoked but may still be cached somewhere.
struct Page {
    shared: Access,
    stale: Access,
}

impl Page {
    fn possible(&self) -> Access {
        self.shared | self.stale
    }
}

fn writes() -> impl Iterator<Item = WriteFacts> {
    (0..=255).flat_map(|bounces| {
        (0..8).map(move |flags| WriteFacts {
            page_walk: flags & 1 != 0,
            same_page: flags & 2 != 0,
            can_step: flags & 4 != 0,
            bounces,
        })
    })
}

/// Every plan there is, with the state that it starts from.
fn plans() -> Vec<(PageState, Plan, Option<WriteFacts>)> {
    let mut plans = Vec::new();
    for state in STATES {
        plans.push((state, on_fetch(state), None));
        plans.push((state, on_review(state), None));
        for facts in writes() {
            plans.push((state, on_write(state, facts), Some(facts)));
        }
        for can_step in [false, true] {
            // What is not stepped over stores nothing that would be recorded, like a
            // walk.
            let facts = WriteFacts {
                page_walk: !can_step,
                can_step,
                ..WriteFacts::default()
            };
            plans.push((state, on_user(state, can_step), Some(facts)));
        }
    }
    plans
}

#[test]
fn no_step_of_any_plan_lets_a_page_be_written_and_executed() {
    for separate_user in [false, true] {
        for (start, plan, facts) in plans() {
            let Plan::Run { steps, .. } = plan else {
                continue;
            };
            let mut page = Page {
                shared: start.access(separate_user),
                stale: Access::empty(),
            };
            let mut last = start;
            for step in steps {
                match *step {
                    Step::Revoke(state) => {
                        let rights = state.access(separate_user);
                        // A revoke gives nothing.
                        assert!(page.shared.contains(rights), "{start:?} {facts:?}");
                        page.stale |= page.shared - rights;
                        page.shared = rights;
                        last = state;
                    }
                    Step::Acknowledge => page.stale = Access::empty(),
                    Step::Capture | Step::Inspect | Step::Compare | Step::Decide => {
                        // What is looked at cannot change, nor run, meanwhile.
                        assert!(
                            !page
                                .possible()
                                .intersects(Access::WRITE | Access::EXEC_KERNEL),
                            "{start:?} {facts:?} {step:?}"
                        );
                    }
                    Step::StepPrivately => {
                        // Only the stepping core may write or execute.
                        assert_eq!(page.possible(), Access::READ, "{start:?} {facts:?}");
                        assert!(facts.is_some_and(|facts| facts.can_step));
                    }
                    Step::Grant(state) => {
                        let rights = state.access(separate_user);
                        // What is taken was acknowledged: nothing stale is left,
                        // and a grant takes nothing.
                        assert!(page.stale.is_empty(), "{start:?} {facts:?}");
                        assert!(rights.contains(page.shared));
                        page.shared = rights;
                        last = state;
                    }
                }
                assert!(
                    start == PageState::Exempt
                        || last == PageState::Exempt
                        || !page.possible().is_writable_and_executable(),
                    "{start:?} {facts:?} {step:?}"
                );
            }
            // A plan ends at rest, with nothing left to be flushed.
            assert!(page.stale.is_empty());
            assert_ne!(last, PageState::Stepping);
            assert!(matches!(steps.last(), Some(Step::Grant(_))));
        }
    }
}

#[test]
fn code_is_looked_at_before_it_may_run_and_writes_are_recorded() {
    let order = |steps: &[Step], wanted: &[Step]| {
        let mut at = steps.iter();
        wanted.iter().all(|w| at.any(|s| s == w))
    };
    for (start, plan, facts) in plans() {
        let Plan::Run { steps, .. } = plan else {
            continue;
        };
        let admits = steps.contains(&Step::Grant(PageState::Executable));
        let stepped = steps.contains(&Step::StepPrivately);
        if admits && !stepped {
            assert!(order(
                steps,
                &[Step::Acknowledge, Step::Inspect, Step::Decide]
            ));
        }
        if stepped {
            assert!(order(
                steps,
                &[
                    Step::Acknowledge,
                    Step::Capture,
                    Step::StepPrivately,
                    Step::Compare,
                    Step::Decide
                ]
            ));
        }
        if let Some(facts) = facts
            && start == PageState::Executable
        {
            // All but the processor's own writes leave a record.
            assert_eq!(
                steps.contains(&Step::Decide) && steps.contains(&Step::Capture),
                !facts.page_walk
            );
        }
    }
}

#[test]
fn each_violation_makes_progress() {
    for state in STATES {
        let rights = state.access(true);
        match on_fetch(state) {
            Plan::Retry => assert!(rights.contains(Access::EXEC_KERNEL)),
            Plan::Wait => assert_eq!(state, PageState::Stepping),
            Plan::Run { steps, .. } => {
                assert_eq!(steps.last(), Some(&Step::Grant(PageState::Executable)));
            }
        }
        for facts in writes() {
            match on_write(state, facts) {
                Plan::Retry => assert!(rights.contains(Access::WRITE)),
                Plan::Wait => assert_eq!(state, PageState::Stepping),
                Plan::Run { steps, .. } => {
                    // Either the write is allowed afterwards or it is done.
                    let Some(Step::Grant(end)) = steps.last() else {
                        panic!("{facts:?}");
                    };
                    assert!(
                        end.access(true).contains(Access::WRITE)
                            || steps.contains(&Step::StepPrivately)
                    );
                    // A page that writes itself must not turn round for ever.
                    if facts.same_page && !facts.page_walk {
                        assert_ne!(*end, PageState::Writable, "{facts:?}");
                    }
                }
            }
        }
    }
}

/// Two that quarrel over a page for ever, one writing and one fetching, have it
/// turned a few times, then at one write in seventeen.
#[test]
fn a_quarrel_is_damped() {
    let (mut state, mut bounces, mut turns, mut stepped) = (PageState::Writable, 0_u8, 0, 0);
    let writes = 1700;
    for _ in 0..writes {
        let facts = WriteFacts {
            can_step: true,
            bounces,
            ..WriteFacts::default()
        };
        for plan in [on_fetch(state), on_write(state, facts)] {
            if let Plan::Run { steps, count } = plan
                && let Some(Step::Grant(end)) = steps.last()
            {
                if steps.contains(&Step::StepPrivately) {
                    stepped += 1;
                } else if *end == PageState::Writable {
                    turns += 1;
                }
                state = *end;
                bounces = count.apply(bounces);
            }
        }
    }
    let period = u32::from(TURN_AFTER - STEP_AFTER) + 1;
    assert!(turns <= u32::from(STEP_AFTER) + writes / period, "{turns}");
    assert!(stepped >= writes - 2 * turns - 8, "{stepped} {turns}");
}

/// What used to be code and data, and is data now, becomes a data page again
/// after few writes, and costs nothing then.
#[test]
fn a_quarrel_is_forgotten() {
    for mut bounces in [0, 1, STEP_AFTER, 20, TURN_AFTER, 255] {
        let mut state = PageState::Executable;
        let mut writes = 0;
        while state == PageState::Executable {
            let facts = WriteFacts {
                can_step: true,
                bounces,
                ..WriteFacts::default()
            };
            let Plan::Run { steps, count } = on_write(state, facts) else {
                panic!("{bounces}");
            };
            let Some(Step::Grant(end)) = steps.last() else {
                panic!("{bounces}");
            };
            state = *end;
            bounces = count.apply(bounces);
            writes += 1;
        }
        assert_eq!(state, PageState::Writable);
        assert!(writes <= u32::from(TURN_AFTER - STEP_AFTER) + 1);
    }
    // A review of an exempt page starts with a clean counter.
    let Plan::Run { steps, count } = on_review(PageState::Exempt) else {
        panic!();
    };
    assert_eq!(steps.last(), Some(&Step::Grant(PageState::Executable)));
    assert_eq!(count.apply(99), 0);
    assert_eq!(Count::Add.apply(255), 255);
    assert_eq!(cooled(9), 4);
}

#[test]
fn states_survive_their_two_bits() {
    for state in STATES {
        assert_eq!(PageState::from_bits(state.bits()), state);
        assert_eq!(PageState::from_bits(state.bits() | 0xfc), state);
    }
    assert_eq!(PageState::default(), PageState::Writable);
}

/// A page is closed to user mode only where it is the kernel's, and opens for it.
#[test]
fn a_page_that_user_mode_is_refused_becomes_the_users() {
    for (state, closed) in STATES.into_iter().zip([false, true, false, true]) {
        assert_eq!(is_closed_to_user(state, false), closed, "{state:?}");
        let closed_to_store = closed && state != PageState::Executable;
        assert_eq!(is_closed_to_user(state, true), closed_to_store);
        for step in [false, true] {
            let Plan::Run { steps, count } = on_user(state, step) else {
                assert!(!closed);
                continue;
            };
            assert!(closed);
            assert_eq!(count, Count::Keep);
            // Only code that is somebody's is worth a step; it stays code.
            let steps_over = step && state == PageState::Executable;
            assert_eq!(steps.contains(&Step::StepPrivately), steps_over);
            let last = if steps_over {
                PageState::Executable
            } else {
                PageState::Writable
            };
            assert_eq!(steps.last(), Some(&Step::Grant(last)));
        }
    }
    assert_eq!(on_user(PageState::Writable, true), Plan::Retry);
    assert_eq!(on_user(PageState::Stepping, true), Plan::Wait);
    for user in [false, true] {
        assert_eq!(stepped_access(false, user), Access::RW);
    }
    assert!(stepped_access(true, false).is_writable_and_executable());
    let user = stepped_access(true, true);
    assert!(user.contains(Access::RW | Access::EXEC_USER));
    assert!(!user.contains(Access::EXEC_KERNEL));
}
