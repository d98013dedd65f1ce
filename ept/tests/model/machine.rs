//! A machine of several cores that cache translations for as long as the
//! manuals allow, carrying out the plans on the real tables while the other
//! cores go on.
//!
//! Pages have a version instead of content; a write advances it. The machine
//! fails when an instruction is fetched from a version that was never looked
//! at, when a core uses a right that was revoked and acknowledged, or when a
//! cached translation survives the acknowledgement that should have ended it.
//! Emulators flush too often to show any of this.
//!
//! Each test of a planted fault shows that the machine would notice it.

use std::collections::{BTreeMap, BTreeSet};

use ept::addr::{Gpa, Hpa};
use ept::entry::{Access, EptFormat, Soft};
use ept::flush::Flush;
use ept::memtype::MtrrState;
use ept::pool::Pool;
use ept::private::{PrivatePath, TABLES};
use ept::space::Space;
use ept::table::Table;
use ept::wx::{Count, PageState, Plan, Step, WriteFacts, on_fetch, on_review, on_write};

use crate::rng::{Rng, scaled};
use crate::walker::{Memory, Translation, walk_ept};

const GB: u64 = 1 << 30;
const PHYS_BITS: u8 = 39;
/// Pages in one 2 MB region, and one in another of the same gigabyte.
const PAGES: [u64; 4] = [5 * GB, 5 * GB + 0x1000, 5 * GB + 0x2000, 5 * GB + 0x60_0000];
/// A page that is hidden and shown again all the time.
const MOVING: u64 = 5 * GB + 0x3000;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The token is dropped.
    FlushDropped,
    /// The last core is never asked.
    CoreForgotten,
    /// Cores acknowledge without invalidating.
    EmptyAcknowledgement,
    /// The page is looked at before the right to write is revoked.
    LookFirst,
    /// The write is granted before the revoke is acknowledged.
    GrantFirst,
    /// A private path is not built anew when a right is revoked.
    StalePath,
    /// A core does not invalidate its private root after building it.
    StalePrivateCache,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Fetch,
    Write,
    /// An instruction that writes the page it lies in, and tries to write one
    /// more.
    SelfWrite(usize),
    /// The processor sets an accessed bit.
    Walk,
}

#[derive(Clone, Copy, Debug)]
struct Instruction {
    page: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    gpa: u64,
    page: Option<usize>,
    steps: &'static [Step],
    at: usize,
    count: Count,
    token: Flush,
    asked: bool,
    seen: Option<u32>,
}

struct Core<'a> {
    path: PrivatePath<'a>,
    on_path: bool,
    /// Translations by the root that they were found from.
    cache: Vec<(Hpa, Translation)>,
    kicked: bool,
    instruction: Option<Instruction>,
    job: Option<Job>,
}

#[derive(Debug, Default)]
struct Seen {
    fetches: u32,
    plans: u32,
    steps: u32,
    waits: u32,
    rebuilt: u32,
    revokes: u32,
}

struct Machine<'a> {
    space: Space<'a, EptFormat>,
    memory: Memory<'a>,
    cores: Vec<Core<'a>>,
    holder: Option<usize>,
    waiting: BTreeSet<usize>,
    version: [u32; PAGES.len()],
    approved: [Option<u32>; PAGES.len()],
    /// Rights that may be used: lowered when a revoke is acknowledged by all.
    settled: BTreeMap<u64, Access>,
    fault: Fault,
    rng: Rng,
    seen: Seen,
}

const LOOK_FIRST: &[Step] = &[
    Step::Inspect,
    Step::Revoke(PageState::Stepping),
    Step::Acknowledge,
    Step::Decide,
    Step::Grant(PageState::Executable),
];
const GRANT_FIRST: &[Step] = &[
    Step::Revoke(PageState::Stepping),
    Step::Capture,
    Step::Decide,
    Step::Grant(PageState::Writable),
    Step::Acknowledge,
];

impl Machine<'_> {
    fn root_of(&self, core: usize) -> Hpa {
        let core = &self.cores[core];
        if core.on_path {
            core.path.root()
        } else {
            self.space.root()
        }
    }

    /// Translates as the processor may: from the cache if anything there fits,
    /// else by walking, caching what was found.
    fn translate(&mut self, core: usize, gpa: u64) -> Option<Translation> {
        let root = self.root_of(core);
        let fitting: Vec<_> = self.cores[core]
            .cache
            .iter()
            .filter(|(tag, t)| *tag == root && (t.base..t.base + t.bytes).contains(&gpa))
            .map(|(_, t)| *t)
            .collect();
        if !fitting.is_empty() {
            return Some(fitting[self.rng.below(fitting.len())]);
        }
        let found = walk_ept(
            &self.memory,
            root,
            Gpa::new(gpa),
            true,
            u32::from(PHYS_BITS),
        )?;
        self.cores[core].cache.push((root, found));
        Some(found)
    }

    /// Whether `core` may use `right` at `gpa` now. A refusal drops what was
    /// cached for the address, as an EPT violation does.
    fn may(&mut self, core: usize, gpa: u64, right: Access) -> Result<bool, String> {
        let allowed = self
            .translate(core, gpa)
            .is_some_and(|t| t.rights.contains(right));
        if !allowed {
            let root = self.root_of(core);
            self.cores[core]
                .cache
                .retain(|(tag, t)| *tag != root || !(t.base..t.base + t.bytes).contains(&gpa));
            return Ok(false);
        }
        let stepping_here =
            self.cores[core].on_path && self.cores[core].job.is_some_and(|job| job.gpa == gpa);
        let settled = self.settled.get(&gpa).copied().unwrap_or(Access::RW);
        if !stepping_here && !settled.contains(right) {
            return Err(format!("core {core} used {right:?} at {gpa:#x}"));
        }
        Ok(true)
    }

    fn fetched(&mut self, core: usize, page: usize) -> Result<(), String> {
        self.seen.fetches += 1;
        let exempt = self
            .space
            .lookup(Gpa::new(PAGES[page]))
            .is_some_and(|leaf| leaf.soft.state == PageState::Exempt);
        if !exempt && self.approved[page] != Some(self.version[page]) {
            return Err(format!("core {core} ran unseen bytes of page {page}"));
        }
        Ok(())
    }

    /// Tries one instruction. `None` when it is done, else the access that was
    /// refused.
    fn execute(&mut self, core: usize, what: Instruction) -> Result<Option<Kind>, String> {
        let gpa = PAGES[what.page];
        match what.kind {
            Kind::Read => {
                self.may(core, gpa, Access::READ)?;
                self.translate(core, MOVING);
            }
            Kind::Fetch => {
                if !self.may(core, gpa, Access::EXEC_KERNEL)? {
                    return Ok(Some(Kind::Fetch));
                }
                self.fetched(core, what.page)?;
            }
            Kind::Write | Kind::Walk => {
                if !self.may(core, gpa, Access::WRITE)? {
                    return Ok(Some(what.kind));
                }
                self.version[what.page] += 1;
            }
            Kind::SelfWrite(other) => {
                if !self.may(core, gpa, Access::EXEC_KERNEL)? {
                    return Ok(Some(Kind::Fetch));
                }
                if !self.may(core, gpa, Access::WRITE)? {
                    return Ok(Some(what.kind));
                }
                self.fetched(core, what.page)?;
                self.version[what.page] += 1;
                if other != what.page && self.may(core, PAGES[other], Access::WRITE)? {
                    self.version[other] += 1;
                }
            }
        }
        Ok(None)
    }

    /// A violation: what the plan for it is.
    fn violation(&mut self, core: usize, what: Instruction, refused: Kind) {
        let gpa = PAGES[what.page];
        let Ok(leaf) = self.space.ensure(Gpa::new(gpa)) else {
            return;
        };
        let facts = WriteFacts {
            page_walk: refused == Kind::Walk,
            same_page: matches!(refused, Kind::SelfWrite(_)),
            can_step: true,
            bounces: leaf.soft.bounces,
        };
        let state = leaf.soft.state;
        let plan = match refused {
            Kind::Fetch => on_fetch(state),
            _ if state == PageState::Exempt => on_review(state),
            _ => on_write(state, facts),
        };
        match plan {
            Plan::Retry => {}
            Plan::Wait => self.seen.waits += 1,
            Plan::Run { steps, count } => {
                let steps = match self.fault {
                    Fault::LookFirst if refused == Kind::Fetch => LOOK_FIRST,
                    Fault::GrantFirst if refused == Kind::Write => GRANT_FIRST,
                    _ => steps,
                };
                self.seen.plans += 1;
                self.start(core, gpa, Some(what.page), steps, count);
            }
        }
    }

    fn start(
        &mut self,
        core: usize,
        gpa: u64,
        page: Option<usize>,
        steps: &'static [Step],
        count: Count,
    ) {
        self.holder = Some(core);
        self.cores[core].job = Some(Job {
            gpa,
            page,
            steps,
            at: 0,
            count,
            token: Flush::None,
            asked: false,
            seen: None,
        });
    }

    fn set_state(&mut self, job: &Job, state: PageState, bounces: u8) -> Flush {
        let soft = Soft {
            state,
            bounces,
            code: false,
        };
        self.space.set_state(Gpa::new(job.gpa), soft).unwrap().flush
    }

    /// One step of the core's job.
    fn work(&mut self, core: usize, mut job: Job) -> Result<(), String> {
        let old = self.space.lookup(Gpa::new(job.gpa)).unwrap().soft;
        match job.steps[job.at] {
            Step::Revoke(state) => {
                job.token |= self.set_state(&job, state, old.bounces);
                self.seen.revokes += 1;
            }
            Step::Acknowledge => {
                if !job.asked {
                    job.asked = true;
                    if job.token.needs_acknowledgement() && self.fault != Fault::FlushDropped {
                        let root = self.space.root();
                        self.cores[core].cache.retain(|(tag, _)| *tag != root);
                        let asked =
                            self.cores.len() - usize::from(self.fault == Fault::CoreForgotten);
                        for other in (0..asked).filter(|other| *other != core) {
                            self.cores[other].kicked = true;
                            self.waiting.insert(other);
                        }
                    }
                    self.cores[core].job = Some(job);
                    return Ok(());
                }
                if !self.waiting.is_empty() {
                    if self.fault == Fault::GrantFirst
                        && let Some(instruction) = self.cores[core].instruction.take()
                    {
                        // The guest goes on at once with what it was granted.
                        self.execute(core, instruction)?;
                    }
                    return Ok(());
                }
                let rights = self.space.lookup(Gpa::new(job.gpa)).unwrap().access;
                self.settled.insert(job.gpa, rights);
                self.check_caches()?;
            }
            Step::Inspect | Step::Compare => {
                job.seen = job.page.map(|page| self.version[page]);
            }
            Step::Capture => {}
            Step::Decide => {
                if let (Some(page), Some(seen)) = (job.page, job.seen) {
                    self.approved[page] = Some(seen);
                }
            }
            Step::StepPrivately => {
                if !self.cores[core].on_path {
                    // Others may change other pages while the guest runs.
                    let pages = [(Gpa::new(job.gpa), Access::all())];
                    let root = self.cores[core].path.build(&self.space, &pages).unwrap();
                    if self.fault != Fault::StalePrivateCache {
                        self.cores[core].cache.retain(|(tag, _)| *tag != root);
                    }
                    self.cores[core].on_path = true;
                    self.holder = None;
                    return Ok(());
                }
                // The step takes its time.
                if !self.rng.chance(4) {
                    return Ok(());
                }
                if let Some(instruction) = self.cores[core].instruction {
                    if self.execute(core, instruction)?.is_some() {
                        return Err("the private path refused the step".into());
                    }
                    self.cores[core].instruction = None;
                    self.seen.steps += 1;
                }
                if self.holder.is_some() {
                    return Ok(());
                }
                self.holder = Some(core);
                self.cores[core].on_path = false;
            }
            Step::Grant(state) => {
                let bounces = job.count.apply(old.bounces);
                let flush = self.set_state(&job, state, bounces);
                if flush.needs_acknowledgement() {
                    return Err("a grant took a right away".into());
                }
                let rights = self.space.lookup(Gpa::new(job.gpa)).unwrap().access;
                let settled = self.settled.entry(job.gpa).or_insert(Access::RW);
                *settled |= rights;
            }
        }
        job.at += 1;
        if job.at == job.steps.len() {
            self.cores[core].job = None;
            self.holder = None;
        } else {
            self.cores[core].job = Some(job);
        }
        Ok(())
    }

    /// After an acknowledgement nothing may be cached that the tables do not
    /// say any more.
    fn check_caches(&self) -> Result<(), String> {
        for (number, core) in self.cores.iter().enumerate() {
            for (tag, t) in &core.cache {
                if *tag != self.space.root() {
                    continue;
                }
                let now = walk_ept(
                    &self.memory,
                    *tag,
                    Gpa::new(t.base),
                    true,
                    u32::from(PHYS_BITS),
                );
                let same = now.is_some_and(|now| {
                    (now.base, now.bytes, now.frame) == (t.base, t.bytes, t.frame)
                        && now.memory_type == t.memory_type
                        && now.rights.contains(t.rights)
                });
                if !same {
                    return Err(format!("core {number} keeps {t:x?}, now {now:x?}"));
                }
            }
        }
        Ok(())
    }

    /// A kick arrives: invalidate, build a private path anew, acknowledge.
    fn serve(&mut self, core: usize) {
        let shared = self.space.root();
        let fault = self.fault;
        let serving = &mut self.cores[core];
        serving.kicked = false;
        if fault != Fault::EmptyAcknowledgement {
            serving.cache.retain(|(tag, _)| *tag != shared);
        }
        if serving.on_path
            && fault != Fault::StalePath
            && serving.path.is_stale(&self.space)
            && let Some(job) = serving.job
        {
            let pages = [(Gpa::new(job.gpa), Access::all())];
            let root = serving.path.build(&self.space, &pages).unwrap();
            serving.cache.retain(|(tag, _)| *tag != root);
            self.seen.rebuilt += 1;
        }
        self.waiting.remove(&core);
    }

    fn new_instruction(&mut self) -> Instruction {
        // One page is fought over.
        let page = if self.rng.chance(2) {
            0
        } else {
            self.rng.below(PAGES.len())
        };
        let kind = match self.rng.below(10) {
            0..4 => Kind::Fetch,
            4..6 => Kind::Write,
            6..8 => Kind::SelfWrite(self.rng.below(PAGES.len())),
            8 => Kind::Walk,
            _ => Kind::Read,
        };
        Instruction { page, kind }
    }

    fn turn(&mut self, core: usize) -> Result<(), String> {
        if self.cores[core].kicked && self.rng.chance(2) {
            self.serve(core);
            return Ok(());
        }
        if let Some(job) = self.cores[core].job {
            return self.work(core, job);
        }
        if self.rng.chance(40) {
            // Evicted for no reason at all.
            self.cores[core].cache.clear();
        }
        let what = match self.cores[core].instruction {
            Some(what) => what,
            None => self.new_instruction(),
        };
        self.cores[core].instruction = Some(what);
        if self.holder.is_none() && self.rng.chance(30) {
            let frame = if self.rng.chance(2) { MOVING } else { 0x9000 };
            let moved = self
                .space
                .remap(Gpa::new(MOVING), Hpa::new(frame), Access::RW);
            let token = moved.unwrap().flush;
            self.start(core, MOVING, None, &[Step::Acknowledge], Count::Keep);
            if let Some(job) = &mut self.cores[core].job {
                job.token = token;
            }
            return Ok(());
        }
        match self.execute(core, what)? {
            None => self.cores[core].instruction = None,
            Some(refused) if self.holder.is_none() => self.violation(core, what, refused),
            Some(_) => {}
        }
        Ok(())
    }
}

fn run(seed: u64, cores: usize, fault: Fault) -> Result<Seen, String> {
    let tables: Vec<Table> = (0..16).map(|_| Table::new()).collect();
    let paths: Vec<Table> = (0..TABLES * cores).map(|_| Table::new()).collect();
    let (shared_at, paths_at) = (Hpa::new(0x3_0000_0000), Hpa::new(0x3_8000_0000));
    let mut memory = Memory::new();
    memory.lend(shared_at, &tables);
    memory.lend(paths_at, &paths);
    let mtrr = MtrrState::new(0, 0x806, [0; 11], &[], PHYS_BITS);
    let pool = Pool::new(&[(shared_at, &tables[..])]).unwrap();
    let space = Space::new(EptFormat { mbec: true }, pool, &mtrr, PHYS_BITS, true).unwrap();
    let cores = paths
        .chunks(TABLES)
        .enumerate()
        .map(|(number, chunk)| {
            let offset = (number * TABLES * 4096) as u64;
            Core {
                path: PrivatePath::in_chunk(Hpa::new(paths_at.as_u64() + offset), chunk).unwrap(),
                on_path: false,
                cache: Vec::new(),
                kicked: false,
                instruction: None,
                job: None,
            }
        })
        .collect::<Vec<_>>();
    let number = cores.len();
    let mut machine = Machine {
        space,
        memory,
        cores,
        holder: None,
        waiting: BTreeSet::new(),
        version: [0; PAGES.len()],
        approved: [None; PAGES.len()],
        settled: BTreeMap::new(),
        fault,
        rng: Rng::new(seed),
        seen: Seen::default(),
    };
    for _ in 0..600 {
        let core = machine.rng.below(number);
        machine
            .turn(core)
            .map_err(|error| format!("seed {seed}, {number} cores: {error}"))?;
    }
    Ok(machine.seen)
}

#[test]
fn no_core_uses_a_right_that_was_taken_and_acknowledged() {
    for cores in 1..=4 {
        let mut sum = Seen::default();
        for seed in 0..u64::from(scaled(400)) {
            let seen = run(seed, cores, Fault::None).unwrap();
            sum.fetches += seen.fetches;
            sum.plans += seen.plans;
            sum.steps += seen.steps;
            sum.waits += seen.waits;
            sum.rebuilt += seen.rebuilt;
            sum.revokes += seen.revokes;
        }
        println!("{cores} cores: {sum:?}");
        // The machine did what it is here to watch.
        assert!(sum.fetches > 1000 && sum.plans > 1000 && sum.steps > 100);
        assert!(cores == 1 || (sum.waits > 10 && sum.rebuilt > 10));
    }
}

/// Whether interleavings of four cores notice `fault`, three times to be sure.
fn is_noticed(fault: Fault) -> bool {
    let seeds: Vec<_> = (0..4000)
        .filter(|&seed| run(seed, 4, fault).is_err())
        .take(3)
        .collect();
    println!("{fault:?}: noticed with seeds {seeds:?}");
    seeds.len() == 3
}

#[test]
fn a_dropped_flush_is_noticed() {
    assert!(is_noticed(Fault::FlushDropped));
}

#[test]
fn a_forgotten_core_is_noticed() {
    assert!(is_noticed(Fault::CoreForgotten));
}

#[test]
fn an_acknowledgement_without_invalidation_is_noticed() {
    assert!(is_noticed(Fault::EmptyAcknowledgement));
}

#[test]
fn looking_before_revoking_is_noticed() {
    assert!(is_noticed(Fault::LookFirst));
}

#[test]
fn granting_before_the_acknowledgement_is_noticed() {
    assert!(is_noticed(Fault::GrantFirst));
}

#[test]
fn a_private_path_that_is_not_rebuilt_is_noticed() {
    assert!(is_noticed(Fault::StalePath));
}

#[test]
fn a_private_root_that_is_not_invalidated_is_noticed() {
    assert!(is_noticed(Fault::StalePrivateCache));
}
