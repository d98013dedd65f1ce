//! Specimen: code in executable pool, run by a thread and by a DPC.
//!
//! What many rootkits end in once their loader has gone: bytes that no driver
//! file brought, in memory of the pool.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
#[cfg(feature = "lab-port")]
mod instr;

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

use harness::{CodePages, Worker};
use wdk_standin::wdk_sys::{
    KDPC, NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID,
    ntddk::{KeFlushQueuedDpcs, KeInitializeDpc, KeInsertQueueDpc},
};

/// `lock inc qword [rdx]; ret`: counts in its second argument, which for a DPC
/// is its context.
const CODE: [u8; 5] = [0xF0, 0x48, 0xFF, 0x02, 0xC3];

type Routine = unsafe extern "C" fn(*mut KDPC, PVOID, PVOID, PVOID);

static WORKER: Worker = Worker::new();
static RUNS: AtomicU64 = AtomicU64::new(0);

struct Dpc(UnsafeCell<MaybeUninit<KDPC>>);
// SAFETY: initialized by the worker before it is queued, then the kernel's.
unsafe impl Sync for Dpc {}
static DPC: Dpc = Dpc(UnsafeCell::new(MaybeUninit::uninit()));

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

unsafe extern "C" fn run(_context: PVOID) {
    if let Some(mut code) = CodePages::allocate(1)
        && code.write(0, &CODE)
    {
        harness::announce(c"pool-shellcode", code.address());
        // SAFETY: the page holds a function of this signature.
        let routine = unsafe { core::mem::transmute::<u64, Routine>(code.address()) };
        let counter: PVOID = RUNS.as_ptr().cast();
        let dpc: *mut KDPC = DPC.0.get().cast();
        // SAFETY: nobody uses the DPC yet.
        unsafe { KeInitializeDpc(dpc, Some(routine), counter) };
        while WORKER.pause(5) {
            // SAFETY: writes to the counter only.
            unsafe { routine(dpc, counter, core::ptr::null_mut(), core::ptr::null_mut()) };
            // SAFETY: initialized; the code stays until the DPCs are flushed.
            unsafe { KeInsertQueueDpc(dpc, core::ptr::null_mut(), core::ptr::null_mut()) };
        }
        // SAFETY: PASSIVE_LEVEL.
        unsafe { KeFlushQueuedDpcs() };
    }
    harness::report(c"pool-shellcode", c"runs", RUNS.load(Ordering::Relaxed));
    Worker::leave();
}
