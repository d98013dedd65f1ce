//! Exports about time, IRQL, critical regions, the current thread, priorities.

use core::ffi::c_void;

use super::dispatcher;
use super::irql::{self, APC_LEVEL, DISPATCH_LEVEL, HIGH_LEVEL, require_irql};
use super::thread::{self, Thread};
use crate::hal::{clock, cpu, instr};

/// Whether normal kernel APCs are held off for the running thread.
pub(crate) fn apcs_disabled() -> bool {
    let thread = thread::current();
    irql::current() >= APC_LEVEL
        || thread.critical_regions.get() > 0
        || thread.guarded_regions.get() > 0
}

/// `KeQueryPerformanceCounter`: 10 MHz, from the TSC.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryPerformanceCounter(frequency: *mut i64) -> i64 {
    if !frequency.is_null() {
        // SAFETY: forwarded to the caller.
        unsafe { frequency.write(10_000_000) };
    }
    clock::interrupt_time() as i64
}

/// `KeQuerySystemTimePrecise`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQuerySystemTimePrecise(time: *mut i64) {
    // SAFETY: forwarded to the caller.
    unsafe { time.write(clock::system_time() as i64) };
}

/// `KeQuerySystemTime` as an export.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQuerySystemTime(time: *mut i64) {
    // SAFETY: forwarded to the caller.
    unsafe { time.write(clock::system_time() as i64) };
}

/// `KeQueryInterruptTime`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryInterruptTime() -> u64 {
    clock::interrupt_time()
}

/// `KeQueryUnbiasedInterruptTime`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryUnbiasedInterruptTime() -> u64 {
    clock::interrupt_time()
}

/// `KeQueryInterruptTimePrecise`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryInterruptTimePrecise(counter: *mut u64) -> u64 {
    let now = clock::interrupt_time();
    if !counter.is_null() {
        // SAFETY: forwarded to the caller.
        unsafe { counter.write(now) };
    }
    now
}

/// `KeQueryTickCount` as an export.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryTickCount(count: *mut i64) {
    // SAFETY: forwarded to the caller.
    unsafe { count.write((clock::interrupt_time() / clock::tick_100ns()) as i64) };
}

/// `KeQueryTimeIncrement`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryTimeIncrement() -> u32 {
    clock::tick_100ns() as u32
}

/// `KeStallExecutionProcessor`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeStallExecutionProcessor(microseconds: u32) {
    clock::stall(u64::from(microseconds));
}

/// `KeGetCurrentIrql`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeGetCurrentIrql() -> u8 {
    irql::current()
}

/// `KfRaiseIrql`: the level before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KfRaiseIrql(level: u8) -> u8 {
    let now = irql::current();
    require!(
        level >= now && level <= HIGH_LEVEL,
        "KeRaiseIrql",
        "from {now} to {level}"
    );
    irql::raise(level)
}

/// `KeRaiseIrql` as a function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRaiseIrql(level: u8, old: *mut u8) {
    // SAFETY: the same.
    let before = unsafe { KfRaiseIrql(level) };
    // SAFETY: forwarded to the caller.
    unsafe { old.write(before) };
}

/// `KeLowerIrql`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeLowerIrql(level: u8) {
    let now = irql::current();
    require!(level <= now, "KeLowerIrql", "from {now} to {level}");
    irql::lower(level);
}

/// `KfLowerIrql`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KfLowerIrql(level: u8) {
    // SAFETY: the same.
    unsafe { KeLowerIrql(level) };
}

/// `KeRaiseIrqlToDpcLevel`: the level before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRaiseIrqlToDpcLevel() -> u8 {
    // SAFETY: the same.
    unsafe { KfRaiseIrql(DISPATCH_LEVEL) }
}

/// `KeRaiseIrqlToSynchLevel`: the level before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeRaiseIrqlToSynchLevel() -> u8 {
    const SYNCH_LEVEL: u8 = 12;
    // SAFETY: the same.
    unsafe { KfRaiseIrql(SYNCH_LEVEL) }
}

/// `KeEnterCriticalRegion`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeEnterCriticalRegion() {
    require_irql(APC_LEVEL, "KeEnterCriticalRegion");
    let thread = thread::current();
    thread
        .critical_regions
        .set(thread.critical_regions.get() + 1);
}

/// `KeLeaveCriticalRegion`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeLeaveCriticalRegion() {
    let api = "KeLeaveCriticalRegion";
    require_irql(APC_LEVEL, api);
    let thread = thread::current();
    require!(
        thread.critical_regions.get() > 0,
        api,
        "the thread is in no critical region"
    );
    thread
        .critical_regions
        .set(thread.critical_regions.get() - 1);
}

/// `KeEnterGuardedRegion`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeEnterGuardedRegion() {
    require_irql(APC_LEVEL, "KeEnterGuardedRegion");
    let thread = thread::current();
    thread.guarded_regions.set(thread.guarded_regions.get() + 1);
}

/// `KeLeaveGuardedRegion`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeLeaveGuardedRegion() {
    let api = "KeLeaveGuardedRegion";
    require_irql(APC_LEVEL, api);
    let thread = thread::current();
    require!(
        thread.guarded_regions.get() > 0,
        api,
        "the thread is in no guarded region"
    );
    thread.guarded_regions.set(thread.guarded_regions.get() - 1);
}

/// `KeAreApcsDisabled`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeAreApcsDisabled() -> u8 {
    u8::from(apcs_disabled())
}

/// `KeAreAllApcsDisabled`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeAreAllApcsDisabled() -> u8 {
    u8::from(irql::current() >= APC_LEVEL || thread::current().guarded_regions.get() > 0)
}

/// `KeGetCurrentThread` as an export.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeGetCurrentThread() -> *mut c_void {
    cpu::current_thread() as *mut c_void
}

/// `PsGetCurrentThread` as an export.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PsGetCurrentThread() -> *mut c_void {
    cpu::current_thread() as *mut c_void
}

fn target(object: *mut c_void, api: &str) -> &'static Thread {
    let thread = thread::from_object(object, api);
    // SAFETY: a live thread that the caller holds a reference to for the call.
    unsafe { &*core::ptr::from_ref(thread) }
}

/// `KeSetPriorityThread`: the priority before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetPriorityThread(object: *mut c_void, priority: i32) -> i32 {
    let api = "KeSetPriorityThread";
    require_irql(DISPATCH_LEVEL, api);
    require!((1..32).contains(&priority), api, "priority {priority}");
    let thread = target(object, api);
    let locked = dispatcher::lock();
    let old = thread.priority.get();
    thread.base_priority.set(priority as i8);
    dispatcher::set_priority(&locked, thread, priority as i8);
    i32::from(old)
}

/// `KeQueryPriorityThread`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeQueryPriorityThread(object: *mut c_void) -> i32 {
    i32::from(target(object, "KeQueryPriorityThread").priority.get())
}

/// `KeSetBasePriorityThread`: the increment before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeSetBasePriorityThread(object: *mut c_void, increment: i32) -> i32 {
    let api = "KeSetBasePriorityThread";
    require_irql(DISPATCH_LEVEL, api);
    let thread = target(object, api);
    let locked = dispatcher::lock();
    let old = i32::from(thread.base_priority.get()) - i32::from(thread::NORMAL_PRIORITY);
    let priority = (i32::from(thread::NORMAL_PRIORITY) + increment).clamp(1, 31) as i8;
    thread.base_priority.set(priority);
    dispatcher::set_priority(&locked, thread, priority);
    old
}

/// `ZwYieldExecution`'s kernel part, and the yield of ring 3.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ZwYieldExecution() -> i32 {
    const STATUS_NO_YIELD_PERFORMED: i32 = 0x4000_0024;
    if dispatcher::yield_now() {
        0
    } else {
        STATUS_NO_YIELD_PERFORMED
    }
}

/// `KeInvalidateAllCaches`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn KeInvalidateAllCaches() {
    extern "C" fn here(_: usize) -> usize {
        instr::wbinvd();
        0
    }
    require_irql(DISPATCH_LEVEL, "KeInvalidateAllCaches");
    super::ipi::call_all(here, 0);
}
