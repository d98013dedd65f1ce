//! Specimen: module stomping.
//!
//! Foreign code put where a driver's own code was, so that its address looks
//! honest: the entry point of `WDFLDR.SYS`, which has run once and never runs
//! again, is overwritten through a second mapping, and called. Unload puts the
//! old bytes back.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
mod instr;
#[path = "../../mapping.rs"]
mod mapping;
#[path = "../../modules.rs"]
mod modules;

use harness::Worker;
use mapping::Mapping;
use wdk_standin::wdk_sys::{NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID};

/// `lea rax, [rcx + rcx * 2 + 7]; ret`
const CODE: [u8; 6] = [0x48, 0x8D, 0x44, 0x49, 0x07, 0xC3];
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

unsafe extern "C" fn run(_context: PVOID) {
    let mut wrong = 1;
    if let Some(victim) = modules::find(VICTIM)
        && let Some(mapping) = Mapping::of(victim.entry(), CODE.len())
    {
        let mut old = [0; CODE.len()];
        mapping.read(&mut old);
        harness::announce(c"module-stomp", victim.entry());
        mapping.write(&CODE);
        instr::serialize();
        // SAFETY: a function of this signature lies there now.
        let routine = unsafe { core::mem::transmute::<u64, Routine>(victim.entry()) };
        wrong = 0;
        for number in 0..100 {
            // SAFETY: it only computes.
            let answer = unsafe { routine(number) };
            wrong += u64::from(answer != number * 3 + 7);
        }
        mapping.write(&old);
    }
    harness::report(c"module-stomp", c"wrong answers", wrong);
    while WORKER.pause(1000) {}
    Worker::leave();
}
