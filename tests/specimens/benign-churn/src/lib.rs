//! Specimen, benign: memory, processors and timers used hard, and lawfully.
//!
//! Pool and MDL pages come and go, so that frames change hands between data and
//! code of other drivers; a second mapping is written and read; every processor
//! gets IPIs and DPCs; a timer fires. Nothing may be found.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
#[cfg(feature = "lab-port")]
mod instr;

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

use harness::{KERNEL_MODE, NORMAL_PRIORITY, PAGE, TAG, Worker};
use wdk_standin::wdk_sys::{
    _MEMORY_CACHING_TYPE, _TIMER_TYPE, ALL_PROCESSOR_GROUPS, KDPC, KTIMER, LARGE_INTEGER,
    MM_ALLOCATE_FULLY_REQUIRED, NT_SUCCESS, NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT,
    POOL_FLAG_NON_PAGED, PROCESSOR_NUMBER, PVOID, ULONG_PTR,
    ntddk::{
        ExAllocatePool2, ExFreePool, ExFreePoolWithTag, KeCancelTimer, KeFlushQueuedDpcs,
        KeGetProcessorNumberFromIndex, KeInitializeDpc, KeInitializeTimerEx, KeInsertQueueDpc,
        KeIpiGenericCall, KeQueryActiveProcessorCountEx, KeSetTargetProcessorDpcEx, KeSetTimerEx,
        MmAllocatePagesForMdlEx, MmFreePagesFromMdl, MmMapLockedPagesSpecifyCache,
        MmUnmapLockedPages,
    },
};

/// Pool blocks held at a time.
const BLOCKS: usize = 24;
/// Pages of one MDL.
const MDL_PAGES: usize = 16;
/// Milliseconds between ticks of the timer.
const PERIOD: i32 = 3;

static WORKER: Worker = Worker::new();
static IPIS: AtomicU64 = AtomicU64::new(0);
static DPCS: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);

/// The worker's; timer and DPCs are the kernel's while they are queued.
struct Objects {
    timer: KTIMER,
    tick: KDPC,
    dpc: KDPC,
}
struct Cell(UnsafeCell<MaybeUninit<Objects>>);
// SAFETY: initialized by the worker before the kernel sees it.
unsafe impl Sync for Cell {}
static OBJECTS: Cell = Cell(UnsafeCell::new(MaybeUninit::uninit()));

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
    WORKER.start(run)
}

unsafe extern "C" fn unload(_driver: PDRIVER_OBJECT) {
    WORKER.stop();
}

unsafe extern "C" fn on_ipi(_context: ULONG_PTR) -> ULONG_PTR {
    IPIS.fetch_add(1, Ordering::Relaxed);
    0
}

unsafe extern "C" fn on_dpc(_dpc: *mut KDPC, context: PVOID, _a: PVOID, _b: PVOID) {
    // SAFETY: one of the counters of this image.
    let counter = unsafe { &*context.cast::<AtomicU64>() };
    counter.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn run(_context: PVOID) {
    let objects: *mut Objects = OBJECTS.0.get().cast();
    // SAFETY: fields' addresses; nothing is read.
    let timer = unsafe { &raw mut (*objects).timer };
    // SAFETY: as above.
    let tick = unsafe { &raw mut (*objects).tick };
    // SAFETY: as above.
    let dpc = unsafe { &raw mut (*objects).dpc };
    // SAFETY: nobody uses it yet.
    unsafe { KeInitializeDpc(tick, Some(on_dpc), TICKS.as_ptr().cast()) };
    // SAFETY: nobody uses it yet.
    unsafe { KeInitializeTimerEx(timer, _TIMER_TYPE::NotificationTimer) };
    let due = LARGE_INTEGER {
        QuadPart: -10_000 * i64::from(PERIOD),
    };
    // SAFETY: both are initialized and stay until the timer is cancelled.
    unsafe { KeSetTimerEx(timer, due, PERIOD, tick) };

    let mut rounds = 0_u64;
    while WORKER.pause(2) {
        pool(rounds);
        pages();
        // SAFETY: the routine runs at IPI_LEVEL and only counts.
        unsafe { KeIpiGenericCall(Some(on_ipi), 0) };
        every_processor(dpc);
        rounds += 1;
    }

    // SAFETY: set above.
    unsafe { KeCancelTimer(timer) };
    // SAFETY: PASSIVE_LEVEL.
    unsafe { KeFlushQueuedDpcs() };
    harness::report(c"benign-churn", c"rounds", rounds);
    harness::report(c"benign-churn", c"IPIs", IPIS.load(Ordering::Relaxed));
    harness::report(c"benign-churn", c"DPCs", DPCS.load(Ordering::Relaxed));
    harness::report(c"benign-churn", c"ticks", TICKS.load(Ordering::Relaxed));
    Worker::leave();
}

/// Takes blocks of many sizes, fills them, gives them back.
fn pool(seed: u64) {
    let mut blocks = [core::ptr::null_mut::<u8>(); BLOCKS];
    let mut size = 64 + seed % 512;
    for block in &mut blocks {
        // SAFETY: IRQL <= DISPATCH_LEVEL; the result is checked.
        let new = unsafe { ExAllocatePool2(POOL_FLAG_NON_PAGED, size, TAG) };
        *block = new.cast();
        if !new.is_null() {
            // SAFETY: ours, and at least 64 bytes long.
            unsafe { core::ptr::write_bytes(*block, 0x5A, 64) };
        }
        size = size * 5 / 4 + 16;
    }
    for block in blocks {
        if !block.is_null() {
            // SAFETY: allocated above with this tag.
            unsafe { ExFreePoolWithTag(block.cast(), TAG) };
        }
    }
}

/// Takes pages, maps them, writes and reads them, gives them back.
fn pages() {
    let none = LARGE_INTEGER { QuadPart: 0 };
    let all = LARGE_INTEGER { QuadPart: i64::MAX };
    // SAFETY: the result is checked.
    let mdl = unsafe {
        MmAllocatePagesForMdlEx(
            none,
            all,
            none,
            (MDL_PAGES * PAGE) as u64,
            _MEMORY_CACHING_TYPE::MmCached,
            MM_ALLOCATE_FULLY_REQUIRED,
        )
    };
    if mdl.is_null() {
        return;
    }
    // SAFETY: the pages are resident; failure gives null.
    let mapped = unsafe {
        MmMapLockedPagesSpecifyCache(
            mdl,
            KERNEL_MODE,
            _MEMORY_CACHING_TYPE::MmCached,
            core::ptr::null_mut(),
            0,
            NORMAL_PRIORITY,
        )
    };
    if !mapped.is_null() {
        for page in 0..MDL_PAGES {
            // SAFETY: within the mapping.
            let word = unsafe { mapped.cast::<u64>().add(page * PAGE / 8) };
            // SAFETY: mapped, writable, aligned.
            unsafe { word.write_volatile(page as u64) };
        }
        // SAFETY: mapped above.
        unsafe { MmUnmapLockedPages(mapped, mdl) };
    }
    // SAFETY: allocated above, no longer mapped.
    unsafe { MmFreePagesFromMdl(mdl) };
    // SAFETY: the descriptor itself is pool that is ours to free.
    unsafe { ExFreePool(mdl.cast()) };
}

/// A DPC on each processor in turn.
fn every_processor(dpc: *mut KDPC) {
    #[expect(clippy::cast_possible_truncation, reason = "the constant is 0xFFFF")]
    const ALL: u16 = ALL_PROCESSOR_GROUPS as u16;
    // SAFETY: any IRQL.
    let count = unsafe { KeQueryActiveProcessorCountEx(ALL) };
    for index in 0..count {
        let mut number = PROCESSOR_NUMBER::default();
        // SAFETY: `number` is ours.
        let status = unsafe { KeGetProcessorNumberFromIndex(index, &raw mut number) };
        if !NT_SUCCESS(status) {
            continue;
        }
        // SAFETY: not queued: flushed at the end of each round.
        unsafe { KeInitializeDpc(dpc, Some(on_dpc), DPCS.as_ptr().cast()) };
        // SAFETY: initialized, not queued; an active processor.
        let _ = unsafe { KeSetTargetProcessorDpcEx(dpc, &raw mut number) };
        // SAFETY: initialized.
        unsafe { KeInsertQueueDpc(dpc, core::ptr::null_mut(), core::ptr::null_mut()) };
        // SAFETY: PASSIVE_LEVEL.
        unsafe { KeFlushQueuedDpcs() };
    }
}
