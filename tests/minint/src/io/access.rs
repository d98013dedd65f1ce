//! Access masks of file objects and of IOCTL codes.
//!
//! Pure. The lab's clients are administrators: what they ask for is granted, and
//! no more than what they ask for.

use wdk_standin::wdk_sys::{
    ACCESS_MASK, GENERIC_MAPPING, NTSTATUS, PGENERIC_MAPPING, PIRP, PVOID, UCHAR, ULONG,
};

use crate::ke::irql::{DISPATCH_LEVEL, PASSIVE_LEVEL, require_irql};
use crate::ob::argument::borrow;
use crate::rtl::status::{STATUS_ACCESS_DENIED, STATUS_INVALID_PARAMETER, STATUS_SUCCESS};

/// `FILE_READ_DATA`.
pub(crate) const FILE_READ_DATA: u32 = 1;
/// `FILE_WRITE_DATA`.
pub(crate) const FILE_WRITE_DATA: u32 = 2;
const FILE_GENERIC_READ: u32 = 0x0012_0089;
const FILE_GENERIC_WRITE: u32 = 0x0012_0116;
const FILE_GENERIC_EXECUTE: u32 = 0x0012_00A0;
const FILE_ALL_ACCESS: u32 = 0x001F_01FF;
const GENERIC_READ: u32 = 0x8000_0000;
const GENERIC_WRITE: u32 = 0x4000_0000;
const GENERIC_EXECUTE: u32 = 0x2000_0000;
const GENERIC_ALL: u32 = 0x1000_0000;
const MAXIMUM_ALLOWED: u32 = 0x0200_0000;

/// Generic rights replaced by those of a file.
pub(crate) const fn map_generic(desired: u32) -> u32 {
    let mut granted = desired & 0x00FF_FFFF;
    if desired & GENERIC_READ != 0 {
        granted |= FILE_GENERIC_READ;
    }
    if desired & GENERIC_WRITE != 0 {
        granted |= FILE_GENERIC_WRITE;
    }
    if desired & GENERIC_EXECUTE != 0 {
        granted |= FILE_GENERIC_EXECUTE;
    }
    if desired & (GENERIC_ALL | MAXIMUM_ALLOWED) != 0 {
        granted |= FILE_ALL_ACCESS;
    }
    granted
}

/// Whether a handle with `granted` may issue this control code (`RequiredAccess`
/// field, bits 14 and 15).
pub(crate) const fn may_control(granted: u32, code: u32) -> bool {
    let required = code >> 14 & 3;
    granted & required == required
}

static FILE_MAPPING: GENERIC_MAPPING = GENERIC_MAPPING {
    GenericRead: FILE_GENERIC_READ,
    GenericWrite: FILE_GENERIC_WRITE,
    GenericExecute: FILE_GENERIC_EXECUTE,
    GenericAll: FILE_ALL_ACCESS,
};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoGetFileObjectGenericMapping() -> PGENERIC_MAPPING {
    require_irql(PASSIVE_LEVEL, "IoGetFileObjectGenericMapping");
    (&raw const FILE_MAPPING).cast_mut()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlMapGenericMask(
    mask: *mut ACCESS_MASK,
    mapping: *const GENERIC_MAPPING,
) {
    const API: &str = "RtlMapGenericMask";
    let mapping = &*borrow!(mapping.cast_mut(), API);
    let mask = borrow!(mask, API);
    for (generic, specific) in [
        (GENERIC_READ, mapping.GenericRead),
        (GENERIC_WRITE, mapping.GenericWrite),
        (GENERIC_EXECUTE, mapping.GenericExecute),
        (GENERIC_ALL, mapping.GenericAll),
    ] {
        if *mask & generic != 0 {
            *mask = *mask & !generic | specific;
        }
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoValidateDeviceIoControlAccess(
    irp: PIRP,
    required: ULONG,
) -> NTSTATUS {
    const API: &str = "IoValidateDeviceIoControlAccess";
    require_irql(DISPATCH_LEVEL, API);
    if required == 0 || required & !(FILE_READ_DATA | FILE_WRITE_DATA) != 0 {
        return STATUS_INVALID_PARAMETER;
    }
    let stack = &*borrow!(super::stack::current(irp), API);
    if stack.FileObject.is_null() {
        return STATUS_SUCCESS;
    }
    let file = &*borrow!(stack.FileObject, API);
    let granted = u32::from(file.ReadAccess) | u32::from(file.WriteAccess) << 1;
    if granted & required == required {
        STATUS_SUCCESS
    } else {
        STATUS_ACCESS_DENIED
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoCheckFunctionAccess(
    granted: ACCESS_MASK,
    major: UCHAR,
    _minor: UCHAR,
    code: ULONG,
    _first: PVOID,
    _second: PVOID,
) -> NTSTATUS {
    const DEVICE_CONTROL: UCHAR = 14;
    let allowed = match major {
        3 => granted & FILE_READ_DATA != 0,
        4 => granted & FILE_WRITE_DATA != 0,
        DEVICE_CONTROL => may_control(granted, code),
        _ => true,
    };
    if allowed {
        STATUS_SUCCESS
    } else {
        STATUS_ACCESS_DENIED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_rights_become_those_of_a_file() {
        assert_eq!(map_generic(GENERIC_READ | GENERIC_WRITE) & 3, 3);
        assert_eq!(map_generic(GENERIC_READ) & 3, 1);
        assert_eq!(map_generic(0), 0);
    }

    #[test]
    fn the_code_says_what_it_requires() {
        const READ_AND_WRITE: u32 = 0x22 << 16 | 3 << 14 | 0x800 << 2;
        assert!(may_control(3, READ_AND_WRITE));
        assert!(!may_control(1, READ_AND_WRITE));
        assert!(may_control(0, 0x22 << 16 | 0x800 << 2));
    }
}
