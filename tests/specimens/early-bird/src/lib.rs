//! Specimen: foreign code that runs already when monitoring starts.
//!
//! A periodic timer whose DPC routine lies in executable pool. Nothing is
//! written or mapped after the start, so only the first fetch can give it away.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
#[cfg(feature = "lab-port")]
mod instr;

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

use harness::CodePages;
use wdk_standin::wdk_sys::{
    _TIMER_TYPE, KDPC, KTIMER, LARGE_INTEGER, NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID,
    STATUS_INSUFFICIENT_RESOURCES, STATUS_SUCCESS,
    ntddk::{KeCancelTimer, KeFlushQueuedDpcs, KeInitializeDpc, KeInitializeTimerEx, KeSetTimerEx},
};

/// `lock inc qword [rdx]; ret`: counts in the DPC's context.
const CODE: [u8; 5] = [0xF0, 0x48, 0xFF, 0x02, 0xC3];
/// Milliseconds.
const PERIOD: i32 = 10;

type Routine = unsafe extern "C" fn(*mut KDPC, PVOID, PVOID, PVOID);

/// Touched by the entry point, then by unload; timer and DPC are the kernel's
/// in between.
struct State(
    UnsafeCell<MaybeUninit<(KTIMER, KDPC)>>,
    UnsafeCell<Option<CodePages>>,
);
// SAFETY: entry and unload never run at the same time.
unsafe impl Sync for State {}
static STATE: State = State(
    UnsafeCell::new(MaybeUninit::uninit()),
    UnsafeCell::new(None),
);
static RUNS: AtomicU64 = AtomicU64::new(0);

impl State {
    fn timer(&self) -> *mut KTIMER {
        let both: *mut (KTIMER, KDPC) = self.0.get().cast();
        // SAFETY: a field's address; nothing is read.
        unsafe { &raw mut (*both).0 }
    }

    fn dpc(&self) -> *mut KDPC {
        let both: *mut (KTIMER, KDPC) = self.0.get().cast();
        // SAFETY: a field's address; nothing is read.
        unsafe { &raw mut (*both).1 }
    }
}

/// The driver's entry point.
///
/// # Safety
/// For the loader.
// SAFETY: the linker is told this name; nothing else defines it.
#[unsafe(export_name = "DriverEntry")]
pub unsafe extern "system" fn driver_entry(
    driver: PDRIVER_OBJECT,
    _registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
    harness::set_unload(driver, Some(unload));
    let Some(mut code) = CodePages::allocate(1) else {
        return STATUS_INSUFFICIENT_RESOURCES;
    };
    if !code.write(0, &CODE) {
        return STATUS_INSUFFICIENT_RESOURCES;
    }
    harness::announce(c"early-bird", code.address());
    // SAFETY: the page holds a function of this signature.
    let routine = unsafe { core::mem::transmute::<u64, Routine>(code.address()) };
    // SAFETY: nobody uses the DPC yet.
    unsafe { KeInitializeDpc(STATE.dpc(), Some(routine), RUNS.as_ptr().cast()) };
    // SAFETY: nobody uses the timer yet.
    unsafe { KeInitializeTimerEx(STATE.timer(), _TIMER_TYPE::NotificationTimer) };
    let due = LARGE_INTEGER {
        QuadPart: -10_000 * i64::from(PERIOD),
    };
    // SAFETY: only entry and unload touch the cell.
    unsafe { *STATE.1.get() = Some(code) };
    // SAFETY: both are initialized and stay until unload.
    unsafe { KeSetTimerEx(STATE.timer(), due, PERIOD, STATE.dpc()) };
    STATUS_SUCCESS
}

unsafe extern "C" fn unload(_driver: PDRIVER_OBJECT) {
    // SAFETY: initialized by the entry point.
    unsafe { KeCancelTimer(STATE.timer()) };
    // SAFETY: PASSIVE_LEVEL.
    unsafe { KeFlushQueuedDpcs() };
    harness::report(c"early-bird", c"runs", RUNS.load(Ordering::Relaxed));
    // SAFETY: only entry and unload touch the cell.
    unsafe { *STATE.1.get() = None };
}
