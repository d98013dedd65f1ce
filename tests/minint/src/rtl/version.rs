//! Which Windows this is: 10.0.19045 (22H2).
//!
//! Constants; PASSIVE_LEVEL as documented.

use wdk_standin::wdk_sys::{BOOLEAN, NTSTATUS, PRTL_OSVERSIONINFOW, PUNICODE_STRING, UCHAR, ULONG};

use super::status::{STATUS_INVALID_PARAMETER, STATUS_SUCCESS};
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::{borrow, put};

/// Build number.
pub(crate) const BUILD: u32 = 19045;

/// `NtBuildNumber`: a free build has its top nibble set.
#[unsafe(no_mangle)]
pub(crate) static NtBuildNumber: u32 = 0xF000_0000 | BUILD;

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlGetVersion(version: PRTL_OSVERSIONINFOW) -> NTSTATUS {
    const API: &str = "RtlGetVersion";
    const EXTENDED: ULONG = 284;
    require_irql(PASSIVE_LEVEL, API);
    let out = borrow!(version, API);
    if out.dwOSVersionInfoSize != EXTENDED && out.dwOSVersionInfoSize != 276 {
        return STATUS_INVALID_PARAMETER;
    }
    out.dwMajorVersion = 10;
    out.dwMinorVersion = 0;
    out.dwBuildNumber = BUILD;
    out.dwPlatformId = 2;
    out.szCSDVersion[0] = 0;
    if out.dwOSVersionInfoSize == EXTENDED {
        let out = borrow!(
            version.cast::<wdk_standin::wdk_sys::RTL_OSVERSIONINFOEXW>(),
            API
        );
        out.wServicePackMajor = 0;
        out.wServicePackMinor = 0;
        out.wSuiteMask = 0x100;
        out.wProductType = 1;
        out.wReserved = 0;
    }
    STATUS_SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn PsGetVersion(
    major: *mut ULONG,
    minor: *mut ULONG,
    build: *mut ULONG,
    service_pack: PUNICODE_STRING,
) -> BOOLEAN {
    const API: &str = "PsGetVersion";
    for (pointer, value) in [(major, 10), (minor, 0), (build, BUILD)] {
        if !pointer.is_null() {
            put!(pointer, value, API);
        }
    }
    if !service_pack.is_null() {
        let out = borrow!(service_pack, API);
        out.Length = 0;
        out.MaximumLength = 0;
    }
    1
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoIsWdmVersionAvailable(major: UCHAR, minor: UCHAR) -> BOOLEAN {
    BOOLEAN::from(major == 6 || (major == 1 && minor <= 0x30))
}
