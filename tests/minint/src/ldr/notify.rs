//! Image-load notify routines.
//!
//! At most 64 (Microsoft: `PspMaxLoadImageNotify`-style limit of the documented
//! routines). The table is behind a lock; a routine is called without it, at
//! PASSIVE_LEVEL, and counted while it runs, so that its removal waits for it.

use core::sync::atomic::{AtomicUsize, Ordering};

use wdk_standin::wdk_sys::{
    IMAGE_INFO, NTSTATUS, PLOAD_IMAGE_NOTIFY_ROUTINE, PUNICODE_STRING, ULONG_PTR,
};

use crate::ke::irql::{PASSIVE_LEVEL, current, require_irql};
use crate::rtl::status::{
    STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_PARAMETER, STATUS_NOT_FOUND, STATUS_SUCCESS,
};
use crate::rtl::unicode::Owned;

const MOST: usize = 64;

struct Slot {
    routine: AtomicUsize,
    running: AtomicUsize,
}

static SLOTS: [Slot; MOST] = [const {
    Slot {
        routine: AtomicUsize::new(0),
        running: AtomicUsize::new(0),
    }
}; MOST];

type Routine = unsafe extern "C" fn(PUNICODE_STRING, *mut core::ffi::c_void, *mut IMAGE_INFO);

/// Tells every routine of a system image that is mapped and has not run yet.
pub(super) fn image_loaded(path: &str, base: usize, size: usize) {
    const SYSTEM_MODE_IMAGE: u32 = 1 << 8;
    const IMAGE_ADDRESSING_MODE_32BIT: u32 = 3;
    let name = Owned::new(path);
    for slot in &SLOTS {
        let _ = slot.running.fetch_add(1, Ordering::SeqCst);
        let routine = slot.routine.load(Ordering::SeqCst);
        if routine != 0 {
            // SAFETY: only `PLOAD_IMAGE_NOTIFY_ROUTINE` values are stored.
            let routine: Routine = unsafe { core::mem::transmute(routine) };
            let mut descriptor = name.descriptor();
            let mut info = IMAGE_INFO {
                ImageBase: core::ptr::with_exposed_provenance_mut(base),
                ImageSize: size as ULONG_PTR,
                ..IMAGE_INFO::default()
            };
            // "ImageAddressingMode: always set to IMAGE_ADDRESSING_MODE_32BIT".
            info.__bindgen_anon_1.Properties = SYSTEM_MODE_IMAGE | IMAGE_ADDRESSING_MODE_32BIT;
            // SAFETY: a live routine of a loaded driver: its removal waits for
            // the count taken above.
            unsafe { routine(&raw mut descriptor, core::ptr::null_mut(), &raw mut info) };
            crate::require!(
                current() == PASSIVE_LEVEL,
                "PLOAD_IMAGE_NOTIFY_ROUTINE",
                "returned at IRQL {}",
                current()
            );
        }
        let _ = slot.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Calls `visit` with each registered routine's address.
pub(crate) fn registered(visit: &mut dyn FnMut(usize)) {
    for slot in &SLOTS {
        let routine = slot.routine.load(Ordering::Relaxed);
        if routine != 0 {
            visit(routine);
        }
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PsSetLoadImageNotifyRoutine(
    routine: PLOAD_IMAGE_NOTIFY_ROUTINE,
) -> NTSTATUS {
    const API: &str = "PsSetLoadImageNotifyRoutine";
    require_irql(PASSIVE_LEVEL, API);
    let Some(routine) = routine else {
        return STATUS_INVALID_PARAMETER;
    };
    let address = routine as usize;
    for slot in &SLOTS {
        if slot
            .routine
            .compare_exchange(0, address, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
        {
            return STATUS_SUCCESS;
        }
    }
    STATUS_INSUFFICIENT_RESOURCES
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PsSetLoadImageNotifyRoutineEx(
    routine: PLOAD_IMAGE_NOTIFY_ROUTINE,
    flags: ULONG_PTR,
) -> NTSTATUS {
    // PS_IMAGE_NOTIFY_CONFLICTING_ARCHITECTURE is the one defined flag.
    if flags > 1 {
        return STATUS_INVALID_PARAMETER;
    }
    // SAFETY: the same contract.
    unsafe { PsSetLoadImageNotifyRoutine(routine) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PsRemoveLoadImageNotifyRoutine(
    routine: PLOAD_IMAGE_NOTIFY_ROUTINE,
) -> NTSTATUS {
    const API: &str = "PsRemoveLoadImageNotifyRoutine";
    require_irql(PASSIVE_LEVEL, API);
    let Some(routine) = routine else {
        return STATUS_NOT_FOUND;
    };
    let address = routine as usize;
    for slot in &SLOTS {
        if slot
            .routine
            .compare_exchange(address, 0, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
        {
            while slot.running.load(Ordering::SeqCst) != 0 {
                crate::ex::event::sleep_ms(1);
            }
            return STATUS_SUCCESS;
        }
    }
    STATUS_NOT_FOUND
}
