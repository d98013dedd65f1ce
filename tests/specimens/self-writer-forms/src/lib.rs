//! Specimen: code pages that write themselves, in every way that instructions
//! have.
//!
//! Each form is one instruction (`forms.rs`) in executable pool. It is run with
//! its operand in a data page first; then in the page that it lies in, across
//! that page's end, and in another code page. Registers, flags and memory must
//! come out alike each time: a hypervisor that steps or emulates the instruction
//! may not be seen in its result.

#![no_std]

#[path = "../../harness.rs"]
mod harness;
#[path = "../../instr.rs"]
mod instr;

mod forms;

use core::cell::UnsafeCell;

use forms::{FORMS, Form, Output};
use harness::{CodePages, PAGE, Worker};
use wdk_standin::wdk_sys::{
    NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, PVOID,
    ntddk::{KeQueryActiveProcessorCount, KeSetSystemAffinityThreadEx},
};

/// Bytes that are compared around an operand.
const AREA: usize = 1024;
/// Where code and areas lie in the three pages of code (`forms.rs`).
const OWN_AREA: usize = PAGE + 0xA00;
const CROSSING_AREA: usize = 2 * PAGE - AREA / 2;
const OTHER_AREA: usize = 2 * PAGE + 0x800;
/// XMM6 to XMM15 in the image of FXSAVE: they belong to whoever called.
const CALLERS: core::ops::Range<usize> = 256..416;

type Area = [u8; AREA];

struct Areas(UnsafeCell<[Area; 2]>);
// SAFETY: only the worker thread touches them.
unsafe impl Sync for Areas {}
/// The reference's result, and the other's.
static AREAS: Areas = Areas(UnsafeCell::new([[0; AREA]; 2]));

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

/// What an area is filled with: the low byte of the offset.
fn pattern(at: usize) -> u8 {
    at.to_le_bytes()[0]
}

/// Runs a form with its operand at `offset` of the area at `base`, and copies
/// the area as it is then to `to`.
fn run_form(code: &CodePages, form: &Form, base: *mut u8, offset: usize, to: *mut u8) -> Output {
    for at in 0..AREA {
        // SAFETY: the area is ours and that long.
        unsafe { base.wrapping_add(at).write_volatile(pattern(at)) };
    }
    // SAFETY: within the area.
    let operand = unsafe { base.add(offset) };
    let output = form.run(code.address(), operand);
    // SAFETY: both are ours and that long.
    unsafe { core::ptr::copy_nonoverlapping(base, to, AREA) };
    output
}

/// Where a form's results differ from the reference's.
fn differs(form: &Form, offset: usize, one: &[Area; 2]) -> bool {
    (0..AREA).any(|at| {
        let callers = form.saves_state && at >= offset && CALLERS.contains(&(at - offset));
        !callers && one[0][at] != one[1][at]
    })
}

/// Tries a form in every place; how many went wrong.
fn try_form(code: &CodePages, data: *mut u8, form: &Form) -> u64 {
    let results = AREAS.0.get();
    // SAFETY: this thread's.
    let first = unsafe { &raw mut (*results)[0] }.cast();
    // SAFETY: this thread's.
    let second = unsafe { &raw mut (*results)[1] }.cast();
    let mut wrong = 0;
    for (place, area, crossing) in [
        (c"its own page", OWN_AREA, false),
        (c"across the end of its page", CROSSING_AREA, true),
        (c"another code page", OTHER_AREA, false),
    ] {
        let offset = match (crossing, form.alignment) {
            (false, _) => 0,
            // One byte before the boundary in the area's middle.
            (true, 1) => AREA / 2 - 1,
            (true, _) => AREA / 2 - 256,
        };
        let reference = run_form(code, form, data, offset, first);
        // Code runs in all three pages, so that all are executable.
        forms::touch(code.address());
        let base = (code.address() + area as u64) as *mut u8;
        let output = run_form(code, form, base, offset, second);
        // SAFETY: both have been written.
        let both = unsafe { &*results };
        if output != reference || differs(form, offset, both) {
            wrong += 1;
            harness::report(form.name, place, wrong);
        }
    }
    wrong
}

fn attack() -> Option<u64> {
    let mut code = CodePages::allocate(3)?;
    let mut data = CodePages::allocate(1)?;
    if !code.write(0, forms::code()) {
        return None;
    }
    harness::announce(c"self-writer-forms", code.address());
    let data = data.bytes().as_mut_ptr();
    let mut wrong = 0;
    for round in 0..3 {
        // One processor for a form and its reference, another one each round.
        // SAFETY: any IRQL.
        let count = unsafe { KeQueryActiveProcessorCount(core::ptr::null_mut()) };
        // SAFETY: PASSIVE_LEVEL; an active processor.
        unsafe { KeSetSystemAffinityThreadEx(1 << (round % count)) };
        for form in FORMS {
            wrong += try_form(&code, data, form);
        }
        if !WORKER.pause(5) {
            break;
        }
    }
    harness::report(c"self-writer-forms", c"forms tried", FORMS.len() as u64);
    harness::report(c"self-writer-forms", c"wrong answers", wrong);
    // The pages stay until unload, so that their frames are nobody else's.
    while WORKER.pause(1000) {}
    Some(wrong)
}

unsafe extern "C" fn run(_context: PVOID) {
    if attack().is_none() {
        harness::report(c"self-writer-forms", c"no memory", 0);
    }
    Worker::leave();
}
