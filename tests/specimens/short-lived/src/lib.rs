//! Specimen: short-lived code.
//!
//! A loader stub runs once, overwrites itself while it runs, and its page is
//! freed at once: whoever looks a moment later finds nothing. It must be seen
//! before its first instruction, with its bytes.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
mod instr;

use harness::{CodePages, Worker};
use wdk_standin::wdk_sys::{NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID};

/// Bytes that are wiped.
const WIPED: usize = 21;

/// Computes `rcx * 2 + 9`, then fills itself with RET from its first byte on. The
/// last store hits the instruction that makes it, and the loop returns there.
const CODE: [u8; 34] = [
    0x4C, 0x8D, 0x44, 0x09, 0x09, // lea r8, [rcx + rcx + 9]
    0x4C, 0x89, 0xC0, // mov rax, r8
    0x48, 0x8D, 0x15, 0xF1, 0xFF, 0xFF, 0xFF, // lea rdx, [rip - 15]: the first byte
    0xB9, 0x22, 0x00, 0x00, 0x00, // mov ecx, 34
    0xC6, 0x02, 0xC3, // mov byte [rdx], 0xC3
    0x48, 0xFF, 0xC2, // inc rdx
    0xFF, 0xC9, // dec ecx
    0x75, 0xF6, // jnz to the store
    0xC3, // ret
    0xCC, 0xCC, 0xCC,
];
/// Times, each in a page of its own.
const TIMES: u64 = 4;

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

/// One life. Whether it went as it must.
fn live_and_die(number: u64) -> bool {
    let Some(mut code) = CodePages::allocate(1) else {
        return false;
    };
    if !code.write(0, &CODE) {
        return false;
    }
    harness::announce(c"short-lived", code.address());
    // SAFETY: the page holds a function of this signature.
    let routine = unsafe { core::mem::transmute::<u64, Routine>(code.address()) };
    // SAFETY: writes to its own page only.
    let answer = unsafe { routine(number) };
    let wiped = code.bytes().iter().take(WIPED).all(|&byte| byte == 0xC3);
    answer == number * 2 + 9 && wiped
}

unsafe extern "C" fn run(_context: PVOID) {
    let mut wrong = 0;
    for number in 0..TIMES {
        wrong += u64::from(!live_and_die(number));
        if !WORKER.pause(20) {
            break;
        }
    }
    harness::report(c"short-lived", c"wrong answers", wrong);
    while WORKER.pause(1000) {}
    Worker::leave();
}
