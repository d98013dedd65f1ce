//! Page tables of a specimen's own, equal to the system's but for one page: what
//! an attacker does who wants other rights, or another frame, behind a module's
//! address. Used on one processor, with interrupts off, for as long as a call.

#![allow(dead_code, reason = "each specimen uses what it needs")]

use wdk_standin::wdk_sys::{
    MM_COPY_ADDRESS, MM_COPY_MEMORY_PHYSICAL, NT_SUCCESS, PHYSICAL_ADDRESS, POOL_FLAG_NON_PAGED,
    PVOID,
    ntddk::{ExAllocatePool2, ExFreePoolWithTag, MmCopyMemory},
};

use crate::harness::{PAGE, TAG, physical_address};
use crate::instr;

const FRAME: u64 = 0x000F_FFFF_FFFF_F000;
const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const LARGE: u64 = 1 << 7;

/// PML4, page-directory pointers, directory and table on the way to one page.
pub(crate) struct Tables {
    levels: [*mut u64; 4],
    address: u64,
}

fn page() -> *mut u64 {
    // SAFETY: IRQL <= DISPATCH_LEVEL; a block of a page is page-aligned.
    unsafe { ExAllocatePool2(POOL_FLAG_NON_PAGED, PAGE as u64, TAG) }.cast()
}

/// Copies a page of physical memory.
fn copy(from: u64, to: *mut u64) -> bool {
    let mut source = MM_COPY_ADDRESS::default();
    let mut address = PHYSICAL_ADDRESS::default();
    address.QuadPart = from.cast_signed();
    source.__bindgen_anon_1.PhysicalAddress = address;
    let mut copied = 0;
    // SAFETY: the target is a page of ours; a source that is no RAM is refused.
    let status = unsafe {
        MmCopyMemory(
            to.cast(),
            source,
            PAGE as u64,
            MM_COPY_MEMORY_PHYSICAL,
            &raw mut copied,
        )
    };
    NT_SUCCESS(status)
}

impl Tables {
    /// Copies of the tables that lead to `address`, with `entry` for its page,
    /// made from the entry that is there (0 if the page is not mapped).
    pub(crate) fn with(address: u64, entry: impl Fn(u64) -> u64) -> Option<Self> {
        let tables = Self {
            levels: core::array::from_fn(|_| page()),
            address,
        };
        if tables.levels.iter().any(|level| level.is_null()) {
            return None;
        }
        let mut from = instr::cr3() & FRAME;
        for (depth, &level) in tables.levels.iter().enumerate() {
            if !copy(from, level) {
                return None;
            }
            let slot = tables.slot(depth);
            // SAFETY: an entry of our copy.
            let old = unsafe { slot.read_volatile() };
            let new = if let Some(&next) = tables.levels.get(depth + 1) {
                if old & PRESENT == 0 || old & LARGE != 0 {
                    return None;
                }
                from = old & FRAME;
                // What ring 3 may use is for the last entry to say.
                old & !FRAME | USER | physical_address(next as u64)
            } else {
                entry(old)
            };
            // SAFETY: as above.
            unsafe { slot.write_volatile(new) };
        }
        Some(tables)
    }

    fn slot(&self, depth: usize) -> *mut u64 {
        let shift = 39 - 9 * depth;
        let index = (self.address >> shift & 511) as usize;
        self.levels[depth].wrapping_add(index)
    }

    /// For CR3.
    pub(crate) fn root(&self) -> u64 {
        physical_address(self.levels[0] as u64)
    }

    /// Calls `routine` with these tables in use.
    pub(crate) fn call(&self, routine: unsafe extern "C" fn(u64) -> u64, argument: u64) -> u64 {
        let root = self.root();
        // SAFETY: the copies map all that the system's tables map, so nothing is
        // lost meanwhile; interrupts are off inside.
        unsafe { instr::call_with_root(root, self.address, routine, argument) }
    }
}

/// An entry for a present, writable, executable page at `frame`.
pub(crate) fn executable(frame: u64) -> u64 {
    frame & FRAME | PRESENT | WRITE | ACCESSED | 1 << 6
}

/// The same for ring 3.
pub(crate) fn executable_by_all(frame: u64) -> u64 {
    executable(frame) | USER
}

impl Drop for Tables {
    fn drop(&mut self) {
        for level in self.levels {
            if !level.is_null() {
                // SAFETY: allocated by `with`, in use nowhere.
                unsafe { ExFreePoolWithTag(level.cast::<core::ffi::c_void>() as PVOID, TAG) };
            }
        }
    }
}
