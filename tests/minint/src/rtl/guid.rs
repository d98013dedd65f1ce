//! GUIDs and text.
//!
//! PASSIVE_LEVEL as documented.

use alloc::vec::Vec;

use wdk_standin::wdk_sys::{GUID, NTSTATUS, PCUNICODE_STRING, PUNICODE_STRING};

use super::status::{STATUS_INVALID_PARAMETER, STATUS_SUCCESS};
use super::unicode;
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::{borrow, put};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlStringFromGUID(
    guid: *const GUID,
    string: PUNICODE_STRING,
) -> NTSTATUS {
    const API: &str = "RtlStringFromGUID";
    require_irql(PASSIVE_LEVEL, API);
    let guid = &*borrow!(guid.cast_mut(), API);
    let tail = guid.Data4;
    let text = alloc::format!(
        "{{{:08X}-{:04X}-{:04X}-{:02X}{:02X}-{:02X}{:02X}{:02X}{:02X}{:02X}{:02X}}}",
        guid.Data1,
        guid.Data2,
        guid.Data3,
        tail[0],
        tail[1],
        tail[2],
        tail[3],
        tail[4],
        tail[5],
        tail[6],
        tail[7]
    );
    let wide: Vec<u16> = text.encode_utf16().collect();
    let string = borrow!(string, API);
    let status = unicode::allocate(string, wide.len() + 1);
    if status == STATUS_SUCCESS {
        unicode::assign(string, &wide, API)
    } else {
        status
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlGUIDFromString(
    string: PCUNICODE_STRING,
    guid: *mut GUID,
) -> NTSTATUS {
    const API: &str = "RtlGUIDFromString";
    require_irql(PASSIVE_LEVEL, API);
    let text = unicode::text(string, API);
    let Some(inner) = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
    else {
        return STATUS_INVALID_PARAMETER;
    };
    let parts: Vec<&str> = inner.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    if lengths != [8, 4, 4, 4, 12] {
        return STATUS_INVALID_PARAMETER;
    }
    let number = |part: &str| u64::from_str_radix(part, 16).ok();
    let values: Vec<u64> = parts.iter().filter_map(|part| number(part)).collect();
    let [first, second, third, fourth, fifth] = values[..] else {
        return STATUS_INVALID_PARAMETER;
    };
    let tail = (fourth << 48 | fifth).to_be_bytes();
    put!(
        guid,
        GUID {
            Data1: first as u32,
            Data2: second as u16,
            Data3: third as u16,
            Data4: tail
        },
        API
    );
    STATUS_SUCCESS
}
