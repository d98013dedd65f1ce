//! The C run-time routines that ntoskrnl.exe exports: strings and `_snprintf`.
//!
//! Any IRQL with resident buffers. Lengths are counted with volatile reads: the
//! compiler must not turn the loop into a call of `strlen`, which is this one. The memory primitives (`memcpy` and so on) are
//! the compiler's.

use core::ffi::{c_char, c_int};

use crate::ob::argument::put;

/// The bytes of a zero-terminated string, without the zero.
pub(crate) fn bytes<'a>(string: *const u8, api: &str) -> &'a [u8] {
    bounded(string, usize::MAX, api)
}

fn bounded<'a>(string: *const u8, limit: usize, api: &str) -> &'a [u8] {
    crate::ob::argument::check(string, api);
    let mut length = 0;
    // SAFETY: the string's contract: readable up to its zero or the limit.
    while length < limit && unsafe { string.wrapping_add(length).read_volatile() } != 0 {
        length += 1;
    }
    // SAFETY: as many bytes as were just read.
    unsafe { core::slice::from_raw_parts(string, length) }
}

fn order<T: Ord>(first: &[T], second: &[T]) -> c_int {
    first.cmp(second) as c_int
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strlen(string: *const c_char) -> usize {
    bytes(string.cast(), "strlen").len()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strnlen(string: *const c_char, limit: usize) -> usize {
    bounded(string.cast(), limit, "strnlen").len()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strcmp(first: *const c_char, second: *const c_char) -> c_int {
    order(
        bytes(first.cast(), "strcmp"),
        bytes(second.cast(), "strcmp"),
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strncmp(
    first: *const c_char,
    second: *const c_char,
    limit: usize,
) -> c_int {
    order(
        bounded(first.cast(), limit, "strncmp"),
        bounded(second.cast(), limit, "strncmp"),
    )
}

fn folded(string: &[u8]) -> alloc::vec::Vec<u8> {
    string.to_ascii_lowercase()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _stricmp(first: *const c_char, second: *const c_char) -> c_int {
    order(
        &folded(bytes(first.cast(), "_stricmp")),
        &folded(bytes(second.cast(), "_stricmp")),
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _strnicmp(
    first: *const c_char,
    second: *const c_char,
    limit: usize,
) -> c_int {
    const API: &str = "_strnicmp";
    let (first, second) = (
        bounded(first.cast(), limit, API),
        bounded(second.cast(), limit, API),
    );
    order(&folded(first), &folded(second))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strchr(string: *const c_char, byte: c_int) -> *mut c_char {
    let all = bytes(string.cast(), "strchr");
    let wanted = (byte & 0xFF) as u8;
    let at = if wanted == 0 {
        Some(all.len())
    } else {
        all.iter().position(|&b| b == wanted)
    };
    at.map_or(core::ptr::null_mut(), |at| {
        string.cast_mut().wrapping_add(at)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strrchr(string: *const c_char, byte: c_int) -> *mut c_char {
    let all = bytes(string.cast(), "strrchr");
    let wanted = (byte & 0xFF) as u8;
    let at = if wanted == 0 {
        Some(all.len())
    } else {
        all.iter().rposition(|&b| b == wanted)
    };
    at.map_or(core::ptr::null_mut(), |at| {
        string.cast_mut().wrapping_add(at)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strstr(
    string: *const c_char,
    wanted: *const c_char,
) -> *mut c_char {
    let (all, part) = (
        bytes(string.cast(), "strstr"),
        bytes(wanted.cast(), "strstr"),
    );
    if part.is_empty() {
        return string.cast_mut();
    }
    let at = all.windows(part.len()).position(|window| window == part);
    at.map_or(core::ptr::null_mut(), |at| {
        string.cast_mut().wrapping_add(at)
    })
}

fn copy<T: Copy + Default>(target: *mut T, source: &[T], api: &str) -> *mut T {
    crate::ob::argument::check(target.cast_const(), api);
    for (index, &unit) in source.iter().enumerate() {
        put!(target.wrapping_add(index), unit, api);
    }
    target
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strcpy(target: *mut c_char, source: *const c_char) -> *mut c_char {
    let source = bytes(source.cast(), "strcpy");
    let end = copy(target.cast::<u8>(), source, "strcpy").wrapping_add(source.len());
    put!(end, 0, "strcpy");
    target
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strncpy(
    target: *mut c_char,
    source: *const c_char,
    limit: usize,
) -> *mut c_char {
    let source = bounded(source.cast(), limit, "strncpy");
    copy(target.cast::<u8>(), source, "strncpy");
    for index in source.len()..limit {
        put!(target.cast::<u8>().wrapping_add(index), 0, "strncpy");
    }
    target
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strcat(target: *mut c_char, source: *const c_char) -> *mut c_char {
    let length = bytes(target.cast_const().cast(), "strcat").len();
    // SAFETY: the same contract, from the end of the target on.
    unsafe { strcpy(target.wrapping_add(length), source) };
    target
}

fn wide<'a>(string: *const u16, api: &str) -> &'a [u16] {
    super::unicode::wide(string, api)
}

fn wide_bounded<'a>(string: *const u16, limit: usize, api: &str) -> &'a [u16] {
    crate::ob::argument::check(string, api);
    let mut length = 0;
    // SAFETY: the string's contract: readable up to its zero or the limit.
    while length < limit && unsafe { string.wrapping_add(length).read_volatile() } != 0 {
        length += 1;
    }
    // SAFETY: as many units as were just read.
    unsafe { core::slice::from_raw_parts(string, length) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcslen(string: *const u16) -> usize {
    wide(string, "wcslen").len()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcsnlen(string: *const u16, limit: usize) -> usize {
    wide_bounded(string, limit, "wcsnlen").len()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcscmp(first: *const u16, second: *const u16) -> c_int {
    order(wide(first, "wcscmp"), wide(second, "wcscmp"))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcsncmp(
    first: *const u16,
    second: *const u16,
    limit: usize,
) -> c_int {
    order(
        wide_bounded(first, limit, "wcsncmp"),
        wide_bounded(second, limit, "wcsncmp"),
    )
}

fn wide_folded(string: &[u16]) -> alloc::vec::Vec<u16> {
    string
        .iter()
        .map(|&unit| super::unicode::upper(unit))
        .collect()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _wcsicmp(first: *const u16, second: *const u16) -> c_int {
    order(
        &wide_folded(wide(first, "_wcsicmp")),
        &wide_folded(wide(second, "_wcsicmp")),
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _wcsnicmp(
    first: *const u16,
    second: *const u16,
    limit: usize,
) -> c_int {
    const API: &str = "_wcsnicmp";
    let (first, second) = (
        wide_bounded(first, limit, API),
        wide_bounded(second, limit, API),
    );
    order(&wide_folded(first), &wide_folded(second))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcschr(string: *const u16, unit: u16) -> *mut u16 {
    let all = wide(string, "wcschr");
    let at = if unit == 0 {
        Some(all.len())
    } else {
        all.iter().position(|&u| u == unit)
    };
    at.map_or(core::ptr::null_mut(), |at| {
        string.cast_mut().wrapping_add(at)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcsrchr(string: *const u16, unit: u16) -> *mut u16 {
    let all = wide(string, "wcsrchr");
    let at = if unit == 0 {
        Some(all.len())
    } else {
        all.iter().rposition(|&u| u == unit)
    };
    at.map_or(core::ptr::null_mut(), |at| {
        string.cast_mut().wrapping_add(at)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcsstr(string: *const u16, wanted: *const u16) -> *mut u16 {
    let (all, part) = (wide(string, "wcsstr"), wide(wanted, "wcsstr"));
    if part.is_empty() {
        return string.cast_mut();
    }
    let at = all.windows(part.len()).position(|window| window == part);
    at.map_or(core::ptr::null_mut(), |at| {
        string.cast_mut().wrapping_add(at)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcscpy(target: *mut u16, source: *const u16) -> *mut u16 {
    let source = wide(source, "wcscpy");
    let end = copy(target, source, "wcscpy").wrapping_add(source.len());
    put!(end, 0, "wcscpy");
    target
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcsncpy(
    target: *mut u16,
    source: *const u16,
    limit: usize,
) -> *mut u16 {
    let source = wide_bounded(source, limit, "wcsncpy");
    copy(target, source, "wcsncpy");
    for index in source.len()..limit {
        put!(target.wrapping_add(index), 0, "wcsncpy");
    }
    target
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcscat(target: *mut u16, source: *const u16) -> *mut u16 {
    let length = wide(target.cast_const(), "wcscat").len();
    // SAFETY: the same contract, from the end of the target on.
    unsafe { wcscpy(target.wrapping_add(length), source) };
    target
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn toupper(character: c_int) -> c_int {
    u8::try_from(character).map_or(character, |byte| c_int::from(byte.to_ascii_uppercase()))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn tolower(character: c_int) -> c_int {
    u8::try_from(character).map_or(character, |byte| c_int::from(byte.to_ascii_lowercase()))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn atoi(string: *const c_char) -> c_int {
    let units = bytes(string.cast(), "atoi")
        .iter()
        .map(|&byte| u16::from(byte));
    super::integer::parse(units, 10).map_or(0, u32::cast_signed)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strncat(
    target: *mut c_char,
    source: *const c_char,
    limit: usize,
) -> *mut c_char {
    const API: &str = "strncat";
    let length = bytes(target.cast_const().cast(), API).len();
    let source = bounded(source.cast(), limit, API);
    let end = target.cast::<u8>().wrapping_add(length);
    copy(end, source, API);
    put!(end.wrapping_add(source.len()), 0, API);
    target
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn wcsncat(
    target: *mut u16,
    source: *const u16,
    limit: usize,
) -> *mut u16 {
    const API: &str = "wcsncat";
    let length = wide(target.cast_const(), API).len();
    let source = wide_bounded(source, limit, API);
    let end = target.wrapping_add(length);
    copy(end, source, API);
    put!(end.wrapping_add(source.len()), 0, API);
    target
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memchr(
    block: *const core::ffi::c_void,
    byte: c_int,
    length: usize,
) -> *mut core::ffi::c_void {
    const API: &str = "memchr";
    crate::ob::argument::check(block.cast::<u8>(), API);
    // SAFETY: checked; the contract gives it `length` readable bytes.
    let all = unsafe { core::slice::from_raw_parts(block.cast::<u8>(), length) };
    let at = all.iter().position(|&other| other == (byte & 0xFF) as u8);
    at.map_or(core::ptr::null_mut(), |at| {
        block.cast_mut().wrapping_byte_add(at)
    })
}

fn change_case(string: *mut c_char, f: fn(&u8) -> u8, api: &str) -> *mut c_char {
    let length = bytes(string.cast_const().cast(), api).len();
    for index in 0..length {
        let at = string.cast::<u8>().wrapping_add(index);
        let byte = *crate::ob::argument::own!(at);
        put!(at, f(&byte), api);
    }
    string
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _strlwr(string: *mut c_char) -> *mut c_char {
    change_case(string, u8::to_ascii_lowercase, "_strlwr")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn _strupr(string: *mut c_char) -> *mut c_char {
    change_case(string, u8::to_ascii_uppercase, "_strupr")
}

fn class(character: c_int, f: fn(&u8) -> bool) -> c_int {
    c_int::from(u8::try_from(character).is_ok_and(|byte| f(&byte)))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn isdigit(character: c_int) -> c_int {
    class(character, u8::is_ascii_digit)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn isxdigit(character: c_int) -> c_int {
    class(character, u8::is_ascii_hexdigit)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn isspace(character: c_int) -> c_int {
    class(character, |byte| {
        byte.is_ascii_whitespace() || *byte == 0x0B
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn isupper(character: c_int) -> c_int {
    class(character, u8::is_ascii_uppercase)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn islower(character: c_int) -> c_int {
    class(character, u8::is_ascii_lowercase)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn isprint(character: c_int) -> c_int {
    class(character, |byte| byte.is_ascii_graphic() || *byte == b' ')
}
