//! Context space: what a driver hangs on an object.
//!
//! Each block is zeroed, nonpaged, 16-byte aligned and preceded by its object's
//! handle, so that `WdfObjectContextGetObject` needs no search.

use alloc::{boxed::Box, vec};

use wdk_standin::wdk_sys::{
    PCWDF_OBJECT_CONTEXT_TYPE_INFO, PFN_WDF_OBJECT_CONTEXT_CLEANUP, PFN_WDF_OBJECT_CONTEXT_DESTROY,
    PVOID,
};

use super::store::Handle;

/// One context, or, without a type, just the two callbacks of the object.
pub(crate) struct Context {
    unique_type: PCWDF_OBJECT_CONTEXT_TYPE_INFO,
    memory: Box<[u128]>,
    pub(crate) cleanup: PFN_WDF_OBJECT_CONTEXT_CLEANUP,
    pub(crate) destroy: PFN_WDF_OBJECT_CONTEXT_DESTROY,
}

// SAFETY: the type info is the driver's static data; the memory is ours.
unsafe impl Send for Context {}

impl Context {
    pub(crate) fn new(
        object: Handle,
        unique_type: PCWDF_OBJECT_CONTEXT_TYPE_INFO,
        bytes: usize,
        cleanup: PFN_WDF_OBJECT_CONTEXT_CLEANUP,
        destroy: PFN_WDF_OBJECT_CONTEXT_DESTROY,
    ) -> Self {
        let mut memory = if unique_type.is_null() {
            vec![]
        } else {
            vec![0_u128; 1 + bytes.div_ceil(16)]
        };
        if let Some(header) = memory.first_mut() {
            *header = u128::from(object.0);
        }
        Self {
            unique_type,
            memory: memory.into_boxed_slice(),
            cleanup,
            destroy,
        }
    }

    /// The driver's block, if this context is of that type.
    pub(crate) fn block(&self, unique_type: PCWDF_OBJECT_CONTEXT_TYPE_INFO) -> Option<PVOID> {
        if unique_type.is_null() || self.unique_type != unique_type {
            return None;
        }
        let block = self.memory.get(1..)?;
        Some(block.as_ptr().cast_mut().cast())
    }

    /// The handle before a block.
    ///
    /// # Safety
    /// `block` came from [`Context::block`] and its object lives.
    pub(crate) unsafe fn owner(block: PVOID) -> Handle {
        let header = block.cast::<u128>().wrapping_sub(1).cast::<u64>();
        // SAFETY: the block is preceded by its header.
        Handle(unsafe { header.read() })
    }
}
