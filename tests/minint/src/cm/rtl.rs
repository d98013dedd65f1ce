//! `Rtl*Registry*`: values by path, relative to well-known keys.

use alloc::string::{String, ToString};

use wdk_standin::wdk_sys::{
    NTSTATUS, PCWSTR, PRTL_QUERY_REGISTRY_TABLE, PVOID, ULONG, UNICODE_STRING,
};

use super::tree::Value;
use super::{REG_DWORD, REG_SZ, TREE};
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::borrow;
use crate::rtl::status::{
    STATUS_BUFFER_TOO_SMALL, STATUS_INVALID_PARAMETER, STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_OBJECT_TYPE_MISMATCH, STATUS_SUCCESS, success,
};
use crate::rtl::unicode::wide;

const RELATIVE_TO_MASK: ULONG = 0xFF;

/// The key that `RelativeTo` and `Path` mean.
fn key(relative: ULONG, path: PCWSTR, api: &str) -> Result<String, NTSTATUS> {
    let base = match relative & RELATIVE_TO_MASK {
        // RTL_REGISTRY_ABSOLUTE, _SERVICES, _CONTROL, _WINDOWS_NT, _DEVICEMAP
        0 => "",
        1 => "\\Registry\\Machine\\System\\CurrentControlSet\\Services",
        2 => "\\Registry\\Machine\\System\\CurrentControlSet\\Control",
        3 => "\\Registry\\Machine\\Software\\Microsoft\\Windows NT\\CurrentVersion",
        4 => "\\Registry\\Machine\\Hardware\\DeviceMap",
        _ => return Err(STATUS_INVALID_PARAMETER),
    };
    if path.is_null() {
        return Ok(base.to_string());
    }
    let path = String::from_utf16_lossy(wide(path.cast(), api));
    Ok(if base.is_empty() {
        path
    } else {
        base.to_string() + "\\" + &path
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCheckRegistryKey(relative: ULONG, path: PCWSTR) -> NTSTATUS {
    const API: &str = "RtlCheckRegistryKey";
    require_irql(PASSIVE_LEVEL, API);
    match key(relative, path, API) {
        Ok(path) if TREE.lock().exists(&path) => STATUS_SUCCESS,
        Ok(_) => STATUS_OBJECT_NAME_NOT_FOUND,
        Err(status) => status,
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlCreateRegistryKey(relative: ULONG, path: PCWSTR) -> NTSTATUS {
    const API: &str = "RtlCreateRegistryKey";
    require_irql(PASSIVE_LEVEL, API);
    match key(relative, path, API) {
        Ok(path) => {
            let _ = TREE.lock().create(&path);
            STATUS_SUCCESS
        }
        Err(status) => status,
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlWriteRegistryValue(
    relative: ULONG,
    path: PCWSTR,
    name: PCWSTR,
    kind: ULONG,
    data: PVOID,
    bytes: ULONG,
) -> NTSTATUS {
    const API: &str = "RtlWriteRegistryValue";
    require_irql(PASSIVE_LEVEL, API);
    let path = match key(relative, path, API) {
        Ok(path) => path,
        Err(status) => return status,
    };
    let name = String::from_utf16_lossy(wide(name.cast(), API));
    crate::ob::argument::check(data.cast_const().cast::<u8>(), API);
    // SAFETY: checked; the contract gives it `bytes` readable bytes.
    let data = unsafe { core::slice::from_raw_parts(data.cast::<u8>(), bytes as usize) };
    let mut tree = TREE.lock();
    if !tree.exists(&path) {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    }
    tree.set(&path, &name, kind, data.to_vec());
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlDeleteRegistryValue(
    relative: ULONG,
    path: PCWSTR,
    name: PCWSTR,
) -> NTSTATUS {
    const API: &str = "RtlDeleteRegistryValue";
    require_irql(PASSIVE_LEVEL, API);
    let name = String::from_utf16_lossy(wide(name.cast(), API));
    match key(relative, path, API) {
        Ok(path) if TREE.lock().unset(&path, &name) => STATUS_SUCCESS,
        Ok(_) => STATUS_OBJECT_NAME_NOT_FOUND,
        Err(status) => status,
    }
}

const QUERY_SUBKEY: ULONG = 1;
const QUERY_TOPKEY: ULONG = 2;
const QUERY_REQUIRED: ULONG = 4;
const QUERY_DIRECT: ULONG = 0x20;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlQueryRegistryValues(
    relative: ULONG,
    path: PCWSTR,
    table: PRTL_QUERY_REGISTRY_TABLE,
    context: PVOID,
    _environment: PVOID,
) -> NTSTATUS {
    const API: &str = "RtlQueryRegistryValues";
    require_irql(PASSIVE_LEVEL, API);
    let top = match key(relative, path, API) {
        Ok(path) => path,
        Err(status) => return status,
    };
    if !TREE.lock().exists(&top) {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    }
    let mut at = top.clone();
    for index in 0.. {
        let entry = &*borrow!(table.wrapping_add(index), API);
        if entry.QueryRoutine.is_none() && entry.Flags & (QUERY_SUBKEY | QUERY_DIRECT) == 0 {
            break;
        }
        if entry.Flags & (QUERY_SUBKEY | QUERY_TOPKEY) != 0 {
            at.clone_from(&top);
        }
        let name =
            (!entry.Name.is_null()).then(|| String::from_utf16_lossy(wide(entry.Name.cast(), API)));
        if let (true, Some(name)) = (entry.Flags & QUERY_SUBKEY != 0, &name) {
            at = at + "\\" + name;
            if !TREE.lock().exists(&at) {
                return STATUS_OBJECT_NAME_NOT_FOUND;
            }
            continue;
        }
        let status = one(entry, &at, name.as_deref(), context);
        if !success(status) {
            return status;
        }
    }
    STATUS_SUCCESS
}

/// One entry of the table: a named value, or all of the key's.
fn one(
    entry: &wdk_standin::wdk_sys::RTL_QUERY_REGISTRY_TABLE,
    path: &str,
    name: Option<&str>,
    context: PVOID,
) -> NTSTATUS {
    let Some(name) = name else {
        let values = TREE.lock().values(path);
        return values
            .iter()
            .map(|value| pass(entry, value, context))
            .find(|&s| !success(s))
            .unwrap_or(STATUS_SUCCESS);
    };
    let found = TREE.lock().get(path, name);
    if let Some(value) = found {
        return pass(entry, &value, context);
    }
    if entry.Flags & QUERY_REQUIRED != 0 {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    }
    if entry.DefaultType.trailing_zeros() >= 8 || entry.DefaultData.is_null() {
        return STATUS_SUCCESS;
    }
    let length = if entry.DefaultLength == 0 && entry.DefaultType == REG_SZ {
        (wide(
            entry.DefaultData.cast_const().cast(),
            "RtlQueryRegistryValues",
        )
        .len()
            + 1)
            * 2
    } else {
        entry.DefaultLength as usize
    };
    // SAFETY: the table's contract: `DefaultData` is that long.
    let data = unsafe { core::slice::from_raw_parts(entry.DefaultData.cast::<u8>(), length) };
    let value = Value {
        name: name.to_string(),
        kind: entry.DefaultType & 0xFF,
        data: data.to_vec(),
    };
    pass(entry, &value, context)
}

fn pass(
    entry: &wdk_standin::wdk_sys::RTL_QUERY_REGISTRY_TABLE,
    value: &Value,
    context: PVOID,
) -> NTSTATUS {
    if entry.Flags & QUERY_DIRECT != 0 {
        return direct(entry.EntryContext, entry.DefaultType, value);
    }
    let Some(routine) = entry.QueryRoutine else {
        return STATUS_INVALID_PARAMETER;
    };
    let mut name: alloc::vec::Vec<u16> = value.name.encode_utf16().chain([0]).collect();
    let mut data = value.data.clone();
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    // SAFETY: the driver's routine with buffers that outlive the call.
    unsafe {
        routine(
            name.as_mut_ptr().cast(),
            value.kind,
            data.as_mut_ptr().cast(),
            length,
            context,
            entry.EntryContext,
        )
    }
}

/// `RTL_QUERY_REGISTRY_DIRECT`: stores the value at the entry's context.
fn direct(target: PVOID, expected: ULONG, value: &Value) -> NTSTATUS {
    const API: &str = "RtlQueryRegistryValues";
    // RTL_QUERY_REGISTRY_TYPECHECK keeps the expected type in the top byte.
    if expected >> 24 != 0 && expected >> 24 != value.kind {
        return STATUS_OBJECT_TYPE_MISMATCH;
    }
    match value.kind {
        REG_DWORD if value.data.len() == 4 => {
            crate::ob::argument::check(target.cast_const().cast::<u32>(), API);
            // SAFETY: checked; the contract gives it 4 writable bytes.
            unsafe { core::slice::from_raw_parts_mut(target.cast::<u8>(), 4) }
                .copy_from_slice(&value.data);
            STATUS_SUCCESS
        }
        REG_SZ | super::REG_EXPAND_SZ => {
            let string = borrow!(target.cast::<UNICODE_STRING>(), API);
            let Ok(bytes) = u16::try_from(value.data.len()) else {
                return STATUS_BUFFER_TOO_SMALL;
            };
            if string.Buffer.is_null() {
                let status = crate::rtl::unicode::allocate(string, usize::from(bytes) / 2);
                if !success(status) {
                    return status;
                }
            } else if string.MaximumLength < bytes {
                return STATUS_BUFFER_TOO_SMALL;
            }
            let buffer = string.Buffer.cast::<u8>();
            crate::ob::argument::check(buffer.cast_const(), API);
            // SAFETY: at least `bytes` bytes, as just seen to.
            unsafe {
                core::ptr::copy_nonoverlapping(value.data.as_ptr(), buffer, usize::from(bytes));
            }
            string.Length = bytes.saturating_sub(2);
            STATUS_SUCCESS
        }
        _ => STATUS_INVALID_PARAMETER,
    }
}
