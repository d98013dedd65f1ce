//! Instructions: invalidation, waiting, and the moments of interrupts.

use std::cell::Cell;

use crate::atomics::{Ordering, fence, wait};
use crate::revocation::exits;
use crate::revocation::percpu::{Core, PAGES};

/// The EPTP of the shared tables.
pub const SHARED: u64 = 1;
/// The EPTP of the running core's private path.
pub const PRIVATE: u64 = 2;

loom::thread_local! {
    static CURRENT: Cell<*const Core> = Cell::new(std::ptr::null());
}

/// Makes this thread the processor of `core`.
pub fn run_as(core: &Core) {
    CURRENT.with(|current| current.set(core));
}

fn current<'a>() -> &'a Core {
    let core = CURRENT.with(Cell::get);
    assert!(!core.is_null(), "only processors do this");
    // SAFETY: set by `run_as` to a core that lives as long as the run.
    unsafe { &*core }
}

/// INVEPT, single context: a serializing instruction.
///
/// # Safety
/// None needed; the genuine function has its reasons.
pub unsafe fn invept_single(eptp: u64) {
    fence(Ordering::SeqCst);
    let hardware = &current().hardware;
    let cache = if eptp == SHARED {
        &hardware.shared_cache
    } else {
        &hardware.private_cache
    };
    cache.set([None; PAGES]);
}

/// An NMI strikes the running core in root mode, if one has arrived.
pub fn strike() {
    exits::root_nmi(current());
}

/// PAUSE in root mode: time passes, an NMI may strike.
pub fn pause() {
    wait();
    strike();
}
