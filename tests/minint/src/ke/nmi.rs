//! Non-maskable interrupts: `KeRegisterNmiCallback`, the freeze of a bugcheck, and
//! what happens to an NMI that nobody claims.
//!
//! The handler runs on its own stack with everything interrupted, locks included:
//! the callback table is therefore an array of atomics. An unclaimed NMI is counted
//! and logged; with `nmi=bugcheck` on the command line it is NMI_HARDWARE_FAILURE.

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::irql::{DISPATCH_LEVEL, require_irql};
use crate::hal::{boot, cpu, instr};

const NMI_HARDWARE_FAILURE: u32 = 0x80;
const SLOTS: usize = 8;

struct Slot {
    routine: AtomicUsize,
    context: AtomicUsize,
}

static SLOTS_TABLE: [Slot; SLOTS] = [const {
    Slot {
        routine: AtomicUsize::new(0),
        context: AtomicUsize::new(0),
    }
}; SLOTS];
static UNCLAIMED: AtomicU64 = AtomicU64::new(0);
static FREEZE: AtomicBool = AtomicBool::new(false);

/// NMIs that no callback claimed.
pub fn unclaimed() -> u64 {
    UNCLAIMED.load(Ordering::Relaxed)
}

/// From now on an NMI stops its processor.
pub(crate) fn freeze() {
    FREEZE.store(true, Ordering::Release);
}

/// The NMI handler.
pub(crate) fn interrupt(rip: u64) {
    let this = cpu::current();
    if FREEZE.load(Ordering::Acquire) {
        this.frozen.store(true, Ordering::Release);
        instr::halt();
    }
    this.nmis.fetch_add(1, Ordering::Relaxed);
    let mut handled = false;
    for slot in &SLOTS_TABLE {
        let routine = slot.routine.load(Ordering::Acquire);
        if routine > 1 {
            type Callback = extern "C" fn(*mut c_void, u8) -> u8;
            // SAFETY: the routine that `KeRegisterNmiCallback` was given.
            let routine: Callback = unsafe { core::mem::transmute::<usize, Callback>(routine) };
            let context = slot.context.load(Ordering::Acquire) as *mut c_void;
            handled |= routine(context, u8::from(handled)) != 0;
        }
    }
    if !handled {
        UNCLAIMED.fetch_add(1, Ordering::Relaxed);
        if boot::option("nmi") == Some("bugcheck") {
            super::bugcheck::raise(NMI_HARDWARE_FAILURE, [0x4F_4454, rip, 0, 0]);
        }
        if boot::option("nmi") == Some("log") {
            log!("unclaimed NMI at {rip:#x}");
        }
    }
}

/// `KeRegisterNmiCallback`: a handle, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRegisterNmiCallback(
    routine: *mut c_void,
    context: *mut c_void,
) -> *mut c_void {
    require_irql(DISPATCH_LEVEL, "KeRegisterNmiCallback");
    require!(
        !routine.is_null(),
        "KeRegisterNmiCallback",
        "the routine is NULL"
    );
    for slot in &SLOTS_TABLE {
        // 1 marks a slot in the making.
        if slot
            .routine
            .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            slot.context.store(context as usize, Ordering::Release);
            slot.routine.store(routine as usize, Ordering::Release);
            return core::ptr::from_ref(slot).cast_mut().cast();
        }
    }
    core::ptr::null_mut()
}

/// `KeDeregisterNmiCallback`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeDeregisterNmiCallback(handle: *mut c_void) -> i32 {
    const STATUS_INVALID_HANDLE: i32 = 0xC000_0008_u32 as i32;
    require_irql(DISPATCH_LEVEL, "KeDeregisterNmiCallback");
    let known = SLOTS_TABLE
        .iter()
        .find(|slot| core::ptr::eq(core::ptr::from_ref(*slot).cast(), handle));
    match known {
        Some(slot) if slot.routine.swap(0, Ordering::AcqRel) > 1 => {
            // No processor may still be inside the routine.
            super::ipi::call_all(nothing, 0);
            0
        }
        _ => STATUS_INVALID_HANDLE,
    }
}

extern "C" fn nothing(_: usize) -> usize {
    0
}

/// Each registered routine, for the unload check.
pub(crate) fn each(f: &mut dyn FnMut(usize)) {
    for slot in &SLOTS_TABLE {
        let routine = slot.routine.load(Ordering::Acquire);
        if routine > 1 {
            f(routine);
        }
    }
}
