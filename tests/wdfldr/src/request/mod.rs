//! Requests: an IRP in the hands of a queue, of the driver, or of nobody.
//!
//! The state is under the request's spin lock. A request is completed once: who
//! finds it not in the driver's hands has broken a rule.

mod buffers;
mod cancel;
mod functions;

use alloc::sync::Arc;

use wdk_standin::wdk_sys::{
    CCHAR, IRP_MJ_CREATE, IRP_MJ_DEVICE_CONTROL, IRP_MJ_INTERNAL_DEVICE_CONTROL, IRP_MJ_READ,
    IRP_MJ_WRITE, NT_ERROR, NT_SUCCESS, NTSTATUS, STATUS_PENDING,
};

pub(crate) use buffers::*;
pub(crate) use cancel::*;
pub(crate) use functions::*;

use crate::{
    call::Call,
    device::Device,
    file,
    nt::{
        irp::Irp,
        spinlock::SpinLock,
        violation::{self, Code},
    },
    object::{self, Kind, Object, Parent, STORE, store::Handle},
    queue,
};

/// Who may complete it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Framework,
    Queue,
    Driver,
    Completed,
}

/// Cancellation while the driver holds the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancelable {
    No,
    /// WdfRequestMarkCancelable; the number is the callback's address.
    Marked(usize),
    /// EvtRequestCancel has been or is being called.
    Called,
}

struct State {
    owner: Owner,
    queue: Option<Handle>,
    presented: bool,
    cancelable: Cancelable,
    information: usize,
    status: NTSTATUS,
    input: Option<Handle>,
    output: Option<Handle>,
}

pub(crate) struct Request {
    irp: Irp,
    device: Handle,
    file: Option<Handle>,
    state: SpinLock<State>,
}

impl Request {
    pub(crate) const fn irp(&self) -> Irp {
        self.irp
    }

    pub(crate) fn queue(&self) -> Option<Handle> {
        self.state.lock().queue
    }

    /// Whether the driver holds it, out of that queue.
    pub(crate) fn is_held_from(&self, queue: Handle) -> bool {
        let state = self.state.lock();
        state.owner == Owner::Driver && state.queue == Some(queue)
    }

    pub(crate) fn was_presented(&self) -> bool {
        self.state.lock().presented
    }

    /// The driver holds it from now on.
    pub(crate) fn give_to_driver(&self) {
        let mut state = self.state.lock();
        state.owner = Owner::Driver;
        state.presented = true;
    }

    /// It waits in that queue from now on.
    pub(crate) fn enter_queue(&self, queue: Handle) {
        let mut state = self.state.lock();
        state.owner = Owner::Queue;
        state.queue = Some(queue);
    }

    /// Bytes to read or to write.
    pub(crate) fn transfer_length(&self) -> usize {
        let stack = self.irp.stack();
        if u32::from(stack.MajorFunction) == IRP_MJ_READ {
            // SAFETY: the member in use for a read.
            unsafe { stack.Parameters.Read }.Length as usize
        } else {
            // SAFETY: the member in use for a write.
            unsafe { stack.Parameters.Write }.Length as usize
        }
    }

    /// What the requester can receive: no more may be reported as transferred.
    fn output_capacity(&self) -> Option<usize> {
        let stack = self.irp.stack();
        match u32::from(stack.MajorFunction) {
            IRP_MJ_READ | IRP_MJ_WRITE => Some(self.transfer_length()),
            IRP_MJ_DEVICE_CONTROL | IRP_MJ_INTERNAL_DEVICE_CONTROL => {
                // SAFETY: the member in use for a device control.
                let control = unsafe { stack.Parameters.DeviceIoControl };
                Some(control.OutputBufferLength as usize)
            }
            _ => None,
        }
    }

    /// For the list of what a driver left.
    pub(crate) fn describe(&self) -> &'static str {
        match self.state.lock().owner {
            Owner::Framework => ", with the framework",
            Owner::Queue => ", waiting in a queue",
            Owner::Driver => ", in the driver's hands",
            Owner::Completed => ", completed but referenced",
        }
    }

    /// Violation unless the driver holds the request.
    fn require_driver(&self, call: &Call, object: &Object) {
        let owner = self.state.lock().owner;
        if owner != Owner::Driver {
            violation::raise(
                Code::Request,
                object.handle().0,
                owner as u64,
                format_args!(
                    "{}: the driver does not hold the request {:#x}{}",
                    call.name(),
                    object.handle().0,
                    self.describe()
                ),
            );
        }
    }
}

/// Makes the request of an IRP that has just arrived.
pub(crate) fn create(
    call: &Call,
    object: &Arc<Object>,
    device: &Device,
    irp: Irp,
    file: Option<Handle>,
) -> Result<Arc<Object>, NTSTATUS> {
    let request = Request {
        irp,
        device: object.handle(),
        file,
        state: SpinLock::new(State {
            owner: Owner::Framework,
            queue: None,
            presented: false,
            cancelable: Cancelable::No,
            information: 0,
            status: 0,
            input: None,
            output: None,
        }),
    };
    let made = object::create(
        call,
        device.request_attributes(),
        Parent::Fixed(Some(object.handle())),
        Kind::Request(request),
    )?;
    irp.set_request(made.handle());
    Ok(made)
}

fn inner(object: &Object) -> &Request {
    let Kind::Request(request) = &object.kind else {
        unreachable!("found as a request")
    };
    request
}

/// The framework completes a request that the driver need not see.
pub(crate) fn complete_by_framework(object: &Arc<Object>, status: NTSTATUS) {
    let request = inner(object);
    let held = {
        let mut state = request.state.lock();
        let held = state.owner == Owner::Driver;
        state.owner = Owner::Completed;
        state.status = status;
        held.then_some(state.queue).flatten()
    };
    end(object, request, status, 0, 0, held);
}

/// The driver completes.
fn complete(
    call: &Call,
    object: &Arc<Object>,
    status: NTSTATUS,
    information: Option<usize>,
    boost: CCHAR,
) {
    let request = inner(object);
    let handle = object.handle().0;
    let fault = |rule: &str| -> ! {
        violation::raise(
            Code::Request,
            handle,
            u64::from(status.cast_unsigned()),
            format_args!("{}: {rule} (request {handle:#x})", call.name()),
        )
    };
    if status == STATUS_PENDING {
        fault("STATUS_PENDING is no completion status");
    }
    let (queue, information) = {
        let mut state = request.state.lock();
        let rule = match (state.owner, state.cancelable) {
            (Owner::Completed, _) => Some("the request has been completed before"),
            (Owner::Queue, _) => Some("the request waits in a queue: the framework owns it"),
            (Owner::Framework, _) => Some("the driver does not hold the request"),
            (Owner::Driver, Cancelable::Marked(_)) => {
                Some("a cancelable request is completed without WdfRequestUnmarkCancelable")
            }
            (Owner::Driver, _) => None,
        };
        if let Some(rule) = rule {
            drop(state);
            fault(rule);
        }
        state.owner = Owner::Completed;
        state.status = status;
        if let Some(information) = information {
            state.information = information;
        }
        (state.queue, state.information)
    };
    if !NT_ERROR(status)
        && let Some(capacity) = request.output_capacity()
        && information > capacity
    {
        violation::raise(
            Code::Request,
            handle,
            information as u64,
            format_args!(
                "{}: Information {information} is more than the buffer's {capacity} bytes",
                call.name()
            ),
        );
    }
    end(object, request, status, information, boost, queue);
}

/// The common end: clean up, give the IRP back, let the queue go on.
fn end(
    object: &Arc<Object>,
    request: &Request,
    status: NTSTATUS,
    information: usize,
    boost: CCHAR,
    held_of: Option<Handle>,
) {
    let irp = request.irp;
    let refused_open = u32::from(irp.stack().MajorFunction) == IRP_MJ_CREATE && !NT_SUCCESS(status);
    if refused_open {
        let device = STORE.lock().get(request.device).cloned();
        if let Ok(device) = device
            && let Kind::Device(device) = &device.kind
        {
            file::delete(device, irp.file_object());
        }
    }
    object::delete(object.handle(), "request completion");
    irp.complete(status, information, boost);
    if let Some(queue) = held_of {
        queue::released(queue);
    }
}
