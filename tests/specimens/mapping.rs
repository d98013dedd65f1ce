//! A second, writable view of memory that is read-only where it is used: an MDL
//! over it, locked and mapped. The way of hooks and stomping. PASSIVE_LEVEL.

use core::ptr;
use core::sync::atomic::{Ordering, compiler_fence};

use wdk_standin::wdk_sys::{
    _LOCK_OPERATION, _MEMORY_CACHING_TYPE, PMDL, PVOID,
    ntddk::{
        IoAllocateMdl, IoFreeMdl, MmMapLockedPagesSpecifyCache, MmProbeAndLockPages, MmUnlockPages,
        MmUnmapLockedPages,
    },
};

use crate::harness::{KERNEL_MODE, NORMAL_PRIORITY};

/// The view; dropping it gives it back.
pub(crate) struct Mapping {
    mdl: PMDL,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: the view belongs to whoever holds the value.
unsafe impl Send for Mapping {}

impl Mapping {
    /// A view of resident system memory.
    pub(crate) fn of(address: u64, bytes: usize) -> Option<Self> {
        let length = u32::try_from(bytes).ok()?;
        // SAFETY: no IRP; the result is checked.
        let mdl = unsafe { IoAllocateMdl(address as PVOID, length, 0, 0, ptr::null_mut()) };
        if mdl.is_null() {
            return None;
        }
        // SAFETY: resident: reading it cannot be refused.
        unsafe { MmProbeAndLockPages(mdl, KERNEL_MODE, _LOCK_OPERATION::IoReadAccess) };
        // SAFETY: the pages are locked; failure gives null.
        let at = unsafe {
            MmMapLockedPagesSpecifyCache(
                mdl,
                KERNEL_MODE,
                _MEMORY_CACHING_TYPE::MmCached,
                ptr::null_mut(),
                0,
                NORMAL_PRIORITY,
            )
        };
        let mapping = Self {
            mdl,
            at: at.cast(),
            bytes,
        };
        // Dropping it gives back what there is.
        (!mapping.at.is_null()).then_some(mapping)
    }

    /// Reads from the start of the view.
    pub(crate) fn read(&self, into: &mut [u8]) {
        let bytes = into.len().min(self.bytes);
        // SAFETY: mapped, and that long; `into` is elsewhere.
        unsafe { ptr::copy_nonoverlapping(self.at, into.as_mut_ptr(), bytes) };
    }

    /// Writes to the start of the view.
    pub(crate) fn write(&self, from: &[u8]) {
        let bytes = from.len().min(self.bytes);
        // SAFETY: mapped, writable, and that long.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.at, bytes) };
        // Calls of what was written must not move before it.
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.at.is_null() {
            // SAFETY: mapped by `of`.
            unsafe { MmUnmapLockedPages(self.at.cast(), self.mdl) };
        }
        // SAFETY: locked by `of`.
        unsafe { MmUnlockPages(self.mdl) };
        // SAFETY: allocated by `of`.
        unsafe { IoFreeMdl(self.mdl) };
    }
}
