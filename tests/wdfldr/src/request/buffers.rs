//! The buffers of a request, by its type and transfer method.
//!
//! Source: DDI pages of WdfRequestRetrieveInputBuffer and -OutputBuffer;
//! Windows drivers, "Accessing Data Buffers in WDF Drivers".

use wdk_standin::wdk_sys::{
    _MEMORY_CACHING_TYPE, _MODE, _WDF_DEVICE_IO_TYPE as IoType, IRP_MJ_DEVICE_CONTROL,
    IRP_MJ_INTERNAL_DEVICE_CONTROL, IRP_MJ_READ, IRP_MJ_WRITE, MDL_MAPPED_TO_SYSTEM_VA,
    MDL_SOURCE_IS_NONPAGED_POOL, NTSTATUS, PMDL, PVOID, PWDF_DRIVER_GLOBALS,
    STATUS_BUFFER_TOO_SMALL, STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_DEVICE_REQUEST,
    STATUS_SUCCESS, WDFMEMORY, WDFREQUEST, ntddk::MmMapLockedPagesSpecifyCache,
};

use super::Request;
use crate::{
    call::{Call, Of},
    memory::Memory,
    nt::irql,
    object::{self, Attributes, Kind, Parent, STORE},
};

/// The low two bits of a control code.
const METHOD_BUFFERED: u32 = 0;
const METHOD_IN_DIRECT: u32 = 1;
const METHOD_OUT_DIRECT: u32 = 2;
/// NormalPagePriority and MdlMappingNoExecute.
const PRIORITY: u32 = 16 | 0x4000_0000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Input,
    Output,
}

/// The system address of an MDL's pages.
fn map(mdl: PMDL) -> Result<PVOID, NTSTATUS> {
    // SAFETY: the I/O manager's MDL lives as long as the IRP.
    let Some(fields) = (unsafe { mdl.as_ref() }) else {
        return Err(STATUS_INVALID_DEVICE_REQUEST);
    };
    let mapped = MDL_MAPPED_TO_SYSTEM_VA | MDL_SOURCE_IS_NONPAGED_POOL;
    if u32::from(fields.MdlFlags.cast_unsigned()) & mapped != 0 {
        return Ok(fields.MappedSystemVa);
    }
    // SAFETY: a locked MDL; the I/O manager unmaps it with its pages.
    let address = unsafe {
        MmMapLockedPagesSpecifyCache(
            mdl,
            _MODE::KernelMode as i8,
            _MEMORY_CACHING_TYPE::MmCached,
            core::ptr::null_mut(),
            0,
            PRIORITY,
        )
    };
    if address.is_null() {
        Err(STATUS_INSUFFICIENT_RESOURCES)
    } else {
        Ok(address)
    }
}

/// Address and length, or why there is none.
fn find(request: &Request, io_type: i32, direction: Direction) -> Result<(PVOID, usize), NTSTATUS> {
    let irp = request.irp();
    let stack = irp.stack();
    let major = u32::from(stack.MajorFunction);
    match major {
        IRP_MJ_READ | IRP_MJ_WRITE => {
            if (major == IRP_MJ_READ) != (direction == Direction::Output) {
                return Err(STATUS_INVALID_DEVICE_REQUEST);
            }
            let length = request.transfer_length();
            if length == 0 {
                return Err(STATUS_BUFFER_TOO_SMALL);
            }
            match io_type {
                IoType::WdfDeviceIoBuffered => Ok((irp.system_buffer(), length)),
                IoType::WdfDeviceIoDirect => Ok((map(irp.mdl())?, length)),
                _ => Err(STATUS_INVALID_DEVICE_REQUEST),
            }
        }
        IRP_MJ_DEVICE_CONTROL | IRP_MJ_INTERNAL_DEVICE_CONTROL => {
            // SAFETY: the member in use for a device control.
            let control = unsafe { stack.Parameters.DeviceIoControl };
            let length = match direction {
                Direction::Input => control.InputBufferLength,
                Direction::Output => control.OutputBufferLength,
            } as usize;
            let method = control.IoControlCode & 3;
            if !matches!(
                method,
                METHOD_BUFFERED | METHOD_IN_DIRECT | METHOD_OUT_DIRECT
            ) {
                return Err(STATUS_INVALID_DEVICE_REQUEST);
            }
            if length == 0 {
                return Err(STATUS_BUFFER_TOO_SMALL);
            }
            if method == METHOD_BUFFERED || direction == Direction::Input {
                Ok((irp.system_buffer(), length))
            } else {
                Ok((map(irp.mdl())?, length))
            }
        }
        _ => Err(STATUS_INVALID_DEVICE_REQUEST),
    }
}

fn io_type(call: &Call, request: &Request) -> i32 {
    let device = call.any(request.device);
    let Kind::Device(device) = &device.kind else {
        return IoType::WdfDeviceIoBuffered;
    };
    device.io_type()
}

fn retrieve(
    call: &Call,
    request: WDFREQUEST,
    direction: Direction,
    minimum: usize,
    buffer: *mut PVOID,
    length: *mut usize,
) -> NTSTATUS {
    let request = call.request(request);
    call.write(buffer, core::ptr::null_mut());
    call.write_optional(length, 0);
    request.require_driver(call, &request.object);
    match find(&request, io_type(call, &request), direction) {
        Ok((_, size)) if size < minimum => STATUS_BUFFER_TOO_SMALL,
        Ok((address, size)) => {
            call.write(buffer, address);
            call.write_optional(length, size);
            STATUS_SUCCESS
        }
        Err(status) => status,
    }
}

pub(crate) unsafe extern "C" fn wdf_request_retrieve_input_buffer(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    minimum: usize,
    buffer: *mut PVOID,
    length: *mut usize,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestRetrieveInputBuffer", irql::DISPATCH, globals) };
    retrieve(&call, request, Direction::Input, minimum, buffer, length)
}

pub(crate) unsafe extern "C" fn wdf_request_retrieve_output_buffer(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    minimum: usize,
    buffer: *mut PVOID,
    length: *mut usize,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestRetrieveOutputBuffer", irql::DISPATCH, globals) };
    retrieve(&call, request, Direction::Output, minimum, buffer, length)
}

/// A memory object over the buffer; it belongs to the request.
fn memory(
    call: &Call,
    request: &Of<Request>,
    direction: Direction,
    to: *mut WDFMEMORY,
) -> NTSTATUS {
    request.require_driver(call, &request.object);
    let (input, output) = {
        let state = request.state.lock();
        (state.input, state.output)
    };
    let known = if direction == Direction::Input {
        input
    } else {
        output
    };
    if let Some(known) = known
        && STORE.lock().get(known).is_ok()
    {
        call.write(to, known.0 as WDFMEMORY);
        return STATUS_SUCCESS;
    }
    let (address, length) = match find(request, io_type(call, request), direction) {
        Ok(found) => found,
        Err(status) => return status,
    };
    let made = object::create(
        call,
        &Attributes::default(),
        Parent::Fixed(Some(request.object.handle())),
        Kind::Memory(Memory::borrowed(address, length)),
    );
    if let Ok(made) = &made {
        let mut state = request.state.lock();
        if direction == Direction::Input {
            state.input = Some(made.handle());
        } else {
            state.output = Some(made.handle());
        }
    }
    call.finish(made, to)
}

pub(crate) unsafe extern "C" fn wdf_request_retrieve_input_memory(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    to: *mut WDFMEMORY,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestRetrieveInputMemory", irql::DISPATCH, globals) };
    let request = call.request(request);
    memory(&call, &request, Direction::Input, to)
}

pub(crate) unsafe extern "C" fn wdf_request_retrieve_output_memory(
    globals: PWDF_DRIVER_GLOBALS,
    request: WDFREQUEST,
    to: *mut WDFMEMORY,
) -> NTSTATUS {
    // SAFETY: a driver's call.
    let call = unsafe { Call::enter("WdfRequestRetrieveOutputMemory", irql::DISPATCH, globals) };
    let request = call.request(request);
    memory(&call, &request, Direction::Output, to)
}
