//! IRPs that drivers build for other drivers, and questions about an IRP's origin.
//!
//! A synchronous one is the I/O manager's again once it is completed: results go
//! to the caller's status block, buffers are copied back, the event is set.

use alloc::boxed::Box;

use wdk_standin::wdk_sys::{
    BOOLEAN, KEVENT, NTSTATUS, PDEVICE_OBJECT, PIO_STATUS_BLOCK, PIRP, PKEVENT, PLARGE_INTEGER,
    PVOID, ULONG,
};

use super::{irp, mdl, stack};
use crate::ex::event::{current_process, current_thread, wait_for};
use crate::ex::{nt, pool};
use crate::ke::irql::{APC_LEVEL, DISPATCH_LEVEL, PASSIVE_LEVEL, require_irql};
use crate::ob::argument::{borrow, own};
use crate::rtl::status::{STATUS_MORE_PROCESSING_REQUIRED, STATUS_PENDING, is_error};

/// Tag of system buffers (`IoBf`).
const TAG: u32 = u32::from_le_bytes(*b"IoBf");

/// Where the results of a synchronous request go; addresses of the caller's.
#[derive(Clone, Copy)]
struct Results {
    block: usize,
    event: usize,
    output: usize,
    output_length: usize,
    system: usize,
    mdl: usize,
}

fn finish(results: Results, irp: PIRP, status: NTSTATUS, information: u64) {
    if results.output != 0 && results.system != 0 && !is_error(status) {
        let length = (information as usize).min(results.output_length);
        let from = core::ptr::with_exposed_provenance::<u8>(results.system);
        let to = core::ptr::with_exposed_provenance_mut::<u8>(results.output);
        // SAFETY: both buffers are at least that long, and distinct.
        unsafe { core::ptr::copy_nonoverlapping(from, to, length) };
    }
    if results.mdl != 0 {
        mdl::release(core::ptr::with_exposed_provenance_mut(results.mdl));
    }
    if results.system != 0 {
        pool::free(core::ptr::with_exposed_provenance_mut(results.system), TAG);
    }
    irp::free(irp, "IofCompleteRequest");
    if results.block != 0 {
        let block: PIO_STATUS_BLOCK = core::ptr::with_exposed_provenance_mut(results.block);
        let block = own!(block);
        block.__bindgen_anon_1.Status = status;
        block.Information = information;
    }
    if results.event != 0 {
        let event = core::ptr::with_exposed_provenance_mut::<KEVENT>(results.event);
        // SAFETY: the caller keeps its event until it is set.
        unsafe { nt::KeSetEvent(event, 0, 0) };
    }
}

fn synchronous(target: PDEVICE_OBJECT, results: Results, caller: usize) -> PIRP {
    let done: irp::Done = Box::new(move |irp, status, information| {
        finish(results, irp, status, information);
    });
    let irp = irp::allocate_built(own!(target).StackSize, Some(done), caller);
    if !irp.is_null() {
        stack::set_origin(irp, current_thread(), core::ptr::null_mut());
    }
    irp
}

fn system_copy(length: usize, input: PVOID, input_length: usize) -> usize {
    if length == 0 {
        return 0;
    }
    let block = pool::allocate(length, TAG).cast::<u8>();
    if !block.is_null() && !input.is_null() {
        // SAFETY: the caller's buffer has that length, and the block is as long.
        unsafe { core::ptr::copy_nonoverlapping(input.cast::<u8>(), block, input_length) };
    }
    block.expose_provenance()
}

/// A device control IRP with its buffers set up.
pub(super) fn device_control(
    (code, major): (u32, u8),
    target: PDEVICE_OBJECT,
    (input, input_length): (PVOID, u32),
    (output, output_length): (PVOID, u32),
    event: PKEVENT,
    block: PIO_STATUS_BLOCK,
    caller: usize,
) -> PIRP {
    let method = code & 3;
    let (inside, outside) = (input_length as usize, output_length as usize);
    let mut results = Results {
        block: block.expose_provenance(),
        event: event.expose_provenance(),
        output: 0,
        output_length: outside,
        system: 0,
        mdl: 0,
    };
    match method {
        0 => {
            results.system = system_copy(inside.max(outside), input, inside);
            results.output = output.expose_provenance();
        }
        1 | 2 => {
            results.system = system_copy(inside, input, inside);
            if outside != 0 {
                let list = mdl::make(output, output_length, 0);
                // SAFETY: the caller's resident buffer.
                unsafe { nt::MmBuildMdlForNonPagedPool(list) };
                results.mdl = list.expose_provenance();
            }
        }
        _ => {}
    }
    let irp = synchronous(target, results, caller);
    if irp.is_null() {
        return irp;
    }
    let header = own!(irp);
    header.AssociatedIrp.SystemBuffer = core::ptr::with_exposed_provenance_mut(results.system);
    header.MdlAddress = core::ptr::with_exposed_provenance_mut(results.mdl);
    header.UserBuffer = output;
    header.UserIosb = block;
    header.UserEvent = event;
    let location = own!(stack::next(irp));
    location.MajorFunction = major;
    // SAFETY: plain members of a union that this request uses.
    let control = unsafe { &mut location.Parameters.DeviceIoControl };
    control.IoControlCode = code;
    control.InputBufferLength = input_length;
    control.OutputBufferLength = output_length;
    if method == 3 {
        control.Type3InputBuffer = input;
    }
    irp
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoBuildDeviceIoControlRequest(
    code: ULONG,
    device: PDEVICE_OBJECT,
    input: PVOID,
    input_length: ULONG,
    output: PVOID,
    output_length: ULONG,
    internal: BOOLEAN,
    event: PKEVENT,
    block: PIO_STATUS_BLOCK,
) -> PIRP {
    const API: &str = "IoBuildDeviceIoControlRequest";
    require_irql(PASSIVE_LEVEL, API);
    crate::ob::argument::check(device.cast_const(), API);
    let major = if internal != 0 {
        stack::INTERNAL_DEVICE_CONTROL
    } else {
        stack::DEVICE_CONTROL
    };
    device_control(
        (code, major),
        device,
        (input, input_length),
        (output, output_length),
        event,
        block,
        0,
    )
}

fn transfer(major: ULONG, irp: PIRP, buffer: PVOID, length: ULONG, offset: PLARGE_INTEGER) {
    let major = u8::try_from(major).unwrap_or(u8::MAX);
    let header = own!(irp);
    header.UserBuffer = buffer;
    header.AssociatedIrp.SystemBuffer = buffer;
    let location = own!(stack::next(irp));
    location.MajorFunction = major;
    if major == stack::READ || major == stack::WRITE {
        location.Parameters.Read.Length = length;
        if !offset.is_null() {
            location.Parameters.Read.ByteOffset = *own!(offset);
        }
    }
}

fn check_major(major: ULONG, api: &str) {
    let known = [
        stack::READ,
        stack::WRITE,
        stack::FLUSH_BUFFERS,
        stack::SHUTDOWN,
        27,
    ]
    .iter()
    .any(|&known| u32::from(known) == major);
    crate::require!(
        known,
        api,
        "major function {} is not one that this routine builds",
        major
    );
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoBuildSynchronousFsdRequest(
    major: ULONG,
    device: PDEVICE_OBJECT,
    buffer: PVOID,
    length: ULONG,
    offset: PLARGE_INTEGER,
    event: PKEVENT,
    block: PIO_STATUS_BLOCK,
) -> PIRP {
    const API: &str = "IoBuildSynchronousFsdRequest";
    require_irql(PASSIVE_LEVEL, API);
    check_major(major, API);
    let results = Results {
        block: block.expose_provenance(),
        event: event.expose_provenance(),
        output: 0,
        output_length: 0,
        system: 0,
        mdl: 0,
    };
    let irp = synchronous(device, results, 0);
    if !irp.is_null() {
        transfer(major, irp, buffer, length, offset);
    }
    irp
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoBuildAsynchronousFsdRequest(
    major: ULONG,
    device: PDEVICE_OBJECT,
    buffer: PVOID,
    length: ULONG,
    offset: PLARGE_INTEGER,
    block: PIO_STATUS_BLOCK,
) -> PIRP {
    const API: &str = "IoBuildAsynchronousFsdRequest";
    require_irql(DISPATCH_LEVEL, API);
    check_major(major, API);
    let irp = irp::allocate_built(borrow!(device, API).StackSize, None, 0);
    if !irp.is_null() {
        own!(irp).UserIosb = block;
        stack::set_origin(irp, current_thread(), core::ptr::null_mut());
        transfer(major, irp, buffer, length, offset);
    }
    irp
}

unsafe extern "C" fn signal(_device: PDEVICE_OBJECT, irp: PIRP, event: PVOID) -> NTSTATUS {
    if own!(irp).PendingReturned != 0 {
        // SAFETY: the waiting forwarder's event.
        unsafe { nt::KeSetEvent(event.cast(), 0, 0) };
    }
    STATUS_MORE_PROCESSING_REQUIRED
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoForwardIrpSynchronously(
    device: PDEVICE_OBJECT,
    irp: PIRP,
) -> BOOLEAN {
    const API: &str = "IoForwardIrpSynchronously";
    require_irql(APC_LEVEL, API);
    if borrow!(irp, API).CurrentLocation <= 1 {
        return 0;
    }
    let event = crate::ex::event::Event::new(nt::NOTIFICATION_EVENT);
    let mut copy = *own!(stack::current(irp));
    copy.Control = stack::INVOKE_ON_CANCEL | stack::INVOKE_ON_SUCCESS | stack::INVOKE_ON_ERROR;
    copy.CompletionRoutine = Some(signal);
    copy.Context = event.get().cast();
    *own!(stack::next(irp)) = copy;
    if irp::call(device, irp) == STATUS_PENDING {
        let _ = wait_for(event.get().cast(), None);
    }
    1
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoGetRequestorProcess(irp: PIRP) -> PVOID {
    let _ = borrow!(irp, "IoGetRequestorProcess");
    // Every requestor is a thread of the System process.
    if stack::thread(irp).is_null() {
        core::ptr::null_mut()
    } else {
        system_process()
    }
}

fn system_process() -> PVOID {
    current_process()
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoGetRequestorProcessId(irp: PIRP) -> ULONG {
    // SAFETY: the same contract.
    let process = unsafe { IoGetRequestorProcess(irp) };
    if process.is_null() {
        return 0;
    }
    // SAFETY: a live process.
    (unsafe { nt::PsGetProcessId(process) }).addr() as u32
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoIs32bitProcess(_irp: PIRP) -> BOOLEAN {
    0
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoIsOperationSynchronous(_irp: PIRP) -> BOOLEAN {
    // Handles are opened for overlapped use.
    0
}
