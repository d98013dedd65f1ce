//! Specimen: a code page that writes itself.
//!
//! One instruction stores into the page that it lies in, so it needs to write
//! and to execute the same page at once: a monitor that only swaps the two
//! rights would fault on it for ever. Packers and decrypting stubs do this.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
#[cfg(feature = "lab-port")]
mod instr;

use core::sync::atomic::{AtomicU64, Ordering};

use harness::{CodePages, Worker};
use wdk_standin::wdk_sys::{NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID};

/// `mov [rip+1], cl` overwrites the first byte of the operand of the next
/// instruction, `mov eax, 0`; then `ret`. So it returns its argument's low byte
/// if, and only if, the write was carried out.
const CODE: [u8; 12] = [
    0x88, 0x0D, 0x01, 0x00, 0x00, 0x00, 0xB8, 0x00, 0x00, 0x00, 0x00, 0xC3,
];

type Routine = unsafe extern "C" fn(u64) -> u32;

static WORKER: Worker = Worker::new();
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

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
        harness::announce(c"self-writer", code.address());
        // SAFETY: the page holds a function of this signature.
        let routine = unsafe { core::mem::transmute::<u64, Routine>(code.address()) };
        // Two bursts: rounds that follow each other, and rounds far apart.
        for round in 1..=16_u64 {
            // SAFETY: writes to its own page only.
            let answer = unsafe { routine(round) };
            if u64::from(answer) != round {
                WRONG.fetch_add(1, Ordering::Relaxed);
            }
            ROUNDS.fetch_add(1, Ordering::Relaxed);
            if round > 8 && !WORKER.pause(5) {
                break;
            }
        }
        harness::report(
            c"self-writer",
            c"wrong answers",
            WRONG.load(Ordering::Relaxed),
        );
        // The page stays until unload, so that its frame is nobody else's.
        while WORKER.pause(1000) {}
    }
    harness::report(c"self-writer", c"rounds", ROUNDS.load(Ordering::Relaxed));
    Worker::leave();
}
