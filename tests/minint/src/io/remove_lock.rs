//! Remove locks: counted use of a device, drained at its removal.
//!
//! The state is the caller's `IO_REMOVE_LOCK`. IRQL at most DISPATCH_LEVEL;
//! draining waits at PASSIVE_LEVEL.

use core::sync::atomic::{AtomicI32, Ordering};

use wdk_standin::wdk_sys::{IO_REMOVE_LOCK, NTSTATUS, PCSTR, PIO_REMOVE_LOCK, PVOID, ULONG};

use crate::ex::{event, nt};
use crate::ke::irql::{DISPATCH_LEVEL, PASSIVE_LEVEL, require_irql};
use crate::ob::argument::borrow;
use crate::rtl::status::{STATUS_DELETE_PENDING, STATUS_SUCCESS};

fn count(lock: &mut IO_REMOVE_LOCK) -> &AtomicI32 {
    // SAFETY: an aligned 32-bit field that everybody changes atomically.
    unsafe { AtomicI32::from_ptr(&raw mut lock.Common.IoCount) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoInitializeRemoveLockEx(
    lock: PIO_REMOVE_LOCK,
    _tag: ULONG,
    _minutes: ULONG,
    _watermark: ULONG,
    _size: ULONG,
) {
    const API: &str = "IoInitializeRemoveLockEx";
    require_irql(PASSIVE_LEVEL, API);
    let lock = borrow!(lock, API);
    lock.Common.Removed = 0;
    lock.Common.IoCount = 1;
    // SAFETY: the event inside the caller's structure.
    unsafe {
        nt::KeInitializeEvent(
            &raw mut lock.Common.RemoveEvent,
            nt::SYNCHRONIZATION_EVENT,
            0,
        );
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoAcquireRemoveLockEx(
    lock: PIO_REMOVE_LOCK,
    _tag: PVOID,
    _file: PCSTR,
    _line: ULONG,
    _size: ULONG,
) -> NTSTATUS {
    const API: &str = "IoAcquireRemoveLockEx";
    require_irql(DISPATCH_LEVEL, API);
    let lock = borrow!(lock, API);
    let _ = count(lock).fetch_add(1, Ordering::SeqCst);
    if lock.Common.Removed != 0 {
        give_back(lock, API);
        return STATUS_DELETE_PENDING;
    }
    STATUS_SUCCESS
}

fn give_back(lock: &mut IO_REMOVE_LOCK, api: &str) {
    let left = count(lock).fetch_sub(1, Ordering::SeqCst) - 1;
    crate::require!(
        left >= 0,
        api,
        "the remove lock was released more often than acquired"
    );
    if left == 0 {
        // SAFETY: initialized with the lock.
        unsafe { nt::KeSetEvent(&raw mut lock.Common.RemoveEvent, 0, 0) };
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoReleaseRemoveLockEx(
    lock: PIO_REMOVE_LOCK,
    _tag: PVOID,
    _size: ULONG,
) {
    const API: &str = "IoReleaseRemoveLockEx";
    require_irql(DISPATCH_LEVEL, API);
    give_back(borrow!(lock, API), API);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoReleaseRemoveLockAndWaitEx(
    lock: PIO_REMOVE_LOCK,
    _tag: PVOID,
    _size: ULONG,
) {
    const API: &str = "IoReleaseRemoveLockAndWaitEx";
    require_irql(PASSIVE_LEVEL, API);
    let lock = borrow!(lock, API);
    lock.Common.Removed = 1;
    give_back(lock, API);
    // The count of the lock itself goes now; the event comes with the last user.
    if count(lock).fetch_sub(1, Ordering::SeqCst) > 1 {
        let _ = event::wait_for((&raw mut lock.Common.RemoveEvent).cast(), None);
    }
}
