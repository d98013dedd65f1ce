//! The image's exports: binding a driver to the framework and undoing it.
//!
//! PASSIVE_LEVEL, in the thread that loads or unloads the driver.

use alloc::sync::Arc;

use wdk_standin::wdk_sys::{
    NTSTATUS, PDRIVER_OBJECT, PUNICODE_STRING, PVOID, PWDF_BIND_INFO, STATUS_INVALID_PARAMETER,
    STATUS_NOT_SUPPORTED, STATUS_OBJECT_NAME_NOT_FOUND, STATUS_REVISION_MISMATCH, STATUS_SUCCESS,
    WDF_BIND_INFO, WDF_COMPONENT_GLOBALS,
};

use crate::{
    client::{self, Client},
    nt::{
        text::Text,
        violation::{self, Code},
    },
    object::{Kind, STORE},
    queue, table,
};

const MAJOR: u32 = 1;
const MINOR: u32 = 31;
/// Before 1.15 the table was copied into the driver; we only give its address.
const OLDEST_MINOR: u32 = 15;

/// Gives the driver the function table and its globals.
///
/// # Safety
/// For `FxDriverEntry`: `bind` and `globals` live as long as the binding.
// SAFETY: the export's name; nothing else defines it.
#[unsafe(export_name = "WdfVersionBind")]
pub(crate) unsafe extern "C" fn version_bind(
    driver_object: PDRIVER_OBJECT,
    registry_path: PUNICODE_STRING,
    bind: PWDF_BIND_INFO,
    globals: *mut WDF_COMPONENT_GLOBALS,
) -> NTSTATUS {
    if driver_object.is_null() || globals.is_null() {
        return STATUS_INVALID_PARAMETER;
    }
    // SAFETY: the caller's structure.
    let Some(info) = (unsafe { bind.as_mut() }) else {
        return STATUS_INVALID_PARAMETER;
    };
    if info.Size as usize != size_of::<WDF_BIND_INFO>() || info.FuncTable.is_null() {
        violation::print(format_args!(
            "WdfVersionBind: WDF_BIND_INFO.Size is {}",
            info.Size
        ));
        return STATUS_INVALID_PARAMETER;
    }
    // SAFETY: a terminated string of the caller's.
    if !unsafe { is_kmdf_library(info.Component) } {
        violation::print(format_args!(
            "WdfVersionBind: the component is not KmdfLibrary"
        ));
        return STATUS_OBJECT_NAME_NOT_FOUND;
    }
    let version = info.Version;
    if version.Major != MAJOR || !(OLDEST_MINOR..=MINOR).contains(&version.Minor) {
        violation::print(format_args!(
            "WdfVersionBind: KMDF {}.{} is wanted, this is {MAJOR}.{MINOR}",
            version.Major, version.Minor
        ));
        return STATUS_REVISION_MISMATCH;
    }
    if info.FuncCount as usize > table::COUNT {
        violation::print(format_args!(
            "WdfVersionBind: FuncCount is {}",
            info.FuncCount
        ));
        return STATUS_REVISION_MISMATCH;
    }
    // SAFETY: the caller's string.
    let path = unsafe { Text::copy(registry_path) };
    let Some(path) = path else {
        return STATUS_INVALID_PARAMETER;
    };
    queue::start_handing_over();
    let client = Arc::new(Client::new(driver_object, path));
    // SAFETY: holds the address of the driver's variable for the table.
    unsafe {
        info.FuncTable
            .cast::<*const u8>()
            .write(table::address().cast());
    };
    info.Module = client.globals().cast();
    // SAFETY: checked for null; the caller's variable.
    unsafe { globals.write(client.globals().cast()) };
    client::add(client);
    STATUS_SUCCESS
}

unsafe fn is_kmdf_library(component: *const u16) -> bool {
    let mut wanted = c"KmdfLibrary".to_bytes_with_nul().iter();
    if component.is_null() {
        return false;
    }
    let mut at = component;
    wanted.all(|letter| {
        // SAFETY: within the terminated string: the walk stops at a difference.
        let unit = unsafe { at.read() };
        at = at.wrapping_add(1);
        unit == u16::from(*letter)
    })
}

/// Takes leave: everything of the driver's must be gone.
///
/// # Safety
/// For `FxDriverEntry`, with what `WdfVersionBind` got and gave.
// SAFETY: the export's name; nothing else defines it.
#[unsafe(export_name = "WdfVersionUnbind")]
pub(crate) unsafe extern "C" fn version_unbind(
    _registry_path: PUNICODE_STRING,
    bind: PWDF_BIND_INFO,
    globals: WDF_COMPONENT_GLOBALS,
) -> NTSTATUS {
    let Some(client) = client::find(globals.cast()) else {
        violation::raise(
            Code::Argument,
            globals.addr() as u64,
            0,
            format_args!("WdfVersionUnbind: these globals are not bound"),
        );
    };
    crate::driver::tear_down(&client);
    refuse_leaks(&client);
    client::remove(&client);
    STORE.lock().trim();
    // SAFETY: the caller's structure and variable of the binding.
    if let Some(info) = unsafe { bind.as_mut() } {
        info.Module = core::ptr::null_mut();
    }
    STATUS_SUCCESS
}

/// Names every object that is left, then stops.
fn refuse_leaks(client: &Arc<Client>) {
    let left: alloc::vec::Vec<_> = {
        let store = STORE.lock();
        store
            .iter()
            .filter(|(_, object)| Arc::ptr_eq(&object.client, client))
            .map(|(handle, object)| {
                (
                    handle,
                    object.clone(),
                    store.references(handle).unwrap_or(0),
                )
            })
            .collect()
    };
    let inits = client.inits.lock().len();
    for (handle, object, references) in &left {
        let more = match &object.kind {
            Kind::Request(request) => request.describe(),
            _ => "",
        };
        violation::print(format_args!(
            "left by {}: {} {:#x}, {references} references{more}",
            client.text_name(),
            object.kind.name(),
            handle.0
        ));
    }
    if let Some((handle, object, _)) = left.first() {
        violation::raise(
            Code::Leak,
            handle.0,
            left.len() as u64,
            format_args!(
                "{} unbinds with {} objects left, the first a {}",
                client.text_name(),
                left.len(),
                object.kind.name()
            ),
        );
    }
    if inits > 0 {
        violation::raise(
            Code::Leak,
            0,
            inits as u64,
            format_args!(
                "{} unbinds with a WDFDEVICE_INIT neither used nor freed",
                client.text_name()
            ),
        );
    }
}

/// Class extensions are not for software-only drivers.
///
/// # Safety
/// None needed: nothing is touched.
// SAFETY: the export's name; nothing else defines it.
#[unsafe(export_name = "WdfVersionBindClass")]
pub(crate) unsafe extern "C" fn version_bind_class(
    _bind: PWDF_BIND_INFO,
    _globals: WDF_COMPONENT_GLOBALS,
    _class: PVOID,
) -> NTSTATUS {
    violation::print(format_args!(
        "WdfVersionBindClass: class extensions are not supported"
    ));
    STATUS_NOT_SUPPORTED
}

/// The other half of the above.
///
/// # Safety
/// None needed: nothing is touched.
// SAFETY: the export's name; nothing else defines it.
#[unsafe(export_name = "WdfVersionUnbindClass")]
pub(crate) unsafe extern "C" fn version_unbind_class(
    _bind: PWDF_BIND_INFO,
    _globals: WDF_COMPONENT_GLOBALS,
    _class: PVOID,
) {
    violation::print(format_args!(
        "WdfVersionUnbindClass: class extensions are not supported"
    ));
}
