//! Address space of the kernel half, by page: pool, system PTEs, driver images.
//!
//! One bitmap a region, set bits are taken. Next-fit, and an unmapped guard page
//! after each allocation: a stale pointer or an overrun meets an empty page, not
//! the next owner. IRQL at most DISPATCH_LEVEL.

use super::{
    IMAGE_BASE, IMAGE_SPACE, PAGE_SIZE, POOL_BASE, POOL_SPACE, SYSTEM_BASE, SYSTEM_SPACE, physical,
};
use crate::ke::spinlock::SpinLock;

/// One region.
#[derive(Debug)]
pub struct Region {
    base: usize,
    space: usize,
    state: SpinLock<State>,
}

#[derive(Debug)]
struct State {
    bitmap: &'static mut [u64],
    hint: usize,
}

/// Addresses of the pool.
pub static POOL: Region = Region::new(POOL_BASE, POOL_SPACE);
/// Addresses of stacks and mappings.
pub static SYSTEM: Region = Region::new(SYSTEM_BASE, SYSTEM_SPACE);
/// Addresses of driver images.
pub static IMAGES: Region = Region::new(IMAGE_BASE, IMAGE_SPACE);

#[unsafe(link_section = "INIT")]
pub(crate) fn initialize() {
    for region in [&POOL, &SYSTEM, &IMAGES] {
        let words = region.space / PAGE_SIZE / 64;
        let pages = super::pages(words * 8);
        let Some(physical) = physical::allocate_run(pages, 0x10_0000, u64::MAX, 1, 0) else {
            crate::ke::bugcheck::out_of_memory("region bitmap")
        };
        for page in 0..pages {
            physical::fill(physical + (page * PAGE_SIZE) as u64, 0);
        }
        // SAFETY: pages just allocated for this purpose and cleared; they are never freed.
        let bitmap = unsafe {
            core::slice::from_raw_parts_mut(physical::direct(physical).cast::<u64>(), words)
        };
        region.state.lock().bitmap = bitmap;
    }
}

impl Region {
    const fn new(base: usize, space: usize) -> Self {
        Self {
            base,
            space,
            state: SpinLock::new(State {
                bitmap: &mut [],
                hint: 0,
            }),
        }
    }

    /// Whether the address lies in the region.
    pub fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.base) < self.space
    }

    /// Takes `pages` pages of address space and a guard page; nothing is mapped yet.
    pub fn reserve(&self, pages: usize) -> Option<usize> {
        let mut state = self.state.lock();
        let total = state.bitmap.len() * 64;
        let need = pages.checked_add(1).filter(|&need| need < total)?;
        let from = state.hint;
        let found = state
            .find(need, from, total)
            .or_else(|| state.find(need, 0, total))?;
        for page in found..found + need {
            state.bitmap[page / 64] |= 1 << (page % 64);
        }
        state.hint = (found + need) % total;
        Some(self.base + found * PAGE_SIZE)
    }

    /// Gives the address space of a [`reserve`](Self::reserve) back; nothing is mapped any more.
    pub fn release(&self, address: usize, pages: usize) {
        let first = (address - self.base) / PAGE_SIZE;
        let mut state = self.state.lock();
        for page in first..=first + pages {
            let bit = 1 << (page % 64);
            assert!(
                state.bitmap[page / 64] & bit != 0,
                "{address:#x} is released twice"
            );
            state.bitmap[page / 64] &= !bit;
        }
    }
}

impl State {
    fn find(&self, need: usize, from: usize, total: usize) -> Option<usize> {
        let mut start = from;
        'search: while start + need <= total {
            if start.is_multiple_of(64) && self.bitmap[start / 64] == u64::MAX {
                start += 64;
                continue;
            }
            let mut page = start;
            while page < start + need {
                let word = self.bitmap[page / 64];
                if page.is_multiple_of(64) && word == 0 {
                    page += 64;
                    continue;
                }
                if word >> (page % 64) & 1 == 1 {
                    start = page + 1;
                    continue 'search;
                }
                page += 1;
            }
            return Some(start);
        }
        None
    }
}
