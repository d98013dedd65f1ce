//! PE images in memory, for drivers that look at their own or another.
//!
//! Any IRQL; the image must stay loaded meanwhile.

use core::ffi::c_void;

use wdk_standin::wdk_sys::{BOOLEAN, PULONG, PVOID, USHORT};

use crate::ldr::pe;
use crate::ob::argument::put;

/// The headers' page of an image, as bytes, if `base` looks like one.
fn header_page<'a>(base: *const c_void, api: &str) -> &'a [u8] {
    crate::ob::argument::check(base.cast::<u16>(), api);
    // SAFETY: checked to be a kernel address; the routine's contract is that an
    // image begins here, and its headers fill at least a page.
    unsafe { core::slice::from_raw_parts(base.cast(), 4096) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlImageNtHeader(base: PVOID) -> PVOID {
    if base.is_null() {
        return core::ptr::null_mut();
    }
    pe::headers(header_page(base, "RtlImageNtHeader")).map_or(core::ptr::null_mut(), |(nt, _)| {
        core::ptr::from_ref(nt).cast_mut().cast()
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlImageDirectoryEntryToData(
    base: PVOID,
    _mapped: BOOLEAN,
    directory: USHORT,
    size: PULONG,
) -> PVOID {
    const API: &str = "RtlImageDirectoryEntryToData";
    let entry = pe::headers(header_page(base, API))
        .and_then(|(_, directories)| directories.get(usize::from(directory)))
        .map(object::pe::ImageDataDirectory::address_range);
    match entry {
        Some((rva, bytes)) if rva != 0 => {
            put!(size, bytes, API);
            base.wrapping_byte_add(rva as usize)
        }
        _ => core::ptr::null_mut(),
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RtlPcToFileHeader(pc: PVOID, base: *mut PVOID) -> PVOID {
    let found = crate::ldr::base_of(pc.addr()).map_or(
        core::ptr::null_mut(),
        core::ptr::with_exposed_provenance_mut,
    );
    put!(base, found, "RtlPcToFileHeader");
    found
}
