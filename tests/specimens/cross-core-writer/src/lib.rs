//! Specimen: code written on one core while another core runs it.
//!
//! Two threads, on two processors where there are two: one calls a function in
//! executable pool again and again, the other keeps replacing the constant that
//! it returns by an aligned store. Each answer must be a constant that was
//! written, and none may be older than one seen before; at the end the last one
//! must be seen. A right that is not taken away on the other core shows as code
//! that runs unseen, a lost write as an old constant.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
mod instr;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use harness::{CodePages, Worker};
use wdk_standin::wdk_sys::{
    NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID,
    ntddk::{KeQueryActiveProcessorCount, KeSetSystemAffinityThreadEx},
};

/// NOPs up to the constant, so that it is aligned, then `mov eax, 0; ret`.
const CODE: [u8; 9] = [0x90, 0x90, 0x90, 0xB8, 0, 0, 0, 0, 0xC3];
/// Offset of the constant.
const CONSTANT: usize = 4;
/// Constants that are written.
const ROUNDS: u32 = 400;

type Routine = unsafe extern "C" fn() -> u32;

static WORKER: Worker = Worker::new();
static WRITER: Worker = Worker::new();
/// The code, while it is there for the writer.
static PLACE: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);

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
    let status = WRITER.start(write);
    if status < 0 {
        return status;
    }
    let status = WORKER.start(run);
    if status < 0 {
        WRITER.stop();
    }
    status
}

unsafe extern "C" fn unload(_driver: PDRIVER_OBJECT) {
    WRITER.stop();
    WORKER.stop();
}

/// Puts the calling thread on the first or the last processor.
fn settle(last: bool) {
    // SAFETY: any IRQL.
    let count = unsafe { KeQueryActiveProcessorCount(core::ptr::null_mut()) };
    let number = if last { count.max(1) - 1 } else { 0 };
    // SAFETY: PASSIVE_LEVEL; an active processor.
    unsafe { KeSetSystemAffinityThreadEx(1 << number) };
}

unsafe extern "C" fn write(_context: PVOID) {
    settle(true);
    while PLACE.load(Ordering::Acquire) == 0 {
        if !WRITER.pause(1) {
            Worker::leave();
        }
    }
    let place = PLACE.load(Ordering::Acquire) as *mut AtomicU32;
    // SAFETY: aligned, and the worker keeps the page until this thread is done.
    let place = unsafe { &*place };
    for round in 1..=ROUNDS {
        place.store(round, Ordering::Release);
        WRITTEN.store(round, Ordering::Release);
        // Sometimes the reader is waited for, sometimes not.
        let mut patience = 20_000;
        while round.is_multiple_of(4) && SEEN.load(Ordering::Acquire) < round && patience > 0 {
            core::hint::spin_loop();
            patience -= 1;
        }
        if round.is_multiple_of(16) && !WRITER.pause(1) {
            break;
        }
    }
    // Unload waits for this thread first, then for the worker.
    while WRITER.pause(1000) {}
    Worker::leave();
}

fn attack() -> Option<u64> {
    let mut code = CodePages::allocate(1)?;
    if !code.write(0, &CODE) {
        return None;
    }
    harness::announce(c"cross-core-writer", code.address());
    // SAFETY: the page holds a function of this signature.
    let routine = unsafe { core::mem::transmute::<u64, Routine>(code.address()) };
    PLACE.store(code.address() + CONSTANT as u64, Ordering::Release);
    let mut wrong = 0;
    let mut last = 0;
    let mut calls = 0_u64;
    while last < ROUNDS {
        let before = WRITTEN.load(Ordering::Acquire);
        // What was written before this is what is fetched after it.
        instr::serialize();
        // SAFETY: it returns a constant.
        let answer = unsafe { routine() };
        // The store may be ahead of the note of it by one.
        if answer < before || answer > WRITTEN.load(Ordering::Acquire) + 1 || answer < last {
            wrong += 1;
        }
        last = last.max(answer);
        SEEN.store(last, Ordering::Release);
        calls += 1;
        if calls.is_multiple_of(64) && !WORKER.pause(1) {
            break;
        }
    }
    harness::report(c"cross-core-writer", c"calls", calls);
    harness::report(c"cross-core-writer", c"wrong answers", wrong);
    // The page stays until unload: the writer is stopped before this thread.
    while WORKER.pause(1000) {}
    Some(wrong)
}

unsafe extern "C" fn run(_context: PVOID) {
    settle(false);
    if attack().is_none() {
        harness::report(c"cross-core-writer", c"no memory", 0);
    }
    Worker::leave();
}
