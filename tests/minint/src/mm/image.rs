//! Memory of driver images: near the kernel, by pages, with rights per section.
//!
//! The loader calls these at PASSIVE_LEVEL. A discarded section's pages are gone
//! from the address space; the image's addresses stay reserved until it is released.

use alloc::collections::BTreeMap;

pub use super::paging::Rights;
use super::{PAGE_SIZE, paging, physical, pool, region, tlb};
use crate::hal::boot;
use crate::ke::spinlock::SpinLock;

/// Images by address: pages.
static IMAGES: SpinLock<BTreeMap<usize, usize>> = SpinLock::new(BTreeMap::new());

/// Page-aligned, cleared, read-write memory for an image of `bytes` bytes.
pub fn reserve(bytes: usize) -> Option<*mut u8> {
    let pages = super::pages(bytes);
    let address = region::IMAGES.reserve(pages)?;
    for page in 0..pages {
        let at = address + page * PAGE_SIZE;
        let Some(frame) = physical::allocate_zeroed() else {
            pool::unmap_pages(address, page);
            region::IMAGES.release(address, pages);
            return None;
        };
        physical::set_owner(frame, at as u64);
        paging::map_kernel(at, frame, Rights::ReadWrite.kernel_bits());
    }
    IMAGES.lock().insert(address, pages);
    Some(address as *mut u8)
}

/// Gives all pages of the span these rights; pages that were discarded stay away.
pub fn protect(address: *mut u8, bytes: usize, rights: Rights) {
    let start = address as usize & !(PAGE_SIZE - 1);
    let pages = super::pages(address as usize + bytes - start);
    for page in 0..pages {
        paging::set_bits(
            paging::system_root(),
            start + page * PAGE_SIZE,
            rights.kernel_bits(),
        );
    }
    tlb::flush(start, pages);
}

/// Unmaps and frees the whole pages of the span.
pub fn discard(address: *mut u8, bytes: usize) {
    let start = (address as usize).next_multiple_of(PAGE_SIZE);
    let end = (address as usize + bytes).next_multiple_of(PAGE_SIZE);
    pool::unmap_pages(start, (end - start) / PAGE_SIZE);
}

/// Frees an image.
pub fn release(address: *mut u8) {
    let pages = IMAGES.lock().remove(&(address as usize));
    require!(pages.is_some(), "image", "{address:p} is no image");
    if let Some(pages) = pages {
        pool::unmap_pages(address as usize, pages);
        region::IMAGES.release(address as usize, pages);
    }
}

/// Discards the kernel's own INIT section; its frames belong to the boot image and
/// are not reused.
pub fn discard_init_section() {
    let base = boot::kernel_base();
    let (offset, bytes) = init_section(base);
    if bytes == 0 {
        return;
    }
    let pages = super::pages(bytes);
    for page in 0..pages {
        let _ = paging::unmap(paging::system_root(), base + offset + page * PAGE_SIZE);
    }
    tlb::flush(base + offset, pages);
}

/// Offset and length of the section `INIT` by the headers in memory, (0, 0) if there is none.
fn init_section(base: usize) -> (usize, usize) {
    let word = |offset: usize| {
        let at = (base + offset) as *const u32;
        // SAFETY: inside the kernel's headers, which are mapped.
        unsafe { at.read_unaligned() }
    };
    let nt = word(0x3C) as usize;
    let sections = (word(nt + 4) >> 16) as usize;
    let table = nt + 24 + (word(nt + 20) & 0xFFFF) as usize;
    for number in 0..sections {
        let row = table + number * 40;
        if word(row) == u32::from_le_bytes(*b"INIT") && word(row + 4) == 0 {
            return (word(row + 12) as usize, word(row + 8) as usize);
        }
    }
    (0, 0)
}
