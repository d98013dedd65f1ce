//! A system worker thread's call: how the framework gets to PASSIVE_LEVEL.

use core::ffi::c_void;

use wdk_standin::wdk_sys::{
    _WORK_QUEUE_TYPE, PDEVICE_OBJECT, PIO_WORKITEM,
    ntddk::{IoAllocateWorkItem, IoFreeWorkItem, IoQueueWorkItem},
};

/// A work item that calls `run(context)`.
pub(crate) struct Worker(PIO_WORKITEM);

// SAFETY: the kernel serialises the item; we hold its address only.
unsafe impl Send for Worker {}
// SAFETY: as above.
unsafe impl Sync for Worker {}

impl Worker {
    pub(crate) fn new(device: PDEVICE_OBJECT) -> Option<Self> {
        // SAFETY: the device object outlives its framework objects.
        let item = unsafe { IoAllocateWorkItem(device) };
        (!item.is_null()).then_some(Self(item))
    }

    /// Queues the item, which must not be queued at this moment.
    pub(crate) fn queue(
        &self,
        run: unsafe extern "C" fn(PDEVICE_OBJECT, *mut c_void),
        context: u64,
    ) {
        // SAFETY: the caller keeps track that the item is not queued already.
        unsafe {
            IoQueueWorkItem(
                self.0,
                Some(run),
                _WORK_QUEUE_TYPE::DelayedWorkQueue,
                context as *mut c_void,
            );
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: its owner has waited until it is not queued.
        unsafe { IoFreeWorkItem(self.0) };
    }
}
