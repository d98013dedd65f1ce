//! A queue object: requests come in, are presented to the driver, are cancelled.
//!
//! The state is under the queue's spin lock; IRP fields are touched under it,
//! drivers are called and IRPs completed without it. IRQL <= DISPATCH_LEVEL.

use alloc::{sync::Arc, vec::Vec};
use core::{
    ffi::c_void,
    sync::atomic::{AtomicBool, Ordering},
};

use wdk_standin::wdk_sys::{
    IRP, IRP_MJ_DEVICE_CONTROL, IRP_MJ_INTERNAL_DEVICE_CONTROL, IRP_MJ_READ, IRP_MJ_WRITE,
    PDEVICE_OBJECT, PFILE_OBJECT, PFN_WDF_IO_QUEUE_STATE, STATUS_CANCELLED,
    STATUS_INVALID_DEVICE_REQUEST, STATUS_INVALID_DEVICE_STATE, STATUS_SUCCESS,
    WDF_IO_QUEUE_CONFIG, WDFCONTEXT, WDFQUEUE, WDFREQUEST,
};

use super::{
    hand_over,
    state::{Dispatch, State},
};
use crate::{
    call::Call,
    nt::{event::Event, irp::Irp, irql, spinlock::SpinLock, worker::Worker},
    object::{Kind, Object, STORE, check_irql, store::Handle},
    request::{self, Request},
};

/// A request as its queue knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Waiting {
    pub(crate) request: Handle,
    pub(crate) irp: Irp,
    pub(crate) file_object: usize,
}

/// The queue takes no requests now.
pub(crate) struct Refused;

type Notification = (PFN_WDF_IO_QUEUE_STATE, usize);

pub(crate) struct Queue {
    pub(crate) device: Handle,
    pub(super) config: WDF_IO_QUEUE_CONFIG,
    pub(super) state: SpinLock<State<Waiting>>,
    /// `WdfIoQueueReadyNotify`.
    pub(super) ready: SpinLock<Option<Notification>>,
    /// Stop or purge completes when the driver holds nothing.
    pub(super) when_idle: SpinLock<Vec<Notification>>,
    /// Set whenever the driver has given a request back.
    pub(super) returned: Event,
    worker: Option<Worker>,
    worker_queued: AtomicBool,
}

// SAFETY: the configuration is the driver's static callbacks.
unsafe impl Send for Queue {}
// SAFETY: as above; the rest is under locks.
unsafe impl Sync for Queue {}

impl Queue {
    pub(super) fn new(
        device: Handle,
        config: WDF_IO_QUEUE_CONFIG,
        dispatch: Dispatch,
        worker: Option<Worker>,
    ) -> Self {
        Self {
            device,
            config,
            state: SpinLock::new(State::new(dispatch)),
            ready: SpinLock::new(None),
            when_idle: SpinLock::new(Vec::new()),
            returned: Event::new(),
            worker,
            worker_queued: AtomicBool::new(false),
        }
    }

    /// The first waiting request that fits becomes the driver's.
    pub(super) fn take(&self, mut fits: impl FnMut(&Waiting) -> bool) -> Option<Waiting> {
        self.state
            .lock()
            // One whose cancel routine IoCancelIrp has taken is not ours to give.
            .take(|waiting| fits(&waiting) && waiting.irp.set_cancel_routine(None))
    }
}

/// A live queue by its handle.
pub(crate) fn find(queue: Handle) -> Option<Arc<Object>> {
    let object = STORE.lock().get(queue).cloned().ok()?;
    matches!(object.kind, Kind::Queue(_)).then_some(object)
}

fn of(object: &Object) -> &Queue {
    let Kind::Queue(queue) = &object.kind else {
        unreachable!("found as a queue")
    };
    queue
}

fn request_of(object: &Object) -> &Request {
    let Kind::Request(request) = &object.kind else {
        unreachable!("queued as a request")
    };
    request
}

fn live_request(handle: Handle) -> Option<Arc<Object>> {
    let object = STORE.lock().get(handle).cloned().ok()?;
    matches!(object.kind, Kind::Request(_)).then_some(object)
}

/// A request from the I/O manager.
pub(crate) fn arrive(queue: Handle, request: &Arc<Object>) {
    let Some(object) = find(queue) else {
        request::complete_by_framework(request, STATUS_INVALID_DEVICE_STATE);
        return;
    };
    if insert(&object, request).is_err() {
        request::complete_by_framework(request, STATUS_INVALID_DEVICE_STATE);
        return;
    }
    hand_over::wait();
    dispatch(&object);
}

/// A request from the driver. On refusal it stays the driver's.
pub(crate) fn forward(object: &Arc<Object>, request: &Arc<Object>) -> Result<(), Refused> {
    insert(object, request)?;
    dispatch(object);
    Ok(())
}

fn insert(object: &Arc<Object>, request: &Arc<Object>) -> Result<(), Refused> {
    let queue = of(object);
    let inner = request_of(request);
    let waiting = Waiting {
        request: request.handle(),
        irp: inner.irp(),
        file_object: inner.irp().file_object().addr(),
    };
    let (was_empty, cancelled_now) = {
        let mut state = queue.state.lock();
        if !state.is_accepting() {
            return Err(Refused);
        }
        inner.enter_queue(object.handle());
        let was_empty = state.push(waiting);
        waiting.irp.set_cancel_routine(Some(cancel_waiting));
        // IoCancelIrp may have come before the routine was in place.
        let cancelled_now = waiting.irp.cancel() && waiting.irp.set_cancel_routine(None);
        if cancelled_now {
            state.remove(waiting);
        }
        (was_empty, cancelled_now)
    };
    if cancelled_now {
        cancelled(object, request);
    } else if was_empty {
        notify_ready(object);
    }
    Ok(())
}

fn notify_ready(object: &Arc<Object>) {
    let queue = of(object);
    let notification = *queue.ready.lock();
    if let Some((Some(callback), context)) = notification {
        call_state(object, callback, context, "EvtIoQueueState");
    }
}

fn call_state(
    object: &Object,
    callback: unsafe extern "C" fn(WDFQUEUE, WDFCONTEXT),
    context: usize,
    name: &str,
) {
    let before = irql::current();
    // SAFETY: the driver's callback with its own handle and context.
    unsafe { callback(object.pointer::<_>(), context as WDFCONTEXT) };
    check_irql(before, name);
}

/// The cancel routine of every waiting request.
unsafe extern "C" fn cancel_waiting(_device: PDEVICE_OBJECT, irp: *mut IRP) {
    // SAFETY: IoCancelIrp gives an IRP that waits in a queue of ours.
    let irp = unsafe { Irp::new(irp) };
    irp.release_cancel_lock();
    let Some(request) = live_request(irp.request()) else {
        return;
    };
    let Some(object) = request_of(&request).queue().and_then(find) else {
        return;
    };
    let waiting = Waiting {
        request: request.handle(),
        irp,
        file_object: irp.file_object().addr(),
    };
    // Nobody else takes it: they all need the cancel routine first.
    let found = of(&object).state.lock().remove(waiting);
    if found {
        cancelled(&object, &request);
    }
}

/// A request was cancelled while it waited and is out of the queue.
pub(crate) fn cancelled(object: &Arc<Object>, request: &Arc<Object>) {
    let queue = of(object);
    let inner = request_of(request);
    // Only a driver that has seen the request before hears of it.
    if let Some(callback) = queue.config.EvtIoCanceledOnQueue
        && inner.was_presented()
    {
        queue.state.lock().hold();
        inner.give_to_driver();
        let before = irql::current();
        // SAFETY: the driver's callback with its own handles.
        unsafe { callback(object.pointer::<_>(), request.pointer::<_>()) };
        check_irql(before, "EvtIoCanceledOnQueue");
    } else {
        request::complete_by_framework(request, STATUS_CANCELLED);
        queue.returned.set();
    }
}

/// Cancels what waits, of all files or of one. Gives the driver nothing new.
fn cancel_matching(object: &Arc<Object>, mut fits: impl FnMut(&Waiting) -> bool) {
    let queue = of(object);
    while let Some(waiting) = queue.take(&mut fits) {
        queue.state.lock().release();
        if let Some(request) = live_request(waiting.request) {
            cancelled(object, &request);
        }
    }
}

/// IRP_MJ_CLEANUP: the file's requests that the driver does not hold.
pub(crate) fn cancel_of_file(queue: Handle, file: PFILE_OBJECT) {
    if let Some(object) = find(queue) {
        cancel_matching(&object, |waiting| waiting.file_object == file.addr());
    }
}

/// Purges: accepts no more and cancels what waits.
pub(crate) fn refuse_and_cancel(queue: Handle) {
    if let Some(object) = find(queue) {
        of(&object).state.lock().refuse();
        cancel_matching(&object, |_| true);
    }
}

/// The queue object ends.
pub(crate) fn dispose(object: &Arc<Object>) {
    refuse_and_cancel(object.handle());
    let queue = of(object);
    let device = STORE.lock().get(queue.device).cloned();
    if let Ok(device) = device
        && let Kind::Device(device) = &device.kind
    {
        device.forget_queue(object.handle());
    }
    let held = queue.state.lock().held();
    if held > 0 {
        name_held(object);
        crate::nt::violation::raise(
            crate::nt::violation::Code::Leak,
            object.handle().0,
            u64::from(held),
            format_args!("a WDFQUEUE is deleted while the driver holds {held} of its requests"),
        );
    }
}

/// Names the requests of a queue that the driver holds.
fn name_held(object: &Arc<Object>) {
    let requests: Vec<Arc<Object>> = STORE
        .lock()
        .iter()
        .filter(|(_, other)| matches!(other.kind, Kind::Request(_)))
        .map(|(_, other)| other.clone())
        .collect();
    for request in requests {
        if request_of(&request).is_held_from(object.handle()) {
            crate::nt::violation::print(format_args!(
                "held by {}: WDFREQUEST {:#x} of WDFQUEUE {:#x}",
                object.client.text_name(),
                request.handle().0,
                object.handle().0
            ));
        }
    }
}

/// The driver has completed or forwarded a request of this queue.
pub(crate) fn released(queue: Handle) {
    let Some(object) = find(queue) else {
        return;
    };
    let inner = of(&object);
    let held = {
        let mut state = inner.state.lock();
        state.release();
        state.held()
    };
    inner.returned.set();
    if held == 0 {
        let notifications = core::mem::take(&mut *inner.when_idle.lock());
        for (callback, context) in notifications {
            if let Some(callback) = callback {
                call_state(&object, callback, context, "EvtIoQueueState");
            }
        }
    }
    dispatch(&object);
    if hand_over::on() {
        let device = STORE.lock().get(inner.device).cloned();
        let Ok(device) = device else { return };
        if let Kind::Device(device) = &device.kind {
            for other in device.queues().into_iter().filter_map(find) {
                dispatch(&other);
            }
        }
    }
}

/// Presents what may be presented.
pub(crate) fn dispatch(object: &Arc<Object>) {
    let queue = of(object);
    if object.passive && irql::current() > irql::PASSIVE {
        if queue.state.lock().may_present()
            && let Some(worker) = &queue.worker
            && !queue.worker_queued.swap(true, Ordering::AcqRel)
        {
            worker.queue(dispatch_passive, object.handle().0);
        }
        return;
    }
    loop {
        let waiting = {
            let mut state = queue.state.lock();
            if !state.may_present() {
                return;
            }
            let Some(waiting) = state.take(|waiting| waiting.irp.set_cancel_routine(None)) else {
                return;
            };
            state.begin_presenting();
            waiting
        };
        if let Some(request) = live_request(waiting.request) {
            present(object, &request);
        }
        queue.state.lock().end_presenting();
    }
}

unsafe extern "C" fn dispatch_passive(_device: PDEVICE_OBJECT, context: *mut c_void) {
    if let Some(object) = find(Handle(context.addr() as u64)) {
        of(&object).worker_queued.store(false, Ordering::Release);
        dispatch(&object);
    }
}

/// Calls the driver with a request that it holds from now on.
fn present(object: &Arc<Object>, request: &Arc<Object>) {
    let config = &of(object).config;
    let inner = request_of(request);
    let stack = inner.irp().stack();
    let (queue, handle): (WDFQUEUE, WDFREQUEST) = (object.pointer(), request.pointer());
    inner.give_to_driver();
    let before = irql::current();
    match u32::from(stack.MajorFunction) {
        IRP_MJ_READ | IRP_MJ_WRITE => {
            let length = inner.transfer_length();
            if length == 0 && config.AllowZeroLengthRequests == 0 {
                request::complete_by_framework(request, STATUS_SUCCESS);
                return;
            }
            let specific = if u32::from(stack.MajorFunction) == IRP_MJ_READ {
                config.EvtIoRead
            } else {
                config.EvtIoWrite
            };
            if let Some(callback) = specific {
                // SAFETY: the driver's callback with its own handles.
                unsafe { callback(queue, handle, length as _) };
                return check_irql(before, "EvtIoRead or EvtIoWrite");
            }
        }
        major @ (IRP_MJ_DEVICE_CONTROL | IRP_MJ_INTERNAL_DEVICE_CONTROL) => {
            // SAFETY: the member in use for a device control.
            let control = unsafe { stack.Parameters.DeviceIoControl };
            let specific = if major == IRP_MJ_DEVICE_CONTROL {
                config.EvtIoDeviceControl
            } else {
                config.EvtIoInternalDeviceControl
            };
            if let Some(callback) = specific {
                // SAFETY: the driver's callback with its own handles.
                unsafe {
                    callback(
                        queue,
                        handle,
                        control.OutputBufferLength as _,
                        control.InputBufferLength as _,
                        control.IoControlCode,
                    );
                }
                return check_irql(before, "EvtIoDeviceControl");
            }
        }
        _ => {}
    }
    if let Some(callback) = config.EvtIoDefault {
        // SAFETY: the driver's callback with its own handles.
        unsafe { callback(queue, handle) };
        check_irql(before, "EvtIoDefault");
    } else {
        request::complete_by_framework(request, STATUS_INVALID_DEVICE_REQUEST);
    }
}

/// Waits until the driver holds none of the queue's requests. PASSIVE_LEVEL.
pub(super) fn wait_until_returned(queue: &Queue) {
    loop {
        queue.returned.clear();
        if queue.state.lock().held() == 0 {
            return;
        }
        let _ = queue.returned.wait(None);
    }
}

/// The same, and nothing waits any more.
pub(super) fn wait_until_empty(queue: &Queue) {
    loop {
        queue.returned.clear();
        let empty = {
            let state = queue.state.lock();
            state.held() == 0 && state.waiting_count() == 0
        };
        if empty {
            return;
        }
        let _ = queue.returned.wait(None);
    }
}

pub(super) fn new_worker(call: &Call, device: Handle) -> Option<Worker> {
    let object = call.any(device);
    let Kind::Device(device) = &object.kind else {
        return None;
    };
    Worker::new(device.wdm)
}
