//! Callbacks of the kernel: processor change, bugcheck, bugcheck reason. And the
//! question which of the kernel's lists still lead into a driver's code.
//!
//! Registration at PASSIVE_LEVEL (processor change) or any IRQL (bugcheck). The
//! bugcheck lists are read without a lock when the system is broken.

use alloc::vec::Vec;
use core::ffi::c_void;
use core::ops::Range;
use core::ptr;

use super::irql::{APC_LEVEL, PASSIVE_LEVEL, require_irql};
use super::spinlock::{IrqLock, SpinLock};
use super::{dpc, nmi, timer};

/// What a bugcheck routine was registered with.
#[derive(Clone, Copy)]
struct BugcheckSlot {
    record: usize,
    routine: usize,
    buffer: usize,
    bytes: usize,
    reason: Option<i32>,
}

const SLOTS: usize = 16;

struct Bugcheck {
    slots: [Option<BugcheckSlot>; SLOTS],
}

static BUGCHECK: IrqLock<Bugcheck> = IrqLock::new(Bugcheck {
    slots: [None; SLOTS],
});

struct ProcessorCallback {
    handle: usize,
    routine: usize,
    context: usize,
}

static PROCESSOR: SpinLock<Vec<ProcessorCallback>> = SpinLock::new(Vec::new());
static NEXT_HANDLE: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0x100);

/// Tells each queued or registered thing of the kernel whose routine lies in `range`:
/// what it is and where. For the unload check, at PASSIVE_LEVEL.
pub fn outstanding(range: Range<usize>, f: &mut dyn FnMut(&str, usize)) {
    timer::each(&mut |timer, routine| {
        if range.contains(&routine) || range.contains(&timer) {
            f("timer", timer);
        }
    });
    dpc::each(&mut |dpc, routine| {
        if range.contains(&routine) || range.contains(&dpc) {
            f("DPC", dpc);
        }
    });
    nmi::each(&mut |routine| {
        if range.contains(&routine) {
            f("NMI callback", routine);
        }
    });
    for callback in PROCESSOR.lock().iter() {
        if range.contains(&callback.routine) {
            f("processor change callback", callback.routine);
        }
    }
    let slots = BUGCHECK.lock().slots;
    for slot in slots.into_iter().flatten() {
        if range.contains(&slot.routine) || range.contains(&slot.record) {
            f("bugcheck callback", slot.routine);
        }
    }
}

/// Calls the bugcheck callbacks, the newest last; nothing else runs any more.
pub(crate) fn bugcheck() {
    let slots = BUGCHECK.lock().slots;
    for slot in slots.into_iter().flatten() {
        log!("bugcheck callback at {:#x}", slot.routine);
        match slot.reason {
            None => {
                type Callback = extern "C" fn(*mut c_void, u32);
                // SAFETY: the routine that the registration named.
                let routine: Callback =
                    unsafe { core::mem::transmute::<usize, Callback>(slot.routine) };
                routine(slot.buffer as *mut c_void, slot.bytes as u32);
            }
            Some(reason) => {
                type Callback = extern "C" fn(i32, *mut c_void, *mut c_void, u32);
                // SAFETY: as above.
                let routine: Callback =
                    unsafe { core::mem::transmute::<usize, Callback>(slot.routine) };
                let mut data = [0u64; 16];
                routine(
                    reason,
                    slot.record as *mut c_void,
                    data.as_mut_ptr().cast(),
                    size_of_val(&data) as u32,
                );
            }
        }
    }
}

fn register(slot: BugcheckSlot) -> bool {
    let mut table = BUGCHECK.lock();
    if table
        .slots
        .iter()
        .flatten()
        .any(|known| known.record == slot.record)
    {
        return false;
    }
    let Some(free) = table.slots.iter_mut().find(|known| known.is_none()) else {
        return false;
    };
    *free = Some(slot);
    true
}

fn deregister(record: usize, with_reason: bool) -> bool {
    let mut table = BUGCHECK.lock();
    let known = table.slots.iter_mut().find(|slot| {
        slot.is_some_and(|slot| slot.record == record && slot.reason.is_some() == with_reason)
    });
    known.is_some_and(|slot| slot.take().is_some())
}

/// `KeRegisterBugCheckCallback`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRegisterBugCheckCallback(
    record: *mut c_void,
    routine: *mut c_void,
    buffer: *mut c_void,
    length: u32,
    _component: *mut u8,
) -> u8 {
    u8::from(register(BugcheckSlot {
        record: record as usize,
        routine: routine as usize,
        buffer: buffer as usize,
        bytes: length as usize,
        reason: None,
    }))
}

/// `KeDeregisterBugCheckCallback`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeDeregisterBugCheckCallback(record: *mut c_void) -> u8 {
    u8::from(deregister(record as usize, false))
}

/// `KeRegisterBugCheckReasonCallback`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRegisterBugCheckReasonCallback(
    record: *mut c_void,
    routine: *mut c_void,
    reason: i32,
    _component: *mut u8,
) -> u8 {
    u8::from(register(BugcheckSlot {
        record: record as usize,
        routine: routine as usize,
        buffer: 0,
        bytes: 0,
        reason: Some(reason),
    }))
}

/// `KeDeregisterBugCheckReasonCallback`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeDeregisterBugCheckReasonCallback(record: *mut c_void) -> u8 {
    u8::from(deregister(record as usize, true))
}

/// `KeRegisterProcessorChangeCallback`: a handle, or NULL. With flag
/// `KE_PROCESSOR_CHANGE_ADD_EXISTING` the routine hears of each running processor,
/// start and completion, before this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRegisterProcessorChangeCallback(
    routine: *mut c_void,
    context: *mut c_void,
    flags: u32,
) -> *mut c_void {
    const ADD_EXISTING: u32 = 1;
    let api = "KeRegisterProcessorChangeCallback";
    require_irql(APC_LEVEL, api);
    require!(
        !routine.is_null() && flags & !ADD_EXISTING == 0,
        api,
        "flags {flags:#x}"
    );
    if flags & ADD_EXISTING != 0 {
        for number in 0..super::cpu_count() {
            for state in [0, 1] {
                let status = change(routine as usize, context as usize, state, number);
                if status < 0 {
                    change(routine as usize, context as usize, 2, number);
                    return ptr::null_mut();
                }
            }
        }
    }
    let handle = NEXT_HANDLE.fetch_add(8, core::sync::atomic::Ordering::Relaxed);
    PROCESSOR.lock().push(ProcessorCallback {
        handle,
        routine: routine as usize,
        context: context as usize,
    });
    handle as *mut c_void
}

/// `KE_PROCESSOR_CHANGE_NOTIFY_CONTEXT`.
#[repr(C)]
struct ChangeContext {
    state: i32,
    number: u32,
    status: i32,
    processor: super::affinity::ProcessorNumber,
}

fn change(routine: usize, context: usize, state: i32, number: u32) -> i32 {
    type Callback = extern "C" fn(*mut c_void, *mut ChangeContext, *mut i32);
    // SAFETY: the routine that the registration named.
    let routine: Callback = unsafe { core::mem::transmute::<usize, Callback>(routine) };
    let processor = super::affinity::ProcessorNumber {
        group: 0,
        number: number as u8,
        reserved: 0,
    };
    let mut change = ChangeContext {
        state,
        number,
        status: 0,
        processor,
    };
    let mut status = 0;
    routine(context as *mut c_void, &raw mut change, &raw mut status);
    status
}

/// Announces a processor that is about to be added, for drills: each callback hears
/// "start" and then "failure", and may veto the start.
pub fn announce_processor(number: u32) -> i32 {
    require_irql(PASSIVE_LEVEL, "announce_processor");
    let callbacks: Vec<(usize, usize)> = PROCESSOR
        .lock()
        .iter()
        .map(|callback| (callback.routine, callback.context))
        .collect();
    let mut result = 0;
    for &(routine, context) in &callbacks {
        result = change(routine, context, 0, number);
        if result < 0 {
            break;
        }
    }
    for &(routine, context) in &callbacks {
        change(routine, context, 2, number);
    }
    result
}

/// `KeDeregisterProcessorChangeCallback`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeDeregisterProcessorChangeCallback(handle: *mut c_void) {
    let api = "KeDeregisterProcessorChangeCallback";
    require_irql(APC_LEVEL, api);
    let mut list = PROCESSOR.lock();
    let known = list
        .iter()
        .position(|callback| callback.handle == handle as usize);
    require!(known.is_some(), api, "{handle:p} is no registration");
    if let Some(at) = known {
        list.remove(at);
    }
}
