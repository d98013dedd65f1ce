//! I/O timers: a device's routine once a second, at DISPATCH_LEVEL.
//!
//! One thread ticks for all; the list's lock is not held while a routine runs.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use wdk_standin::wdk_sys::{NTSTATUS, PDEVICE_OBJECT, PVOID};

use crate::ex::event::sleep_ms;
use crate::ex::work::start_thread;
use crate::ke::irql::{DISPATCH_LEVEL, PASSIVE_LEVEL, require_irql};
use crate::ke::spinlock::SpinLock;
use crate::ob::argument::borrow;
use crate::rtl::status::STATUS_SUCCESS;

type Routine = unsafe extern "C" fn(PDEVICE_OBJECT, PVOID);

#[derive(Clone, Copy)]
struct Timer {
    device: usize,
    routine: usize,
    context: usize,
    running: bool,
}

static TIMERS: SpinLock<Vec<Timer>> = SpinLock::new(Vec::new());
static TICKING: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn tick(_context: PVOID) {
    loop {
        sleep_ms(1000);
        // Under the lock, which raises to the level at which the routines are
        // documented to run: `IoStopTimer` then waits for a running one.
        let timers = TIMERS.lock();
        for timer in timers.iter().filter(|timer| timer.running) {
            // SAFETY: an `IO_TIMER_ROUTINE`, by its contract.
            let routine: Routine = unsafe { core::mem::transmute(timer.routine) };
            // SAFETY: its device is not deleted: that takes it off this list.
            unsafe {
                routine(
                    core::ptr::with_exposed_provenance_mut(timer.device),
                    core::ptr::with_exposed_provenance_mut(timer.context),
                );
            };
        }
    }
}

/// Takes a device's timer off the list.
pub(super) fn forget(device: PDEVICE_OBJECT) {
    TIMERS.lock().retain(|timer| timer.device != device.addr());
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoInitializeTimer(
    device: PDEVICE_OBJECT,
    routine: Option<Routine>,
    context: PVOID,
) -> NTSTATUS {
    const API: &str = "IoInitializeTimer";
    require_irql(PASSIVE_LEVEL, API);
    crate::ob::argument::check(device.cast_const(), API);
    let Some(routine) = routine else {
        crate::ke::bugcheck::violation(API, format_args!("the routine is NULL"));
    };
    if !TICKING.swap(true, Ordering::SeqCst) {
        let _ = start_thread(tick, core::ptr::null_mut());
    }
    TIMERS.lock().push(Timer {
        device: device.expose_provenance(),
        routine: routine as usize,
        context: context.expose_provenance(),
        running: false,
    });
    STATUS_SUCCESS
}

fn set(device: PDEVICE_OBJECT, running: bool, api: &str) {
    require_irql(DISPATCH_LEVEL, api);
    let _ = borrow!(device, api);
    let mut timers = TIMERS.lock();
    if let Some(timer) = timers
        .iter_mut()
        .find(|timer| timer.device == device.addr())
    {
        timer.running = running;
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoStartTimer(device: PDEVICE_OBJECT) {
    set(device, true, "IoStartTimer");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoStopTimer(device: PDEVICE_OBJECT) {
    set(device, false, "IoStopTimer");
}
