//! `ANSI_STRING` routines. The code page is Latin-1: one byte, one unit.
//!
//! PASSIVE_LEVEL where the code page matters, otherwise any.

use wdk_standin::wdk_sys::{
    BOOLEAN, LONG, NTSTATUS, PANSI_STRING, PCSZ, PCUNICODE_STRING, PUNICODE_STRING, STRING,
};

use super::crt::bytes;
use super::status::{
    STATUS_BUFFER_OVERFLOW, STATUS_BUFFER_TOO_SMALL, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER, STATUS_SUCCESS,
};
use super::unicode;
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::{borrow, put};

const TAG: u32 = u32::from_le_bytes(*b"Strg");

fn counted<'a>(string: *const STRING, api: &str) -> &'a [u8] {
    let string = &*borrow!(string.cast_mut(), api);
    if string.Length == 0 {
        return &[];
    }
    let buffer = string.Buffer.cast::<u8>().cast_const();
    crate::ob::argument::check(buffer, api);
    // SAFETY: the string's contract: `Length` readable bytes.
    unsafe { core::slice::from_raw_parts(buffer, usize::from(string.Length)) }
}

fn store(string: &mut STRING, at: usize, source: impl Iterator<Item = u8>) {
    let room = usize::from(string.MaximumLength);
    if room == 0 {
        return;
    }
    let buffer = string.Buffer.cast::<u8>();
    // SAFETY: the string's contract: `MaximumLength` writable bytes.
    let buffer = unsafe { core::slice::from_raw_parts_mut(buffer, room) };
    let mut length = at;
    for (slot, byte) in buffer[at..].iter_mut().zip(source) {
        *slot = byte;
        length += 1;
    }
    if let Some(end) = buffer.get_mut(length) {
        *end = 0;
    }
    string.Length = u16::try_from(length).unwrap_or(u16::MAX);
}

fn initialize(target: PANSI_STRING, source: PCSZ, api: &str) {
    let length = if source.is_null() {
        None
    } else {
        Some(bytes(source.cast(), api).len())
    };
    let length = length.map(|length| u16::try_from(length).unwrap_or(u16::MAX).min(0xFFFE));
    put!(
        target,
        STRING {
            Length: length.unwrap_or(0),
            MaximumLength: length.map_or(0, |length| length + 1),
            Buffer: source.cast_mut().cast(),
        },
        api
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlInitAnsiString(target: PANSI_STRING, source: PCSZ) {
    initialize(target, source, "RtlInitAnsiString");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlInitString(target: PANSI_STRING, source: PCSZ) {
    initialize(target, source, "RtlInitString");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCopyString(target: PANSI_STRING, source: PANSI_STRING) {
    const API: &str = "RtlCopyString";
    let target = borrow!(target, API);
    target.Length = 0;
    if !source.is_null() {
        store(target, 0, counted(source, API).iter().copied());
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlAppendStringToString(
    target: PANSI_STRING,
    source: *const STRING,
) -> NTSTATUS {
    const API: &str = "RtlAppendStringToString";
    let more = counted(source, API);
    let target = borrow!(target, API);
    if usize::from(target.Length) + more.len() > usize::from(target.MaximumLength) {
        return STATUS_BUFFER_TOO_SMALL;
    }
    let at = usize::from(target.Length);
    store(target, at, more.iter().copied());
    STATUS_SUCCESS
}

fn compare(first: PANSI_STRING, second: PANSI_STRING, without_case: bool, api: &str) -> i32 {
    let (first, second) = (counted(first, api), counted(second, api));
    let fold = |byte: u8| {
        if without_case {
            byte.to_ascii_uppercase()
        } else {
            byte
        }
    };
    let difference = first
        .iter()
        .zip(second)
        .map(|(&a, &b)| i32::from(fold(a)) - i32::from(fold(b)));
    difference
        .into_iter()
        .find(|&difference| difference != 0)
        .unwrap_or_else(|| {
            i32::try_from(first.len()).unwrap_or(0) - i32::try_from(second.len()).unwrap_or(0)
        })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCompareString(
    first: PANSI_STRING,
    second: PANSI_STRING,
    without_case: BOOLEAN,
) -> LONG {
    compare(first, second, without_case != 0, "RtlCompareString")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlEqualString(
    first: PANSI_STRING,
    second: PANSI_STRING,
    without_case: BOOLEAN,
) -> BOOLEAN {
    BOOLEAN::from(compare(first, second, without_case != 0, "RtlEqualString") == 0)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlUpperChar(byte: i8) -> i8 {
    byte.cast_unsigned().to_ascii_uppercase().cast_signed()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlAnsiStringToUnicodeString(
    target: PUNICODE_STRING,
    source: PANSI_STRING,
    make: BOOLEAN,
) -> NTSTATUS {
    const API: &str = "RtlAnsiStringToUnicodeString";
    require_irql(PASSIVE_LEVEL, API);
    let source = counted(source, API);
    let wide: alloc::vec::Vec<u16> = source.iter().map(|&byte| u16::from(byte)).collect();
    if wide.len() * 2 > 0xFFFC {
        return STATUS_INVALID_PARAMETER;
    }
    let target = borrow!(target, API);
    if make != 0 {
        let status = unicode::allocate(target, wide.len() + 1);
        if status != STATUS_SUCCESS {
            return status;
        }
    }
    unicode::assign(target, &wide, API)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlUnicodeStringToAnsiString(
    target: PANSI_STRING,
    source: PCUNICODE_STRING,
    make: BOOLEAN,
) -> NTSTATUS {
    const API: &str = "RtlUnicodeStringToAnsiString";
    require_irql(PASSIVE_LEVEL, API);
    let source = unicode::units(source, API);
    let target = borrow!(target, API);
    if make != 0 {
        let Ok(room) = u16::try_from(source.len() + 1) else {
            return STATUS_INVALID_PARAMETER;
        };
        let buffer = crate::ex::pool::allocate(usize::from(room), TAG);
        if buffer.is_null() {
            return STATUS_INSUFFICIENT_RESOURCES;
        }
        *target = STRING {
            Length: 0,
            MaximumLength: room,
            Buffer: buffer.cast(),
        };
    }
    let fits = source.len() < usize::from(target.MaximumLength);
    let room = usize::from(target.MaximumLength).saturating_sub(1);
    let narrow = |&unit: &u16| u8::try_from(unit).unwrap_or(b'?');
    store(target, 0, source.iter().map(narrow).take(room));
    if fits {
        STATUS_SUCCESS
    } else {
        STATUS_BUFFER_OVERFLOW
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlFreeAnsiString(string: PANSI_STRING) {
    const API: &str = "RtlFreeAnsiString";
    require_irql(PASSIVE_LEVEL, API);
    let string = borrow!(string, API);
    if !string.Buffer.is_null() {
        crate::ex::pool::free(string.Buffer.cast(), TAG);
        *string = STRING {
            Length: 0,
            MaximumLength: 0,
            Buffer: core::ptr::null_mut(),
        };
    }
}
