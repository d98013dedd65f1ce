//! The global allocator of the kernel's own Rust code: pool with the tag `MiNT`.
//!
//! IRQL at most DISPATCH_LEVEL. Running out of memory is a bugcheck of its own.

use core::alloc::{GlobalAlloc, Layout};

use super::{PAGE_SIZE, pool};

const TAG: u32 = u32::from_le_bytes(*b"MiNT");

struct Heap;

// SAFETY: pool blocks are aligned to 16 bytes, or to pages from a page upward, and
// do not overlap.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        assert!(layout.align() <= PAGE_SIZE, "alignment beyond a page");
        let bytes = if layout.align() > 16 {
            layout.size().max(PAGE_SIZE)
        } else {
            layout.size()
        };
        pool::allocate(bytes, TAG, false, false, 0)
            .map_or(core::ptr::null_mut(), |address| address as *mut u8)
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        pool::free(block as usize, Some(TAG), "heap");
    }
}

#[global_allocator]
static HEAP: Heap = Heap;
