//! Cancellation of requests in the driver's hands.
//!
//! Source: Windows drivers, "Canceling I/O Requests"; DDI pages of
//! WdfRequestMarkCancelable, WdfRequestMarkCancelableEx and
//! WdfRequestUnmarkCancelable.

use alloc::sync::Arc;

use wdk_standin::wdk_sys::{
    BOOLEAN, IRP, NTSTATUS, PDEVICE_OBJECT, PFN_WDF_REQUEST_CANCEL, PWDF_DRIVER_GLOBALS,
    STATUS_CANCELLED, STATUS_INVALID_DEVICE_REQUEST, STATUS_SUCCESS, WDFREQUEST,
};

use super::{Cancelable, Request, inner};
use crate::{
    call::{Call, Of},
    nt::{irp::Irp, irql},
    object::{Kind, Object, STORE, check_irql},
};

/// The cancel routine of a request that the driver has marked.
unsafe extern "C" fn cancel_marked(_device: PDEVICE_OBJECT, irp: *mut IRP) {
    // SAFETY: IoCancelIrp gives an IRP that the driver holds.
    let irp = unsafe { Irp::new(irp) };
    irp.release_cancel_lock();
    let found = STORE.lock().get(irp.request()).cloned();
    if let Ok(object) = found
        && matches!(object.kind, Kind::Request(_))
    {
        call_back(&object);
    }
}

fn call_back(object: &Arc<Object>) {
    let address = {
        let mut state = inner(object).state.lock();
        let Cancelable::Marked(address) = state.cancelable else {
            return;
        };
        state.cancelable = Cancelable::Called;
        address
    };
    // SAFETY: WdfRequestMarkCancelable stored a callback's address.
    let callback =
        unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(WDFREQUEST)>(address) };
    let before = irql::current();
    // SAFETY: the driver's callback with its own handle.
    unsafe { callback(object.pointer::<_>()) };
    check_irql(before, "EvtRequestCancel");
}

fn mark(call: &Call, request: &Of<Request>, callback: PFN_WDF_REQUEST_CANCEL) -> bool {
    request.require_driver(call, &request.object);
    let Some(callback) = callback else {
        call.require(false, format_args!("EvtRequestCancel is null"));
        return true;
    };
    {
        let mut state = request.state.lock();
        if state.cancelable != Cancelable::No {
            drop(state);
            call.require(
                false,
                format_args!("the request is marked cancelable already"),
            );
            return true;
        }
        state.cancelable = Cancelable::Marked(callback as usize);
    }
    let irp = request.irp();
    irp.set_cancel_routine(Some(cancel_marked));
    // IoCancelIrp may have come before the routine was in place.
    !(irp.cancel() && irp.set_cancel_routine(None))
}

pub(crate) unsafe extern "C" fn wdf_request_mark_cancelable(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    callback: PFN_WDF_REQUEST_CANCEL,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestMarkCancelable", irql::DISPATCH, globals) };
    let request = call.request(request);
    if !mark(&call, &request, callback) {
        call_back(&request.object);
    }
}

pub(crate) unsafe extern "C" fn wdf_request_mark_cancelable_ex(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    callback: PFN_WDF_REQUEST_CANCEL,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestMarkCancelableEx", irql::DISPATCH, globals) };
    let request = call.request(request);
    if mark(&call, &request, callback) {
        return STATUS_SUCCESS;
    }
    request.state.lock().cancelable = Cancelable::No;
    STATUS_CANCELLED
}

pub(crate) unsafe extern "C" fn wdf_request_unmark_cancelable(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestUnmarkCancelable", irql::DISPATCH, globals) };
    let request = call.request(request);
    request.require_driver(&call, &request.object);
    let cancelable = request.state.lock().cancelable;
    match cancelable {
        Cancelable::No => STATUS_INVALID_DEVICE_REQUEST,
        Cancelable::Called => STATUS_CANCELLED,
        Cancelable::Marked(_) => {
            if !request.irp().set_cancel_routine(None) {
                return STATUS_CANCELLED;
            }
            request.state.lock().cancelable = Cancelable::No;
            STATUS_SUCCESS
        }
    }
}

pub(crate) unsafe extern "C" fn wdf_request_is_canceled(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
) -> BOOLEAN {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestIsCanceled", irql::DISPATCH, globals) };
    let request = call.request(request);
    request.require_driver(&call, &request.object);
    let cancelable = request.state.lock().cancelable;
    call.require(
        !matches!(cancelable, Cancelable::Marked(_)),
        format_args!("not for a request that is marked cancelable"),
    );
    u8::from(request.irp().cancel())
}
