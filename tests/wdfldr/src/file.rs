//! Framework file objects: one for each open handle, when the driver wants them.

use alloc::sync::Arc;

use wdk_standin::wdk_sys::{
    _WDF_FILEOBJECT_CLASS as Class, NTSTATUS, PFILE_OBJECT, PUNICODE_STRING, PWDF_DRIVER_GLOBALS,
    WDFDEVICE, WDFFILEOBJECT,
};

use crate::{
    call::Call,
    device::Device,
    nt::{irp::Irp, irql},
    object::{self, Kind, Object, Parent, store::Handle},
};

pub(crate) struct File {
    wdm: PFILE_OBJECT,
    device: Handle,
}

// SAFETY: the file object outlives its framework object, which ends at close.
unsafe impl Send for File {}
// SAFETY: as above.
unsafe impl Sync for File {}

impl File {
    pub(crate) const fn wdm(&self) -> PFILE_OBJECT {
        self.wdm
    }
}

/// At IRP_MJ_CREATE. `None`: the driver wants no file objects.
pub(crate) fn create(
    call: &Call,
    object: &Arc<Object>,
    device: &Device,
    irp: Irp,
) -> Result<Option<Handle>, NTSTATUS> {
    let Some(config) = device.file_config() else {
        return Ok(None);
    };
    let class = config.FileObjectClass & !Class::WdfFileObjectCanBeOptional;
    let wdm = irp.file_object();
    if class == Class::WdfFileObjectNotRequired || wdm.is_null() {
        return Ok(None);
    }
    let file = object::create(
        call,
        device.file_attributes(),
        Parent::Fixed(Some(object.handle())),
        Kind::File(File {
            wdm,
            device: object.handle(),
        }),
    )?;
    // SAFETY: the I/O manager's file object, which nobody else uses yet.
    let fields = unsafe { &mut *wdm };
    match class {
        Class::WdfFileObjectWdfCanUseFsContext => fields.FsContext = file.pointer(),
        Class::WdfFileObjectWdfCanUseFsContext2 => fields.FsContext2 = file.pointer(),
        _ => {}
    }
    device.add_file(wdm, file.handle());
    Ok(Some(file.handle()))
}

/// At IRP_MJ_CLOSE, or when the driver refuses the open.
pub(crate) fn delete(device: &Device, wdm: PFILE_OBJECT) {
    if let Some(file) = device.take_file(wdm) {
        object::delete(file, "IRP_MJ_CLOSE");
    }
}

pub(crate) unsafe extern "C" fn wdf_file_object_get_file_name(
    globals: PWDF_DRIVER_GLOBALS,
    file: WDFFILEOBJECT,
) -> PUNICODE_STRING {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfFileObjectGetFileName", irql::PASSIVE, globals) };
    let wdm = call.file(file).wdm;
    // SAFETY: an address inside the file object; nothing is read.
    unsafe { &raw mut (*wdm).FileName }
}

pub(crate) unsafe extern "C" fn wdf_file_object_get_device(
    globals: PWDF_DRIVER_GLOBALS,
    file: WDFFILEOBJECT,
) -> WDFDEVICE {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfFileObjectGetDevice", irql::DISPATCH, globals) };
    call.file(file).device.0 as WDFDEVICE
}

pub(crate) unsafe extern "C" fn wdf_file_object_wdm_get_file_object(
    globals: PWDF_DRIVER_GLOBALS,
    file: WDFFILEOBJECT,
) -> PFILE_OBJECT {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfFileObjectWdmGetFileObject", irql::DISPATCH, globals) };
    call.file(file).wdm
}
