//! Specimen, benign: a driver with a read-write-execute section.
//!
//! Old drivers keep counters beside their code. Each call writes in the page in
//! which it runs. That is worth one finding; after it the driver must run at a
//! bounded cost, however often it does so (the case `rwx-bounded` counts).

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
mod instr;

use core::arch::global_asm;

use harness::Worker;
use wdk_standin::wdk_sys::{NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID};

/// Calls before the machine looks.
const CALLS: u64 = 2000;

unsafe extern "C" {
    /// Counts in its own page, and returns the count.
    fn RwxDriverCount() -> u64;
}

global_asm!(
    ".section .mixed, \"wx\"",
    ".balign 4096",
    ".globl RwxDriverCount",
    "RwxDriverCount:",
    "mov eax, 1",
    "lock xadd [rip + RwxDriverCounter], rax",
    "inc rax",
    "ret",
    ".balign 64",
    "RwxDriverCounter:",
    ".quad 0",
    ".balign 4096",
    ".text",
);

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
    // SAFETY: it counts.
    let mut last = unsafe { RwxDriverCount() };
    harness::announce(c"rwx-driver", RwxDriverCount as *const () as u64);
    let mut wrong = 0;
    for call in 0..CALLS {
        // SAFETY: it counts.
        let count = unsafe { RwxDriverCount() };
        wrong += u64::from(count != last + 1);
        last = count;
        if call.is_multiple_of(500) && !WORKER.pause(2) {
            break;
        }
    }
    harness::report(c"rwx-driver", c"wrong answers", wrong);
    // The lab counts what this costs.
    while WORKER.pause(1) {
        for _ in 0..100 {
            // SAFETY: it counts.
            unsafe { RwxDriverCount() };
        }
    }
    Worker::leave();
}
