//! `wdk-alloc`: Rust's allocator on nonpaged pool.
//!
//! May be called at IRQL <= `DISPATCH_LEVEL`, as the pool it stands on.

use core::alloc::{GlobalAlloc, Layout};

use crate::wdk_sys::{
    POOL_FLAG_NON_PAGED, SIZE_T, ULONG,
    ntddk::{ExAllocatePool2, ExFreePool},
};

/// For `#[global_allocator]`. Alignments above pool's 16 bytes are not honoured,
/// as in the genuine crate; blocks of a page and more start on a page.
pub struct WdkAllocator;

/// The genuine crate's pool tag.
const RUST_TAG: ULONG = u32::from_ne_bytes(*b"rust");

// SAFETY: pool blocks are disjoint, live until freed and hold the size asked
// for; nothing here unwinds.
unsafe impl GlobalAlloc for WdkAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and tag may be asked for at IRQL <= DISPATCH_LEVEL.
        let block =
            unsafe { ExAllocatePool2(POOL_FLAG_NON_PAGED, layout.size() as SIZE_T, RUST_TAG) };
        block.cast()
    }

    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: the caller gives back what `alloc` gave it.
        unsafe { ExFreePool(block.cast()) };
    }
}
