//! Reading keys and values in the documented structures.
//!
//! A buffer that is too short gets what fits (`STATUS_BUFFER_OVERFLOW`), or
//! nothing when not even the fixed part does (`STATUS_BUFFER_TOO_SMALL`); the
//! needed length is always returned.

use alloc::vec::Vec;

use wdk_standin::wdk_sys::{HANDLE, NTSTATUS, PUNICODE_STRING, PVOID, ULONG};

use super::tree::Value;
use super::{TREE, path_of};
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::put;
use crate::rtl::status::{
    STATUS_BUFFER_OVERFLOW, STATUS_BUFFER_TOO_SMALL, STATUS_INVALID_PARAMETER,
    STATUS_NO_MORE_ENTRIES, STATUS_OBJECT_NAME_NOT_FOUND, STATUS_SUCCESS,
};
use crate::rtl::unicode::text;

fn units(name: &str) -> Vec<u8> {
    name.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn long(out: &mut Vec<u8>, value: usize) {
    out.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
}

/// Delivers a structure whose fixed part is `fixed` bytes long.
fn deliver(
    data: &[u8],
    fixed: usize,
    buffer: PVOID,
    length: ULONG,
    needed: *mut ULONG,
    api: &str,
) -> NTSTATUS {
    if !needed.is_null() {
        put!(needed, u32::try_from(data.len()).unwrap_or(u32::MAX), api);
    }
    let room = length as usize;
    if room < fixed {
        return STATUS_BUFFER_TOO_SMALL;
    }
    crate::ob::argument::check(buffer.cast_const().cast::<u32>(), api);
    let fits = room.min(data.len());
    // SAFETY: checked; the contract gives it `length` writable bytes.
    unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u8>(), fits) }
        .copy_from_slice(&data[..fits]);
    if fits < data.len() {
        STATUS_BUFFER_OVERFLOW
    } else {
        STATUS_SUCCESS
    }
}

fn value_information(value: &Value, class: ULONG) -> Option<(Vec<u8>, usize)> {
    let name = units(&value.name);
    let mut out = Vec::new();
    long(&mut out, 0);
    long(&mut out, value.kind as usize);
    Some(match class {
        // KeyValueBasicInformation
        0 => {
            long(&mut out, name.len());
            out.extend_from_slice(&name);
            (out, 12)
        }
        // KeyValueFullInformation
        1 => {
            let offset = (20 + name.len()).next_multiple_of(8);
            long(&mut out, offset);
            long(&mut out, value.data.len());
            long(&mut out, name.len());
            out.extend_from_slice(&name);
            out.resize(offset, 0);
            out.extend_from_slice(&value.data);
            (out, 20)
        }
        // KeyValuePartialInformation
        2 => {
            long(&mut out, value.data.len());
            out.extend_from_slice(&value.data);
            (out, 12)
        }
        _ => return None,
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwQueryValueKey(
    handle: HANDLE,
    name: PUNICODE_STRING,
    class: ULONG,
    buffer: PVOID,
    length: ULONG,
    needed: *mut ULONG,
) -> NTSTATUS {
    const API: &str = "ZwQueryValueKey";
    require_irql(PASSIVE_LEVEL, API);
    let path = match path_of(handle) {
        Ok(path) => path,
        Err(status) => return status,
    };
    let value = TREE.lock().get(&path, &text(name, API));
    let Some(value) = value else {
        return STATUS_OBJECT_NAME_NOT_FOUND;
    };
    match value_information(&value, class) {
        Some((data, fixed)) => deliver(&data, fixed, buffer, length, needed, API),
        None => STATUS_INVALID_PARAMETER,
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwEnumerateValueKey(
    handle: HANDLE,
    index: ULONG,
    class: ULONG,
    buffer: PVOID,
    length: ULONG,
    needed: *mut ULONG,
) -> NTSTATUS {
    const API: &str = "ZwEnumerateValueKey";
    require_irql(PASSIVE_LEVEL, API);
    let path = match path_of(handle) {
        Ok(path) => path,
        Err(status) => return status,
    };
    let values = TREE.lock().values(&path);
    let Some(value) = values.get(index as usize) else {
        return STATUS_NO_MORE_ENTRIES;
    };
    match value_information(value, class) {
        Some((data, fixed)) => deliver(&data, fixed, buffer, length, needed, API),
        None => STATUS_INVALID_PARAMETER,
    }
}

/// `KeyBasicInformation` (0), `KeyNodeInformation` (1).
fn key_information(name: &str, class: ULONG) -> Option<(Vec<u8>, usize)> {
    let name = units(name);
    let mut out = alloc::vec![0; 8];
    long(&mut out, 0);
    let fixed = match class {
        0 => 16,
        1 => {
            long(&mut out, usize::MAX);
            long(&mut out, 0);
            24
        }
        _ => return None,
    };
    long(&mut out, name.len());
    out.extend_from_slice(&name);
    Some((out, fixed))
}

/// `KeyFullInformation` (2).
fn full_information(path: &str) -> (Vec<u8>, usize) {
    let tree = TREE.lock();
    let (names, values) = (tree.names(path), tree.values(path));
    drop(tree);
    let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
    let mut out = alloc::vec![0; 8];
    for number in [
        0,
        usize::MAX,
        0,
        names.len(),
        longest(&mut names.iter().map(|name| units(name).len())),
        0,
        values.len(),
        longest(&mut values.iter().map(|value| units(&value.name).len())),
        longest(&mut values.iter().map(|value| value.data.len())),
    ] {
        long(&mut out, number);
    }
    out.resize(48, 0);
    (out, 44)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwEnumerateKey(
    handle: HANDLE,
    index: ULONG,
    class: ULONG,
    buffer: PVOID,
    length: ULONG,
    needed: *mut ULONG,
) -> NTSTATUS {
    const API: &str = "ZwEnumerateKey";
    require_irql(PASSIVE_LEVEL, API);
    let path = match path_of(handle) {
        Ok(path) => path,
        Err(status) => return status,
    };
    let names = TREE.lock().names(&path);
    let Some(name) = names.get(index as usize) else {
        return STATUS_NO_MORE_ENTRIES;
    };
    let found = if class == 2 {
        Some(full_information(&(path + "\\" + name)))
    } else {
        key_information(name, class)
    };
    match found {
        Some((data, fixed)) => deliver(&data, fixed, buffer, length, needed, API),
        None => STATUS_INVALID_PARAMETER,
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwQueryKey(
    handle: HANDLE,
    class: ULONG,
    buffer: PVOID,
    length: ULONG,
    needed: *mut ULONG,
) -> NTSTATUS {
    const API: &str = "ZwQueryKey";
    const KEY_NAME_INFORMATION: ULONG = 3;
    require_irql(PASSIVE_LEVEL, API);
    let path = match path_of(handle) {
        Ok(path) => path,
        Err(status) => return status,
    };
    let found = match class {
        2 => Some(full_information(&path)),
        KEY_NAME_INFORMATION => {
            let name = units(&path);
            let mut out = Vec::new();
            long(&mut out, name.len());
            out.extend_from_slice(&name);
            Some((out, 4))
        }
        _ => {
            let name = TREE.lock().name(&path).unwrap_or_default();
            key_information(&name, class)
        }
    };
    match found {
        Some((data, fixed)) => deliver(&data, fixed, buffer, length, needed, API),
        None => STATUS_INVALID_PARAMETER,
    }
}
