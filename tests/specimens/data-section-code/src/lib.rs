//! Specimen: code run from another module's `.data`.
//!
//! "The address lies in a module" is true of it, and says nothing. The code is
//! put behind the last variable of `WDFLDR.SYS`, in the slack of that page, and
//! run with page tables in which the page is executable. The old bytes come back.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
mod instr;
#[path = "../../modules.rs"]
mod modules;
#[path = "../../tables.rs"]
mod tables;

use harness::{PAGE, Worker};
use tables::{Tables, executable};
use wdk_standin::wdk_sys::{NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID};

/// `lea rax, [rcx + rcx * 4 + 1]; ret`
const CODE: [u8; 6] = [0x48, 0x8D, 0x44, 0x89, 0x01, 0xC3];
const VICTIM: &[u8] = b"WDFLDR.SYS";

type Routine = unsafe extern "C" fn(u64) -> u64;

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

/// The end of the last page of the module's `.data`.
fn slack() -> Option<u64> {
    let section = modules::find(VICTIM)?.section(*b".data\0\0\0")?;
    let end = section.start + section.bytes.next_multiple_of(PAGE) as u64;
    Some(end - CODE.len() as u64)
}

fn attack() -> Option<u64> {
    let entry = slack()?;
    let tables = Tables::with(entry, executable)?;
    harness::announce(c"data-section-code", entry);
    let place = entry as *mut [u8; CODE.len()];
    // SAFETY: mapped and writable; nobody else uses the page's last bytes.
    let old = unsafe { place.read_volatile() };
    // SAFETY: as above.
    unsafe { place.write_volatile(CODE) };
    // SAFETY: a function of this signature lies there now.
    let routine = unsafe { core::mem::transmute::<u64, Routine>(entry) };
    let wrong = (0..100)
        .filter(|&number| tables.call(routine, number) != number * 5 + 1)
        .count();
    // SAFETY: as above.
    unsafe { place.write_volatile(old) };
    Some(wrong as u64)
}

unsafe extern "C" fn run(_context: PVOID) {
    harness::report(
        c"data-section-code",
        c"wrong answers",
        attack().unwrap_or(u64::MAX),
    );
    while WORKER.pause(1000) {}
    Worker::leave();
}
