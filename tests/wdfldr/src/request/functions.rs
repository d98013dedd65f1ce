//! WdfRequest…: completion, forwarding, what a request says about itself.

use wdk_standin::wdk_sys::{
    BOOLEAN, CCHAR, IRP_MJ_CREATE, IRP_MJ_DEVICE_CONTROL, IRP_MJ_INTERNAL_DEVICE_CONTROL,
    IRP_MJ_READ, IRP_MJ_WRITE, KPROCESSOR_MODE, NTSTATUS, PIRP, PWDF_DRIVER_GLOBALS,
    PWDF_REQUEST_PARAMETERS, STATUS_INVALID_DEVICE_REQUEST, STATUS_SUCCESS, ULONG_PTR,
    WDF_REQUEST_PARAMETERS, WDFFILEOBJECT, WDFQUEUE, WDFREQUEST, ntddk::IoIs32bitProcess,
};

use super::{Cancelable, Owner, Request, complete};
use crate::{call::Call, nt::irql, queue};

const STATUS_WDF_BUSY: NTSTATUS = 0xC020_0204_u32.cast_signed();

pub(crate) unsafe extern "C" fn wdf_request_complete(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    status: NTSTATUS,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestComplete", irql::DISPATCH, globals) };
    let request = call.request(request);
    complete(&call, &request.object, status, None, 0);
}

pub(crate) unsafe extern "C" fn wdf_request_complete_with_priority_boost(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    status: NTSTATUS,
    boost: CCHAR,
) {
    // SAFETY: a driver's call.
    let call = unsafe {
        Call::enter(
            "WdfRequestCompleteWithPriorityBoost",
            irql::DISPATCH,
            globals,
        )
    };
    let request = call.request(request);
    complete(&call, &request.object, status, None, boost);
}

pub(crate) unsafe extern "C" fn wdf_request_complete_with_information(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    status: NTSTATUS,
    information: ULONG_PTR,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestCompleteWithInformation", irql::DISPATCH, globals) };
    let request = call.request(request);
    complete(
        &call,
        &request.object,
        status,
        Some(information as usize),
        0,
    );
}

pub(crate) unsafe extern "C" fn wdf_request_get_status(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestGetStatus", irql::DISPATCH, globals) };
    let request = call.request(request);
    request.state.lock().status
}

pub(crate) unsafe extern "C" fn wdf_request_set_information(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    information: ULONG_PTR,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestSetInformation", irql::DISPATCH, globals) };
    let request = call.request(request);
    request.require_driver(&call, &request.object);
    request.state.lock().information = information as usize;
}

pub(crate) unsafe extern "C" fn wdf_request_get_information(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
) -> ULONG_PTR {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestGetInformation", irql::DISPATCH, globals) };
    let request = call.request(request);
    request.state.lock().information as ULONG_PTR
}

/// Writes what the IRP's stack location says.
pub(crate) fn fill_parameters(call: &Call, request: &Request, to: PWDF_REQUEST_PARAMETERS) {
    let given: WDF_REQUEST_PARAMETERS = call.read(to, "WDF_REQUEST_PARAMETERS");
    call.size(
        "WDF_REQUEST_PARAMETERS",
        u32::from(given.Size),
        size_of::<WDF_REQUEST_PARAMETERS>(),
    );
    let stack = request.irp().stack();
    let mut parameters = WDF_REQUEST_PARAMETERS {
        Size: given.Size,
        MinorFunction: stack.MinorFunction,
        Type: i32::from(stack.MajorFunction),
        ..WDF_REQUEST_PARAMETERS::default()
    };
    let result = &mut parameters.Parameters;
    match u32::from(stack.MajorFunction) {
        IRP_MJ_CREATE => {
            // SAFETY: the member in use for a create.
            let create = unsafe { stack.Parameters.Create };
            result.Create.SecurityContext = create.SecurityContext;
            result.Create.Options = create.Options;
            result.Create.FileAttributes = create.FileAttributes;
            result.Create.ShareAccess = create.ShareAccess;
            result.Create.EaLength = create.EaLength;
        }
        IRP_MJ_READ => {
            // SAFETY: the member in use for a read.
            let read = unsafe { stack.Parameters.Read };
            result.Read.Length = read.Length as _;
            result.Read.Key = read.Key;
            // SAFETY: the whole of a LARGE_INTEGER.
            result.Read.DeviceOffset = unsafe { read.ByteOffset.QuadPart };
        }
        IRP_MJ_WRITE => {
            // SAFETY: the member in use for a write.
            let write = unsafe { stack.Parameters.Write };
            result.Write.Length = write.Length as _;
            result.Write.Key = write.Key;
            // SAFETY: the whole of a LARGE_INTEGER.
            result.Write.DeviceOffset = unsafe { write.ByteOffset.QuadPart };
        }
        IRP_MJ_DEVICE_CONTROL | IRP_MJ_INTERNAL_DEVICE_CONTROL => {
            // SAFETY: the member in use for a device control.
            let control = unsafe { stack.Parameters.DeviceIoControl };
            result.DeviceIoControl.OutputBufferLength = control.OutputBufferLength as _;
            result.DeviceIoControl.InputBufferLength = control.InputBufferLength as _;
            result.DeviceIoControl.IoControlCode = control.IoControlCode;
            result.DeviceIoControl.Type3InputBuffer = control.Type3InputBuffer;
        }
        _ => {}
    }
    call.write(to, parameters);
}

pub(crate) unsafe extern "C" fn wdf_request_get_parameters(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    parameters: PWDF_REQUEST_PARAMETERS,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestGetParameters", irql::DISPATCH, globals) };
    let request = call.request(request);
    fill_parameters(&call, &request, parameters);
}

pub(crate) unsafe extern "C" fn wdf_request_get_file_object(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
) -> WDFFILEOBJECT {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestGetFileObject", irql::DISPATCH, globals) };
    let file = call.request(request).file;
    file.map_or(core::ptr::null_mut(), |file| file.0 as WDFFILEOBJECT)
}

pub(crate) unsafe extern "C" fn wdf_request_get_requestor_mode(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
) -> KPROCESSOR_MODE {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestGetRequestorMode", irql::DISPATCH, globals) };
    i8::from(call.request(request).irp().user_mode())
}

pub(crate) unsafe extern "C" fn wdf_request_is_from32_bit_process(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
) -> BOOLEAN {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestIsFrom32BitProcess", irql::DISPATCH, globals) };
    let irp = call.request(request).irp();
    // SAFETY: a live IRP.
    unsafe { IoIs32bitProcess(irp.as_ptr()) }
}

pub(crate) unsafe extern "C" fn wdf_request_get_io_queue(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
) -> WDFQUEUE {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestGetIoQueue", irql::DISPATCH, globals) };
    let queue = call.request(request).queue();
    queue.map_or(core::ptr::null_mut(), |queue| queue.0 as WDFQUEUE)
}

pub(crate) unsafe extern "C" fn wdf_request_wdm_get_irp(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
) -> PIRP {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestWdmGetIrp", irql::DISPATCH, globals) };
    let request = call.request(request);
    call.require(
        request.state.lock().owner != Owner::Completed,
        format_args!("the request has been completed"),
    );
    request.irp().as_ptr()
}

pub(crate) unsafe extern "C" fn wdf_request_forward_to_io_queue(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    destination: WDFQUEUE,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestForwardToIoQueue", irql::DISPATCH, globals) };
    let request = call.request(request);
    let destination = call.queue(destination);
    request.require_driver(&call, &request.object);
    let (source, cancelable) = {
        let state = request.state.lock();
        (state.queue, state.cancelable)
    };
    call.require(
        cancelable == Cancelable::No,
        format_args!("a request that is or was marked cancelable is not forwarded"),
    );
    if source == Some(destination.object.handle()) || destination.device != request.device {
        return STATUS_INVALID_DEVICE_REQUEST;
    }
    if queue::forward(&destination.object, &request.object).is_err() {
        return STATUS_WDF_BUSY;
    }
    if let Some(source) = source {
        queue::released(source);
    }
    STATUS_SUCCESS
}
