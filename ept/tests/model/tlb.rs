//! What a processor may have cached, against the flush tokens.
//!
//! Every core caches everything that the manuals let it cache and forgets
//! nothing of its own accord (Intel SDM volume 3, "Caching Translation
//! Information" and "Information That May Be Cached"): guest-physical mappings
//! and paging-structure entries by the root that they came from, combined
//! mappings by the root and the guest's CR3. After each operation and what its
//! token asks for, nothing that any core could still translate with, by any mix
//! of cached pieces, may allow more than the tables do. Emulators flush far too
//! often to show a flush that is missing.
//!
//! Random sequences; each kind of negligence must be noticed.

use ept::addr::{Gpa, Hpa};
use ept::entry::{Access, EptFormat, Soft};
use ept::flush::Flush;
use ept::memtype::{MSR_PHYS_BASE0, MtrrState};
use ept::pool::Pool;
use ept::private::{PrivatePath, TABLES};
use ept::space::Space;
use ept::table::Table;
use ept::wx::PageState;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::rng::scaled;
use crate::walker::{Memory, Translation, walk_ept};

const GB: u64 = 1 << 30;
const MB: u64 = 1 << 20;
const PHYS_BITS: u8 = 39;
const CORES: usize = 3;
/// Pages in two regions of a gigabyte, and in another gigabyte.
const PAGES: [u64; 6] = [
    5 * GB,
    5 * GB + 0x1000,
    5 * GB + 0x2000,
    5 * GB + 6 * MB,
    5 * GB + 6 * MB + 0x5000,
    9 * GB + 0x3000,
];
const HIDING_PLACE: u64 = 0x9000;

/// What is neglected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Neglect {
    Nothing,
    /// The token.
    Token,
    /// The cores other than the one that made the change.
    OtherCores,
    /// INVEPT is for the private root only.
    SharedContext,
    /// Waiting for the guest to load CR3 is thought to be enough.
    Invalidation,
    /// A path in use is not built anew.
    Rebuild,
    /// The private root is not invalidated after a build.
    PrivateAfterBuild,
    /// The private root is not invalidated when the path was only aimed anew.
    PrivateAfterAim,
    /// Only what the token calls relaxed is flushed, the rest is not.
    Severity,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Set(usize, PageState),
    Turn(usize, PageState),
    Step(usize, usize),
    StepEnds(usize),
    Split(usize),
    Vacate(usize),
    Hide(usize),
    Show(usize),
    Retype(bool),
    Exempt(usize),
    Access(usize, usize),
    LoadCr3(usize, u8),
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0..PAGES.len();
    let state = || (0_u8..3).prop_map(PageState::from_bits);
    prop_oneof![
        3 => (page.clone(), state()).prop_map(|(page, to)| Op::Set(page, to)),
        3 => (page.clone(), state()).prop_map(|(page, to)| Op::Turn(page, to)),
        4 => (0..CORES, page.clone()).prop_map(|(core, page)| Op::Step(core, page)),
        2 => (0..CORES).prop_map(Op::StepEnds),
        1 => page.clone().prop_map(Op::Split),
        1 => page.clone().prop_map(Op::Vacate),
        1 => page.clone().prop_map(Op::Hide),
        1 => page.clone().prop_map(Op::Show),
        1 => any::<bool>().prop_map(Op::Retype),
        1 => page.clone().prop_map(Op::Exempt),
        10 => (0..CORES, page).prop_map(|(core, page)| Op::Access(core, page)),
        1 => (0..CORES, 0_u8..2).prop_map(|(core, cr3)| Op::LoadCr3(core, cr3)),
    ]
}

/// A cached entry of an upper level: for addresses with this prefix the walk
/// goes on in that table.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Partial {
    root: Hpa,
    shift: u32,
    prefix: u64,
    table: u64,
}

impl Partial {
    fn covers(&self, root: Hpa, gpa: u64) -> bool {
        self.root == root && gpa >> self.shift == self.prefix
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Mapping {
    root: Hpa,
    /// Combined with the guest's translation under this CR3.
    cr3: Option<u8>,
    to: Translation,
}

impl Mapping {
    fn covers(&self, root: Hpa, cr3: u8, gpa: u64) -> bool {
        let here = (self.to.base..self.to.base + self.to.bytes).contains(&gpa);
        self.root == root && here && self.cr3.is_none_or(|own| own == cr3)
    }
}

struct Core {
    path: PrivatePath<'static>,
    stepping: Option<usize>,
    cr3: u8,
    mappings: Vec<Mapping>,
    partials: Vec<Partial>,
}

struct Machine {
    space: &'static Space<'static, EptFormat>,
    mtrr: &'static MtrrState,
    memory: Memory<'static>,
    cores: Vec<Core>,
    neglect: Neglect,
}

fn machine(neglect: Neglect) -> Machine {
    let write_back = [(0, 0), (0, 0)];
    let mtrr: &MtrrState = Box::leak(Box::new(MtrrState::new(
        2,
        0x806,
        [0; 11],
        &write_back,
        PHYS_BITS,
    )));
    let mut memory = Memory::new();
    let chunks: [(Hpa, &[Table]); 1] = [memory.add(0x3_0000_0000, 24)];
    let pool = Pool::new(&chunks).unwrap();
    let space = Space::new(EptFormat { mbec: true }, pool, mtrr, PHYS_BITS, true).unwrap();
    let space = Box::leak(Box::new(space));
    let cores = (0..CORES as u64)
        .map(|number| {
            let (base, tables) = memory.add(0x3_8000_0000 + number * 0x10_0000, TABLES);
            Core {
                path: PrivatePath::in_chunk(base, tables).unwrap(),
                stepping: None,
                cr3: 0,
                mappings: Vec::new(),
                partials: Vec::new(),
            }
        })
        .collect();
    Machine {
        space,
        mtrr,
        memory,
        cores,
        neglect,
    }
}

impl Machine {
    fn root(&self, core: usize) -> Hpa {
        let core = &self.cores[core];
        match core.stepping {
            Some(_) => core.path.root(),
            None => self.space.root(),
        }
    }

    fn walk(&self, root: Hpa, gpa: u64) -> Option<Translation> {
        let phys_bits = u32::from(PHYS_BITS);
        walk_ept(&self.memory, root, Gpa::new(gpa), true, phys_bits)
    }

    /// Every translation of `gpa` that the core could come by: cached, walked
    /// from a cached entry of any level, walked from the root.
    fn possible(&self, number: usize, gpa: u64) -> Vec<Option<Translation>> {
        let (core, root) = (&self.cores[number], self.root(number));
        let cached = core.mappings.iter();
        let cached = cached.filter(|mapping| mapping.covers(root, core.cr3, gpa));
        let walked = core.partials.iter();
        let walked = walked.filter(|partial| partial.covers(root, gpa));
        cached
            .map(|mapping| Some(mapping.to))
            .chain(walked.map(|partial| self.memory.walk_on(partial.table, partial.shift, gpa)))
            .chain([self.walk(root, gpa)])
            .collect()
    }

    /// The core uses the page and caches all that it can.
    fn access(&mut self, number: usize, gpa: u64) {
        let root = self.root(number);
        let Some(to) = self.walk(root, gpa) else {
            self.violation(number, gpa);
            return;
        };
        let steps = self.memory.path(root, gpa);
        let core = &mut self.cores[number];
        let cr3 = core.cr3;
        for cr3 in [None, Some(cr3)] {
            let mapping = Mapping { root, cr3, to };
            if !core.mappings.contains(&mapping) {
                core.mappings.push(mapping);
            }
        }
        for (shift, table) in steps {
            let partial = Partial {
                root,
                shift,
                prefix: gpa >> shift,
                table,
            };
            if !core.partials.contains(&partial) {
                core.partials.push(partial);
            }
        }
    }

    /// An EPT violation drops what would be used for its address.
    fn violation(&mut self, number: usize, gpa: u64) {
        let root = self.root(number);
        let core = &mut self.cores[number];
        let cr3 = core.cr3;
        core.mappings
            .retain(|mapping| !mapping.covers(root, cr3, gpa));
        core.partials.retain(|partial| !partial.covers(root, gpa));
    }

    /// INVEPT, single context.
    fn invept(&mut self, number: usize, root: Hpa) {
        let core = &mut self.cores[number];
        core.mappings.retain(|mapping| mapping.root != root);
        core.partials.retain(|partial| partial.root != root);
    }

    /// Carries the token out, on `number`'s initiative.
    fn carry_out(&mut self, number: usize, token: Flush) {
        self.invalidate(number, token);
        self.rebuild(token);
    }

    fn asks(&self, token: Flush) -> bool {
        match self.neglect {
            Neglect::Token => false,
            Neglect::Severity => token == Flush::Relaxed,
            _ => token.needs_acknowledgement(),
        }
    }

    /// Every core invalidates.
    fn invalidate(&mut self, number: usize, token: Flush) {
        for core in 0..CORES {
            if !self.asks(token) || (core != number && self.neglect == Neglect::OtherCores) {
                continue;
            }
            let (shared, private) = (self.space.root(), self.cores[core].path.root());
            let cr3 = self.cores[core].cr3;
            match self.neglect {
                Neglect::SharedContext => self.invept(core, private),
                Neglect::Invalidation => self.load_cr3(core, cr3),
                _ => self.invept(core, shared),
            }
        }
    }

    /// Every core that is on a private path builds it anew.
    fn rebuild(&mut self, token: Flush) {
        for core in 0..CORES {
            if self.asks(token)
                && let Some(page) = self.cores[core].stepping
                && self.cores[core].path.is_stale(self.space)
                && self.neglect != Neglect::Rebuild
            {
                self.aim(core, page);
            }
        }
    }

    /// The path of the core serves this page from now on.
    fn aim(&mut self, number: usize, page: usize) {
        let gpa = Gpa::new(PAGES[page]);
        let path = &self.cores[number].path;
        let slot = self.space.find(gpa);
        let aimed = slot.and_then(|slot| path.aim(&slot, Access::all()));
        if aimed.is_none() {
            path.build(self.space, &[(gpa, Access::all())]).unwrap();
        }
        let root = path.root();
        let forgotten = match self.neglect {
            Neglect::PrivateAfterBuild => true,
            Neglect::PrivateAfterAim => aimed.is_some(),
            _ => false,
        };
        if !forgotten {
            self.invept(number, root);
        }
    }

    /// MOV to CR3: combined mappings of that CR3 go, guest-physical ones stay.
    fn load_cr3(&mut self, number: usize, cr3: u8) {
        let core = &mut self.cores[number];
        core.cr3 = cr3;
        core.mappings.retain(|mapping| mapping.cr3 != Some(cr3));
    }

    fn carry(&mut self, op: Op) {
        let soft = |state| Soft {
            state,
            ..Soft::default()
        };
        let gpa = |page: usize| Gpa::new(PAGES[page]);
        let token = match op {
            Op::Set(page, state) => self
                .space
                .set_state(gpa(page), soft(state))
                .map(|change| change.flush),
            Op::Turn(page, state) => {
                if let Some(slot) = self.space.find(gpa(page)) {
                    let (turn, token) = slot.close();
                    self.invalidate(0, token);
                    // Cores on a path build it anew under the lock, so afterwards.
                    turn.open(state, 0);
                    self.rebuild(token);
                }
                Ok(Flush::None)
            }
            Op::Step(core, page) => {
                let token = self
                    .space
                    .set_state(gpa(page), soft(PageState::Stepping))
                    .map(|change| change.flush);
                self.carry_out(core, token.unwrap_or_default());
                self.aim(core, page);
                self.cores[core].stepping = Some(page);
                Ok(Flush::None)
            }
            Op::StepEnds(core) => {
                self.cores[core].stepping = None;
                Ok(Flush::None)
            }
            Op::Split(page) => self.space.split(gpa(page)),
            Op::Vacate(page) => Ok(self.space.vacate(gpa(page))),
            Op::Hide(page) => self
                .space
                .remap(gpa(page), Hpa::new(HIDING_PLACE), Access::RW)
                .map(|change| change.flush),
            Op::Show(page) => self
                .space
                .remap(gpa(page), Hpa::identity(gpa(page)), Access::RW)
                .map(|change| change.flush),
            Op::Retype(combining) => {
                // 2 MB around the first pages become write-combining, and back.
                let mask = if combining { 0x7f_ffe0_0800 } else { 0 };
                assert!(self.mtrr.write(MSR_PHYS_BASE0, PAGES[0] | 1));
                assert!(self.mtrr.write(MSR_PHYS_BASE0 + 1, mask));
                Ok(self.space.retype(Gpa::new(0)..self.space.limit()).flush)
            }
            Op::Exempt(page) => self
                .space
                .exempt_whole(gpa(page))
                .map(|change| change.flush),
            Op::Access(core, page) => {
                let token = self.space.ensure(gpa(page)).map(|_| Flush::Relaxed);
                self.access(core, PAGES[page]);
                token
            }
            Op::LoadCr3(core, cr3) => {
                self.load_cr3(core, cr3);
                Ok(Flush::None)
            }
        };
        // An exhausted pool changes nothing, so there is nothing to flush.
        self.carry_out(0, token.unwrap_or_default());
    }

    /// No core can do more than the tables say, and a refusal by what is cached
    /// does not last.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for core in 0..CORES {
            for (page, gpa) in PAGES.into_iter().enumerate() {
                let now = self.walk(self.root(core), gpa);
                let shared = self.walk(self.space.root(), gpa);
                for found in self.possible(core, gpa) {
                    prop_assert!(
                        may_be(found, gpa, now),
                        "core {core} page {page}: {found:x?}, tables {now:x?}"
                    );
                    let own = self.cores[core].stepping == Some(page);
                    prop_assert!(
                        own || may_be(found, gpa, shared),
                        "core {core} page {page}: {found:x?}, shared {shared:x?}"
                    );
                }
                self.violation(core, gpa);
                let after = self.possible(core, gpa);
                prop_assert!(after.iter().all(|found| *found == now));
            }
        }
        Ok(())
    }
}

/// Whether a translation that was found allows no more than the one that holds.
fn may_be(found: Option<Translation>, gpa: u64, holds: Option<Translation>) -> bool {
    let (Some(found), Some(holds)) = (found, holds) else {
        return found.is_none();
    };
    let frame = |t: Translation| t.frame + (gpa - t.base);
    frame(found) == frame(holds)
        && found.memory_type == holds.memory_type
        && holds.rights.contains(found.rights)
}

/// Runs random sequences; the message of the first that fails.
fn run(neglect: Neglect, cases: u32) -> Result<(), String> {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 60,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    runner
        .run(&prop::collection::vec(op(), 1..60), |ops| {
            let mut machine = machine(neglect);
            // Not after each operation: the check itself makes cores forget.
            let (last, before) = ops.split_last().expect("never empty");
            for &op in before {
                machine.carry(op);
            }
            machine.carry(*last);
            machine.check()
        })
        .map_err(|error| error.to_string())
}

#[test]
fn no_core_can_translate_to_more_than_the_tables_say() {
    run(Neglect::Nothing, scaled(400)).unwrap();
}

#[test]
fn every_negligence_is_noticed() {
    for neglect in [
        Neglect::Token,
        Neglect::OtherCores,
        Neglect::SharedContext,
        Neglect::Invalidation,
        Neglect::Rebuild,
        Neglect::PrivateAfterBuild,
        Neglect::PrivateAfterAim,
        Neglect::Severity,
    ] {
        let noticed = run(neglect, 1000);
        println!("{neglect:?}: {noticed:?}");
        assert!(noticed.is_err(), "{neglect:?}");
    }
}

/// A guest-physical mapping outlives the guest's CR3: without INVEPT the old
/// right is still there. This is the sequence that a hypervisor gets away with
/// on every emulator.
#[test]
fn a_mapping_outlives_a_cr3_load() {
    let page = Gpa::new(PAGES[0]);
    for (neglect, kept) in [(Neglect::Invalidation, true), (Neglect::Nothing, false)] {
        let mut machine = machine(neglect);
        let _ = machine.space.split(page).unwrap();
        machine.carry(Op::Access(1, 0));
        machine.carry(Op::Set(0, PageState::Executable));
        machine.carry(Op::LoadCr3(1, 1));
        machine.carry(Op::LoadCr3(1, 0));
        let found = machine.possible(1, PAGES[0]);
        let writes = |t: &Option<Translation>| t.is_some_and(|t| t.rights.contains(Access::WRITE));
        assert_eq!(found.iter().any(writes), kept, "{found:x?}");
    }
}

/// Sizes of the translations by which a user-mode fetch from the page could go.
fn fetch_sizes(machine: &Machine, core: usize, page: usize) -> Vec<u64> {
    let found = machine.possible(core, PAGES[page]);
    let runs = found.into_iter().flatten();
    let mut sizes: Vec<_> = runs
        .filter(|t| t.rights.contains(Access::EXEC_USER))
        .map(|t| t.bytes)
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// CVE-2018-12207: code must never be translated by two sizes at once. A split
/// alone lets it; vacating first, with the flush that it asks for, does not.
#[test]
fn code_is_never_translated_by_two_sizes() {
    for vacated in [false, true] {
        let mut machine = machine(Neglect::Nothing);
        for core in 0..CORES {
            machine.carry(Op::Access(core, 0));
        }
        if vacated {
            machine.carry(Op::Vacate(0));
        }
        // Before its own token is carried out.
        let token = machine.space.split(Gpa::new(PAGES[0])).unwrap();
        let sizes = fetch_sizes(&machine, 1, 0);
        assert_eq!(sizes.len(), if vacated { 1 } else { 2 }, "{sizes:x?}");
        assert_eq!(token.needs_acknowledgement(), !vacated);
    }
}
