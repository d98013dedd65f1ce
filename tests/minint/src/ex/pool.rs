//! Pool for blocks that the kernel hands to drivers.
//!
//! IRQL at most DISPATCH_LEVEL. The kernel's own data lives in `alloc`'s types.

use core::ffi::c_void;

use super::nt;

/// `POOL_FLAG_NON_PAGED`: zeroed, not executable.
const POOL_FLAG_NON_PAGED: u64 = 0x40;

/// A zeroed block, NULL when there is none.
pub(crate) fn allocate(bytes: usize, tag: u32) -> *mut c_void {
    // SAFETY: any size and tag are allowed; NULL says that there is no memory.
    unsafe { nt::ExAllocatePool2(POOL_FLAG_NON_PAGED, bytes as u64, tag) }
}

/// Frees a block of [`allocate`].
pub(crate) fn free(block: *mut c_void, tag: u32) {
    // SAFETY: the pool itself checks the block and its tag.
    unsafe { nt::ExFreePoolWithTag(block, tag) };
}
