//! What the driver asks of root mode.
//!
//! Only code of the driver image at CPL 0 that knows the secret of this load is
//! answered (the exit handler checks); everybody else gets the #UD of a processor
//! without VMX. There is nothing here that reads or writes memory for its caller.

use core::sync::atomic::Ordering;

use ept::addr::Gva;

use crate::memory::GuestMemory;
use crate::percpu::Core;
use crate::shootdown;
use crate::vmx::vcpu;

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

/// Answers a request on the core that made it.
pub fn answer(core: &Core, request: &Request, memory: &GuestMemory<'_>) -> Answer {
    match request.operation {
        ACTIVATE => {
            vcpu::load_debug_controls();
            core.state.active.store(true, Ordering::SeqCst);
            shootdown::invalidate(core);
            Answer::Value(OK)
        }
        LEAVE => Answer::Leave,
        PUBLISH => Answer::Value(publish(core, request, memory)),
        COMMIT => {
            let hypervisor = core.hypervisor();
            let held = hypervisor.transition.acquire(|| shootdown::serve(core));
            let done = hypervisor
                .monitor
                .is_some_and(|monitor| monitor.commit(request.first));
            drop(held);
            Answer::Value(if done { OK } else { REFUSED })
        }
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

fn measure(core: &Core, figure: u64) -> u64 {
    let hypervisor = core.hypervisor();
    let Some(space) = hypervisor.nested() else {
        return 0;
    };
    let counts = space.count_pages();
    match figure {
        0 => counts.writable,
        1 => counts.executable,
        2 => counts.stepping,
        3 => counts.exempt,
        4 => counts.hidden,
        5 => counts.split_2m,
        6 => space.pool().used() as u64,
        7 => space.pool().available() as u64,
        8 => u64::from(hypervisor.abandoned.load(Ordering::Relaxed)),
        _ => 0,
    }
}

/// Takes a core out of the set that must acknowledge; after this no kick is on
/// its way to it.
pub fn retire(core: &Core) {
    let hypervisor = core.hypervisor();
    let held = hypervisor.transition.acquire(|| shootdown::serve(core));
    core.state.active.store(false, Ordering::SeqCst);
    drop(held);
    // Kicks are sent under the lock, so none can be added now. One that is under
    // way arrives while NMIs are taken by root mode's own handler.
    let mut rounds = 0_u64;
    while core.state.kick.load(Ordering::Acquire) && rounds < 1 << 28 {
        core::hint::spin_loop();
        rounds += 1;
    }
}
