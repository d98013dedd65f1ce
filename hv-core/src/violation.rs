//! What happens when the guest touches a page in a way that its state does not
//! allow: the plans of [`ept::wx`], carried out.
//!
//! Everything here runs in root mode on the core that faulted, under the
//! transition lock. The order within a plan is never changed: a right is taken
//! away from every core, and that is acknowledged, before the page is looked at
//! or the opposite right is given.

use core::sync::atomic::Ordering;

use ept::addr::{Gpa, Gva};
use ept::entry::{Access, Soft};
use ept::private::PrivatePath;
use ept::space::{Leaf, MapError};
use ept::wx::{self, PageState, Plan, Step, WriteFacts};

use crate::counters::Counters;
use crate::hypervisor::{Hypervisor, Nested};
use crate::memory::GuestMemory;
use crate::monitor::{Crossing, Difference, Fault, PageRole};
use crate::percpu::{Core, PRIVATE_TABLES};
use crate::shootdown;
use crate::step::{MAX_PAGES, StepPage};
use crate::vmx::vcpu;

/// A nested-paging violation, decoded from the processor's exit information.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts of one access"
)]
pub struct Violation {
    /// The address.
    pub gpa: Gpa,
    /// The linear address, when there is one.
    pub gla: Option<Gva>,
    /// Data read.
    pub read: bool,
    /// Data write.
    pub write: bool,
    /// Instruction fetch.
    pub fetch: bool,
    /// An access to the guest's page tables during a walk.
    pub page_walk: bool,
}

/// Rounds that a core waits for another one's step before it tries again in the
/// guest.
const WAIT_ROUNDS: u32 = 10_000;

/// Answers a violation. `fault` tells the core's state; its crossing is ignored.
pub fn answer(core: &Core, violation: &Violation, fault: Fault) {
    let hypervisor = core.hypervisor();
    let Some(space) = hypervisor.nested() else {
        return;
    };
    let mut rounds = 0;
    loop {
        let held = hypervisor.transition.acquire(|| shootdown::serve(core));
        if answer_once(core, hypervisor, space, violation, &fault) {
            drop(held);
            return;
        }
        drop(held);
        // Another core is stepping over the page: serve it, then look again; at
        // last let the guest try again.
        rounds += 1;
        if rounds > WAIT_ROUNDS || core.state.step.count.get() > 0 {
            return;
        }
        shootdown::serve(core);
        core::hint::spin_loop();
    }
}

/// One look at the page, with the lock held. `false` asks to wait.
fn answer_once(
    core: &Core,
    hypervisor: &Hypervisor,
    space: &Nested,
    violation: &Violation,
    fault: &Fault,
) -> bool {
    let counters = core.counters();
    let leaf = match space.lookup(violation.gpa) {
        Some(leaf) => leaf,
        None => {
            if let Ok(leaf) = space.ensure(violation.gpa) {
                Counters::bump(&counters.fills);
                if !violation.fetch {
                    return true;
                }
                leaf
            } else {
                Counters::bump(&counters.exhausted);
                return true;
            }
        }
    };
    if hypervisor.abandoned.load(Ordering::Acquire) {
        exempt(core, space, violation.gpa);
        return true;
    }
    if core.state.step.count.get() > 0 {
        return during_step(core, hypervisor, space, violation, fault, leaf);
    }
    let plan = if violation.fetch {
        if permits_fetch(hypervisor, &leaf, fault) {
            Plan::Retry
        } else {
            wx::on_fetch(leaf.soft.state)
        }
    } else if violation.write {
        wx::on_write(
            leaf.soft.state,
            write_facts(core, hypervisor, violation, fault),
        )
    } else {
        Plan::Retry
    };
    match plan {
        Plan::Retry => {
            Counters::bump(&counters.retries);
            true
        }
        Plan::Wait => false,
        Plan::Run { steps, count } => {
            let bounces = count.apply(leaf.soft.bounces);
            run(
                core, hypervisor, space, violation, fault, leaf, steps, bounces,
            );
            true
        }
    }
}

/// With separate user rights a user-mode fetch is refused only from a page that
/// is being stepped over.
fn permits_fetch(hypervisor: &Hypervisor, leaf: &Leaf, fault: &Fault) -> bool {
    let needed = if hypervisor.controls.mbec && fault.cpl == 3 {
        Access::EXEC_USER
    } else {
        Access::EXEC_KERNEL
    };
    leaf.access.contains(needed)
}

fn write_facts(
    core: &Core,
    hypervisor: &Hypervisor,
    violation: &Violation,
    fault: &Fault,
) -> WriteFacts {
    let module = hypervisor
        .monitor
        .is_some_and(|monitor| monitor.role(violation.gpa) == PageRole::ModuleCode);
    let own = own_page(core, violation.gpa, fault);
    WriteFacts {
        page_walk: violation.page_walk,
        // Each write to a module's code is stepped as well: only so are the bytes
        // that it leaves known at once.
        same_page: own || module,
        can_step: true,
        // The counter is not asked: a frame that used to write itself may have
        // been freed and hold somebody's data now. One write turns it into data;
        // stepping its every write would stop the machine.
        bounces: 0,
    }
}

/// Whether the instruction lies in the page `gpa`, wholly or with its end.
fn own_page(core: &Core, gpa: Gpa, fault: &Fault) -> bool {
    let memory = memory_of(core, fault);
    let page = gpa.page_base();
    let in_page = |rip: u64| {
        memory
            .translate(Gva::new(rip))
            .is_some_and(|found| found.gpa.page_base() == page)
    };
    // An instruction has at most 15 bytes.
    in_page(fault.rip.as_u64())
        || (fault.rip.page_offset() > 4096 - 15 && in_page(fault.rip.as_u64().wrapping_add(14)))
}

fn memory_of<'a>(core: &'a Core, fault: &Fault) -> GuestMemory<'a> {
    GuestMemory::new(core, fault.paging, fault.cr3)
}

#[expect(clippy::too_many_arguments, reason = "one violation's facts")]
fn run(
    core: &Core,
    hypervisor: &Hypervisor,
    space: &Nested,
    violation: &Violation,
    fault: &Fault,
    leaf: Leaf,
    steps: &[Step],
    bounces: u8,
) {
    let counters = core.counters();
    let page = violation.gpa.page_base();
    for step in steps {
        match *step {
            Step::Revoke(state) => {
                let soft = Soft {
                    state,
                    bounces,
                    ..leaf.soft
                };
                if space.set_state(page, soft).is_err() {
                    Counters::bump(&counters.exhausted);
                    exempt(core, space, page);
                    return;
                }
            }
            Step::Acknowledge => shootdown::revoke(core),
            Step::Capture => {
                if let Some(before) = core.before.first() {
                    memory_of(core, fault).copy_page(page, before.0.get());
                }
            }
            // The monitor looks at the page and decides in one call.
            Step::Inspect | Step::Compare => {}
            Step::StepPrivately => {
                begin_step(
                    core,
                    hypervisor,
                    space,
                    StepPage {
                        gpa: page,
                        own_page: own_page(core, page, fault),
                        bounces,
                        fault: *fault,
                    },
                );
                // The rest of the plan follows when the instruction has retired.
                return;
            }
            Step::Decide => {
                if violation.fetch {
                    decide_fetch(core, hypervisor, violation, fault);
                }
            }
            Step::Grant(state) => {
                let soft = Soft {
                    state,
                    bounces,
                    ..leaf.soft
                };
                grant(core, space, page, soft);
            }
        }
    }
}

fn grant(core: &Core, space: &Nested, page: Gpa, soft: Soft) {
    let counters = core.counters();
    match space.set_state(page, soft) {
        // Only rights are added to a page that had been made read-only.
        Ok(change) => debug_assert!(
            !change.flush.needs_acknowledgement(),
            "a grant takes nothing away"
        ),
        Err(_) => Counters::bump(&counters.exhausted),
    }
    Counters::bump(match soft.state {
        PageState::Executable => &counters.fetch_flips,
        PageState::Exempt => &counters.exempted,
        _ => &counters.write_flips,
    });
}

/// The page cannot be watched: all rights, and counted.
fn exempt(core: &Core, space: &Nested, gpa: Gpa) {
    Counters::bump(&core.counters().exempted);
    match space.exempt_whole(gpa) {
        Ok(change) if change.flush.needs_acknowledgement() => shootdown::revoke(core),
        Ok(_) => {}
        Err(MapError::PoolExhausted | MapError::OutOfReach | MapError::WriteAndExecute) => {
            Counters::bump(&core.counters().exhausted);
        }
    }
}

fn decide_fetch(core: &Core, hypervisor: &Hypervisor, violation: &Violation, fault: &Fault) {
    // Without separate user rights, user-mode code gets no verdict.
    if fault.cpl == 3 {
        return;
    }
    if let Some(monitor) = hypervisor.monitor {
        let fault = Fault {
            crossing: Crossing::Fetch,
            gpa: violation.gpa,
            gla: violation.gla,
            ..*fault
        };
        let _ = monitor.on_fetch(&fault, &mut memory_of(core, &fault));
    }
}

/// Starts a step over `page`, which is read-only for every core.
fn begin_step(core: &Core, hypervisor: &Hypervisor, space: &Nested, page: StepPage) {
    let step = &core.state.step;
    if let Some(first) = step.pages.first() {
        first.set(Some(page));
    }
    step.count.set(1);
    if build_path(core, space) {
        core.state.stepping.store(true, Ordering::Release);
        step.flags.set(vcpu::arm_step(hypervisor.controls.mtf));
    } else {
        give_up_step(core, space);
    }
}

/// Builds the private path for the pages of the step and switches to it.
fn build_path(core: &Core, space: &Nested) -> bool {
    let step = &core.state.step;
    let Some(path) = PrivatePath::in_chunk(private_base(core), &core.private) else {
        return false;
    };
    let none = (Gpa::new(0), Access::empty());
    let mut pages = [none; MAX_PAGES];
    let mut count = 0;
    for (slot, page) in pages.iter_mut().zip(&step.pages).take(step.count.get()) {
        let Some(page) = page.get() else {
            return false;
        };
        let access = if page.own_page {
            Access::all()
        } else {
            Access::RW
        };
        *slot = (page.gpa, access);
        count += 1;
    }
    match path.build(space, pages.get(..count).unwrap_or(&[])) {
        Ok(root) => {
            let eptp = vcpu::eptp(root);
            // SAFETY: root mode; INVEPT exists. The path's tables had other content
            // at its last use.
            unsafe { crate::instr::invept_single(eptp) };
            vcpu::set_eptp(eptp);
            step.stale.set(false);
            true
        }
        Err(_) => false,
    }
}

fn private_base(core: &Core) -> ept::addr::Hpa {
    const { assert!(PRIVATE_TABLES == ept::private::TABLES) }
    ept::addr::Hpa::new(core.state.private_base.get())
}

/// The pages of the step do not fit the private path: they are no longer watched.
fn give_up_step(core: &Core, space: &Nested) {
    for page in core
        .state
        .step
        .pages
        .iter()
        .take(core.state.step.count.get())
    {
        if let Some(StepPage { gpa, .. }) = page.take() {
            exempt(core, space, gpa);
        }
    }
    core.state.step.count.set(0);
    core.state.stepping.store(false, Ordering::Release);
    vcpu::set_eptp(core.hypervisor().eptp);
}

/// A violation of the instruction that is being stepped: it needs another page
/// too. The other page is handled in the shared tables as far as it can be, and
/// the private path is built anew.
fn during_step(
    core: &Core,
    hypervisor: &Hypervisor,
    space: &Nested,
    violation: &Violation,
    fault: &Fault,
    leaf: Leaf,
) -> bool {
    let page = violation.gpa.page_base();
    let step = &core.state.step;
    let known = step
        .pages
        .iter()
        .take(step.count.get())
        .filter_map(core::cell::Cell::get)
        .any(|known| known.gpa == page);
    if known {
        // The page is ours and yet refused: it was stepped for a write only and
        // is fetched from now.
        for slot in step.pages.iter().take(step.count.get()) {
            if let Some(mut known) = slot.get()
                && known.gpa == page
            {
                if known.own_page {
                    give_up_step_armed(core, hypervisor, space);
                    return true;
                }
                known.own_page = true;
                slot.set(Some(known));
            }
        }
    } else if violation.fetch && !permits_fetch(hypervisor, &leaf, fault) {
        if let Plan::Run { steps, count } = wx::on_fetch(leaf.soft.state) {
            let bounces = count.apply(leaf.soft.bounces);
            run(
                core, hypervisor, space, violation, fault, leaf, steps, bounces,
            );
        }
    } else if violation.write && leaf.soft.state == PageState::Executable {
        let index = step.count.get();
        let (Some(slot), Some(before)) = (step.pages.get(index), core.before.get(index)) else {
            give_up_step_armed(core, hypervisor, space);
            return true;
        };
        let bounces = leaf.soft.bounces.saturating_add(1);
        let soft = Soft {
            state: PageState::Stepping,
            bounces,
            ..leaf.soft
        };
        if space.set_state(page, soft).is_err() {
            give_up_step_armed(core, hypervisor, space);
            return true;
        }
        shootdown::revoke(core);
        memory_of(core, fault).copy_page(page, before.0.get());
        slot.set(Some(StepPage {
            gpa: page,
            own_page: own_page(core, page, fault),
            bounces,
            fault: *fault,
        }));
        step.count.set(index + 1);
    } else if leaf.soft.state == PageState::Stepping {
        // Another core steps over that page: let it finish. This core's own pages
        // are given back first, so that two cores never wait for each other.
        drop_step(core, space);
        return true;
    }
    if !build_path(core, space) {
        give_up_step_armed(core, hypervisor, space);
    }
    true
}

fn give_up_step_armed(core: &Core, hypervisor: &Hypervisor, space: &Nested) {
    vcpu::disarm_step(hypervisor.controls.mtf, core.state.step.flags.get());
    give_up_step(core, space);
}

/// The stepped instruction has retired (or was overtaken by an event): compares,
/// reports, and makes the pages executable again.
pub fn end_step(core: &Core) {
    let hypervisor = core.hypervisor();
    let Some(space) = hypervisor.nested() else {
        return;
    };
    let held = hypervisor.transition.acquire(|| shootdown::serve(core));
    if core.state.step.count.get() > 0 {
        Counters::bump(&core.counters().steps);
        drop_step(core, space);
    }
    drop(held);
}

/// The private path is out of date: ends the step; the instruction starts it
/// again if it has not retired.
pub fn cancel_step(core: &Core) {
    let hypervisor = core.hypervisor();
    let Some(space) = hypervisor.nested() else {
        return;
    };
    let held = hypervisor.transition.acquire(|| shootdown::serve(core));
    if core.state.step.count.get() > 0 {
        Counters::bump(&core.counters().steps_cancelled);
        drop_step(core, space);
    }
    drop(held);
}

fn drop_step(core: &Core, space: &Nested) {
    let hypervisor = core.hypervisor();
    let step = &core.state.step;
    vcpu::disarm_step(hypervisor.controls.mtf, step.flags.get());
    vcpu::set_eptp(hypervisor.eptp);
    core.state.stepping.store(false, Ordering::Release);
    let count = step.count.replace(0);
    for (slot, before) in step.pages.iter().zip(&core.before).take(count) {
        let Some(page) = slot.take() else {
            continue;
        };
        let mut memory = memory_of(core, &page.fault);
        let before = before.bytes();
        if let Some((first, last)) = memory.difference(page.gpa, before) {
            report_write(hypervisor, &page, before, first, last, &mut memory);
        }
        let soft = space
            .lookup(page.gpa)
            .map_or(Soft::default(), |leaf| leaf.soft);
        let soft = Soft {
            state: PageState::Executable,
            bounces: page.bounces,
            ..soft
        };
        // Read-only before: this only adds the right to execute.
        if space.set_state(page.gpa, soft).is_err() {
            Counters::bump(&core.counters().exhausted);
        }
    }
    // Everything that was revoked meanwhile is acknowledged now that no private
    // right is left.
    shootdown::serve(core);
}

fn report_write(
    hypervisor: &Hypervisor,
    page: &StepPage,
    before: &[u8; 4096],
    first: u16,
    last: u16,
    memory: &mut GuestMemory<'_>,
) {
    let Some(monitor) = hypervisor.monitor else {
        return;
    };
    let mut difference = Difference {
        offset: first,
        length: last - first + 1,
        old: [0; 32],
        new: [0; 32],
    };
    let offset = usize::from(first);
    for (byte, old) in difference.old.iter_mut().zip(before.iter().skip(offset)) {
        *byte = *old;
    }
    memory.bytes(page.gpa, offset, &mut difference.new);
    let fault = Fault {
        crossing: Crossing::Written,
        gpa: Gpa::new(page.gpa.as_u64() + u64::from(first)),
        own_page: page.own_page,
        ..page.fault
    };
    let _ = monitor.on_written(&fault, &difference, memory);
}
