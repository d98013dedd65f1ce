//! What WdfDriverEntry.lib adds to a KMDF driver: the image's entry point.
//!
//! The loader calls [`FxDriverEntry`] at `PASSIVE_LEVEL` in a system thread. It
//! binds the image to the framework, runs the driver's own `DriverEntry` and
//! puts itself in front of `DriverUnload`, so that the framework goes last.
//! Entry and unload never run at the same time: no lock is needed.
//!
//! Source: Windows drivers, "Building and loading a WDF driver", and the
//! behaviour of the library's object code.

use core::cell::UnsafeCell;

use super::{
    _WDFFUNCENUM, DRIVER_OBJECT, NT_SUCCESS, NTSTATUS, PCUNICODE_STRING, PDRIVER_OBJECT,
    PDRIVER_UNLOAD, PUNICODE_STRING, PWDF_BIND_INFO, PWDF_COMPONENT_GLOBALS, ULONG, UNICODE_STRING,
    WCHAR, WDF_BIND_INFO, WDF_COMPONENT_GLOBALS, WDF_VERSION, WdfDriverGlobals, WdfFunctions,
    ntddk::RtlCopyUnicodeString,
};

#[cfg_attr(
    windows,
    link(name = "WDFLDR.SYS", kind = "raw-dylib", modifiers = "+verbatim")
)]
unsafe extern "C" {
    fn WdfVersionBind(
        driver: PDRIVER_OBJECT,
        registry_path: PUNICODE_STRING,
        bind: PWDF_BIND_INFO,
        globals: PWDF_COMPONENT_GLOBALS,
    ) -> NTSTATUS;
    fn WdfVersionUnbind(
        registry_path: PUNICODE_STRING,
        bind: PWDF_BIND_INFO,
        globals: WDF_COMPONENT_GLOBALS,
    ) -> NTSTATUS;
}

unsafe extern "system" {
    fn DriverEntry(driver: PDRIVER_OBJECT, registry_path: PCUNICODE_STRING) -> NTSTATUS;
}

/// `MAX_PATH`: a longer registry path is cut, as in the genuine library.
const PATH: usize = 260;

#[allow(clippy::cast_possible_truncation, reason = "520 bytes")]
const PATH_BYTES: u16 = (PATH * size_of::<WCHAR>()) as u16;
#[allow(clippy::cast_possible_truncation, reason = "48 bytes")]
const BIND_INFO_BYTES: ULONG = size_of::<WDF_BIND_INFO>() as ULONG;

/// A cell that only the entry point and the unload routine touch.
struct Once<T>(UnsafeCell<T>);

// SAFETY: the loader calls entry and unload one after the other, never at once.
unsafe impl<T> Sync for Once<T> {}

static COMPONENT: Once<[WCHAR; 12]> = Once(UnsafeCell::new(wide(b"KmdfLibrary\0")));
static PATH_BUFFER: Once<[WCHAR; PATH]> = Once(UnsafeCell::new([0; PATH]));
static REGISTRY_PATH: Once<UNICODE_STRING> = Once(UnsafeCell::new(UNICODE_STRING {
    Length: 0,
    MaximumLength: 0,
    Buffer: core::ptr::null_mut(),
}));
static BIND_INFO: Once<WDF_BIND_INFO> = Once(UnsafeCell::new(WDF_BIND_INFO {
    Size: BIND_INFO_BYTES,
    Component: COMPONENT.0.get().cast(),
    Version: WDF_VERSION {
        Major: 1,
        Minor: 31,
        Build: 0,
    },
    FuncCount: _WDFFUNCENUM::WdfFunctionTableNumEntries as ULONG,
    FuncTable: (&raw mut WdfFunctions).cast(),
    Module: core::ptr::null_mut(),
}));
/// The unload routine that `WdfDriverCreate` had put into the driver object.
static DISPLACED: Once<PDRIVER_UNLOAD> = Once(UnsafeCell::new(None));

const fn wide<const N: usize>(ascii: &[u8; N]) -> [WCHAR; N] {
    let mut text = [0; N];
    let mut index = 0;
    while index < N {
        text[index] = ascii[index] as WCHAR;
        index += 1;
    }
    text
}

/// The entry point of the image.
///
/// # Safety
/// For the loader only: a live driver object and its service's registry path.
// SAFETY: the linker is told this name; nothing else defines it.
#[unsafe(no_mangle)]
pub(super) unsafe extern "system" fn FxDriverEntry(
    driver: PDRIVER_OBJECT,
    registry_path: PUNICODE_STRING,
) -> NTSTATUS {
    let path = REGISTRY_PATH.0.get();
    // SAFETY: nobody else touches the string now.
    unsafe {
        *path = UNICODE_STRING {
            Length: 0,
            MaximumLength: PATH_BYTES,
            Buffer: PATH_BUFFER.0.get().cast(),
        };
    }
    // SAFETY: both strings are live; the copy is cut to the buffer.
    unsafe { RtlCopyUnicodeString(path, registry_path) };

    let globals: PWDF_COMPONENT_GLOBALS = (&raw mut WdfDriverGlobals).cast();
    // SAFETY: the four stay where they are as long as the image does.
    let status = unsafe { WdfVersionBind(driver, path, BIND_INFO.0.get(), globals) };
    if !NT_SUCCESS(status) {
        return status;
    }
    // SAFETY: the loader's own arguments.
    let status = unsafe { DriverEntry(driver, registry_path.cast_const()) };
    if !NT_SUCCESS(status) {
        unbind();
        return status;
    }
    // SAFETY: written by the binding above and not since.
    let globals = unsafe { WdfDriverGlobals };
    // SAFETY: binding succeeded, so it points to the framework's record.
    let displace = unsafe { (*globals).DisplaceDriverUnload };
    if displace != 0 {
        // SAFETY: the loader's driver object is ours until this returns.
        let object = unsafe { &mut *driver };
        // SAFETY: nobody else touches the cell now.
        unsafe { *DISPLACED.0.get() = object.DriverUnload };
        object.DriverUnload = Some(unload);
    }
    status
}

unsafe extern "C" fn unload(driver: *mut DRIVER_OBJECT) {
    // SAFETY: entry has returned; nobody else touches the cell.
    if let Some(displaced) = unsafe { *DISPLACED.0.get() } {
        // SAFETY: called once, with the object it was installed in.
        unsafe { displaced(driver) };
    }
    unbind();
}

fn unbind() {
    // SAFETY: written by the binding and not since.
    let globals = unsafe { WdfDriverGlobals };
    // SAFETY: what the binding was made with.
    let _ = unsafe { WdfVersionUnbind(REGISTRY_PATH.0.get(), BIND_INFO.0.get(), globals.cast()) };
}
