//! IRP stack locations and majors.
//!
//! Accessors only: an IRP belongs to the driver whose location is current.

use wdk_standin::wdk_sys::{IO_STACK_LOCATION, PIRP};

use crate::ob::argument::own;

/// `IRP_MJ_CREATE`.
pub(crate) const CREATE: u8 = 0;
/// `IRP_MJ_CLOSE`.
pub(crate) const CLOSE: u8 = 2;
/// `IRP_MJ_READ`.
pub(crate) const READ: u8 = 3;
/// `IRP_MJ_WRITE`.
pub(crate) const WRITE: u8 = 4;
/// `IRP_MJ_FLUSH_BUFFERS`.
pub(crate) const FLUSH_BUFFERS: u8 = 9;
/// `IRP_MJ_DEVICE_CONTROL`.
pub(crate) const DEVICE_CONTROL: u8 = 14;
/// `IRP_MJ_INTERNAL_DEVICE_CONTROL`.
pub(crate) const INTERNAL_DEVICE_CONTROL: u8 = 15;
/// `IRP_MJ_SHUTDOWN`.
pub(crate) const SHUTDOWN: u8 = 16;
/// `IRP_MJ_CLEANUP`.
pub(crate) const CLEANUP: u8 = 18;
/// `IRP_MJ_MAXIMUM_FUNCTION`.
pub(crate) const MAXIMUM_FUNCTION: usize = 27;

/// `SL_PENDING_RETURNED`.
pub(crate) const PENDING_RETURNED: u8 = 1;
/// `SL_INVOKE_ON_CANCEL`.
pub(crate) const INVOKE_ON_CANCEL: u8 = 0x20;
/// `SL_INVOKE_ON_SUCCESS`.
pub(crate) const INVOKE_ON_SUCCESS: u8 = 0x40;
/// `SL_INVOKE_ON_ERROR`.
pub(crate) const INVOKE_ON_ERROR: u8 = 0x80;

/// `IoGetCurrentIrpStackLocation`.
pub(crate) fn current(irp: PIRP) -> *mut IO_STACK_LOCATION {
    let irp = own!(irp);
    // SAFETY: reading a union of two plain members; an IRP in use holds the
    // location.
    let overlay = unsafe { &irp.Tail.Overlay };
    // SAFETY: as above.
    unsafe {
        overlay
            .__bindgen_anon_2
            .__bindgen_anon_1
            .CurrentStackLocation
    }
}

/// Moves the current location, in the IRP and in its count.
pub(crate) fn set_current(irp: PIRP, location: *mut IO_STACK_LOCATION, number: i8) {
    let irp = own!(irp);
    irp.CurrentLocation = number;
    // SAFETY: writing a plain member of a union.
    let overlay = unsafe { &mut irp.Tail.Overlay };
    overlay
        .__bindgen_anon_2
        .__bindgen_anon_1
        .CurrentStackLocation = location;
}

/// `IoGetNextIrpStackLocation`.
pub(crate) fn next(irp: PIRP) -> *mut IO_STACK_LOCATION {
    current(irp).wrapping_sub(1)
}

/// The IRP's final status.
pub(crate) fn status(irp: PIRP) -> i32 {
    let irp = own!(irp);
    // SAFETY: a plain member of a union.
    unsafe { irp.IoStatus.__bindgen_anon_1.Status }
}

/// Sets status and information.
pub(crate) fn set_status(irp: PIRP, status: i32, information: u64) {
    let irp = own!(irp);
    irp.IoStatus.__bindgen_anon_1.Status = status;
    irp.IoStatus.Information = information;
}

/// Sets requestor thread and file object.
pub(crate) fn set_origin(
    irp: PIRP,
    thread: *mut core::ffi::c_void,
    file: *mut wdk_standin::wdk_sys::FILE_OBJECT,
) {
    let irp = own!(irp);
    // SAFETY: writing plain members of a union.
    let overlay = unsafe { &mut irp.Tail.Overlay };
    overlay.Thread = thread.cast();
    overlay.OriginalFileObject = file;
}

/// The requestor's thread.
pub(crate) fn thread(irp: PIRP) -> *mut core::ffi::c_void {
    let irp = own!(irp);
    // SAFETY: a plain member of a union.
    unsafe { irp.Tail.Overlay.Thread }.cast()
}
