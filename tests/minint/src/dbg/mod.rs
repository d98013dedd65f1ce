//! Debug output: `DbgPrint` and its kin onto COM1, `_snprintf` and its kin into
//! the caller's buffer.
//!
//! The log line is prefixed `dbg: `. IRQL: Microsoft allows `DbgPrint` at any
//! level at which the arguments can be read (wide strings at PASSIVE_LEVEL).

mod entry;

use alloc::string::String;
use core::ffi::{c_char, c_int};

use wdk_standin::wdk_sys::{NTSTATUS, ULONG, UNICODE_STRING};

use crate::ke::irql::PASSIVE_LEVEL;
use crate::ob::argument::own;
use crate::rtl::format::{Source, format};
use crate::rtl::status::STATUS_SUCCESS;

/// The argument list of a Microsoft x64 variadic call: 8-byte slots.
struct List {
    slot: *const u64,
}

impl Source for List {
    fn word(&mut self) -> u64 {
        let at = self.slot;
        self.slot = at.wrapping_add(1);
        // SAFETY: the format's contract: one slot for each conversion.
        unsafe { at.read() }
    }

    fn byte(&self, pointer: u64, index: usize) -> u8 {
        let at = core::ptr::with_exposed_provenance::<u8>(pointer as usize).wrapping_add(index);
        // SAFETY: the format's contract: `%s` takes a zero-terminated string.
        unsafe { at.read() }
    }

    fn unit(&self, pointer: u64, index: usize) -> u16 {
        let irql = crate::ke::irql::current();
        crate::require!(
            irql == PASSIVE_LEVEL,
            "DbgPrint",
            "wide characters at IRQL {}, PASSIVE_LEVEL is required",
            irql
        );
        let at = core::ptr::with_exposed_provenance::<u16>(pointer as usize).wrapping_add(index);
        // SAFETY: as above, for wide strings.
        unsafe { at.read_unaligned() }
    }

    fn counted(&self, pointer: u64) -> (usize, u64) {
        let at = core::ptr::with_exposed_provenance_mut::<UNICODE_STRING>(pointer as usize);
        let string = &*own!(at);
        (
            usize::from(string.Length),
            string.Buffer.expose_provenance() as u64,
        )
    }
}

/// Longest output of one `DbgPrint` (Microsoft: 512 bytes).
const LONGEST: usize = 512;

/// Formats and writes one message. Lines are split at `\n`.
unsafe extern "C" fn print(pattern: *const c_char, arguments: *const u64) -> ULONG {
    let pattern = crate::rtl::bytes(pattern.cast(), "DbgPrint");
    let mut buffer = [0u8; LONGEST];
    let mut length = 0;
    format(pattern, false, &mut List { slot: arguments }, &mut |unit| {
        if let Some(slot) = buffer.get_mut(length) {
            *slot = u8::try_from(unit).unwrap_or(b'?');
            length += 1;
        }
    });
    // Only ASCII goes to the log as it is.
    buffer[..length]
        .iter_mut()
        .filter(|byte| !byte.is_ascii())
        .for_each(|byte| *byte = b'?');
    let text = core::str::from_utf8(&buffer[..length]).unwrap_or("");
    for line in text.split('\n').map(|line| line.trim_end_matches('\r')) {
        if !line.is_empty() {
            crate::log!("dbg: {line}");
        }
    }
    STATUS_SUCCESS.cast_unsigned()
}

unsafe extern "C" fn to_bytes(
    target: *mut u8,
    room: usize,
    pattern: *const c_char,
    arguments: *const u64,
) -> c_int {
    let pattern = crate::rtl::bytes(pattern.cast(), "_snprintf");
    let mut length = 0usize;
    let put = |byte: u8, at: usize| {
        if at < room {
            // SAFETY: the caller's contract: `room` writable bytes.
            unsafe { target.wrapping_add(at).write(byte) };
        }
    };
    format(pattern, false, &mut List { slot: arguments }, &mut |unit| {
        put(u8::try_from(unit).unwrap_or(b'?'), length);
        length += 1;
    });
    put(0, length);
    // "_snprintf ... returns a negative value" when the output does not fit.
    if length > room {
        -1
    } else {
        c_int::try_from(length).unwrap_or(c_int::MAX)
    }
}

unsafe extern "C" fn to_units(
    target: *mut u16,
    room: usize,
    pattern: *const u16,
    arguments: *const u64,
) -> c_int {
    let wide = crate::rtl::unicode::wide(pattern, "_snwprintf");
    let narrow: alloc::vec::Vec<u8> = wide
        .iter()
        .map(|&unit| u8::try_from(unit).unwrap_or(b'?'))
        .collect();
    let mut length = 0usize;
    let put = |unit: u16, at: usize| {
        if at < room {
            // SAFETY: the caller's contract: `room` writable units.
            unsafe { target.wrapping_add(at).write(unit) };
        }
    };
    format(&narrow, true, &mut List { slot: arguments }, &mut |unit| {
        put(unit, length);
        length += 1;
    });
    put(0, length);
    if length > room {
        -1
    } else {
        c_int::try_from(length).unwrap_or(c_int::MAX)
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vDbgPrintEx(
    _component: ULONG,
    _level: ULONG,
    pattern: *const c_char,
    arguments: *const u64,
) -> ULONG {
    // SAFETY: the same contract.
    unsafe { print(pattern, arguments) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn vDbgPrintExWithPrefix(
    prefix: *const c_char,
    _component: ULONG,
    _level: ULONG,
    pattern: *const c_char,
    arguments: *const u64,
) -> ULONG {
    let mut joined = String::new();
    for part in [prefix, pattern] {
        joined.push_str(&String::from_utf8_lossy(crate::rtl::bytes(
            part.cast(),
            "vDbgPrintExWithPrefix",
        )));
    }
    joined.push('\0');
    // SAFETY: the same contract, with a zero-terminated format.
    unsafe { print(joined.as_ptr().cast(), arguments) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _vsnprintf(
    target: *mut u8,
    room: usize,
    pattern: *const c_char,
    arguments: *const u64,
) -> c_int {
    // SAFETY: the same contract.
    unsafe { to_bytes(target, room, pattern, arguments) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _vsnwprintf(
    target: *mut u16,
    room: usize,
    pattern: *const u16,
    arguments: *const u64,
) -> c_int {
    // SAFETY: the same contract.
    unsafe { to_units(target, room, pattern, arguments) }
}

/// No kernel debugger is attached: a break is a stop of the machine.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn DbgBreakPoint() {
    crate::ke::bugcheck::violation("DbgBreakPoint", format_args!("no debugger is attached"));
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn DbgBreakPointWithStatus(status: ULONG) {
    crate::ke::bugcheck::violation(
        "DbgBreakPointWithStatus",
        format_args!("no debugger is attached (status {status:#x})"),
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn DbgQueryDebugFilterState(
    _component: ULONG,
    _level: ULONG,
) -> NTSTATUS {
    // Everything is printed: TRUE.
    1
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn DbgSetDebugFilterState(
    _component: ULONG,
    _level: ULONG,
    _state: u8,
) -> NTSTATUS {
    crate::rtl::status::STATUS_ACCESS_DENIED
}
