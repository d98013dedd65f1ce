//! `hvdetect_driver.sys`: the only code of the project that talks to NT.
//!
//! [`driver_entry`] creates the control device and changes nothing else about
//! the machine; the IOCTLs START and STOP ([`queue`], [`control`]) do. Between
//! them the hypervisor runs ([`machine`], [`monitor`]), the registry follows what
//! is loaded ([`images`]), and a thread turns what root mode saw into findings
//! ([`drain`], [`waiters`]).
//!
//! Everything here runs in guest context at PASSIVE_LEVEL, except [`monitor`],
//! which root mode calls. Locks and their order: [`lock`].

#![no_std]

extern crate alloc;

mod clock;
mod control;
mod device;
mod drain;
mod evidence;
mod frame_set;
mod images;
mod lock;
mod machine;
mod memory;
mod monitor;
mod platform;
mod processor;
mod queue;
mod ring;
mod status;
mod sync;
mod system_modules;
mod unicode;
mod waiters;
mod wdk_crates;

use crate::control::Driver;
use crate::device::size_u32;
use crate::platform::NtPlatform;
use crate::status::Status;
use crate::wdk_crates::wdk_alloc::WdkAllocator;
use crate::wdk_crates::wdk_sys::{
    _WDF_DRIVER_INIT_FLAGS, NT_SUCCESS, NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT, STATUS_SUCCESS,
    ULONG, WDF_DRIVER_CONFIG, WDF_NO_OBJECT_ATTRIBUTES, WDFDRIVER,
    call_unsafe_wdf_function_binding, ntddk::ObfReferenceObject,
};

#[global_allocator]
static ALLOCATOR: WdkAllocator = WdkAllocator;

/// Tag of the framework's allocations for this driver.
const POOL_TAG: ULONG = u32::from_le_bytes(*b"hvdt");

/// The driver's entry point, called by the framework's.
///
/// # Safety
/// For the loader: a live driver object and its service's registry path, at
/// PASSIVE_LEVEL, once.
// SAFETY: the framework's entry point asks for this name; nothing else defines it.
#[unsafe(export_name = "DriverEntry")]
pub unsafe extern "system" fn driver_entry(
    driver: PDRIVER_OBJECT,
    registry_path: PCUNICODE_STRING,
) -> NTSTATUS {
    match enter(driver, registry_path) {
        Ok(()) => STATUS_SUCCESS,
        Err(status) => status.as_nt(),
    }
}

fn enter(object: PDRIVER_OBJECT, registry_path: PCUNICODE_STRING) -> Result<(), Status> {
    let mut config = WDF_DRIVER_CONFIG {
        Size: size_u32::<WDF_DRIVER_CONFIG>(),
        EvtDriverDeviceAdd: None,
        EvtDriverUnload: Some(on_unload),
        DriverInitFlags: _WDF_DRIVER_INIT_FLAGS::WdfDriverInitNonPnpDriver as ULONG,
        DriverPoolTag: POOL_TAG,
    };
    let mut handle: WDFDRIVER = core::ptr::null_mut();
    // SAFETY: the loader's own arguments; the framework is bound.
    let status = unsafe {
        call_unsafe_wdf_function_binding!(
            WdfDriverCreate,
            object,
            registry_path,
            WDF_NO_OBJECT_ATTRIBUTES,
            &raw mut config,
            &raw mut handle
        )
    };
    if !NT_SUCCESS(status) {
        return Err(Status::from_nt(status));
    }
    let platform = NtPlatform::new(handle)?;
    let driver = Driver::install(Driver::new(platform)?);
    let created = device::create(handle, driver);
    if created.is_err() {
        // SAFETY: the device never took a request, and the framework unloads a
        // driver whose entry point failed.
        unsafe { Driver::remove() };
    }
    created
}

unsafe extern "C" fn on_unload(driver: WDFDRIVER) {
    // SAFETY: the framework calls this when no handle is open.
    let removed = unsafe { Driver::remove() };
    if !removed {
        // A core is still a guest and runs the hypervisor in this image: one
        // reference that is never given back keeps the image where it is.
        // SAFETY: the handle is live.
        let object =
            unsafe { call_unsafe_wdf_function_binding!(WdfDriverWdmGetDriverObject, driver) };
        // SAFETY: the driver object is live.
        unsafe { ObfReferenceObject(object.cast()) };
    }
}

/// Code of the bugcheck that a panic ends in: "hvdt".
#[cfg(not(test))]
const PANIC: ULONG = 0x6876_6474;

/// A bug of the driver in guest context. Root mode has no path that panics.
#[cfg(not(test))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let (file, line, column) = info.location().map_or((0, 0, 0), |location| {
        (
            location.file().as_ptr() as u64,
            location.line(),
            location.column(),
        )
    });
    // SAFETY: ends the system, with the place of the bug in its parameters.
    unsafe {
        crate::wdk_crates::wdk_sys::ntddk::KeBugCheckEx(PANIC, file, line.into(), column.into(), 0)
    }
}
