//! Specimen: code run at the address of a discarded section.
//!
//! A driver's `INIT` section is gone once its entry point has returned, but its
//! addresses stay the module's. Here a frame of pool is put behind them, in page
//! tables of the specimen's own, and run.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
mod instr;
#[path = "../../tables.rs"]
mod tables;

use core::sync::atomic::{AtomicU64, Ordering};

use harness::{CodePages, PAGE, Worker, physical_address};
use tables::{Tables, executable};
use wdk_standin::wdk_sys::{NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID};

/// `lea rax, [rcx + rcx * 8 + 5]; ret`
const CODE: [u8; 6] = [0x48, 0x8D, 0x44, 0xC9, 0x05, 0xC3];

type Routine = unsafe extern "C" fn(u64) -> u64;

static WORKER: Worker = Worker::new();
/// Where the entry point was.
static GONE: AtomicU64 = AtomicU64::new(0);

/// The driver's entry point, discarded when it has returned.
///
/// # Safety
/// For the loader.
// SAFETY: the linker is told this name; nothing else defines it.
#[unsafe(export_name = "DriverEntry")]
// SAFETY: the loader discards the section after the entry point; nothing else
// lies in it.
#[unsafe(link_section = "INIT")]
pub unsafe extern "system" fn driver_entry(
    driver: PDRIVER_OBJECT,
    _registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
    harness::set_unload(driver, Some(unload));
    let here = driver_entry as *const () as u64;
    GONE.store(here & !(PAGE as u64 - 1), Ordering::Release);
    WORKER.start(run)
}

unsafe extern "C" fn unload(_driver: PDRIVER_OBJECT) {
    WORKER.stop();
}

fn attack() -> Option<u64> {
    let entry = GONE.load(Ordering::Acquire);
    let mut code = CodePages::allocate(1)?;
    if !code.write(0, &CODE) {
        return None;
    }
    let frame = physical_address(code.address());
    let tables = Tables::with(entry, |_| executable(frame))?;
    harness::announce_at(c"discarded-section-code", entry, frame);
    // SAFETY: a function of this signature lies there in these tables.
    let routine = unsafe { core::mem::transmute::<u64, Routine>(entry) };
    let wrong = (0..100)
        .filter(|&number| tables.call(routine, number) != number * 9 + 5)
        .count();
    Some(wrong as u64)
}

unsafe extern "C" fn run(_context: PVOID) {
    // The entry point has returned by then, and its section is gone.
    if WORKER.pause(50) {
        harness::report(
            c"discarded-section-code",
            c"wrong answers",
            attack().unwrap_or(u64::MAX),
        );
    }
    while WORKER.pause(1000) {}
    Worker::leave();
}
