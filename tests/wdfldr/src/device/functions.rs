//! WdfDevice… and WdfControlFinishInitializing.

use wdk_standin::wdk_sys::{
    _WDF_DEVICE_IO_TYPE as IoType, DO_BUFFERED_IO, DO_DIRECT_IO, NT_SUCCESS, NTSTATUS,
    PCUNICODE_STRING, PDEVICE_OBJECT, PFILE_OBJECT, PWDF_DRIVER_GLOBALS, PWDF_OBJECT_ATTRIBUTES,
    PWDFDEVICE_INIT, STATUS_INVALID_PARAMETER, STATUS_SUCCESS, WDFDEVICE, WDFFILEOBJECT, WDFQUEUE,
    ntddk::{IoCreateDevice, IoCreateSymbolicLink, IoDeleteDevice, IoRegisterShutdownNotification},
};

use super::{Device, init};
use crate::{
    call::Call,
    nt::{irql, text::Text, violation},
    object::{self, Attributes, Kind, Parent},
};

/// The device extension holds the device's handle.
const EXTENSION_BYTES: u32 = 8;

pub(crate) unsafe extern "C" fn wdf_device_create(
    globals: PWDF_DRIVER_GLOBALS,
    device_init: *mut PWDFDEVICE_INIT,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    device: *mut WDFDEVICE,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceCreate", irql::PASSIVE, globals) };
    let init = call.read(device_init, "DeviceInit");
    call.require(!device.is_null(), format_args!("Device is null"));
    let attributes = match Attributes::read(&call, attributes) {
        Ok(attributes) => attributes,
        Err(status) => return status,
    };
    let driver = call.driver();
    if let Err(status) = attributes.parent(&call, Parent::Fixed(Some(driver))) {
        return status;
    }
    let settings = init::take(&call, init);
    call.write(device_init, core::ptr::null_mut());

    let mut name = settings.name.as_ref().map(Text::as_unicode);
    let name = name
        .as_mut()
        .map_or(core::ptr::null_mut(), core::ptr::from_mut);
    let mut wdm: PDEVICE_OBJECT = core::ptr::null_mut();
    // SAFETY: name and result live across the call; the extension holds a handle.
    let status = unsafe {
        IoCreateDevice(
            call.client().driver_object,
            EXTENSION_BYTES,
            name,
            settings.device_type,
            settings.characteristics,
            u8::from(settings.exclusive),
            &raw mut wdm,
        )
    };
    if !NT_SUCCESS(status) {
        violation::print(format_args!(
            "WdfDeviceCreate: IoCreateDevice gives {status:#x}"
        ));
        // Still the driver's, to be freed by it.
        call.write(device_init, init::give(&call, settings));
        return status;
    }
    if settings.shutdown.is_some() {
        // SAFETY: our own device object.
        let _ = unsafe { IoRegisterShutdownNotification(wdm) };
    }
    // SAFETY: just created, not yet opened by anybody.
    let object = unsafe { &mut *wdm };
    object.Flags |= match settings.io_type {
        IoType::WdfDeviceIoDirect => DO_DIRECT_IO,
        IoType::WdfDeviceIoBuffered => DO_BUFFERED_IO,
        _ => 0,
    };
    let extension = object.DeviceExtension.cast::<u64>();
    let made = object::create(
        &call,
        &attributes,
        Parent::Fixed(Some(driver)),
        Kind::Device(Device::new(wdm, *settings)),
    );
    match made {
        Ok(made) => {
            // SAFETY: the extension was asked for with that size.
            unsafe { extension.write(made.handle().0) };
            let driver = call.driver_object(driver.0 as *mut u8);
            driver.devices.lock().push(made.handle());
            call.write(device, made.pointer());
            STATUS_SUCCESS
        }
        Err(status) => {
            // SAFETY: created above and not used.
            unsafe { IoDeleteDevice(wdm) };
            status
        }
    }
}

pub(crate) unsafe extern "C" fn wdf_device_create_symbolic_link(
    globals: PWDF_DRIVER_GLOBALS,
    device: WDFDEVICE,
    link: PCUNICODE_STRING,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceCreateSymbolicLink", irql::PASSIVE, globals) };
    let device = call.device(device);
    let Some(name) = &device.settings.name else {
        violation::print(format_args!(
            "WdfDeviceCreateSymbolicLink: the device has no name"
        ));
        return STATUS_INVALID_PARAMETER;
    };
    // SAFETY: the driver's string.
    let Some(link) = (unsafe { Text::copy(link) }) else {
        return STATUS_INVALID_PARAMETER;
    };
    let (mut from, mut to) = (link.as_unicode(), name.as_unicode());
    // SAFETY: both strings live across the call.
    let status = unsafe { IoCreateSymbolicLink(&raw mut from, &raw mut to) };
    if NT_SUCCESS(status) {
        device.links.lock().push(link);
    }
    status
}

pub(crate) unsafe extern "C" fn wdf_control_finish_initializing(
    globals: PWDF_DRIVER_GLOBALS,
    device: WDFDEVICE,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfControlFinishInitializing", irql::DISPATCH, globals) };
    call.device(device).finish();
}

pub(crate) unsafe extern "C" fn wdf_device_wdm_get_device_object(
    globals: PWDF_DRIVER_GLOBALS,
    device: WDFDEVICE,
) -> PDEVICE_OBJECT {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceWdmGetDeviceObject", irql::DISPATCH, globals) };
    call.device(device).wdm
}

pub(crate) unsafe extern "C" fn wdf_device_get_file_object(
    globals: PWDF_DRIVER_GLOBALS,
    device: WDFDEVICE,
    file: PFILE_OBJECT,
) -> WDFFILEOBJECT {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceGetFileObject", irql::DISPATCH, globals) };
    let file = call.device(device).file(file);
    file.map_or(core::ptr::null_mut(), |file| file.0 as WDFFILEOBJECT)
}

pub(crate) unsafe extern "C" fn wdf_device_get_default_queue(
    globals: PWDF_DRIVER_GLOBALS,
    device: WDFDEVICE,
) -> WDFQUEUE {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfDeviceGetDefaultQueue", irql::DISPATCH, globals) };
    let queue = call.device(device).default_queue();
    queue.map_or(core::ptr::null_mut(), |queue| queue.0 as WDFQUEUE)
}
