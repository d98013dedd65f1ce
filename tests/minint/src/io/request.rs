//! Device control requests of the link's clients.
//!
//! Buffers as the I/O manager sets them up for each transfer method. The kernel
//! buffer that stands for the caller's is filled with a pattern beyond the input,
//! as reused pool would be: a driver must not return bytes it did not write.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_void;

use wdk_standin::wdk_sys::{NTSTATUS, PFILE_OBJECT, PIRP};

use super::{access, device, file, irp, mdl, stack};
use crate::ex::event::current_thread;
use crate::ex::{nt, pool};
use crate::ob;
use crate::ob::argument::own;
use crate::rtl::status::{STATUS_ACCESS_DENIED, STATUS_INSUFFICIENT_RESOURCES, is_error};

/// Gets status, information and the output bytes; IRQL at most DISPATCH_LEVEL.
pub(crate) type Reply = Box<dyn FnOnce(NTSTATUS, u64, Vec<u8>) + Send>;

/// Tag of the buffers (`IoBf`).
const TAG: u32 = u32::from_le_bytes(*b"IoBf");
/// What uninitialized bytes of a buffer look like.
const UNINITIALIZED: u8 = 0xA5;

/// `METHOD_*`, the low bits of a control code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Buffered,
    InDirect,
    OutDirect,
    Neither,
}

/// The buffers of a request; addresses, since the IRP carries them too.
struct Buffers {
    system: usize,
    user: usize,
    mdl: usize,
    capacity: usize,
    method: Method,
}

fn block(bytes: usize, contents: &[u8]) -> *mut u8 {
    let block = pool::allocate(bytes.max(1), TAG).cast::<u8>();
    if !block.is_null() {
        // SAFETY: a block of at least `bytes` bytes.
        let all = unsafe { core::slice::from_raw_parts_mut(block, bytes) };
        all.fill(UNINITIALIZED);
        all[..contents.len()].copy_from_slice(contents);
    }
    block
}

fn release(address: usize) {
    if address != 0 {
        pool::free(
            core::ptr::with_exposed_provenance_mut::<c_void>(address),
            TAG,
        );
    }
}

impl Buffers {
    fn new(code: u32, input: &[u8], capacity: usize) -> Option<Self> {
        let method = match code & 3 {
            0 => Method::Buffered,
            1 => Method::InDirect,
            2 => Method::OutDirect,
            _ => Method::Neither,
        };
        let mut buffers = Self {
            system: 0,
            user: 0,
            mdl: 0,
            capacity,
            method,
        };
        let system_size = if method == Method::Buffered {
            capacity.max(input.len())
        } else {
            input.len()
        };
        if system_size > 0 {
            buffers.system = block(system_size, input).expose_provenance();
        }
        if method != Method::Buffered && capacity > 0 {
            buffers.user = block(capacity, &[]).expose_provenance();
        }
        let failed = system_size > 0 && buffers.system == 0
            || method != Method::Buffered && capacity > 0 && buffers.user == 0;
        if failed {
            buffers.free();
            return None;
        }
        if matches!(method, Method::InDirect | Method::OutDirect) && capacity > 0 {
            let user = core::ptr::with_exposed_provenance_mut::<c_void>(buffers.user);
            let mdl = mdl::make(user, u32::try_from(capacity).ok()?, 0);
            // SAFETY: a new MDL over a block of nonpaged pool.
            unsafe { nt::MmBuildMdlForNonPagedPool(mdl) };
            buffers.mdl = mdl.expose_provenance();
        }
        Some(buffers)
    }

    fn free(&self) {
        if self.mdl != 0 {
            mdl::release(core::ptr::with_exposed_provenance_mut(self.mdl));
        }
        release(self.system);
        release(self.user);
    }

    /// The output bytes of a completed request.
    fn output(&self, status: NTSTATUS, information: u64) -> Vec<u8> {
        let from = if self.method == Method::Buffered {
            self.system
        } else {
            self.user
        };
        if from == 0 || is_error(status) || self.capacity == 0 {
            return Vec::new();
        }
        let length = if self.method == Method::Buffered {
            crate::require!(
                information <= self.capacity as u64,
                "IofCompleteRequest",
                "Information is {} for an output buffer of {} bytes",
                information,
                self.capacity
            );
            information as usize
        } else {
            // The caller's buffer itself was written; it sees all of it.
            (information as usize).min(self.capacity)
        };
        let from = core::ptr::with_exposed_provenance::<u8>(from);
        // SAFETY: a block of `capacity` bytes.
        unsafe { core::slice::from_raw_parts(from, length) }.to_vec()
    }
}

/// Issues `IRP_MJ_DEVICE_CONTROL` on an open file; `reply` is called exactly once,
/// perhaps before this returns. PASSIVE_LEVEL.
pub(crate) fn device_control(
    file: PFILE_OBJECT,
    code: u32,
    input: &[u8],
    capacity: u32,
    reply: Reply,
    issued: &mut dyn FnMut(irp::Token),
) {
    if !access::may_control(file::granted(file), code) {
        return reply(STATUS_ACCESS_DENIED, 0, Vec::new());
    }
    let Some(buffers) = Buffers::new(code, input, capacity as usize) else {
        return reply(STATUS_INSUFFICIENT_RESOURCES, 0, Vec::new());
    };
    let target = device::top(own!(file).DeviceObject);
    let Some((irp, token)) = irp::allocate(own!(target).StackSize) else {
        buffers.free();
        return reply(STATUS_INSUFFICIENT_RESOURCES, 0, Vec::new());
    };
    let (system, user, mdl, method) = (buffers.system, buffers.user, buffers.mdl, buffers.method);
    let address = file.expose_provenance();
    let _ = ob::reference(file.cast(), "NtDeviceIoControlFile");
    let done: irp::Done = Box::new(move |irp, status, information| {
        let output = buffers.output(status, information);
        irp::free(irp, "IoCompleteRequest");
        buffers.free();
        file::release_later(core::ptr::with_exposed_provenance_mut(address));
        reply(status, information, output);
    });
    irp::on_completion(irp, done);
    prepare(irp, file, (system, user, mdl), method);
    let location = own!(stack::next(irp));
    location.MajorFunction = stack::DEVICE_CONTROL;
    location.FileObject = file;
    let control = {
        // SAFETY: plain members of a union that this request uses.
        unsafe { &mut location.Parameters.DeviceIoControl }
    };
    control.OutputBufferLength = capacity;
    control.InputBufferLength = u32::try_from(input.len()).unwrap_or(u32::MAX);
    control.IoControlCode = code;
    if method == Method::Neither {
        control.Type3InputBuffer = core::ptr::with_exposed_provenance_mut(system);
    }
    issued(token);
    let _ = irp::call(target, irp);
}

fn prepare(irp: PIRP, file: PFILE_OBJECT, buffers: (usize, usize, usize), method: Method) {
    let (system, user, mdl) = buffers;
    let header = own!(irp);
    // A kernel buffer stands for the caller's with METHOD_NEITHER: the requestor's
    // mode must say so, or ProbeForRead would rightly refuse it.
    header.RequestorMode = if method == Method::Neither {
        nt::KERNEL_MODE
    } else {
        nt::USER_MODE
    };
    stack::set_origin(irp, current_thread(), file);
    if method != Method::Neither {
        header.AssociatedIrp.SystemBuffer = core::ptr::with_exposed_provenance_mut(system);
    }
    header.UserBuffer = core::ptr::with_exposed_provenance_mut(user);
    header.MdlAddress = core::ptr::with_exposed_provenance_mut(mdl);
}
