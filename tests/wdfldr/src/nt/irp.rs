//! An IRP that the framework owns: from the dispatch routine to its completion.
//!
//! The framework uses `Tail.Overlay.DriverContext[0]`, which belongs to the
//! driver that holds the IRP, for the request's handle.

use core::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use wdk_standin::wdk_sys::{
    CCHAR, FILE_OBJECT, IO_STACK_LOCATION, IRP, NTSTATUS, PDEVICE_OBJECT, PMDL, PVOID,
    SL_PENDING_RETURNED,
    ntddk::{IoReleaseCancelSpinLock, IofCompleteRequest},
};

use crate::object::store::Handle;

/// What a cancel routine looks like.
pub(crate) type CancelRoutine = unsafe extern "C" fn(PDEVICE_OBJECT, *mut IRP);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Irp(*mut IRP);

// SAFETY: an IRP may be worked on by any thread; who may is the queue's rule.
unsafe impl Send for Irp {}
// SAFETY: as above.
unsafe impl Sync for Irp {}

impl Irp {
    /// # Safety
    /// A live IRP that the framework owns until it calls [`Irp::complete`].
    pub(crate) const unsafe fn new(irp: *mut IRP) -> Self {
        Self(irp)
    }

    pub(crate) const fn as_ptr(self) -> *mut IRP {
        self.0
    }

    fn fields(self) -> &'static IRP {
        // SAFETY: live until completion; fields read here are stable till then.
        unsafe { &*self.0 }
    }

    pub(crate) fn stack(self) -> &'static IO_STACK_LOCATION {
        // SAFETY: `Overlay` is the member in use while a driver holds an IRP.
        let overlay = unsafe { self.fields().Tail.Overlay };
        // SAFETY: likewise its stack pointer.
        let stack = unsafe {
            overlay
                .__bindgen_anon_2
                .__bindgen_anon_1
                .CurrentStackLocation
        };
        // SAFETY: the I/O manager set it to our location.
        unsafe { &*stack }
    }

    pub(crate) fn mark_pending(self) {
        let stack = ptr::from_ref(self.stack()).cast_mut();
        // SAFETY: our own stack location; one byte that only we write.
        let control = unsafe { &raw mut (*stack).Control };
        // SAFETY: as above.
        let old = unsafe { control.read() };
        // SAFETY: as above.
        unsafe { control.write(old | SL_PENDING_RETURNED as u8) };
    }

    pub(crate) fn file_object(self) -> *mut FILE_OBJECT {
        self.stack().FileObject
    }

    pub(crate) fn system_buffer(self) -> PVOID {
        // SAFETY: the member in use for buffered I/O; null otherwise.
        unsafe { self.fields().AssociatedIrp.SystemBuffer }
    }

    pub(crate) fn mdl(self) -> PMDL {
        self.fields().MdlAddress
    }

    pub(crate) fn user_mode(self) -> bool {
        self.fields().RequestorMode != 0
    }

    fn context(self) -> *mut u64 {
        // SAFETY: an address inside the IRP; nothing is read.
        let tail = unsafe { &raw mut (*self.0).Tail };
        tail.cast()
    }

    pub(crate) fn set_request(self, request: Handle) {
        // SAFETY: DriverContext[0] is the first field of the overlay, and ours.
        unsafe { self.context().write(request.0) };
    }

    pub(crate) fn request(self) -> Handle {
        // SAFETY: as above.
        Handle(unsafe { self.context().read() })
    }

    /// Whether somebody has asked for cancellation.
    pub(crate) fn cancel(self) -> bool {
        // SAFETY: an address inside the IRP; nothing is read.
        let flag = unsafe { &raw const (*self.0).Cancel };
        // SAFETY: the I/O manager sets it from another thread.
        unsafe { flag.read_volatile() != 0 }
    }

    /// `IoSetCancelRoutine`: whether there was one before. With `None`: whether
    /// we, and not `IoCancelIrp`, took it away.
    pub(crate) fn set_cancel_routine(self, routine: Option<CancelRoutine>) -> bool {
        let routine = routine.map_or(ptr::null_mut(), |routine| routine as *mut c_void);
        // SAFETY: an address inside the IRP; nothing is read.
        let field = unsafe { &raw mut (*self.0).CancelRoutine };
        // SAFETY: aligned, live, and the system changes it by exchange only.
        let field = unsafe { AtomicPtr::from_ptr(field.cast::<*mut c_void>()) };
        !field.swap(routine, Ordering::SeqCst).is_null()
    }

    /// First thing in a cancel routine.
    pub(crate) fn release_cancel_lock(self) {
        // SAFETY: IoCancelIrp took it and left the IRQL in the IRP.
        unsafe { IoReleaseCancelSpinLock(self.fields().CancelIrql) };
    }

    /// The framework's ownership ends.
    pub(crate) fn complete(self, status: NTSTATUS, information: usize, boost: CCHAR) {
        // SAFETY: an address inside the IRP; nothing is read.
        let block = unsafe { &raw mut (*self.0).IoStatus };
        // SAFETY: ours until IofCompleteRequest.
        let block = unsafe { &mut *block };
        block.__bindgen_anon_1.Status = status;
        block.Information = information as _;
        // SAFETY: no cancel routine is left, nobody uses the IRP after this.
        unsafe { IofCompleteRequest(self.0, boost) };
    }
}
