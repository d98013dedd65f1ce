//! Every interleaving of the situations, and every mistake noticed.

use models::revocation::scenarios as genuine;
use models::variants;

macro_rules! right {
    ($($name:ident: $scenario:ident,)*) => {$(
        #[test]
        fn $name() {
            genuine::explore(&genuine::$scenario);
        }
    )*};
}

right! {
    a_writer_and_a_fetcher: WRITER_AND_FETCHER,
    a_step_and_a_fetch: STEP_AND_FETCH,
    a_step_and_a_revocation: STEP_AND_REVOKE,
    two_steps_over_each_other: TWO_STEPS,
    sleep_and_wake: SLEEP_AND_WAKE,
    sleep_for_good: SLEEP,
    a_core_that_leaves: LEAVE,
    a_core_that_leaves_before_its_kick: LEAVE_LATE,
    init_in_a_step: SLEEP_IN_STEP,
    a_core_that_joins: JOIN,
    two_kicks: TWO_KICKS,
    two_kicks_anywhere: TWO_KICKS_ANYWHERE,
    a_step_and_kicks_anywhere: STEP_ANYWHERE,
    three_cores: THREE_CORES,
}

/// A mistake and a situation in which it must be noticed.
macro_rules! wrong {
    ($($variant:ident in $scenario:ident: $message:literal,)*) => {$(
        #[test]
        #[should_panic(expected = $message)]
        fn $variant() {
            variants::$variant::scenarios::explore(&variants::$variant::scenarios::$scenario);
        }
    )*};
}

wrong! {
    acknowledgement_skipped in WRITER_AND_FETCHER: "Causality violation",
    one_core_forgotten in THREE_CORES: "Causality violation",
    kick_before_the_generation in TWO_KICKS: "exceeded maximum number of branches",
    no_fence_before_the_look in SLEEP_AND_WAKE: "exceeded maximum number of branches",
    kick_without_an_interrupt in WRITER_AND_FETCHER: "exceeded maximum number of branches",
    acknowledgement_without_invalidation in WRITER_AND_FETCHER: "Causality violation",
    acknowledgement_goes_back in TWO_KICKS_ANYWHERE: "exceeded maximum number of branches",
    relaxed_look_at_acknowledgements in WRITER_AND_FETCHER: "Causality violation",
    sleeper_is_waited_for in SLEEP: "exceeded maximum number of branches",
    leaver_is_waited_for in LEAVE: "exceeded maximum number of branches",
    waiter_does_not_serve in STEP_AND_REVOKE: "exceeded maximum number of branches",
    relaxed_unlock in WRITER_AND_FETCHER: "Causality violation",
    relaxed_lock in WRITER_AND_FETCHER: "Causality violation",
    lock_is_not_taken in WRITER_AND_FETCHER: "Causality violation",
    handler_forgets_the_step in STEP_ANYWHERE: "Causality violation",
    exit_serves_instead_of_cancelling in STEP_AND_REVOKE: "Causality violation",
    exit_does_not_look in TWO_KICKS: "exceeded maximum number of branches",
    kick_is_used_up_late in TWO_KICKS: "exceeded maximum number of branches",
    private_path_is_not_rebuilt in TWO_STEPS: "exceeded maximum number of branches",
    look_before_the_revocation in WRITER_AND_FETCHER: "Causality violation",
    step_opens_the_shared_entry in STEP_AND_FETCH: "Causality violation",
    waker_does_not_invalidate in SLEEP_AND_WAKE: "Causality violation",
    waker_invalidates_first in SLEEP_AND_WAKE: "Causality violation",
    sleeper_keeps_its_step in SLEEP_IN_STEP: "exceeded maximum number of branches",
    joiner_invalidates_first in JOIN: "Causality violation",
    leaver_does_not_await_its_kick in LEAVE_LATE: "an NMI is left to the guest",
}
