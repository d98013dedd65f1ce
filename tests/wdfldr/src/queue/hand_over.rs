//! Requests that are presented by somebody else than who sent them.
//!
//! When and in which thread a request callback is called is the framework's
//! ("Dispatching Methods for I/O Requests", "Using Framework Queues"). Left alone it
//! is the sender's thread, almost always, and a driver that completes or forwards a
//! request while it holds a lock, or in a thread that others wait for, is never
//! found out. Booted with `wdf=hand-over`, the sender of a request waits before it
//! presents anything, and whoever completes or forwards a request meanwhile
//! presents the requests of all the device's queues.

use core::sync::atomic::{AtomicBool, Ordering};

use wdk_standin::wdk_sys::{_MODE, LARGE_INTEGER, ntddk::KeDelayExecutionThread};

use crate::{nt::irql, registry};

/// 30 ms, relative, in units of 100 ns: longer than a driver's thread sleeps.
const DELAY: i64 = -30 * 10_000;

static ON: AtomicBool = AtomicBool::new(false);

/// Asks how the system was booted, when a driver binds. PASSIVE_LEVEL.
pub(crate) fn start() {
    ON.store(registry::booted_with("wdf=hand-over"), Ordering::Release);
}

/// Whether requests are handed over.
pub(super) fn on() -> bool {
    ON.load(Ordering::Acquire)
}

/// Leaves others the time to present what has arrived.
pub(super) fn wait() {
    if !on() || irql::current() != irql::PASSIVE {
        return;
    }
    let mut time = LARGE_INTEGER { QuadPart: DELAY };
    // SAFETY: PASSIVE_LEVEL; the time lives across the call.
    let _ = unsafe { KeDelayExecutionThread(_MODE::KernelMode as i8, 0, &raw mut time) };
}
