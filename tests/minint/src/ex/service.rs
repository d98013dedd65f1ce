//! Small services of the executive.

use wdk_standin::wdk_sys::{BOOLEAN, GUID, KPROCESSOR_MODE, NTSTATUS, PVOID, SIZE_T, ULONG};

use crate::hal::instr;
use crate::ke::irql::{APC_LEVEL, PASSIVE_LEVEL, require_irql};
use crate::ob::argument::put;
use crate::rtl::status::{STATUS_SUCCESS, name};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExGetPreviousMode() -> KPROCESSOR_MODE {
    require_irql(APC_LEVEL, "ExGetPreviousMode");
    // Ring-3 programs reach no driver here: every caller is a system thread.
    super::nt::KERNEL_MODE
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExUuidCreate(uuid: *mut GUID) -> NTSTATUS {
    const API: &str = "ExUuidCreate";
    require_irql(APC_LEVEL, API);
    let mut seed = instr::rdtsc();
    let mut next = || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (seed ^ seed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ mixed >> 31
    };
    let (first, second) = (next(), next());
    let mut tail = second.to_le_bytes();
    // Version 4, variant 1 (RFC 9562, 5.4).
    tail[0] = tail[0] & 0x3F | 0x80;
    put!(
        uuid,
        GUID {
            Data1: first as u32,
            Data2: (first >> 32) as u16,
            Data3: (first >> 48) as u16 & 0x0FFF | 0x4000,
            Data4: tail,
        },
        API
    );
    STATUS_SUCCESS
}

/// No structured handler of a driver built without SEH catches it.
fn raise(status: NTSTATUS, api: &str) -> ! {
    crate::ke::bugcheck::violation(
        api,
        format_args!("unhandled exception {status:#010x} ({})", name(status)),
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExRaiseStatus(status: NTSTATUS) -> ! {
    raise(status, "ExRaiseStatus")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExRaiseAccessViolation() -> ! {
    raise(0xC000_0005u32.cast_signed(), "ExRaiseAccessViolation")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExRaiseDatatypeMisalignment() -> ! {
    raise(0x8000_0002u32.cast_signed(), "ExRaiseDatatypeMisalignment")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExIsProcessorFeaturePresent(feature: ULONG) -> BOOLEAN {
    const NX_ENABLED: ULONG = 12;
    const XSAVE_ENABLED: ULONG = 17;
    const CMPXCHG16B: ULONG = 14;
    const XMMI64: ULONG = 10;
    const XMMI: ULONG = 6;
    const RDTSC: ULONG = 8;
    BOOLEAN::from(match feature {
        XMMI | RDTSC | XMMI64 | NX_ENABLED | CMPXCHG16B => true,
        XSAVE_ENABLED => instr::cpuid(1, 0)[2] >> 27 & 1 != 0,
        _ => false,
    })
}

/// A range that lies in the user half: what `ProbeFor*` accept.
fn probe(address: PVOID, length: SIZE_T, alignment: ULONG, api: &str) {
    const HIGHEST_USER_ADDRESS: usize = 0x7FFF_FFFE_FFFF;
    require_irql(APC_LEVEL, api);
    if length == 0 {
        return;
    }
    if !address.addr().is_multiple_of(alignment.max(1) as usize) {
        raise(0x8000_0002u32.cast_signed(), api);
    }
    let end = address.addr().checked_add(length as usize);
    if end.is_none_or(|end| end > HIGHEST_USER_ADDRESS) {
        raise(0xC000_0005u32.cast_signed(), api);
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ProbeForRead(address: PVOID, length: SIZE_T, alignment: ULONG) {
    probe(address, length, alignment, "ProbeForRead");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ProbeForWrite(address: PVOID, length: SIZE_T, alignment: ULONG) {
    probe(address, length, alignment, "ProbeForWrite");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ExSetTimerResolution(_desired: ULONG, _set: BOOLEAN) -> ULONG {
    require_irql(PASSIVE_LEVEL, "ExSetTimerResolution");
    // The clock has one rate, 15.625 ms in units of 100 ns.
    156_250
}
