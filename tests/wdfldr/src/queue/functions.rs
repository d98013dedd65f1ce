//! WdfIoQueue….

use wdk_standin::wdk_sys::{
    _WDF_IO_QUEUE_DISPATCH_TYPE as Type, _WDF_IO_QUEUE_STATE as Bits, NTSTATUS,
    PFN_WDF_IO_QUEUE_STATE, PULONG, PWDF_DRIVER_GLOBALS, PWDF_IO_QUEUE_CONFIG,
    PWDF_OBJECT_ATTRIBUTES, PWDF_REQUEST_PARAMETERS, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_DEVICE_REQUEST, STATUS_INVALID_PARAMETER, STATUS_NO_MORE_ENTRIES,
    STATUS_NOT_FOUND, STATUS_SUCCESS, STATUS_UNSUCCESSFUL, WDF_IO_QUEUE_CONFIG, WDF_IO_QUEUE_STATE,
    WDFCONTEXT, WDFDEVICE, WDFFILEOBJECT, WDFQUEUE, WDFREQUEST,
};

use super::{
    instance::{self, Queue, Waiting},
    state::{Dispatch, State},
};
use crate::{
    call::{Call, Of},
    nt::{irql, violation},
    object::{self, Attributes, Kind, Parent, STORE, store::Handle},
    request,
};

const STATUS_WDF_PAUSED: NTSTATUS = 0xC020_0203_u32.cast_signed();

pub(crate) unsafe extern "C" fn wdf_io_queue_create(
    globals: PWDF_DRIVER_GLOBALS,
    device: WDFDEVICE,
    config: PWDF_IO_QUEUE_CONFIG,
    attributes: PWDF_OBJECT_ATTRIBUTES,
    queue: *mut WDFQUEUE,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueCreate", irql::DISPATCH, globals) };
    let device = call.device(device);
    let config: WDF_IO_QUEUE_CONFIG = call.read(config, "WDF_IO_QUEUE_CONFIG");
    call.size(
        "WDF_IO_QUEUE_CONFIG",
        config.Size,
        size_of::<WDF_IO_QUEUE_CONFIG>(),
    );
    call.require(
        (0..=2).contains(&config.PowerManaged),
        format_args!("PowerManaged {} is invalid", config.PowerManaged),
    );
    let has_callbacks = config.EvtIoDefault.is_some()
        || config.EvtIoRead.is_some()
        || config.EvtIoWrite.is_some()
        || config.EvtIoDeviceControl.is_some()
        || config.EvtIoInternalDeviceControl.is_some();
    // SAFETY: the union's only member.
    let presented = unsafe { config.Settings.Parallel }.NumberOfPresentedRequests;
    let dispatch = match config.DispatchType {
        Type::WdfIoQueueDispatchSequential => Dispatch::Sequential,
        Type::WdfIoQueueDispatchParallel => Dispatch::Parallel(presented),
        Type::WdfIoQueueDispatchManual => Dispatch::Manual,
        other => {
            violation::print(format_args!(
                "WdfIoQueueCreate: DispatchType {other} is invalid"
            ));
            return STATUS_INVALID_PARAMETER;
        }
    };
    let manual = dispatch == Dispatch::Manual;
    if manual == has_callbacks {
        violation::print(format_args!(
            "WdfIoQueueCreate: a manual queue has no EvtIo callbacks, any other has one"
        ));
        return STATUS_INVALID_PARAMETER;
    }
    if !matches!(dispatch, Dispatch::Parallel(_)) && presented != 0 {
        violation::print(format_args!(
            "WdfIoQueueCreate: NumberOfPresentedRequests is for parallel queues"
        ));
        return STATUS_INVALID_PARAMETER;
    }
    if dispatch == Dispatch::Parallel(0) {
        violation::print(format_args!(
            "WdfIoQueueCreate: NumberOfPresentedRequests is 0: this queue never dispatches"
        ));
    }
    if config.DefaultQueue != 0 && device.default_queue().is_some() {
        violation::print(format_args!(
            "WdfIoQueueCreate: the device has a default queue"
        ));
        return STATUS_UNSUCCESSFUL;
    }
    let attributes = match Attributes::read(&call, attributes) {
        Ok(attributes) => attributes,
        Err(status) => return status,
    };
    let Some(worker) = instance::new_worker(&call, device.object.handle()) else {
        return STATUS_INSUFFICIENT_RESOURCES;
    };
    let kind = Kind::Queue(Queue::new(
        device.object.handle(),
        config,
        dispatch,
        Some(worker),
    ));
    let made = object::create(
        &call,
        &attributes,
        Parent::Default(device.object.handle()),
        kind,
    );
    let made = match made {
        Ok(made) => made,
        Err(status) => return status,
    };
    if let Kind::Queue(inner) = &made.kind {
        inner.returned.initialize(false, false);
    }
    device.add_queue(made.handle());
    if config.DefaultQueue != 0 {
        device.set_default_queue(made.handle());
    }
    call.write_optional(queue, made.pointer());
    STATUS_SUCCESS
}

pub(crate) unsafe extern "C" fn wdf_io_queue_get_state(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
    queue_requests: PULONG,
    driver_requests: PULONG,
) -> WDF_IO_QUEUE_STATE {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueGetState", irql::DISPATCH, globals) };
    let queue = call.queue(queue);
    let (bits, waiting, held) = {
        let state = queue.state.lock();
        (bits(&state), state.waiting_count() as u32, state.held())
    };
    call.write_optional(queue_requests, waiting);
    call.write_optional(driver_requests, held);
    bits
}

fn bits(state: &State<Waiting>) -> WDF_IO_QUEUE_STATE {
    let mut bits = 0;
    if state.is_accepting() {
        bits |= Bits::WdfIoQueueAcceptRequests;
    }
    if state.is_dispatching() {
        bits |= Bits::WdfIoQueueDispatchRequests;
    }
    if state.waiting_count() == 0 {
        bits |= Bits::WdfIoQueueNoRequests;
    }
    if state.held() == 0 {
        bits |= Bits::WdfIoQueueDriverNoRequests;
    }
    bits
}

pub(crate) unsafe extern "C" fn wdf_io_queue_start(globals: PWDF_DRIVER_GLOBALS, queue: WDFQUEUE) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueStart", irql::DISPATCH, globals) };
    let queue = call.queue(queue);
    queue.state.lock().start();
    super::dispatch(&queue.object);
}

/// Tells the driver when it holds none of the queue's requests any more.
fn when_returned(queue: &Of<Queue>, callback: PFN_WDF_IO_QUEUE_STATE, context: WDFCONTEXT) {
    let Some(function) = callback else {
        return;
    };
    {
        let mut notifications = queue.when_idle.lock();
        if queue.state.lock().held() > 0 {
            notifications.push((callback, context.addr()));
            return;
        }
    }
    let before = irql::current();
    // SAFETY: the driver's callback with its own handle and context.
    unsafe { function(queue.object.pointer::<_>(), context) };
    object::check_irql(before, "EvtIoQueueState");
}

pub(crate) unsafe extern "C" fn wdf_io_queue_stop(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
    callback: PFN_WDF_IO_QUEUE_STATE,
    context: WDFCONTEXT,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueStop", irql::DISPATCH, globals) };
    let queue = call.queue(queue);
    queue.state.lock().stop();
    when_returned(&queue, callback, context);
}

pub(crate) unsafe extern "C" fn wdf_io_queue_stop_synchronously(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueStopSynchronously", irql::PASSIVE, globals) };
    let queue = call.queue(queue);
    queue.state.lock().stop();
    instance::wait_until_returned(&queue);
}

pub(crate) unsafe extern "C" fn wdf_io_queue_get_device(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
) -> WDFDEVICE {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueGetDevice", irql::DISPATCH, globals) };
    call.queue(queue).device.0 as WDFDEVICE
}

fn retrieve(
    call: &Call,
    queue: &Of<Queue>,
    fits: impl FnMut(&Waiting) -> bool,
    out: *mut WDFREQUEST,
) -> NTSTATUS {
    call.write(out, core::ptr::null_mut());
    if !queue.state.lock().is_dispatching() {
        return STATUS_WDF_PAUSED;
    }
    let Some(waiting) = queue.take(fits) else {
        return STATUS_NO_MORE_ENTRIES;
    };
    let object = call.any(waiting.request);
    if let Kind::Request(request) = &object.kind {
        request.give_to_driver();
    }
    call.write(out, object.pointer());
    STATUS_SUCCESS
}

pub(crate) unsafe extern "C" fn wdf_io_queue_retrieve_next_request(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
    out: *mut WDFREQUEST,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueRetrieveNextRequest", irql::DISPATCH, globals) };
    let queue = call.queue(queue);
    retrieve(&call, &queue, |_| true, out)
}

pub(crate) unsafe extern "C" fn wdf_io_queue_retrieve_request_by_file_object(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
    file: WDFFILEOBJECT,
    out: *mut WDFREQUEST,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe {
        Call::enter(
            "WdfIoQueueRetrieveRequestByFileObject",
            irql::DISPATCH,
            globals,
        )
    };
    let queue = call.queue(queue);
    let wdm = call.file(file).wdm().addr();
    retrieve(&call, &queue, |waiting| waiting.file_object == wdm, out)
}

pub(crate) unsafe extern "C" fn wdf_io_queue_find_request(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
    found: WDFREQUEST,
    file: WDFFILEOBJECT,
    parameters: PWDF_REQUEST_PARAMETERS,
    out: *mut WDFREQUEST,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueFindRequest", irql::DISPATCH, globals) };
    let queue = call.queue(queue);
    call.write(out, core::ptr::null_mut());
    let wanted = (!file.is_null()).then(|| call.file(file).wdm().addr());
    let next: Option<Handle> = {
        let state = queue.state.lock();
        if !state.is_dispatching() {
            return STATUS_WDF_PAUSED;
        }
        let mut waiting = state.waiting();
        if !found.is_null() {
            let found = found.addr() as u64;
            if !waiting.any(|waiting| waiting.request.0 == found) {
                return STATUS_NOT_FOUND;
            }
        }
        waiting
            .find(|waiting| wanted.is_none_or(|wanted| waiting.file_object == wanted))
            .map(|waiting| waiting.request)
    };
    let Some(next) = next else {
        return STATUS_NO_MORE_ENTRIES;
    };
    let object = call.any(next);
    let referenced = STORE.lock().reference(next);
    if referenced.is_err() {
        return STATUS_NO_MORE_ENTRIES;
    }
    if !parameters.is_null()
        && let Kind::Request(inner) = &object.kind
    {
        request::fill_parameters(&call, inner, parameters);
    }
    call.write(out, object.pointer());
    STATUS_SUCCESS
}

pub(crate) unsafe extern "C" fn wdf_io_queue_drain_synchronously(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueDrainSynchronously", irql::PASSIVE, globals) };
    let queue = call.queue(queue);
    queue.state.lock().refuse();
    instance::wait_until_empty(&queue);
}

pub(crate) unsafe extern "C" fn wdf_io_queue_purge_synchronously(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueuePurgeSynchronously", irql::PASSIVE, globals) };
    let queue = call.queue(queue);
    super::refuse_and_cancel(queue.object.handle());
    instance::wait_until_returned(&queue);
}

pub(crate) unsafe extern "C" fn wdf_io_queue_purge(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
    callback: PFN_WDF_IO_QUEUE_STATE,
    context: WDFCONTEXT,
) {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueuePurge", irql::DISPATCH, globals) };
    let queue = call.queue(queue);
    super::refuse_and_cancel(queue.object.handle());
    when_returned(&queue, callback, context);
}

pub(crate) unsafe extern "C" fn wdf_io_queue_ready_notify(
    globals: PWDF_DRIVER_GLOBALS,
    queue: WDFQUEUE,
    callback: PFN_WDF_IO_QUEUE_STATE,
    context: WDFCONTEXT,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfIoQueueReadyNotify", irql::DISPATCH, globals) };
    let queue = call.queue(queue);
    if queue.state.lock().dispatch() != Dispatch::Manual {
        return STATUS_INVALID_DEVICE_REQUEST;
    }
    let mut ready = queue.ready.lock();
    if ready.is_some() && callback.is_some() {
        return STATUS_INVALID_DEVICE_REQUEST;
    }
    *ready = callback.map(|_| (callback, context.addr()));
    STATUS_SUCCESS
}
