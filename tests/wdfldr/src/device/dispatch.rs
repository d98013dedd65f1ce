//! The dispatch routine of every KMDF driver: from an IRP to a request.
//!
//! Called by the I/O manager in the requesting thread, create, cleanup, close
//! and shutdown at PASSIVE_LEVEL, the rest at <= DISPATCH_LEVEL.

use alloc::sync::Arc;

use wdk_standin::wdk_sys::{
    DEVICE_OBJECT, IRP, IRP_MJ_CLEANUP, IRP_MJ_CLOSE, IRP_MJ_CREATE, IRP_MJ_DEVICE_CONTROL,
    IRP_MJ_INTERNAL_DEVICE_CONTROL, IRP_MJ_READ, IRP_MJ_SHUTDOWN, IRP_MJ_WRITE, NTSTATUS,
    STATUS_ACCESS_DENIED, STATUS_INVALID_DEVICE_REQUEST, STATUS_INVALID_DEVICE_STATE,
    STATUS_PENDING, STATUS_SUCCESS, WDFDEVICE, WDFFILEOBJECT, WDFREQUEST,
};

use super::Device;
use crate::{
    call::Call,
    file,
    nt::{irp::Irp, irql},
    object::{Kind, Object, STORE, check_irql, store::Handle},
    queue, request,
};

/// The accounts of whoever opens the device in the lab.
const CALLER: [&[u8; 2]; 3] = [b"BA", b"AU", b"WD"];

pub(crate) unsafe extern "C" fn dispatch(wdm: *mut DEVICE_OBJECT, irp: *mut IRP) -> NTSTATUS {
    // SAFETY: the I/O manager hands the IRP over.
    let irp = unsafe { Irp::new(irp) };
    // SAFETY: the I/O manager calls with a device of the driver's.
    let extension = unsafe { (*wdm).DeviceExtension };
    // SAFETY: WdfDeviceCreate put the handle there.
    let handle = Handle(unsafe { extension.cast::<u64>().read() });
    let found = STORE.lock().get(handle).cloned();
    let Ok(object) = found else {
        return finish(irp, STATUS_INVALID_DEVICE_STATE);
    };
    let Kind::Device(device) = &object.kind else {
        return finish(irp, STATUS_INVALID_DEVICE_STATE);
    };
    let major = u32::from(irp.stack().MajorFunction);
    let must_be_finished = !matches!(major, IRP_MJ_CLEANUP | IRP_MJ_CLOSE);
    if must_be_finished && !device.is_finished() {
        return finish(irp, STATUS_INVALID_DEVICE_STATE);
    }
    match major {
        IRP_MJ_CREATE => create(&object, device, irp),
        IRP_MJ_CLEANUP => cleanup(device, irp),
        IRP_MJ_CLOSE => close(device, irp),
        IRP_MJ_SHUTDOWN => shutdown(&object, device, irp),
        IRP_MJ_READ | IRP_MJ_WRITE | IRP_MJ_DEVICE_CONTROL | IRP_MJ_INTERNAL_DEVICE_CONTROL => {
            input_output(&object, device, irp)
        }
        _ => finish(irp, STATUS_INVALID_DEVICE_REQUEST),
    }
}

fn finish(irp: Irp, status: NTSTATUS) -> NTSTATUS {
    irp.complete(status, 0, 0);
    status
}

fn create(object: &Arc<Object>, device: &Device, irp: Irp) -> NTSTATUS {
    if !device.settings.descriptor.opens_to(&CALLER) {
        return finish(irp, STATUS_ACCESS_DENIED);
    }
    let call = Call::internal("IRP_MJ_CREATE", object.client.clone());
    let file = match file::create(&call, object, device, irp) {
        Ok(file) => file,
        Err(status) => return finish(irp, status),
    };
    let callback = device
        .file_config()
        .and_then(|config| config.EvtDeviceFileCreate);
    let Some(callback) = callback else {
        return finish(irp, STATUS_SUCCESS);
    };
    let request = match request::create(&call, object, device, irp, file) {
        Ok(request) => request,
        Err(status) => {
            file::delete(device, irp.file_object());
            return finish(irp, status);
        }
    };
    irp.mark_pending();
    if let Kind::Request(inner) = &request.kind {
        inner.give_to_driver();
    }
    let before = irql::current();
    let file = file.map_or(core::ptr::null_mut(), |file| file.0 as WDFFILEOBJECT);
    // SAFETY: the driver's callback with its own handles.
    unsafe { callback(object.pointer::<_>(), request.pointer::<_>(), file) };
    check_irql(before, "EvtDeviceFileCreate");
    STATUS_PENDING
}

fn cleanup(device: &Device, irp: Irp) -> NTSTATUS {
    if let Some(file) = device.file(irp.file_object())
        && let Some(callback) = device
            .file_config()
            .and_then(|config| config.EvtFileCleanup)
    {
        let before = irql::current();
        // SAFETY: the driver's callback with its own handle.
        unsafe { callback(file.0 as WDFFILEOBJECT) };
        check_irql(before, "EvtFileCleanup");
    }
    for queue in device.queues() {
        queue::cancel_of_file(queue, irp.file_object());
    }
    finish(irp, STATUS_SUCCESS)
}

fn close(device: &Device, irp: Irp) -> NTSTATUS {
    if let Some(file) = device.file(irp.file_object()) {
        if let Some(callback) = device.file_config().and_then(|config| config.EvtFileClose) {
            let before = irql::current();
            // SAFETY: the driver's callback with its own handle.
            unsafe { callback(file.0 as WDFFILEOBJECT) };
            check_irql(before, "EvtFileClose");
        }
        file::delete(device, irp.file_object());
    }
    finish(irp, STATUS_SUCCESS)
}

fn shutdown(object: &Arc<Object>, device: &Device, irp: Irp) -> NTSTATUS {
    if let Some(callback) = device.settings.shutdown {
        let before = irql::current();
        // SAFETY: the driver's callback with its own handle.
        unsafe { callback(object.pointer::<_>()) };
        check_irql(before, "EvtDeviceShutdownNotification");
    }
    finish(irp, STATUS_SUCCESS)
}

fn input_output(object: &Arc<Object>, device: &Device, irp: Irp) -> NTSTATUS {
    let Some(queue) = device.default_queue() else {
        return finish(irp, STATUS_INVALID_DEVICE_REQUEST);
    };
    let call = Call::internal("IRP", object.client.clone());
    let file = device.file(irp.file_object());
    let request = match request::create(&call, object, device, irp, file) {
        Ok(request) => request,
        Err(status) => return finish(irp, status),
    };
    irp.mark_pending();
    if let Some(callback) = device.settings.in_caller_context {
        if let Kind::Request(inner) = &request.kind {
            inner.give_to_driver();
        }
        let before = irql::current();
        let (device, request): (WDFDEVICE, WDFREQUEST) = (object.pointer(), request.pointer());
        // SAFETY: the driver's callback with its own handles.
        unsafe { callback(device, request) };
        check_irql(before, "EvtIoInCallerContext");
        return STATUS_PENDING;
    }
    queue::arrive(queue, &request);
    STATUS_PENDING
}
