//! Memory: physical pages, page tables, pool, system mappings, MDLs.
//!
//! Layout of the kernel half (constant, as with KASLR off):
//!
//! | from | what |
//! |---|---|
//! | `FFFFAA00_00000000` | all RAM, read-write, not executable (the kernel's own window) |
//! | `FFFFBD80_00000000` | nonpaged pool |
//! | `FFFFD000_00000000` | system PTEs: stacks, MDL mappings, device memory |
//! | `FFFFF780_00000000` | `KUSER_SHARED_DATA`, read-only |
//! | `FFFFF805_40000000` | `ntoskrnl.exe` |
//! | `FFFFF805_50000000` | driver images |
//!
//! Lock order: `track` → `pool` → `region` → `paging` → `physical`. All are
//! [`crate::ke::spinlock::SpinLock`]s, taken at DISPATCH_LEVEL or below; a TLB
//! shoot-down may be sent under them, because a processor that waits for such a
//! lock keeps answering.

pub mod contiguous;
pub mod heap;
pub mod image;
pub mod io_space;
pub mod mdl;
pub mod paging;
pub mod physical;
pub mod pool;
pub mod query;
pub mod region;
pub mod tlb;
pub mod track;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// Virtual address at which physical address 0 appears (`bootimg::layout`).
pub const DIRECT_MAP: usize = 0xFFFF_AA00_0000_0000;
/// Nonpaged pool.
pub const POOL_BASE: usize = 0xFFFF_BD80_0000_0000;
/// Bytes of address space for the pool.
pub const POOL_SPACE: usize = 8 << 30;
/// System PTEs.
pub const SYSTEM_BASE: usize = 0xFFFF_D000_0000_0000;
/// Bytes of address space for system PTEs.
pub const SYSTEM_SPACE: usize = 4 << 30;
/// Driver images.
pub const IMAGE_BASE: usize = 0xFFFF_F805_5000_0000;
/// Bytes of address space for driver images.
pub const IMAGE_SPACE: usize = 1 << 30;

/// `KUSER_SHARED_DATA`.
pub const SHARED_DATA: usize = 0xFFFF_F780_0000_0000;

/// Start of the kernel half.
pub const KERNEL_HALF: usize = 0xFFFF_8000_0000_0000;
/// End of the user half.
pub const USER_END: usize = 0x0000_7FFF_FFFF_0000;

/// Pages that `bytes` bytes need.
pub const fn pages(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_SIZE)
}

pub use image::discard_init_section;

/// Builds the memory manager on the bootstrap processor; the global allocator
/// works from here on.
pub(crate) fn initialize() {
    physical::initialize();
    paging::initialize();
    region::initialize();
}
