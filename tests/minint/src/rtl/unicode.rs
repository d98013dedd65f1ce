//! `UNICODE_STRING` routines.
//!
//! Microsoft allows most of them at any IRQL with resident buffers; those that
//! allocate, fold case or convert code pages, at PASSIVE_LEVEL only.

use alloc::string::String;
use alloc::vec::Vec;

use wdk_standin::wdk_sys::{
    BOOLEAN, LONG, NTSTATUS, PCUNICODE_STRING, PCWCH, PCWSTR, PUNICODE_STRING, SIZE_T, ULONG,
    UNICODE_STRING, WCHAR,
};

use super::status::{
    STATUS_BUFFER_OVERFLOW, STATUS_BUFFER_TOO_SMALL, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER, STATUS_SUCCESS,
};
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::{borrow, own, put};

/// Tag of string buffers that the run-time library allocates (`Strg`).
const TAG: u32 = u32::from_le_bytes(*b"Strg");

/// The units of a counted string.
pub(crate) fn units<'a>(string: PCUNICODE_STRING, api: &str) -> &'a [u16] {
    let string = &*borrow!(string.cast_mut(), api);
    crate::require!(
        string.Length % 2 == 0 && string.Length <= string.MaximumLength,
        api,
        "UNICODE_STRING with Length {} and MaximumLength {}",
        string.Length,
        string.MaximumLength
    );
    if string.Length == 0 {
        return &[];
    }
    let buffer = string.Buffer.cast::<u16>().cast_const();
    crate::ob::argument::check(buffer, api);
    // SAFETY: checked to be a kernel address; the string's contract gives it
    // `Length` readable bytes.
    unsafe { core::slice::from_raw_parts(buffer, usize::from(string.Length / 2)) }
}

/// A counted string as text.
pub(crate) fn text(string: PCUNICODE_STRING, api: &str) -> String {
    String::from_utf16_lossy(units(string, api))
}

/// The units of a zero-terminated wide string, without the zero.
pub(crate) fn wide<'a>(string: *const u16, api: &str) -> &'a [u16] {
    crate::ob::argument::check(string, api);
    let mut length = 0usize;
    // SAFETY: the string's contract: readable up to its zero.
    while unsafe { string.wrapping_add(length).read_volatile() } != 0 {
        length += 1;
    }
    // SAFETY: as many units as were just read.
    unsafe { core::slice::from_raw_parts(string, length) }
}

/// A string of the kernel's own, with its buffer.
#[derive(Debug)]
pub(crate) struct Owned {
    buffer: Vec<u16>,
}

impl Owned {
    /// Copies text; a zero follows it in memory.
    pub(crate) fn new(text: &str) -> Self {
        let mut buffer: Vec<u16> = text.encode_utf16().collect();
        buffer.push(0);
        Self { buffer }
    }

    /// The descriptor; valid while `self` lives.
    pub(crate) fn descriptor(&self) -> UNICODE_STRING {
        let bytes = u16::try_from(self.buffer.len() * 2).unwrap_or(u16::MAX);
        UNICODE_STRING {
            Length: bytes - 2,
            MaximumLength: bytes,
            Buffer: self.buffer.as_ptr().cast_mut().cast(),
        }
    }
}

/// Simple upper case of one unit.
pub(crate) fn upper(unit: u16) -> u16 {
    let Some(character) = char::from_u32(u32::from(unit)) else {
        return unit;
    };
    let mut folded = character.to_uppercase();
    match (
        folded.next().map(u32::from).map(u16::try_from),
        folded.next(),
    ) {
        (Some(Ok(folded)), None) => folded,
        _ => unit,
    }
}

fn lower(unit: u16) -> u16 {
    let Some(character) = char::from_u32(u32::from(unit)) else {
        return unit;
    };
    let mut folded = character.to_lowercase();
    match (
        folded.next().map(u32::from).map(u16::try_from),
        folded.next(),
    ) {
        (Some(Ok(folded)), None) => folded,
        _ => unit,
    }
}

fn compare(first: &[u16], second: &[u16], without_case: bool) -> i32 {
    let fold = |unit: u16| if without_case { upper(unit) } else { unit };
    for (&a, &b) in first.iter().zip(second) {
        let difference = i32::from(fold(a)) - i32::from(fold(b));
        if difference != 0 {
            return difference;
        }
    }
    i32::try_from(first.len()).unwrap_or(0) - i32::try_from(second.len()).unwrap_or(0)
}

/// Writes units into a string's buffer from `at`, as many as fit, and sets its
/// length; a terminating zero follows where there is room.
fn store(string: &mut UNICODE_STRING, at: usize, source: impl Iterator<Item = u16>, api: &str) {
    let room = usize::from(string.MaximumLength / 2);
    let buffer = string.Buffer.cast::<u16>();
    if room == 0 {
        return;
    }
    crate::ob::argument::check(buffer.cast_const(), api);
    // SAFETY: the string's contract: `MaximumLength` writable bytes.
    let buffer = unsafe { core::slice::from_raw_parts_mut(buffer, room) };
    let mut length = at;
    for (slot, unit) in buffer[at..].iter_mut().zip(source) {
        *slot = unit;
        length += 1;
    }
    if let Some(end) = buffer.get_mut(length) {
        *end = 0;
    }
    string.Length = u16::try_from(length * 2).unwrap_or(u16::MAX - 1);
}

/// Gives a string a buffer of `units` from paged pool.
pub(crate) fn allocate(string: &mut UNICODE_STRING, units: usize) -> NTSTATUS {
    let Ok(bytes) = u16::try_from(units * 2) else {
        return STATUS_INVALID_PARAMETER;
    };
    let buffer = crate::ex::pool::allocate(usize::from(bytes.max(2)), TAG);
    if buffer.is_null() {
        return STATUS_INSUFFICIENT_RESOURCES;
    }
    *string = UNICODE_STRING {
        Length: 0,
        MaximumLength: bytes,
        Buffer: buffer.cast(),
    };
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlInitUnicodeString(target: PUNICODE_STRING, source: PCWSTR) {
    const API: &str = "RtlInitUnicodeString";
    if source.is_null() {
        put!(
            target,
            UNICODE_STRING {
                Length: 0,
                MaximumLength: 0,
                Buffer: core::ptr::null_mut()
            },
            API
        );
        return;
    }
    let length = wide(source.cast(), API).len();
    let bytes = u16::try_from(length * 2).unwrap_or(u16::MAX).min(0xFFFC);
    put!(
        target,
        UNICODE_STRING {
            Length: bytes,
            MaximumLength: bytes + 2,
            Buffer: source.cast_mut()
        },
        API
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlInitUnicodeStringEx(
    target: PUNICODE_STRING,
    source: PCWSTR,
) -> NTSTATUS {
    const API: &str = "RtlInitUnicodeStringEx";
    if !source.is_null() && wide(source.cast(), API).len() * 2 > 0xFFFC {
        put!(
            target,
            UNICODE_STRING {
                Length: 0,
                MaximumLength: 0,
                Buffer: core::ptr::null_mut()
            },
            API
        );
        return super::status::STATUS_OBJECT_NAME_INVALID;
    }
    // SAFETY: the same contract.
    unsafe { RtlInitUnicodeString(target, source) };
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCopyUnicodeString(
    target: PUNICODE_STRING,
    source: PCUNICODE_STRING,
) {
    const API: &str = "RtlCopyUnicodeString";
    let target = borrow!(target, API);
    if source.is_null() {
        target.Length = 0;
        return;
    }
    target.Length = 0;
    store(target, 0, units(source, API).iter().copied(), API);
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCompareUnicodeString(
    first: PCUNICODE_STRING,
    second: PCUNICODE_STRING,
    without_case: BOOLEAN,
) -> LONG {
    const API: &str = "RtlCompareUnicodeString";
    require_irql(PASSIVE_LEVEL, API);
    compare(units(first, API), units(second, API), without_case != 0)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCompareUnicodeStrings(
    first: PCWCH,
    first_units: SIZE_T,
    second: PCWCH,
    second_units: SIZE_T,
    without_case: BOOLEAN,
) -> LONG {
    require_irql(PASSIVE_LEVEL, "RtlCompareUnicodeStrings");
    // SAFETY: the export's contract: readable for the given lengths.
    let first = unsafe { core::slice::from_raw_parts(first.cast::<u16>(), first_units as usize) };
    // SAFETY: as above.
    let second =
        unsafe { core::slice::from_raw_parts(second.cast::<u16>(), second_units as usize) };
    compare(first, second, without_case != 0)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlEqualUnicodeString(
    first: PCUNICODE_STRING,
    second: PCUNICODE_STRING,
    without_case: BOOLEAN,
) -> BOOLEAN {
    const API: &str = "RtlEqualUnicodeString";
    require_irql(PASSIVE_LEVEL, API);
    BOOLEAN::from(compare(units(first, API), units(second, API), without_case != 0) == 0)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlPrefixUnicodeString(
    first: PCUNICODE_STRING,
    second: PCUNICODE_STRING,
    without_case: BOOLEAN,
) -> BOOLEAN {
    const API: &str = "RtlPrefixUnicodeString";
    require_irql(PASSIVE_LEVEL, API);
    let (first, second) = (units(first, API), units(second, API));
    let equal = second.len() >= first.len()
        && compare(first, &second[..first.len()], without_case != 0) == 0;
    BOOLEAN::from(equal)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlAppendUnicodeStringToString(
    target: PUNICODE_STRING,
    source: PCUNICODE_STRING,
) -> NTSTATUS {
    const API: &str = "RtlAppendUnicodeStringToString";
    let more = units(source, API);
    append(borrow!(target, API), more, API)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlAppendUnicodeToString(
    target: PUNICODE_STRING,
    source: PCWSTR,
) -> NTSTATUS {
    const API: &str = "RtlAppendUnicodeToString";
    if source.is_null() {
        return STATUS_SUCCESS;
    }
    let more = wide(source.cast(), API);
    append(borrow!(target, API), more, API)
}

fn append(target: &mut UNICODE_STRING, more: &[u16], api: &str) -> NTSTATUS {
    if usize::from(target.Length) + more.len() * 2 > usize::from(target.MaximumLength) {
        return STATUS_BUFFER_TOO_SMALL;
    }
    let at = usize::from(target.Length / 2);
    store(target, at, more.iter().copied(), api);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlFreeUnicodeString(string: PUNICODE_STRING) {
    const API: &str = "RtlFreeUnicodeString";
    require_irql(PASSIVE_LEVEL, API);
    let string = borrow!(string, API);
    if !string.Buffer.is_null() {
        crate::ex::pool::free(string.Buffer.cast(), TAG);
        *string = UNICODE_STRING {
            Length: 0,
            MaximumLength: 0,
            Buffer: core::ptr::null_mut(),
        };
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCreateUnicodeString(
    target: PUNICODE_STRING,
    source: PCWSTR,
) -> BOOLEAN {
    const API: &str = "RtlCreateUnicodeString";
    require_irql(PASSIVE_LEVEL, API);
    let source = wide(source.cast(), API);
    let target = borrow!(target, API);
    if allocate(target, source.len() + 1) != STATUS_SUCCESS {
        return 0;
    }
    store(target, 0, source.iter().copied(), API);
    1
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlDuplicateUnicodeString(
    flags: ULONG,
    source: PCUNICODE_STRING,
    target: PUNICODE_STRING,
) -> NTSTATUS {
    const API: &str = "RtlDuplicateUnicodeString";
    const NULL_TERMINATE: ULONG = 1;
    const ALLOCATE_NULL_STRING: ULONG = 2;
    require_irql(PASSIVE_LEVEL, API);
    let source = units(source, API);
    let target = borrow!(target, API);
    let room = source.len() + usize::from(flags & NULL_TERMINATE != 0);
    if source.is_empty() && flags & ALLOCATE_NULL_STRING == 0 {
        *target = UNICODE_STRING {
            Length: 0,
            MaximumLength: 0,
            Buffer: core::ptr::null_mut(),
        };
        return STATUS_SUCCESS;
    }
    let status = allocate(target, room);
    if status == STATUS_SUCCESS {
        store(target, 0, source.iter().copied(), API);
    }
    status
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlUpcaseUnicodeChar(unit: WCHAR) -> WCHAR {
    require_irql(PASSIVE_LEVEL, "RtlUpcaseUnicodeChar");
    upper(unit)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlDowncaseUnicodeChar(unit: WCHAR) -> WCHAR {
    require_irql(PASSIVE_LEVEL, "RtlDowncaseUnicodeChar");
    lower(unit)
}

fn fold(
    target: PUNICODE_STRING,
    source: PCUNICODE_STRING,
    make: bool,
    fold: fn(u16) -> u16,
    api: &str,
) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, api);
    let source = units(source, api);
    let target = borrow!(target, api);
    if make {
        let status = allocate(target, source.len());
        if status != STATUS_SUCCESS {
            return status;
        }
    } else if source.len() * 2 > usize::from(target.MaximumLength) {
        return STATUS_BUFFER_OVERFLOW;
    }
    store(target, 0, source.iter().map(|&unit| fold(unit)), api);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlUpcaseUnicodeString(
    target: PUNICODE_STRING,
    source: PCUNICODE_STRING,
    make: BOOLEAN,
) -> NTSTATUS {
    fold(target, source, make != 0, upper, "RtlUpcaseUnicodeString")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlDowncaseUnicodeString(
    target: PUNICODE_STRING,
    source: PCUNICODE_STRING,
    make: BOOLEAN,
) -> NTSTATUS {
    fold(target, source, make != 0, lower, "RtlDowncaseUnicodeString")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlHashUnicodeString(
    string: PCUNICODE_STRING,
    without_case: BOOLEAN,
    algorithm: ULONG,
    hash: *mut ULONG,
) -> NTSTATUS {
    const API: &str = "RtlHashUnicodeString";
    require_irql(PASSIVE_LEVEL, API);
    // HASH_STRING_ALGORITHM_DEFAULT and X65599 are the same.
    if algorithm > 1 {
        return STATUS_INVALID_PARAMETER;
    }
    let value = units(string, API).iter().fold(0u32, |hash, &unit| {
        let unit = if without_case != 0 { upper(unit) } else { unit };
        hash.wrapping_mul(65599).wrapping_add(u32::from(unit))
    });
    put!(hash, value, API);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlIntegerToUnicodeString(
    value: ULONG,
    base: ULONG,
    string: PUNICODE_STRING,
) -> NTSTATUS {
    const API: &str = "RtlIntegerToUnicodeString";
    require_irql(PASSIVE_LEVEL, API);
    super::integer::to_unicode(u64::from(value), base, borrow!(string, API), API)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlInt64ToUnicodeString(
    value: u64,
    base: ULONG,
    string: PUNICODE_STRING,
) -> NTSTATUS {
    const API: &str = "RtlInt64ToUnicodeString";
    require_irql(PASSIVE_LEVEL, API);
    super::integer::to_unicode(value, base, borrow!(string, API), API)
}

/// Replaces a string's contents.
pub(super) fn assign(string: &mut UNICODE_STRING, source: &[u16], api: &str) -> NTSTATUS {
    if source.len() * 2 > usize::from(string.MaximumLength) {
        return STATUS_BUFFER_OVERFLOW;
    }
    store(string, 0, source.iter().copied(), api);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlUnicodeStringToInteger(
    string: PCUNICODE_STRING,
    base: ULONG,
    value: *mut ULONG,
) -> NTSTATUS {
    const API: &str = "RtlUnicodeStringToInteger";
    require_irql(PASSIVE_LEVEL, API);
    let Some(number) = super::integer::parse(units(string, API).iter().copied(), base) else {
        return STATUS_INVALID_PARAMETER;
    };
    put!(value, number, API);
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlValidateUnicodeString(
    flags: ULONG,
    string: PCUNICODE_STRING,
) -> NTSTATUS {
    if flags != 0 {
        return STATUS_INVALID_PARAMETER;
    }
    if string.is_null() {
        return STATUS_SUCCESS;
    }
    let string = &*own!(string.cast_mut());
    let bad = string.Length % 2 != 0
        || string.MaximumLength % 2 != 0
        || string.Length > string.MaximumLength
        || (string.Buffer.is_null() && string.MaximumLength != 0);
    if bad {
        STATUS_INVALID_PARAMETER
    } else {
        STATUS_SUCCESS
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlUnicodeToUTF8N(
    target: *mut i8,
    room: ULONG,
    written: *mut ULONG,
    source: PCWCH,
    bytes: ULONG,
) -> NTSTATUS {
    const API: &str = "RtlUnicodeToUTF8N";
    if source.is_null() || !bytes.is_multiple_of(2) {
        return STATUS_INVALID_PARAMETER;
    }
    // SAFETY: the export's contract: readable for `bytes`.
    let source = unsafe { core::slice::from_raw_parts(source.cast::<u16>(), bytes as usize / 2) };
    let text: String = char::decode_utf16(source.iter().copied())
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    let fits = if target.is_null() {
        text.len()
    } else {
        text.len().min(room as usize)
    };
    if !target.is_null() {
        // SAFETY: the export's contract: writable for `room`.
        let target = unsafe { core::slice::from_raw_parts_mut(target.cast::<u8>(), fits) };
        target.copy_from_slice(&text.as_bytes()[..fits]);
    }
    put!(written, u32::try_from(fits).unwrap_or(u32::MAX), API);
    if fits < text.len() {
        STATUS_BUFFER_TOO_SMALL
    } else {
        STATUS_SUCCESS
    }
}
