//! The guest mode execute trap, tried on a model of it: no emulator has it.
//!
//! [`refuse`] is the check of one access to one page, written from the manual's
//! words and not from the code under test (AMD APM vol. 2, "Guest Mode Execute Trap
//! Extension" and "Nested versus Guest Page Faults, Fault Ordering"), in both of the
//! ways in which they can be read. The page's entry, the decoding of the fault, the
//! rules and the rights of a step are the genuine ones; [`Page::answer`] strings
//! them together as [`crate::violation`] does.

use ept::addr::{Hpa, PageSize};
use ept::entry::{Access, NestedEntry, NptFormat, Soft};
use ept::memtype::MemoryType;
use ept::wx::{self, PageState, Plan, Step, WriteFacts};
use proptest::prelude::*;

use super::npf;

const FORMAT: NptFormat = NptFormat { gmet: true };

/// The most faults until an access has happened.
const MOST_FAULTS: u32 = 3;

/// What a page with U = 0 is to user mode and to walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Out of bounds.
    Strict,
    /// A page like any other.
    Lenient,
}

const READINGS: [Reading; 2] = [Reading::Strict, Reading::Lenient];

/// What an instruction does with the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Read,
    Write,
    Fetch,
    /// Lies in it and writes it.
    FetchAndWrite,
    /// A walk through it; with read-only tables allowed it is no write.
    Walk {
        write: bool,
    },
}

const DEEDS: [Deed; 6] = [
    Deed::Read,
    Deed::Write,
    Deed::Fetch,
    Deed::FetchAndWrite,
    Deed::Walk { write: false },
    Deed::Walk { write: true },
];

/// One instruction's use of the page.
#[derive(Clone, Copy, Debug)]
struct Use {
    deed: Deed,
    cpl: u8,
    /// The processor calls every refused access of data the user's.
    errs: bool,
    /// The page is a module's code.
    module: bool,
}

impl Use {
    fn own_page(self) -> bool {
        self.deed == Deed::FetchAndWrite
    }

    /// The first refusal that the instruction meets at `leaf`: EXITINFO1.
    fn refusal(self, reading: Reading, leaf: u64) -> Option<u64> {
        let check = |write, fetch, walk| refuse(reading, leaf, self, write, fetch, walk);
        match self.deed {
            Deed::Read => check(false, false, false),
            Deed::Write => check(true, false, false),
            Deed::Fetch => check(false, true, false),
            Deed::FetchAndWrite => check(false, true, false).or_else(|| check(true, false, false)),
            Deed::Walk { write } => check(write, false, true),
        }
    }
}

/// The processor's check of one access. `None` lets it pass.
fn refuse(
    reading: Reading,
    leaf: u64,
    by: Use,
    write: bool,
    fetch: bool,
    walk: bool,
) -> Option<u64> {
    let bit = |bit: u32| leaf >> bit & 1 != 0;
    let (writable, users, no_execute) = (bit(1), bit(2), bit(63));
    let user = by.cpl == 3 || walk;
    let out_of_bounds = reading == Reading::Strict && user && !users;
    let trapped = !user && users;
    let refused = out_of_bounds || write && !writable || fetch && (no_execute || trapped);
    let told = user || by.errs && !fetch;
    refused.then_some(
        1 | u64::from(write) << 1
            | u64::from(told) << 2
            | u64::from(fetch) << 4
            | 1 << if walk { 33 } else { 32 },
    )
}

/// Whether the kernel could write the page and execute it, in either reading.
fn is_both(leaf: u64) -> bool {
    leaf & 2 != 0 && leaf >> 63 == 0 && leaf & 4 == 0
}

struct Page {
    leaf: u64,
    /// Written where everybody may, and not looked at since.
    written: bool,
}

impl Page {
    fn new(state: PageState) -> Self {
        let soft = Soft {
            state,
            ..Soft::default()
        };
        let rights = state.access(FORMAT.separates_user_fetches());
        let hpa = Hpa::new(0x1234_5000);
        Self {
            leaf: FORMAT.leaf(hpa, PageSize::Size4K, rights, MemoryType::Wb, soft),
            written: true,
        }
    }

    fn state(&self) -> PageState {
        FORMAT.state(self.leaf)
    }

    fn turn(&mut self, state: PageState, bounces: u8) {
        self.leaf = FORMAT.restate(self.leaf, state, bounces);
        assert!(
            state == PageState::Exempt || !is_both(self.leaf),
            "{state:?}"
        );
    }

    /// The plan for a refusal.
    fn plan(&self, by: Use, exit_info1: u64) -> Plan {
        let fault = npf::decode(exit_info1);
        let state = self.state();
        let stored = fault.write && !fault.page_walk;
        if fault.is_users(by.cpl) && wx::is_closed_to_user(state, stored) {
            wx::on_user(state, by.module && !fault.page_walk)
        } else if fault.fetch {
            let asked = if by.cpl == 3 {
                Access::EXEC_USER
            } else {
                Access::EXEC_KERNEL
            };
            if FORMAT.rights_of(state).contains(asked) {
                Plan::Retry
            } else {
                wx::on_fetch(state)
            }
        } else if fault.write {
            let facts = WriteFacts {
                page_walk: fault.page_walk,
                same_page: by.module || by.own_page(),
                can_step: true,
                bounces: FORMAT.soft(self.leaf).bounces,
            };
            wx::on_write(state, facts)
        } else {
            Plan::Retry
        }
    }

    /// Answers a refusal. `true` when the instruction was stepped over.
    fn answer(&mut self, reading: Reading, by: Use, exit_info1: u64) -> bool {
        let Plan::Run { steps, count } = self.plan(by, exit_info1) else {
            return false;
        };
        let bounces = count.apply(FORMAT.soft(self.leaf).bounces);
        let mut stepped = false;
        for step in steps {
            match *step {
                Step::Revoke(state) | Step::Grant(state) => self.turn(state, bounces),
                Step::Inspect => self.written = false,
                Step::StepPrivately => {
                    let user = by.cpl == 3;
                    // A fetch that is refused shows that it is the own page.
                    stepped = [by.own_page() || by.deed == Deed::Fetch, true]
                        .into_iter()
                        .any(|own| {
                            let access = wx::stepped_access(own, user);
                            let path = FORMAT.with_rights(self.leaf, access);
                            assert!(!user || !is_both(path), "{by:?}");
                            by.refusal(reading, path).is_none()
                        });
                    assert!(stepped, "{by:?} {reading:?}");
                }
                Step::Acknowledge | Step::Capture | Step::Compare | Step::Decide => {}
            }
        }
        stepped
    }

    /// Lets an instruction use the page. Returns the faults that it took.
    fn run(&mut self, reading: Reading, by: Use) -> u32 {
        let walk = matches!(by.deed, Deed::Walk { .. });
        let code = by.module && self.state() == PageState::Executable;
        let faults = self.try_until_done(reading, by);
        // A module's code is opened to no instruction, whoever's it is.
        assert!(!code || walk || self.state() == PageState::Executable);
        faults
    }

    fn try_until_done(&mut self, reading: Reading, by: Use) -> u32 {
        let mut faults = 0;
        while let Some(exit_info1) = by.refusal(reading, self.leaf) {
            faults += 1;
            assert!(faults <= MOST_FAULTS, "{by:?} {reading:?}");
            if self.answer(reading, by, exit_info1) {
                // What it wrote has been compared.
                return faults;
            }
        }
        let kernel_fetch = by.cpl != 3 && matches!(by.deed, Deed::Fetch | Deed::FetchAndWrite);
        if kernel_fetch && self.state() != PageState::Exempt {
            assert!(!self.written, "{by:?}: nobody has looked at the page");
        }
        if matches!(
            by.deed,
            Deed::Write | Deed::FetchAndWrite | Deed::Walk { write: true }
        ) {
            self.written = true;
        }
        faults
    }
}

/// At rest: no core holds the page.
const RESTING: [PageState; 3] = [
    PageState::Writable,
    PageState::Executable,
    PageState::Exempt,
];

fn uses() -> impl Iterator<Item = Use> {
    (0..DEEDS.len() * 16).map(|number| Use {
        deed: DEEDS[number / 16],
        cpl: [0, 1, 2, 3][number & 3],
        errs: number & 4 != 0,
        module: number & 8 != 0,
    })
}

fn page_in(state: PageState) -> Page {
    let mut page = Page::new(state);
    // Code was looked at when it became code.
    page.written = state != PageState::Executable;
    page
}

#[test]
fn every_use_of_a_page_in_any_state_comes_to_pass() {
    for reading in READINGS {
        for state in RESTING {
            for by in uses() {
                let faults = page_in(state).run(reading, by);
                let at_home = match state {
                    PageState::Writable => by.cpl == 3 || by.deed == Deed::Write,
                    _ => by.cpl != 3 && by.deed == Deed::Fetch,
                };
                assert!(!at_home || faults == 0, "{state:?} {by:?}");
            }
        }
    }
}

#[test]
fn the_kernel_is_told_by_its_level_and_not_by_the_address() {
    // There is no linear address in the check: levels 0 to 2 are refused alike.
    for reading in READINGS {
        for by in uses().filter(|by| by.deed == Deed::Fetch) {
            let data = page_in(PageState::Writable).leaf;
            assert_eq!(by.refusal(reading, data).is_some(), by.cpl != 3);
        }
    }
}

#[test]
fn a_page_that_is_held_refuses_writes_and_fetches_to_all() {
    let held = Page::new(PageState::Stepping).leaf;
    for reading in READINGS {
        for by in uses() {
            let reads = matches!(by.deed, Deed::Read | Deed::Walk { write: false });
            assert_eq!(by.refusal(reading, held).is_none(), reads, "{by:?}");
        }
    }
}

/// With the trap off again every access is the user's: what a core is given that
/// has stopped watching serves both.
#[test]
fn an_untrapped_page_serves_user_mode_before_and_all_after() {
    let access = Access::RW | Access::EXEC_USER;
    let open = FORMAT.with_rights(Page::new(PageState::Exempt).leaf, access);
    for by in uses() {
        let without_trap = Use { cpl: 3, ..by };
        for (by, passes) in [(by, by.cpl == 3), (without_trap, true)] {
            let refused = READINGS.map(|reading| by.refusal(reading, open));
            assert!(!passes || refused == [None; 2], "{by:?}");
        }
    }
}

#[test]
fn only_a_leaf_that_was_there_refuses_for_whose_it_is() {
    let code = |present: u64, user: u64, fetch: u64, walk: u64| {
        npf::decode(present | user << 2 | fetch << 4 | walk << 33)
    };
    for cpl in 0..4 {
        for bits in 0..8 {
            let (user, fetch, walk) = (bits & 1, bits >> 1 & 1, bits >> 2 & 1);
            assert!(!code(0, user, fetch, walk).is_users(cpl));
            let wanted = walk == 1 || cpl == 3 || user == 1 && fetch == 0;
            assert_eq!(code(1, user, fetch, walk).is_users(cpl), wanted);
        }
    }
}

proptest! {
    #[test]
    fn any_sequence_of_uses_comes_to_pass_and_is_watched(
        start in 0..RESTING.len(),
        module: bool,
        lenient: bool,
        uses in prop::collection::vec((0..DEEDS.len(), 0_u8..4, any::<bool>()), 1..200),
    ) {
        let reading = READINGS[usize::from(lenient)];
        let mut page = page_in(RESTING[start]);
        for (deed, cpl, errs) in uses {
            let by = Use { deed: DEEDS[deed], cpl, errs, module };
            let faults = page.run(reading, by);
            prop_assert!(faults <= MOST_FAULTS);
            prop_assert!(page.state() != PageState::Stepping);
        }
    }
}
