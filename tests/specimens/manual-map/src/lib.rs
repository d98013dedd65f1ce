//! Specimen: a loader that maps a second driver by hand and runs it.
//!
//! The usual way past driver signing: a signed loader puts an unsigned image
//! into pool, does the system loader's work itself and calls the entry point.
//! The system's list never shows it.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
#[cfg(feature = "lab-port")]
mod instr;
mod map;

use harness::Worker;
use wdk_standin::wdk_alloc::WdkAllocator;
use wdk_standin::wdk_sys::{NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID};

// The PE reader asks for one; nothing here allocates from it.
#[global_allocator]
static ALLOCATOR: WdkAllocator = WdkAllocator;

/// The driver that is mapped; see `payload/payload.c`.
static PAYLOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/payload.sys"));

/// The payload's entry point: counts in its data, answers the count.
type Run = unsafe extern "C" fn(u32) -> i64;

const ROUNDS: u32 = 16;

static WORKER: Worker = Worker::new();

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
    match map::map(PAYLOAD) {
        Some(mapped) => {
            harness::announce(c"manual-map", mapped.entry());
            // SAFETY: the image's entry point has this signature.
            let entry = unsafe { core::mem::transmute::<u64, Run>(mapped.entry()) };
            // SAFETY: mapped, relocated and bound.
            let counted = unsafe { entry(ROUNDS) };
            harness::report(c"manual-map", c"payload counted", counted.cast_unsigned());
            // The image stays until unload, so that its frames are nobody else's.
            while WORKER.pause(1000) {}
        }
        None => harness::report(c"manual-map", c"could not map bytes:", PAYLOAD.len() as u64),
    }
    Worker::leave();
}
