//! What every driver image has: entry point, allocator, panic handler.
//!
//! The loader calls [`driver_entry`] once, at PASSIVE_LEVEL, when the first
//! driver that imports from this image is loaded.

use core::panic::PanicInfo;

use wdk_standin::{
    wdk_alloc::WdkAllocator,
    wdk_sys::{DRIVER_OBJECT, NTSTATUS, PCUNICODE_STRING, STATUS_SUCCESS},
};

use crate::nt::violation::{self, Code};

#[global_allocator]
static ALLOCATOR: WdkAllocator = WdkAllocator;

/// The framework has no device and no state of its own: nothing to set up.
///
/// # Safety
/// For the loader only.
// SAFETY: the loader looks for this name; nothing else defines it.
#[unsafe(export_name = "DriverEntry")]
pub(crate) unsafe extern "system" fn driver_entry(
    _driver: *mut DRIVER_OBJECT,
    _registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
    STATUS_SUCCESS
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    violation::raise(
        Code::Internal,
        0,
        0,
        format_args!("panic in the framework: {info}"),
    )
}
