//! What happens when the guest touches a page in a way that its state does not
//! allow: the plans of [`ept::wx`], carried out.
//!
//! Everything here runs in root mode on the core that faulted, under the
//! transition lock. The order within a plan is never changed: a right is taken
//! away from every core, and that is acknowledged, before the page is looked at
//! or the opposite right is given. The one write that needs none of it is a
//! simple store that is carried out here: what it stores is reported first.
//!
//! Which fetches are the kernel's, the processor says. With Intel's mode-based
//! execute control the linear address decides, and [`Violation::cpl`] stands for
//! it; with AMD's guest mode execute trap it is the privilege level itself, so that
//! the kernel is seen when it runs a page of user mode's. There a page is user
//! mode's or the kernel's ([`Features::one_owner`](crate::backend::Features)), and
//! one that refuses user mode for that alone is turned for it.
//!
//! The facts of a finding ([`Fault`]) are many; they are collected when one is
//! about to be reported, not at every turn of a page.

use core::cell::Cell;
use core::sync::atomic::Ordering;

use ept::addr::{Gpa, Gva};
use ept::entry::{Access, Soft};
use ept::flush::Flush;
use ept::slot::Turn;
use ept::space::{MapError, Space};
use ept::wx::{self, PageState, Plan, Step, WriteFacts};

use crate::backend::Backend;
use crate::counters::Counters;
use crate::emulate::{operand, store};
use crate::hypervisor::Hypervisor;
use crate::memory::{GuestMemory, window_start};
use crate::monitor::{Crossing, Difference, Fault, PageRole};
use crate::percpu::Core;
use crate::seeded::{self, Planted};
use crate::shootdown;
use crate::step::{MAX_PAGES, StepPage, StepState, WINDOW};

/// The shared tables in the backend's format.
type Nested<B> = Space<'static, <B as Backend>::Format>;

/// A page's place in the shared tables.
type Slot<'s, B> = ept::slot::Slot<'s, 'static, <B as Backend>::Format>;

/// A nested-paging violation, decoded from the processor's exit information.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts of one access"
)]
pub struct Violation {
    /// The address.
    pub gpa: Gpa,
    /// The linear address, when there is one and the processor tells it.
    pub gla: Option<Gva>,
    /// Data read.
    pub read: bool,
    /// Data write.
    pub write: bool,
    /// Instruction fetch.
    pub fetch: bool,
    /// An access to the guest's page tables during a walk.
    pub page_walk: bool,
    /// An access with user rights was refused by a leaf that was there. Told with
    /// AMD's guest mode execute trap only.
    pub user: bool,
    /// The access was made by the delivery of an event, not by the instruction.
    pub delivering: bool,
    /// Current privilege level.
    pub cpl: u8,
    /// Linear address of the instruction.
    pub rip: Gva,
}

impl Violation {
    /// Whether the instruction lies, wholly or with its end, in the linear page
    /// that it writes. (Through another linear address the page is found out by
    /// its bounces.) `None`: the processor does not tell.
    fn is_own_page(&self) -> Option<bool> {
        if self.delivering {
            return Some(false);
        }
        let page = self.gla?.as_u64() >> 12;
        let rip = self.rip.as_u64();
        Some(rip >> 12 == page || last_byte(rip) >> 12 == page)
    }
}

/// Address of the last byte that the instruction at `rip` can have.
const fn last_byte(rip: u64) -> u64 {
    rip.wrapping_add(14)
}

/// Rounds that a core waits for another one's step before it tries again in the
/// guest.
const WAIT_ROUNDS: u32 = 10_000;

/// What the handlers of one violation share.
struct Context<'a, B: Backend, F: Fn() -> Fault> {
    core: &'a Core,
    hypervisor: &'a Hypervisor,
    space: &'a Nested<B>,
    violation: &'a Violation,
    /// Collects the core's state, with the access.
    fault: F,
    /// Whether the page is a module's code, once the monitor has been asked.
    module: Cell<Option<bool>>,
    /// Whether the instruction lies in the page that it writes, once that is known.
    own_page: Cell<Option<bool>>,
}

/// Answers a violation. `fault` collects the core's state.
pub fn answer<B: Backend>(core: &Core, violation: &Violation, fault: impl Fn() -> Fault) {
    let hypervisor = core.hypervisor();
    let Some(space) = B::nested(hypervisor) else {
        return;
    };
    let context = Context::<B, _> {
        core,
        hypervisor,
        space,
        violation,
        fault,
        module: Cell::new(None),
        own_page: Cell::new(violation.is_own_page()),
    };
    let mut rounds = 0;
    loop {
        let held = hypervisor.transition.acquire(|| shootdown::serve(core));
        let done = context.answer();
        drop(held);
        // Another core is stepping over the page: serve it, then look again; at
        // last let the guest try again.
        rounds += 1;
        if done || rounds > WAIT_ROUNDS || core.state.step.count.get() > 0 {
            return;
        }
        shootdown::serve(core);
        core::hint::spin_loop();
    }
}

impl<B: Backend, F: Fn() -> Fault> Context<'_, B, F> {
    /// One look at the page, with the lock held. `false` asks to wait.
    fn answer(&self) -> bool {
        self.module.set(None);
        let slot = self.space.find(self.violation.gpa);
        let (soft, access) = match &slot {
            Some(slot) => (slot.soft(), self.space.rights(slot.state())),
            None => match self.region() {
                Some(found) => found,
                None => return true,
            },
        };
        if self.hypervisor.abandoned.load(Ordering::Acquire) {
            B::stop_trapping(self.core);
            exempt::<B>(self.core, self.space, self.violation.gpa);
            return true;
        }
        if self.core.state.step.count.get() > 0 {
            return self.during_step(soft, access);
        }
        match self.plan(soft, access) {
            Plan::Retry => {
                Counters::bump(&self.core.counters().retries);
                true
            }
            Plan::Wait => false,
            Plan::Run { steps, count } => {
                self.run(slot, soft, steps, count.apply(soft.bounces));
                true
            }
        }
    }

    /// An address that no 4 KB leaf maps as itself: filled, large or hidden.
    /// `None` when there is nothing more to do.
    fn region(&self) -> Option<(Soft, Access)> {
        let counters = self.core.counters();
        if let Some(leaf) = self.space.lookup(self.violation.gpa) {
            return Some((leaf.soft, leaf.access));
        }
        if seeded::is(Planted::NeverFill) {
            return None;
        }
        let Ok(leaf) = self.space.ensure(self.violation.gpa) else {
            Counters::bump(&counters.exhausted);
            return None;
        };
        Counters::bump(&counters.fills);
        self.violation.fetch.then_some((leaf.soft, leaf.access))
    }

    fn plan(&self, soft: Soft, access: Access) -> Plan {
        if self.is_closed_to_user(soft.state) {
            // A module's code is not opened for writes behind its back; but the
            // processor's walks are no instruction's.
            let watched = soft.state == PageState::Executable && !self.violation.page_walk;
            wx::on_user(soft.state, watched && self.can_step() && self.is_module())
        } else if self.violation.fetch {
            if self.permits_fetch(access) {
                Plan::Retry
            } else {
                wx::on_fetch(soft.state)
            }
        } else if self.violation.write {
            if soft.state != PageState::Executable {
                return wx::on_write(soft.state, WriteFacts::default());
            }
            let facts = self.write_facts(soft);
            let plan = wx::on_write(soft.state, facts);
            // Where the page would be stepped over, a simple store is cheaper; it
            // counts like a step, so that a page of data becomes one again.
            if let Plan::Run { steps, count } = plan
                && steps.contains(&Step::StepPrivately)
                && self.emulate(facts)
            {
                let bounces = count.apply(soft.bounces);
                if let Some(mut slot) = self.space.find(self.violation.gpa)
                    && bounces != soft.bounces
                {
                    let _ = slot.exchange(soft.state, bounces);
                }
                return Plan::Retry;
            }
            plan
        } else {
            Plan::Retry
        }
    }

    /// Whether the page refused user mode for no other reason than that it is the
    /// kernel's.
    fn is_closed_to_user(&self, state: PageState) -> bool {
        let violation = self.violation;
        violation.user && wx::is_closed_to_user(state, violation.write && !violation.page_walk)
    }

    /// Whether one instruction can be stepped over. The trap flag is of no use in
    /// the delivery of an event, which clears it.
    fn can_step(&self) -> bool {
        self.hypervisor.features.mtf || !self.violation.delivering
    }

    /// With separate user rights a user-mode fetch is refused only from a page
    /// that is being stepped over.
    fn permits_fetch(&self, access: Access) -> bool {
        access.contains(
            if self.hypervisor.features.mbec && self.violation.cpl == 3 {
                Access::EXEC_USER
            } else {
                Access::EXEC_KERNEL
            },
        )
    }

    fn write_facts(&self, soft: Soft) -> WriteFacts {
        // Each write to a module's code is seen on its own: only so are the bytes
        // that it leaves known at once.
        let module = self.is_module();
        let can_step = self.can_step();
        WriteFacts {
            page_walk: self.violation.page_walk,
            same_page: (module && can_step || self.is_own_page())
                && !seeded::is(Planted::NeverStep),
            can_step,
            bounces: soft.bounces,
        }
    }

    fn is_module(&self) -> bool {
        self.module.get().unwrap_or_else(|| {
            let module = self
                .hypervisor
                .monitor
                .is_some_and(|monitor| monitor.role(self.violation.gpa) == PageRole::ModuleCode);
            self.module.set(Some(module));
            module
        })
    }

    /// Whether the instruction lies, wholly or with its end, in the page that it
    /// writes. Where the processor does not tell the linear address, the frames are
    /// compared.
    fn is_own_page(&self) -> bool {
        if let Some(known) = self.own_page.get() {
            return known;
        }
        let fault = (self.fault)();
        let memory = self.memory(&fault);
        let page = self.violation.gpa.page_base();
        let rip = self.violation.rip;
        let last = Gva::new(last_byte(rip.as_u64()));
        let lies_there = |address: Gva| {
            memory
                .translate_code(address)
                .is_some_and(|here| here.gpa.page_base() == page)
        };
        let own = lies_there(rip) || rip.as_u64() >> 12 != last.as_u64() >> 12 && lies_there(last);
        self.own_page.set(Some(own));
        own
    }

    fn memory(&self, fault: &Fault) -> GuestMemory<'_> {
        GuestMemory::new(self.core, fault.paging, fault.cr3)
    }

    /// Carries a simple store out. `false` when it is none, or when something
    /// else would have to happen with it.
    fn emulate(&self, facts: WriteFacts) -> bool {
        let violation = self.violation;
        if violation.cpl != 0
            || violation.delivering
            || violation.page_walk
            || !B::long_mode(self.core)
            || B::has_breakpoints(self.core)
            || self.core.state.step.no_store.get() == violation.rip.as_u64()
        {
            return false;
        }
        let fault = (self.fault)();
        let memory = self.memory(&fault);
        let mut bytes = [0; 15];
        let Some(here) = memory.translate_code(violation.rip) else {
            return false;
        };
        let count = memory.code(violation.rip, &here, &mut bytes);
        let code = bytes.get(..count).unwrap_or(&[]);
        let Some(store) = store::decode(code, violation.rip.as_u64(), &fault.gprs) else {
            self.core.state.step.no_store.set(violation.rip.as_u64());
            return false;
        };
        let size = u64::from(store.size);
        // Another core may have changed the instruction, or the way to the page,
        // since the processor looked at them.
        let gla = violation.gla.unwrap_or(Gva::new(store.address));
        if store.address != gla.as_u64()
            || gla.page_offset() != violation.gpa.page_offset()
            || gla.page_offset() + size > 4096
        {
            return false;
        }
        let same_page = gla.as_u64() >> 12 == violation.rip.as_u64() >> 12;
        let there = if same_page {
            Some(here)
        } else {
            memory.translate(gla)
        };
        match there {
            Some(to)
                if to.gpa.page_base() == violation.gpa.page_base() && to.writable && to.noted => {}
            _ => return false,
        }
        let Some(mut operand) = memory.operand(violation.gpa, store.size) else {
            return false;
        };
        let old = operand.load();
        let changed = old ^ store.value;
        if changed != 0 && facts.same_page {
            self.report_store(&fault, gla, &store, old, changed);
            // The report may have looked through the same view.
            match memory.operand(violation.gpa, store.size) {
                Some(again) => operand = again,
                None => return false,
            }
        }
        operand.store(store.value);
        Counters::bump(&self.core.counters().emulated);
        B::advance_by(self.core, store.length.into());
        true
    }

    fn report_store(&self, fault: &Fault, gla: Gva, store: &store::Store, old: u64, changed: u64) {
        let Some(monitor) = self.hypervisor.monitor else {
            return;
        };
        let first = changed.trailing_zeros() / 8;
        let last = 7 - changed.leading_zeros() / 8;
        let changed = Gpa::new(self.violation.gpa.as_u64() + u64::from(first));
        let mut difference = Difference {
            offset: offset_of(changed),
            #[expect(clippy::cast_possible_truncation, reason = "at most 8")]
            length: (last - first + 1) as u16,
            old: [0; 32],
            new: [0; 32],
        };
        let bytes = usize::from(store.size) - first as usize;
        for (to, value) in [
            (&mut difference.old, old),
            (&mut difference.new, store.value),
        ] {
            let value = (value >> (8 * first)).to_le_bytes();
            for (to, byte) in to.iter_mut().zip(value).take(bytes) {
                *to = byte;
            }
        }
        let fault = Fault {
            crossing: Crossing::Written,
            gpa: changed,
            gla: Some(gla),
            own_page: self.is_own_page(),
            ..*fault
        };
        let _ = monitor.on_written(&fault, &difference, &mut self.memory(&fault));
    }

    /// Carries a plan out; `slot` is the page's, if it has one.
    fn run(&self, mut slot: Option<Slot<'_, B>>, soft: Soft, steps: &[Step], bounces: u8) {
        let page = self.violation.gpa.page_base();
        let mut closed = None;
        for step in steps {
            match *step {
                Step::Revoke(_) if self.violation.fetch && seeded::is(Planted::KeepWrite) => {}
                Step::Revoke(PageState::Stepping) if slot.is_some() => {
                    closed = slot.take().map(|slot| slot.close().0);
                }
                Step::Revoke(state) => {
                    if self.turn(page, state, bounces, soft).is_err() {
                        Counters::bump(&self.core.counters().exhausted);
                        if self.violation.user && soft.state == PageState::Exempt {
                            // A large leaf that must serve the kernel and user mode
                            // both, and no table is left to split it: with the trap
                            // on the two could take it from each other for ever.
                            self.hypervisor.abandon();
                        }
                        exempt::<B>(self.core, self.space, page);
                        return;
                    }
                }
                Step::Acknowledge => shootdown::revoke(self.core),
                // What is captured is what is compared: see `begin_step`. The
                // monitor looks at the page and decides in one call.
                Step::Capture | Step::Inspect | Step::Compare => {}
                Step::StepPrivately => {
                    self.begin_step(closed.map(Turn::hold).as_ref(), bounces);
                    // The rest of the plan follows when the instruction has
                    // retired.
                    return;
                }
                Step::Decide => self.decide(),
                Step::Grant(state) => {
                    if seeded::is(Planted::KeepWrite) && state == PageState::Executable {
                        exempt::<B>(self.core, self.space, page);
                        continue;
                    }
                    match closed.take() {
                        Some(turn) => turn.open(state, bounces),
                        None => self.open(page, state, bounces, soft),
                    }
                    let counters = self.core.counters();
                    Counters::bump(match state {
                        PageState::Executable => &counters.fetch_flips,
                        PageState::Exempt => &counters.exempted,
                        _ => &counters.write_flips,
                    });
                }
            }
        }
    }

    /// Gives the page the rights of a state. A large leaf is split first.
    fn turn(
        &self,
        page: Gpa,
        state: PageState,
        bounces: u8,
        soft: Soft,
    ) -> Result<Flush, MapError> {
        if let Some(mut slot) = self.space.find(page) {
            return Ok(slot.exchange(state, bounces));
        }
        if self.hypervisor.vacate && self.space.vacate(page).needs_acknowledgement() {
            // No core may hold a translation of the large page when the small
            // ones appear (Intel SDM vol. 3, "Recommended Invalidation", and the
            // machine-check erratum of large pages).
            shootdown::revoke(self.core);
        }
        let soft = Soft {
            state,
            bounces,
            ..soft
        };
        self.space.set_state(page, soft).map(|change| change.flush)
    }

    fn open(&self, page: Gpa, state: PageState, bounces: u8, soft: Soft) {
        match self.turn(page, state, bounces, soft) {
            // Only rights are added to a page that had been made read-only.
            Ok(flush) => {
                debug_assert!(!flush.needs_acknowledgement(), "a grant takes nothing away");
            }
            Err(_) => Counters::bump(&self.core.counters().exhausted),
        }
    }

    /// Asks whose code this is.
    fn decide(&self) {
        let Some(monitor) = self.hypervisor.monitor else {
            return;
        };
        let violation = self.violation;
        if violation.fetch {
            // Without separate user rights, user-mode code gets no verdict.
            if (violation.cpl == 3 && !seeded::is(Planted::JudgeUser))
                || seeded::is(Planted::SkipDecision)
            {
                return;
            }
            let fault = (self.fault)();
            if seeded::is(Planted::JudgeUser) {
                let fault = Fault { cpl: 0, ..fault };
                let _ = monitor.on_fetch(&fault, &mut self.memory(&fault));
                return;
            }
            let _ = monitor.on_fetch(&fault, &mut self.memory(&fault));
        } else if violation.delivering {
            report_unseen(self.core, self.hypervisor, &(self.fault)());
        }
    }

    /// Starts a step over the page, which is read-only for every core.
    fn begin_step(&self, slot: Option<&Slot<'_, B>>, bounces: u8) {
        let step = &self.core.state.step;
        step.count.set(0);
        if self.add_to_step(bounces) && build_path::<B>(self.core, self.space, slot) {
            self.core.state.stepping.store(true, Ordering::Release);
            B::arm_step(self.core);
        } else {
            give_up_step::<B>(self.core, self.space);
        }
    }

    /// Captures the page and adds it to the step. `false` when there is no room.
    fn add_to_step(&self, bounces: u8) -> bool {
        let step = &self.core.state.step;
        let index = step.count.get();
        let (Some(slot), Some(before)) = (step.pages.get(index), self.core.before.get(index))
        else {
            return false;
        };
        let page = self.violation.gpa.page_base();
        let fault = (self.fault)();
        let whole = self.is_module();
        let memory = self.memory(&fault);
        if whole {
            memory.copy_page(page, before.0.get());
        } else {
            memory.copy_window(self.violation.gpa, before.0.get());
        }
        slot.set(Some(StepPage {
            gpa: page,
            own_page: self.is_own_page(),
            bounces,
            whole,
            fault,
        }));
        step.count.set(index + 1);
        true
    }

    /// A violation of the instruction that is being stepped: it needs another
    /// page too. The other page is handled in the shared tables as far as it can
    /// be, and the private path is built anew.
    fn during_step(&self, soft: Soft, access: Access) -> bool {
        let core = self.core;
        let page = self.violation.gpa.page_base();
        let step = &core.state.step;
        let known = step
            .pages
            .iter()
            .take(step.count.get())
            .find(|slot| slot.get().is_some_and(|known| known.gpa == page));
        if let Some(slot) = known {
            // The page is ours and yet refused: it was stepped for a write only
            // and is fetched from now.
            match slot.get() {
                Some(known) if !known.own_page => slot.set(Some(StepPage {
                    own_page: true,
                    ..known
                })),
                _ => {
                    give_up_step_armed::<B>(core, self.space);
                    return true;
                }
            }
        } else if self.violation.fetch
            && !self.is_closed_to_user(soft.state)
            && !self.permits_fetch(access)
        {
            if let Plan::Run { steps, count } = wx::on_fetch(soft.state) {
                self.run(None, soft, steps, count.apply(soft.bounces));
            }
        } else if self.violation.write && soft.state == PageState::Executable
            || self.is_closed_to_user(soft.state)
        {
            let bounces = soft.bounces;
            if self.turn(page, PageState::Stepping, bounces, soft).is_err() {
                give_up_step_armed::<B>(core, self.space);
                return true;
            }
            shootdown::revoke(core);
            if step.count.get() == MAX_PAGES && self.is_own_page() {
                // Only the instruction's own pages need both rights.
                drop_one::<B>(core, self.hypervisor, self.space);
            }
            if !self.add_to_step(bounces) {
                report_unseen(core, self.hypervisor, &(self.fault)());
                self.open(page, PageState::Writable, bounces, soft);
                Counters::bump(&core.counters().write_flips);
            }
        } else if soft.state == PageState::Stepping {
            // Another core steps over that page: let it finish. This core's own
            // pages are given back first, so that two cores never wait for each
            // other.
            drop_step::<B>(core, self.space);
            return false;
        }
        while !build_path::<B>(core, self.space, None) {
            if !drop_one::<B>(core, self.hypervisor, self.space) {
                give_up_step_armed::<B>(core, self.space);
                break;
            }
        }
        true
    }
}

/// A write to a module's code that cannot be seen on its own is told with the
/// bytes from before on both sides.
fn report_unseen(core: &Core, hypervisor: &Hypervisor, fault: &Fault) {
    let Some(monitor) = hypervisor
        .monitor
        .filter(|monitor| monitor.role(fault.gpa) == PageRole::ModuleCode)
    else {
        return;
    };
    let fault = Fault {
        crossing: Crossing::Written,
        ..*fault
    };
    let mut memory = GuestMemory::new(core, fault.paging, fault.cr3);
    let mut bytes = [0; 32];
    let offset = offset_of(fault.gpa);
    memory.bytes(fault.gpa, offset.into(), &mut bytes);
    let difference = Difference {
        offset,
        length: 8.min(4096 - offset),
        old: bytes,
        new: bytes,
    };
    let _ = monitor.on_written(&fault, &difference, &mut memory);
}

/// Takes a page that is only written out of the step and makes it data: the write
/// needs no private path then, and the next fetch from it is looked at. `false`
/// when there is none.
fn drop_one<B: Backend>(core: &Core, hypervisor: &Hypervisor, space: &Nested<B>) -> bool {
    let step = &core.state.step;
    let count = step.count.get();
    let Some(index) = step
        .pages
        .iter()
        .take(count)
        .position(|slot| slot.get().is_some_and(|page| !page.own_page))
    else {
        return false;
    };
    let Some(page) = step.pages.get(index).and_then(Cell::take) else {
        return false;
    };
    report_unseen(core, hypervisor, &page.fault);
    if let Some(mut slot) = space.find(page.gpa) {
        // Read-only before: this only adds the right to write.
        let _ = slot.exchange(PageState::Writable, page.bounces);
    }
    Counters::bump(&core.counters().write_flips);
    // The pages and their copies stay side by side.
    for later in index + 1..count {
        if let (Some(to), Some(from)) = (step.pages.get(later - 1), step.pages.get(later)) {
            to.set(from.take());
        }
        if let (Some(to), Some(from)) = (core.before.get(later - 1), core.before.get(later)) {
            // SAFETY: two different pages of this core, which nobody else touches.
            unsafe { core::ptr::copy_nonoverlapping(from.0.get(), to.0.get(), 1) };
        }
    }
    step.count.set(count - 1);
    true
}

/// Offset in its page.
#[expect(clippy::cast_possible_truncation, reason = "below 4096")]
fn offset_of(gpa: Gpa) -> u16 {
    gpa.page_offset() as u16
}

/// [`written`], or what it said the last time, if it was the same write: an
/// instruction that is stepped is often stepped again.
fn last_written(step: &StepState, fault: &Fault, memory: &GuestMemory<'_>) -> Option<Gva> {
    let (rip, gpa) = (fault.rip.as_u64(), fault.gpa.as_u64());
    if let Some((last_rip, last_gpa, gla)) = step.written.get()
        && (last_rip, last_gpa) == (rip, gpa)
    {
        return Some(gla);
    }
    let gla = written(fault, memory)?;
    step.written.set(Some((rip, gpa, gla)));
    Some(gla)
}

/// The linear address that the instruction has faulted at, where the processor
/// tells only the physical one. `None` also when it has changed itself meanwhile.
fn written(fault: &Fault, memory: &GuestMemory<'_>) -> Option<Gva> {
    let mut bytes = [0; 15];
    let here = memory.translate_code(fault.rip)?;
    let count = memory.code(fault.rip, &here, &mut bytes);
    let code = bytes.get(..count).unwrap_or(&[]);
    let found = operand::find(code, fault.rip.as_u64(), &fault.gprs, |address| {
        let address = Gva::new(address);
        address.page_offset() == fault.gpa.page_offset()
            && memory
                .translate(address)
                .is_some_and(|there| there.gpa.page_base() == fault.gpa.page_base())
    });
    found.map(Gva::new)
}

/// The page cannot be watched: all rights, and counted.
fn exempt<B: Backend>(core: &Core, space: &Nested<B>, gpa: Gpa) {
    let hypervisor = core.hypervisor();
    Counters::bump(&core.counters().exempted);
    let untrapped = hypervisor.features.one_owner() && hypervisor.abandoned.load(Ordering::Acquire);
    let changed = if untrapped {
        space.exempt_untrapped(gpa)
    } else {
        space.exempt_whole(gpa)
    };
    match changed {
        Ok(change) if change.flush.needs_acknowledgement() => shootdown::revoke(core),
        Ok(_) => {}
        Err(MapError::PoolExhausted | MapError::OutOfReach | MapError::WriteAndExecute) => {
            Counters::bump(&core.counters().exhausted);
        }
    }
}

/// Builds the private path for the pages of the step and switches to it. `only`
/// is the page's slot when there is but one.
fn build_path<B: Backend>(core: &Core, space: &Nested<B>, only: Option<&Slot<'_, B>>) -> bool {
    let step = &core.state.step;
    let one_owner = core.hypervisor().features.one_owner();
    let none = (Gpa::new(0), Access::empty());
    let mut pages = [none; MAX_PAGES];
    let mut count = 0;
    for (slot, page) in pages.iter_mut().zip(&step.pages).take(step.count.get()) {
        let Some(page) = page.get() else {
            return false;
        };
        let user = one_owner && page.fault.cpl == 3;
        let access = wx::stepped_access(page.own_page, user);
        *slot = (page.gpa, access);
        count += 1;
    }
    let pages = pages.get(..count).unwrap_or(&[]);
    let aimed = match (only, pages) {
        (Some(slot), [(_, access)]) => core.path().aim(slot, *access),
        _ => None,
    };
    match aimed.map_or_else(|| core.path().build(space, pages), Ok) {
        Ok(root) => {
            B::use_path(core, root);
            step.stale.set(false);
            true
        }
        Err(_) => false,
    }
}

/// The pages of the step do not fit the private path: they are no longer watched.
fn give_up_step<B: Backend>(core: &Core, space: &Nested<B>) {
    let step = &core.state.step;
    for page in step.pages.iter().take(step.count.get()) {
        if let Some(StepPage { gpa, .. }) = page.take() {
            exempt::<B>(core, space, gpa);
        }
    }
    step.count.set(0);
    core.state.stepping.store(false, Ordering::Release);
    B::use_shared(core);
}

fn give_up_step_armed<B: Backend>(core: &Core, space: &Nested<B>) {
    B::disarm_step(core);
    give_up_step::<B>(core, space);
}

/// The stepped instruction has retired (or was overtaken by an event): compares,
/// reports, and makes the pages executable again.
pub fn end_step<B: Backend>(core: &Core) {
    let hypervisor = core.hypervisor();
    let Some(space) = B::nested(hypervisor) else {
        return;
    };
    let held = hypervisor.transition.acquire(|| shootdown::serve(core));
    if core.state.step.count.get() > 0 {
        Counters::bump(&core.counters().steps);
        drop_step::<B>(core, space);
    }
    drop(held);
}

/// The private path is out of date: ends the step; the instruction starts it
/// again if it has not retired.
pub fn cancel_step<B: Backend>(core: &Core) {
    let hypervisor = core.hypervisor();
    let Some(space) = B::nested(hypervisor) else {
        return;
    };
    let held = hypervisor.transition.acquire(|| shootdown::serve(core));
    if core.state.step.count.get() > 0 {
        Counters::bump(&core.counters().steps_cancelled);
        drop_step::<B>(core, space);
    }
    drop(held);
}

fn drop_step<B: Backend>(core: &Core, space: &Nested<B>) {
    let step = &core.state.step;
    B::disarm_step(core);
    B::use_shared(core);
    core.state.stepping.store(false, Ordering::Release);
    let count = step.count.replace(0);
    for (slot, before) in step.pages.iter().zip(&core.before).take(count) {
        let Some(mut page) = slot.take() else {
            continue;
        };
        let mut memory = GuestMemory::new(core, page.fault.paging, page.fault.cr3);
        let before = before.bytes();
        let found = if page.whole {
            memory.difference(page.gpa, before)
        } else {
            memory.window_difference(page.fault.gpa, before)
        };
        if let Some((first, last)) = found
            && !seeded::is(Planted::SkipCompare)
        {
            report_write(core, &mut page, before, first, last, &mut memory);
        }
        // Read-only before: this only adds the right to execute.
        if let Some(mut slot) = space.find(page.gpa) {
            let _ = slot.exchange(PageState::Executable, page.bounces);
        } else {
            // The page's region is exempt by now, or hidden.
            Counters::bump(&core.counters().retries);
        }
    }
    // Everything that was revoked meanwhile is acknowledged now that no private
    // right is left.
    shootdown::serve(core);
}

fn report_write(
    core: &Core,
    page: &mut StepPage,
    before: &[u8; 4096],
    first: u16,
    last: u16,
    memory: &mut GuestMemory<'_>,
) {
    let Some(monitor) = core.hypervisor().monitor else {
        return;
    };
    let step = &core.state.step;
    if page.fault.gla.is_none() && page.fault.long_mode {
        page.fault.gla = last_written(step, &page.fault, memory);
    }
    let mut difference = Difference {
        offset: first,
        length: last - first + 1,
        old: [0; 32],
        new: [0; 32],
    };
    let end = if page.whole {
        4096
    } else {
        window_start(page.fault.gpa) + WINDOW
    };
    let offset = usize::from(first);
    let known = before.get(offset..end).unwrap_or(&[]);
    for (byte, old) in difference.old.iter_mut().zip(known) {
        *byte = *old;
    }
    let room = known.len().min(32);
    if let Some(new) = difference.new.get_mut(..room) {
        memory.bytes(page.gpa, offset, new);
    }
    page.fault.crossing = Crossing::Written;
    page.fault.gpa = Gpa::new(page.gpa.as_u64() + u64::from(first));
    page.fault.own_page = page.own_page;
    let _ = monitor.on_written(&page.fault, &difference, memory);
}
