//! Stack back traces: return addresses of the caller's frames.
//!
//! A heuristic: what on the stack points behind a call instruction of a module
//! counts as a return address, so a stale one may be among them. Any IRQL.

use wdk_standin::wdk_sys::{PULONG, PVOID, ULONG, USHORT};

use crate::hal::instr;
use crate::ldr;
use crate::ob::argument::put;

/// Return addresses found on the current stack, innermost first: values that lie
/// in an executable section of a module, right behind a call instruction.
fn walk(skip: usize, visit: &mut dyn FnMut(usize) -> bool) {
    const DEEPEST: usize = 4096;
    let start = instr::stack_pointer() & !7;
    let (_, top) = limits();
    let mut skipped = 0;
    for at in (start..top.min(start + DEEPEST * 8)).step_by(8) {
        // SAFETY: between the stack pointer and the end of the stack.
        let value = unsafe { core::ptr::with_exposed_provenance::<usize>(at).read() };
        if ldr::base_of(value).is_none() || !after_call(value) {
            continue;
        }
        if skipped < skip {
            skipped += 1;
        } else if !visit(value) {
            return;
        }
    }
}

fn limits() -> (usize, usize) {
    let thread = crate::ke::thread::current();
    (thread.stack_base(), thread.stack_top.get())
}

/// Whether a near call ends right before this address: `E8 rel32`, `FF /2` with
/// its lengths 2, 3, 6 and 7.
fn after_call(address: usize) -> bool {
    let byte = |back: usize| {
        let at = core::ptr::with_exposed_provenance::<u8>(address.wrapping_sub(back));
        // SAFETY: inside a module's image, which is mapped.
        unsafe { at.read() }
    };
    if ldr::base_of(address - 7).is_none() {
        return false;
    }
    byte(5) == 0xE8
        || [2, 3, 6, 7]
            .into_iter()
            .any(|back| byte(back) == 0xFF && byte(back - 1) >> 3 & 7 == 2)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCaptureStackBackTrace(
    skip: ULONG,
    count: ULONG,
    trace: *mut PVOID,
    hash: PULONG,
) -> USHORT {
    const API: &str = "RtlCaptureStackBackTrace";
    let (mut found, mut sum) = (0usize, 0u32);
    walk(skip as usize, &mut |address| {
        put!(
            trace.wrapping_add(found),
            core::ptr::with_exposed_provenance_mut(address),
            API
        );
        sum = sum.wrapping_add(address as u32);
        found += 1;
        found < count as usize
    });
    if !hash.is_null() {
        put!(hash, sum, API);
    }
    u16::try_from(found).unwrap_or(u16::MAX)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlWalkFrameChain(
    callers: *mut PVOID,
    count: ULONG,
    flags: ULONG,
) -> ULONG {
    if flags != 0 || count == 0 {
        return 0;
    }
    // SAFETY: the same contract.
    u32::from(unsafe { RtlCaptureStackBackTrace(0, count, callers, core::ptr::null_mut()) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoGetStackLimits(low: *mut u64, high: *mut u64) {
    let (base, top) = limits();
    put!(low, base as u64, "IoGetStackLimits");
    put!(high, top as u64, "IoGetStackLimits");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoGetRemainingStackSize() -> u64 {
    (instr::stack_pointer() - limits().0) as u64
}
