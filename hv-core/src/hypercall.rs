//! What the driver asks of root mode.
//!
//! Only code of the driver image at CPL 0 that knows the secret of this load is
//! answered (the exit handler checks); everybody else gets the #UD of a processor
//! without VMX. There is nothing here that reads or writes memory for its caller.

use core::sync::atomic::Ordering;

use ept::addr::{Gpa, Gva};
use ept::entry::Soft;
use ept::wx::PageState;

use crate::backend::{Nested, Vendor};
use crate::counters::Counters;
use crate::memory::GuestMemory;
use crate::percpu::Core;
use crate::platform::Ram;
use crate::{in_either, instr, shootdown, vmx};

/// The core that asks is a guest from now on, and counts for acknowledgements.
pub const ACTIVATE: u64 = 1;
/// Give this core back.
pub const LEAVE: u64 = 2;
/// Hand one page of data to the monitor: its number, its linear address.
pub const PUBLISH: u64 = 3;
/// Use what was handed over: its length in bytes.
pub const COMMIT: u64 = 4;
/// Read one of the figures of the nested tables: its number, see [`Figure`].
pub const MEASURE: u64 = 5;

/// Use this list of RAM: its linear address in the second operand.
pub const MEMORY: u64 = 6;

/// Done.
pub const OK: u64 = 0;
/// Refused.
pub const REFUSED: u64 = 1;

/// A figure of the nested tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
#[expect(missing_docs, reason = "the figures' names")]
pub enum Figure {
    Writable = 0,
    Executable = 1,
    Stepping = 2,
    Exempt = 3,
    Hidden = 4,
    Split2M = 5,
    TablesUsed = 6,
    TablesLeft = 7,
    Abandoned = 8,
}

/// A request, as the registers hold it.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// What is asked.
    pub operation: u64,
    /// First operand.
    pub first: u64,
    /// Second operand.
    pub second: u64,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A value for RAX.
    Value(u64),
    /// The core leaves VMX operation.
    Leave,
}

/// Makes a request. The answer is what RAX holds then.
///
/// # Safety
/// Guest context at CPL 0 on a core that the hypervisor has taken over (else #UD).
#[must_use]
pub unsafe fn call(
    vendor: Vendor,
    secret: [u64; 2],
    operation: u64,
    first: u64,
    second: u64,
) -> u64 {
    match vendor {
        // SAFETY: the caller's promise.
        Vendor::Intel => unsafe { instr::vmcall(secret, operation, first, second) },
        // SAFETY: the caller's promise.
        Vendor::Amd => unsafe { instr::vmmcall(secret, operation, first, second) },
    }
}

/// Answers a request on the core that made it.
pub fn answer(core: &Core, request: &Request, memory: &GuestMemory<'_>) -> Answer {
    match request.operation {
        ACTIVATE => {
            if core.hypervisor().features.vendor == Vendor::Intel {
                vmx::vcpu::load_debug_controls();
            }
            shootdown::join(core);
            Answer::Value(OK)
        }
        LEAVE => Answer::Leave,
        PUBLISH => Answer::Value(publish(core, request, memory)),
        COMMIT => Answer::Value(commit(core, request.first)),
        MEMORY => Answer::Value(memory_list(core, request.second, memory)),
        MEASURE => Answer::Value(measure(core, request.first)),
        _ => Answer::Value(REFUSED),
    }
}

fn publish(core: &Core, request: &Request, memory: &GuestMemory<'_>) -> u64 {
    let (Some(monitor), Some(found), Ok(index), Some(copy)) = (
        core.hypervisor().monitor,
        memory.translate(Gva::new(request.second)),
        u32::try_from(request.first),
        core.before.first(),
    ) else {
        return REFUSED;
    };
    if memory.copy_page(found.gpa, copy.0.get()) && monitor.receive(index, copy.bytes()) {
        OK
    } else {
        REFUSED
    }
}

fn memory_list(core: &Core, address: u64, memory: &GuestMemory<'_>) -> u64 {
    let hypervisor = core.hypervisor();
    let (Some(space), Some(found), Some(copy)) = (
        hypervisor.nested(),
        memory.translate(Gva::new(address)),
        core.before.first(),
    ) else {
        return REFUSED;
    };
    if core.state.step.count.get() > 0 || !memory.copy_page(found.gpa, copy.0.get()) {
        return REFUSED;
    }
    // SAFETY: the page is larger than the list, aligned, and holds integers only,
    // for which all bits are valid.
    let ram = unsafe { &*(&raw const *copy).cast::<Ram>() };
    let held = hypervisor.transition.acquire(|| shootdown::serve(core));
    let limit = in_either!(space, space => space.limit());
    let taken = hypervisor
        .ram
        .replace(ram, &hypervisor.mtrr, limit.as_u64());
    drop(held);
    if taken { OK } else { REFUSED }
}

fn commit(core: &Core, bytes: u64) -> u64 {
    let hypervisor = core.hypervisor();
    let held = hypervisor.transition.acquire(|| shootdown::serve(core));
    let done = hypervisor.monitor.filter(|monitor| monitor.commit(bytes));
    if let (Some(monitor), Some(space)) = (done, hypervisor.nested()) {
        let mut batch = Batch::EMPTY;
        monitor.forgotten(&mut |gpa| {
            if batch.is_full() {
                batch.retire(core, space);
            }
            batch.add(space, gpa);
        });
        batch.retire(core, space);
    }
    drop(held);
    if done.is_some() { OK } else { REFUSED }
}

/// Pages on their way from executable to writable, so many with one revocation.
struct Batch {
    pages: [Gpa; Self::MOST],
    count: usize,
}

impl Batch {
    const MOST: usize = 64;
    const EMPTY: Self = Self {
        pages: [Gpa::new(0); Self::MOST],
        count: 0,
    };

    const fn is_full(&self) -> bool {
        self.count == Self::MOST
    }

    /// Takes the right to execute from a page that has it.
    fn add(&mut self, space: &Nested, gpa: Gpa) {
        let page = gpa.page_base();
        let Some(slot) = self.pages.get_mut(self.count) else {
            return;
        };
        if set_state(space, page, PageState::Executable, PageState::Stepping) {
            *slot = page;
            self.count += 1;
        }
    }

    /// Once no core has the old right any more, the pages become data.
    fn retire(&mut self, core: &Core, space: &Nested) {
        if self.count == 0 {
            return;
        }
        shootdown::revoke(core);
        for page in self.pages.iter().take(self.count) {
            if !set_state(space, *page, PageState::Stepping, PageState::Writable) {
                Counters::bump(&core.counters().exhausted);
            }
        }
        self.count = 0;
    }
}

fn set_state(space: &Nested, page: Gpa, from: PageState, to: PageState) -> bool {
    in_either!(space, space => space.lookup(page).is_some_and(|leaf| {
        let soft = Soft {
            state: to,
            ..leaf.soft
        };
        leaf.soft.state == from && space.set_state(page, soft).is_ok()
    }))
}

fn measure(core: &Core, figure: u64) -> u64 {
    let hypervisor = core.hypervisor();
    let Some(space) = hypervisor.nested() else {
        return 0;
    };
    let counts = in_either!(space, space => space.count_pages());
    let pool = in_either!(space, space => space.pool());
    match figure {
        0 => counts.writable,
        1 => counts.executable,
        2 => counts.stepping,
        3 => counts.exempt,
        4 => counts.hidden,
        5 => counts.split_2m,
        6 => pool.used() as u64,
        7 => pool.available() as u64,
        8 => u64::from(hypervisor.abandoned.load(Ordering::Relaxed)),
        _ => 0,
    }
}
