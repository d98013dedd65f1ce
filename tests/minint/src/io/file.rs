//! File objects: open, clean up, close.
//!
//! A file object has one reference of its handle and one of each request on it.
//! `IRP_MJ_CLEANUP` goes out when the handle is closed, `IRP_MJ_CLOSE` when the last
//! reference is gone, both at PASSIVE_LEVEL.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::ffi::c_void;
use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use wdk_standin::wdk_sys::{
    ACCESS_MASK, ACCESS_STATE, DEVICE_OBJECT, FILE_OBJECT, HANDLE, IO_SECURITY_CONTEXT,
    IO_STACK_LOCATION, KPROCESSOR_MODE, NTSTATUS, PDEVICE_OBJECT, PFILE_OBJECT, PHANDLE,
    PIO_STATUS_BLOCK, PLARGE_INTEGER, POBJECT_ATTRIBUTES, PUNICODE_STRING, PVOID, ULONG,
};

use super::{access, device, irp, stack};
use crate::ex::event::{Event, current_thread, name_of};
use crate::ex::nt;
use crate::ke::irql::{PASSIVE_LEVEL, require_irql};
use crate::ob::argument::{borrow, own, put};
use crate::ob::{self, ObType};
use crate::rtl::status::{
    STATUS_INSUFFICIENT_RESOURCES, STATUS_INVALID_PARAMETER, STATUS_PENDING, STATUS_SUCCESS,
};
use crate::rtl::unicode::Owned;

/// `IO_TYPE_FILE`.
const TYPE: i16 = 5;
/// `FO_HANDLE_CREATED`.
const FO_HANDLE_CREATED: u32 = 0x0004_0000;
/// `FO_CLEANUP_COMPLETE`.
const FO_CLEANUP_COMPLETE: u32 = 0x4000;
/// `FILE_OPEN`, in the top byte of the create options.
const FILE_OPEN: u32 = 1 << 24;

/// A file object and what belongs to it; `object` is first.
#[repr(C)]
struct File {
    object: FILE_OBJECT,
    name: Owned,
    opened: bool,
    granted: u32,
}

/// Sends a request and waits for it. PASSIVE_LEVEL.
pub(super) fn send(
    target: PDEVICE_OBJECT,
    file: PFILE_OBJECT,
    requestor: KPROCESSOR_MODE,
    prepare: impl FnOnce(&mut IO_STACK_LOCATION),
) -> (NTSTATUS, u64) {
    struct Outcome {
        event: Box<Event>,
        status: AtomicI32,
        information: AtomicU64,
    }
    let outcome = Arc::new(Outcome {
        event: Event::new(nt::NOTIFICATION_EVENT),
        status: AtomicI32::new(0),
        information: AtomicU64::new(0),
    });
    let shared = Arc::clone(&outcome);
    let done: irp::Done = Box::new(move |irp, status, information| {
        irp::free(irp, "IoCompleteRequest");
        shared.status.store(status, Ordering::Relaxed);
        shared.information.store(information, Ordering::Relaxed);
        shared.event.set();
    });
    let Some((irp, _)) = irp::allocate(own!(target).StackSize) else {
        return (STATUS_INSUFFICIENT_RESOURCES, 0);
    };
    irp::on_completion(irp, done);
    own!(irp).RequestorMode = requestor;
    stack::set_origin(irp, current_thread(), file);
    let location = own!(stack::next(irp));
    location.FileObject = file;
    prepare(location);
    let _ = irp::call(target, irp);
    outcome.event.wait();
    (
        outcome.status.load(Ordering::Relaxed),
        outcome.information.load(Ordering::Relaxed),
    )
}

/// Ends a file object: `IRP_MJ_CLOSE`, then the device's count.
fn delete(object: *mut c_void) {
    let file: PFILE_OBJECT = object.cast();
    // SAFETY: made by `open`, and its last reference is gone.
    let state = unsafe { Box::from_raw(object.cast::<File>()) };
    let target = state.object.DeviceObject;
    let opened = state.opened;
    // The driver still uses the structure while it closes.
    let state = Box::into_raw(state);
    if opened {
        let (status, _) = send(device::top(target), file, nt::KERNEL_MODE, |location| {
            location.MajorFunction = stack::CLOSE;
        });
        crate::require!(
            status >= 0 || status == crate::rtl::status::STATUS_INVALID_DEVICE_REQUEST,
            "IRP_MJ_CLOSE",
            "the driver failed it with {:#010x}",
            status
        );
    }
    device::close(target);
    // SAFETY: into_raw above.
    drop(unsafe { Box::from_raw(state) });
}

/// Opens a device by its path in the name space. PASSIVE_LEVEL.
///
/// # Errors
/// NTSTATUS of the look-up or of the driver's create routine.
pub(crate) fn open(
    path: &str,
    desired: ACCESS_MASK,
    mode: KPROCESSOR_MODE,
) -> Result<PFILE_OBJECT, NTSTATUS> {
    let (target, rest) = device::resolve(path)?;
    device::open(target)?;
    let granted = access::map_generic(desired);
    let name = Owned::new(&rest);
    let mut state = Box::new(File {
        object: FILE_OBJECT {
            Type: TYPE,
            Size: size_of::<FILE_OBJECT>() as i16,
            DeviceObject: target,
            ReadAccess: u8::from(granted & access::FILE_READ_DATA != 0),
            WriteAccess: u8::from(granted & access::FILE_WRITE_DATA != 0),
            SharedRead: 1,
            SharedWrite: 1,
            FileName: name.descriptor(),
            ..FILE_OBJECT::default()
        },
        name,
        opened: false,
        granted,
    });
    // SAFETY: members of the new object.
    unsafe { nt::KeInitializeEvent(&raw mut state.object.Lock, nt::SYNCHRONIZATION_EVENT, 0) };
    // SAFETY: as above.
    unsafe { nt::KeInitializeEvent(&raw mut state.object.Event, nt::NOTIFICATION_EVENT, 0) };
    let file: PFILE_OBJECT = Box::into_raw(state).cast();
    ob::insert(file.cast(), ObType::File, Some(delete));
    let mut access_state = ACCESS_STATE {
        OriginalDesiredAccess: granted,
        PreviouslyGrantedAccess: granted,
        ..ACCESS_STATE::default()
    };
    let mut security = IO_SECURITY_CONTEXT {
        AccessState: &raw mut access_state,
        DesiredAccess: granted,
        ..IO_SECURITY_CONTEXT::default()
    };
    let (status, _) = send(device::top(target), file, mode, |location| {
        location.MajorFunction = stack::CREATE;
        location.Parameters.Create.SecurityContext = &raw mut security;
        location.Parameters.Create.Options = FILE_OPEN;
        location.Parameters.Create.ShareAccess = 3;
        location.Parameters.Create.FileAttributes = 0x80;
    });
    if status != STATUS_SUCCESS {
        let _ = ob::dereference(file.cast(), "IoCreateFile");
        return Err(if status < 0 {
            status
        } else {
            STATUS_INVALID_PARAMETER
        });
    }
    own!(file.cast::<File>()).opened = true;
    own!(file).Flags |= FO_HANDLE_CREATED;
    Ok(file)
}

/// Access that was granted to the file's handle.
pub(crate) fn granted(file: PFILE_OBJECT) -> u32 {
    own!(file.cast::<File>()).granted
}

fn cleanup(object: *mut c_void) {
    let file: PFILE_OBJECT = object.cast();
    let target = own!(file).DeviceObject;
    let _ = send(device::top(target), file, nt::KERNEL_MODE, |location| {
        location.MajorFunction = stack::CLEANUP;
    });
    own!(file).Flags |= FO_CLEANUP_COMPLETE;
}

/// Closes the handle of a file: `IRP_MJ_CLEANUP`, and `IRP_MJ_CLOSE` as soon as no
/// request is left on it. PASSIVE_LEVEL.
pub(crate) fn close(file: PFILE_OBJECT) {
    cleanup(file.cast());
    let _ = ob::dereference(file.cast(), "NtClose");
}

/// Drops a reference of a request; the file may end in a worker thread.
pub(super) fn release_later(file: PFILE_OBJECT) {
    crate::ex::work::defer(
        |object| {
            let _ = ob::dereference(object, "IoCompleteRequest");
        },
        file.cast(),
    );
}

fn create(
    handle: PHANDLE,
    desired: ACCESS_MASK,
    attributes: POBJECT_ATTRIBUTES,
    block: PIO_STATUS_BLOCK,
    api: &str,
) -> NTSTATUS {
    require_irql(PASSIVE_LEVEL, api);
    let Some(path) = name_of(attributes, api) else {
        return STATUS_INVALID_PARAMETER;
    };
    let result = open(&path, desired, nt::KERNEL_MODE);
    let status = match result {
        Ok(file) => {
            let opened = ob::insert_handle_with(file.cast(), granted(file), Some(cleanup));
            let _ = ob::dereference(file.cast(), api);
            put!(handle, opened, api);
            STATUS_SUCCESS
        }
        Err(status) => status,
    };
    if !block.is_null() {
        let block = borrow!(block, api);
        block.__bindgen_anon_1.Status = status;
        block.Information = 1;
    }
    status
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwCreateFile(
    handle: PHANDLE,
    desired: ACCESS_MASK,
    attributes: POBJECT_ATTRIBUTES,
    block: PIO_STATUS_BLOCK,
    _allocation: PLARGE_INTEGER,
    _file_attributes: ULONG,
    _share: ULONG,
    _disposition: ULONG,
    _options: ULONG,
    _ea: PVOID,
    _ea_length: ULONG,
) -> NTSTATUS {
    create(handle, desired, attributes, block, "ZwCreateFile")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwOpenFile(
    handle: PHANDLE,
    desired: ACCESS_MASK,
    attributes: POBJECT_ATTRIBUTES,
    block: PIO_STATUS_BLOCK,
    _share: ULONG,
    _options: ULONG,
) -> NTSTATUS {
    create(handle, desired, attributes, block, "ZwOpenFile")
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ZwDeviceIoControlFile(
    file: HANDLE,
    _event: HANDLE,
    _apc: PVOID,
    _context: PVOID,
    block: PIO_STATUS_BLOCK,
    code: ULONG,
    input: PVOID,
    input_length: ULONG,
    output: PVOID,
    output_length: ULONG,
) -> NTSTATUS {
    const API: &str = "ZwDeviceIoControlFile";
    require_irql(PASSIVE_LEVEL, API);
    let file: PFILE_OBJECT = match ob::object_of(file, ObType::File) {
        Ok(file) => file.cast(),
        Err(status) => return status,
    };
    let event = Event::new(nt::NOTIFICATION_EVENT);
    let target = device::top(own!(file).DeviceObject);
    let irp = super::build::device_control(
        (code, stack::DEVICE_CONTROL),
        target,
        (input, input_length),
        (output, output_length),
        event.get(),
        block,
        0,
    );
    if irp.is_null() {
        return STATUS_INSUFFICIENT_RESOURCES;
    }
    own!(stack::next(irp)).FileObject = file;
    let status = irp::call(target, irp);
    if status == STATUS_PENDING {
        event.wait();
        let block = &*borrow!(block, API);
        // SAFETY: a plain member of a union, written by the completion.
        return unsafe { block.__bindgen_anon_1.Status };
    }
    status
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn IoGetDeviceObjectPointer(
    name: PUNICODE_STRING,
    desired: ACCESS_MASK,
    file: *mut PFILE_OBJECT,
    object: *mut PDEVICE_OBJECT,
) -> NTSTATUS {
    const API: &str = "IoGetDeviceObjectPointer";
    require_irql(PASSIVE_LEVEL, API);
    let path: String = crate::rtl::unicode::text(name, API);
    let opened = match open(&path, desired, nt::KERNEL_MODE) {
        Ok(opened) => opened,
        Err(status) => return status,
    };
    // The handle is closed at once; the caller keeps the file object.
    cleanup(opened.cast());
    let top: *mut DEVICE_OBJECT = device::top(own!(opened).DeviceObject);
    put!(file, opened, API);
    put!(object, top, API);
    STATUS_SUCCESS
}
