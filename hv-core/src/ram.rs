//! Which physical addresses are RAM: what root mode may read.
//!
//! The list is made at the start. Memory can be added to a running machine, so
//! the driver tells a new list from time to time; two places are used in turn,
//! and whoever reads keeps to the one that is current. Writers hold the
//! transition lock.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use ept::addr::{Gpa, PageSize};
use ept::memtype::{MemoryType, MtrrState};

use crate::platform::Ram;

/// The list in use, and the place for the next.
#[derive(Debug)]
pub struct CurrentRam {
    lists: [UnsafeCell<Ram>; 2],
    /// Counts the lists; its lowest bit is the index of the one in use.
    current: AtomicUsize,
}

// SAFETY: the current list is only read; the other one is written by the holder
// of the transition lock alone.
unsafe impl Sync for CurrentRam {}

impl CurrentRam {
    /// The list.
    #[must_use]
    pub fn get(&self) -> &Ram {
        let index = self.current.load(Ordering::Acquire) & 1;
        // SAFETY: the current list is not written.
        unsafe { &*self.lists[index].get() }
    }

    /// A number that is another one for every list.
    #[must_use]
    #[inline]
    pub fn epoch(&self) -> usize {
        self.current.load(Ordering::Acquire)
    }

    /// The first list, before anybody reads.
    pub fn first(&mut self) -> &mut Ram {
        self.current.store(0, Ordering::Relaxed);
        self.lists[0].get_mut()
    }

    /// Takes a new list, if it is one: ascending, without overlap, and no memory
    /// that is mapped for a device. The transition lock is held.
    pub fn replace(&self, new: &Ram, mtrr: &MtrrState, limit: u64) -> bool {
        if !is_plausible(new, mtrr, limit) {
            return false;
        }
        let next = self.current.load(Ordering::Acquire).wrapping_add(1);
        // SAFETY: nobody reads the list that is not current, and the lock keeps
        // other writers away.
        unsafe { self.lists[next & 1].get().write(*new) };
        self.current.store(next, Ordering::Release);
        true
    }
}

/// What a list of RAM must be. RAM is cached; device memory that a false list
/// named would be uncached, and reading it can have effects.
fn is_plausible(ram: &Ram, mtrr: &MtrrState, limit: u64) -> bool {
    let mut end = 0;
    ram.count > 0
        && ram.count <= ram.ranges.len()
        && ram.iter().all(|range| {
            let starts_above = range.base >= end;
            let Some(last) = range.base.checked_add(range.bytes) else {
                return false;
            };
            end = last;
            starts_above
                && range.bytes > 0
                && last <= limit
                && range.base.is_multiple_of(4096)
                && [range.base, last - 4096].iter().all(|page| {
                    mtrr.type_of_range(Gpa::new(*page & !0xFFF), PageSize::Size4K)
                        == Some(MemoryType::Wb)
                })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::RamRange;

    /// Write-back but for 3 to 4 GB.
    fn mtrr() -> MtrrState {
        const MASK: u64 = ((1 << 39) - (1 << 30)) | 1 << 11;
        MtrrState::new(0x508, 0x806, [0; 11], &[(0xC000_0000, MASK)], 39)
    }

    fn list(ranges: &[(u64, u64)]) -> Ram {
        let mut ram = Ram::empty();
        for &(base, bytes) in ranges {
            assert!(ram.push(RamRange { base, bytes }));
        }
        ram
    }

    #[test]
    fn only_a_plausible_list_is_taken() {
        let (mtrr, limit) = (mtrr(), 1 << 39);
        let taken = |ranges: &[(u64, u64)]| is_plausible(&list(ranges), &mtrr, limit);
        assert!(taken(&[(0x1000, 0x9_E000), (0x10_0000, 0x1000_0000)]));
        assert!(taken(&[(0x10_0000, 0x1000_0000), (1 << 32, 1 << 30)]));
        assert!(!taken(&[]));
        assert!(
            !taken(&[(0x10_0000, 0x1000), (0x10_0000, 0x1000)]),
            "overlap"
        );
        assert!(!taken(&[(0x20_0000, 0x1000), (0x10_0000, 0x1000)]), "order");
        assert!(!taken(&[(0x10_0000, 0)]), "empty");
        assert!(!taken(&[(0xC000_0000, 0x1000)]), "a device");
        assert!(!taken(&[(0xBFFF_F000, 0x2000)]), "its end is a device");
        assert!(taken(&[(0xBFFF_E000, 0x2000)]), "just below a device");
        assert!(!taken(&[(limit - 0x1000, 0x2000)]), "out of reach");
        assert!(!taken(&[(u64::MAX - 0xFFF, 0x2000)]), "overflow");
        assert!(!taken(&[(0x10_0800, 0x1000)]), "no page");
    }

    #[test]
    fn the_lists_take_turns() {
        let mut ram = CurrentRam {
            lists: [Ram::empty(), Ram::empty()].map(UnsafeCell::new),
            current: AtomicUsize::new(0),
        };
        *ram.first() = list(&[(0x10_0000, 0x1000)]);
        let mut epochs = std::collections::BTreeSet::from([ram.epoch()]);
        for added in [0x20_0000, 0x30_0000, 0x40_0000] {
            assert!(!ram.get().contains(added));
            assert!(ram.replace(
                &list(&[(0x10_0000, 0x1000), (added, 0x1000)]),
                &mtrr(),
                1 << 39
            ));
            assert!(ram.get().contains(added) && ram.get().contains(0x10_0000));
            assert!(epochs.insert(ram.epoch()), "an epoch came back");
        }
        assert!(!ram.replace(&Ram::empty(), &mtrr(), 1 << 39));
        assert!(
            ram.get().contains(0x40_0000),
            "a refused list changes nothing"
        );
    }
}
